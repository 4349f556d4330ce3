using System.Text;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native.Cuda;
using Xunit;

namespace LoraTrainer.Engine.Tests.Devices;

/// <summary>The table of matrix product algorithms that checkpoints keep.</summary>
public sealed class GemmAlgorithmsTests
{
    private static readonly GemmKey First = new(3, 5, 7, false, true, true, 7, 7, 5, 16, 16, 2, true, 1 << 20);

    private static readonly GemmKey Second = First with { TransposeA = true };

    [Fact]
    public void Export_IsTextInTheOrderOfItsKeys()
    {
        GemmAlgorithms table = Table(("120100", "card"), (Second, 2), (First, 1));

        Assert.Equal(
            $"gemm-algorithms 1\ncublasLt 120100\ndevice card\n3x5x7NT:bf16:7,7,5:16,16,2:=:1048576 {Hex(1)}\n3x5x7TT:bf16:7,7,5:16,16,2:=:1048576 {Hex(2)}\n",
            Encoding.UTF8.GetString(table.Export()));
        Assert.Equal(table.Export(), Table(("120100", "card"), (First, 1), (Second, 2)).Export());
    }

    [Fact]
    public void Import_SameLibraryAndDevice_IsTheSameTable()
    {
        byte[] exported = Table(("120100", "NVIDIA H100 80GB HBM3"), (First, 1), (Second, 2)).Export();
        GemmAlgorithms table = Table(("120100", "NVIDIA H100 80GB HBM3"));

        Assert.True(table.TryImport(exported, out _));
        Assert.Equal(exported, table.Export());
        Assert.True(table.TryGet(Second, out MatmulAlgorithm algorithm));
        Assert.Equal(Filled(2), ((ReadOnlySpan<byte>)algorithm).ToArray());
    }

    [Theory]
    [InlineData("120200", "card")]
    [InlineData("120100", "other card")]
    public void Import_OtherLibraryOrDevice_IsRefusedWithAReason(string library, string device)
    {
        GemmAlgorithms table = Table((library, device));

        Assert.False(table.TryImport(Table(("120100", "card"), (First, 1)).Export(), out string? reason));
        Assert.Equal($"the algorithms of the matrix products were chosen for cuBLASLt 120100 on card; here is {library} on {device}, so they are chosen anew", reason);
        Assert.Equal(0, table.Count);
    }

    [Fact]
    public void Import_KnownEntry_StaysAsItIs()
    {
        GemmAlgorithms table = Table(("1", "card"), (First, 9));

        Assert.True(table.TryImport(Table(("1", "card"), (First, 1), (Second, 2)).Export(), out _));
        Assert.Equal(Table(("1", "card"), (First, 9), (Second, 2)).Export(), table.Export());
    }

    [Theory]
    [InlineData("")]
    [InlineData("gemm-algorithms 2\ncublasLt 1\ndevice card\n")]
    [InlineData("gemm-algorithms 1\ncublasLt 1\n")]
    [InlineData("gemm-algorithms 1\ncublasLt 1\ndevice card\nkey 00")]
    [InlineData("gemm-algorithms 1\ncublasLt 1\ndevice card\nkey 00\n")]
    [InlineData("gemm-algorithms 1\ncublasLt 1\ndevice card\nkey\n")]
    public void Import_NotATable_Throws(string text) => Assert.Throws<FormatException>(() => Table(("1", "card")).TryImport(Encoding.UTF8.GetBytes(text), out _));

    [Fact]
    public void Import_TornEntry_ThrowsAndTakesNothing()
    {
        byte[] exported = Table(("1", "card"), (First, 1), (Second, 2)).Export();
        GemmAlgorithms table = Table(("1", "card"));

        Assert.Throws<FormatException>(() => table.TryImport([.. exported[..^2], (byte)'\n'], out _));
        Assert.Throws<FormatException>(() => table.TryImport([.. exported[..^1], (byte)'0', (byte)'0', (byte)'\n'], out _));
        Assert.Equal(0, table.Count);
    }

    [Fact]
    public void Key_EveryPartCounts()
    {
        GemmKey[] others =
        [
            First with { M = 4 }, First with { N = 4 }, First with { K = 4 }, First with { TransposeA = true }, First with { TransposeB = false }, First with { OutputIsBf16 = false },
            First with { LeadingA = 8 }, First with { LeadingB = 8 }, First with { LeadingC = 8 }, First with { AlignmentA = 8 }, First with { AlignmentB = 8 }, First with { AlignmentC = 4 },
            First with { BetaIsZero = false }, First with { WorkspaceBytes = 0 },
        ];

        Assert.Equal(others.Length + 1, others.Append(First).Select(key => key.ToString()).Distinct().Count());
    }

    [Theory]
    [InlineData(0x1000, 16)]
    [InlineData(0x1010, 16)]
    [InlineData(0x1018, 8)]
    [InlineData(0x1004, 4)]
    [InlineData(0x1002, 2)]
    [InlineData(0, 16)]
    public void Alignment_IsTheLargestThatTheLibraryCaresFor(int address, int expected) => Assert.Equal(expected, CudaGemm.AlignmentOf(address));

    private static GemmAlgorithms Table((string Library, string Device) owner, params (GemmKey Key, byte Fill)[] entries)
    {
        var table = new GemmAlgorithms(owner.Library, owner.Device);
        foreach ((GemmKey key, byte fill) in entries)
        {
            MatmulAlgorithm algorithm = default;
            ((Span<byte>)algorithm).Fill(fill);
            table.Add(key, algorithm);
        }

        return table;
    }

    private static byte[] Filled(byte value) => [.. Enumerable.Repeat(value, MatmulAlgorithm.SizeBytes)];

    private static string Hex(byte value) => Convert.ToHexStringLower(Filled(value));
}
