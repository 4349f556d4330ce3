using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using System.Security.Cryptography;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Ops;

/// <summary>The same products and quantizations in processes whose runtime may not use some instruction sets: the same bits.</summary>
public sealed unsafe class GemmInstructionSetTests
{
    private const string OutputVariable = "LT_TEST_INSTRUCTION_SETS_OUTPUT";
    private static readonly string[] Switches = ["DOTNET_EnableAVX512", "DOTNET_EnableAVX2", "DOTNET_EnableHWIntrinsic"];

    [Fact]
    public void Results_WithoutInstructionSets_AreTheSameBits()
    {
        if (Environment.GetEnvironmentVariable(OutputVariable) is { } output)
        {
            // This is the child: what was switched off must be off, or the comparison would compare the same code.
            Assert.False(Avx512F.IsSupported && IsOff("DOTNET_EnableAVX512"));
            Assert.False(Avx2.IsSupported && IsOff("DOTNET_EnableAVX2"));
            Assert.False(Sse41.IsSupported && IsOff("DOTNET_EnableHWIntrinsic"));
            Assert.Contains(Switches, IsOff);
            File.WriteAllText(output, Hash());
            return;
        }

        string expected = Hash();
        using var folder = new TemporaryFolder();
        foreach (string variable in Switches)
        {
            string file = folder.File(variable);
            string log = RunChild(variable, file);
            Assert.True(File.Exists(file), $"the child with {variable}=0 wrote nothing:\n{log}");
            Assert.True(expected == File.ReadAllText(file), $"with {variable}=0 the results have other bits");
        }
    }

    private static bool IsOff(string variable) => Environment.GetEnvironmentVariable(variable) == "0";

    private static string RunChild(string variable, string output)
    {
        var start = new ProcessStartInfo("dotnet")
        {
            RedirectStandardOutput = true,
            ArgumentList =
            {
                "exec", typeof(GemmInstructionSetTests).Assembly.Location,
                "-method", $"{typeof(GemmInstructionSetTests).FullName}.{nameof(Results_WithoutInstructionSets_AreTheSameBits)}",
            },
        };
        start.Environment[variable] = "0";
        start.Environment[OutputVariable] = output;
        using Process child = Process.Start(start)!;
        string log = child.StandardOutput.ReadToEnd();
        child.WaitForExit();
        return log;
    }

    /// <summary>One hash over products of every operand kind and over quantized tensors of every format.</summary>
    private static string Hash()
    {
        using var pool = new WorkerPool(2);
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach ((int m, int n, int k) in new[] { (1, 70, 64), (13, 51, 259), (64, 64, 64), (21, 33, 7) })
        {
            foreach (OperandKind kind in Enum.GetValues<OperandKind>())
            {
                for (int mode = 0; mode < 4; mode++)
                {
                    OperandKind kindA = kind == OperandKind.BF16 ? kind : OperandKind.F32;
                    using var problem = new GemmProblem(mode, m, n, k, kindA, (mode & 1) != 0, kind, (mode & 2) != 0, 0.3f, accumulate: mode == 0);
                    hash.AppendData(MemoryMarshal.AsBytes<float>(problem.Run(pool, GemmKernels.Best)));
                }
            }
        }

        const int count = 10_007;
        var random = new Random(5);
        float[] absmax = new float[(count + 63) / 64], nested = new float[2];
        byte[] source = new byte[count * sizeof(float)], packed = new byte[(count + 1) / 2], codes = new byte[absmax.Length];
        foreach (FloatFormat format in Enum.GetValues<FloatFormat>())
        {
            for (int i = 0; i < count; i++)
            {
                float value = (random.NextSingle() - 0.5f) * MathF.ScaleB(1, -random.Next(20));
                byte[] bytes = format switch
                {
                    FloatFormat.F32 => BitConverter.GetBytes(value),
                    FloatFormat.BF16 => BitConverter.GetBytes((ushort)(BitConverter.SingleToUInt32Bits(value) >> 16)),
                    _ => BitConverter.GetBytes((Half)value),
                };
                bytes.CopyTo(source, i * bytes.Length);
            }

            fixed (byte* s = source, p = packed, c = codes)
            fixed (float* a = absmax, d = nested)
            {
                BlockwiseFourBit.Quantize(pool, FourBitCode.Fp4, s, format, count, p, a);
                hash.AppendData(packed);
                BlockwiseFourBit.Quantize(pool, FourBitCode.Nf4, s, format, count, p, a);
                DoubleQuantization.Quantize(pool, a, absmax.Length, DoubleQuantization.Offset(a, absmax.Length), c, d);
            }

            hash.AppendData(packed);
            hash.AppendData(codes);
            hash.AppendData(MemoryMarshal.AsBytes<float>(absmax));
            hash.AppendData(MemoryMarshal.AsBytes<float>(nested));
        }

        return Convert.ToHexString(hash.GetHashAndReset());
    }
}
