using System.Runtime.InteropServices;
using System.Text;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Devices;

/// <summary>Matrix products of the CUDA device against double precision, on the stand-in cuBLASLt.</summary>
[Collection(CudaStandin.Collection)]
[Trait("Category", "Emulator")]
public sealed class CudaGemmTests
{
    [Theory]
    [CombinatorialCases]
    public void Multiply_MatchesDoublePrecision(bool transposeA, bool transposeB, DType output, float beta, bool lazy)
    {
        using CudaDevice device = CudaTestKernels.Open();
        CudaStandin.Configure(lazy: lazy);
        foreach ((int m, int n, int k, int extra) in ((int, int, int, int)[])[(1, 1, 1, 0), (8, 16, 24, 0), (5, 7, 9, 3), (33, 1, 17, 0), (2, 40, 64, 8)])
        {
            Check(device, new Problem(m, n, k, extra, transposeA, transposeB, output, 0.5f, beta));
        }
    }

    /// <summary>Rows of other tensors start anywhere: the algorithm must be chosen for the alignment that there is.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(4)]
    [InlineData(8)]
    public void Multiply_AnyAlignment_Works(int shift)
    {
        using CudaDevice device = CudaTestKernels.Open();
        Check(device, new Problem(6, 10, 12, 0, false, true, DType.BF16, 1, 0) { Shift = shift });
        Check(device, new Problem(6, 10, 12, 0, false, true, DType.F32, 1, 1) { Shift = shift });
    }

    [Fact]
    public void Multiply_WithoutWorkspace_Works()
    {
        using CudaDevice device = CudaTestKernels.Open();
        Check(device, new Problem(6, 10, 12, 0, false, false, DType.F32, 1, 0) { WorkspaceBytes = 0 });
    }

    [Fact]
    public void Multiply_EmptyResult_DoesNothing()
    {
        using CudaDevice device = CudaTestKernels.Open();
        device.Multiply(new GemmCall { M = 0, N = 4, K = 4, A = 0, LeadingA = 4, B = 0, LeadingB = 4, C = 0, LeadingC = 4, OutputType = DType.F32 });

        Assert.Equal(0, CudaStandin.Count("gemms"));
    }

    [Theory]
    [InlineData(0, 4, 4, 4, DType.F32)]
    [InlineData(4, 3, 4, 4, DType.F32)]
    [InlineData(4, 4, 4, 5, DType.F32)]
    [InlineData(4, 4, 4, 4, DType.F16)]
    public void Multiply_ImpossibleProduct_Throws(int k, int leadingA, int leadingB, int n, DType output)
    {
        using CudaDevice device = CudaTestKernels.Open();

        Assert.StartsWith(
            $"A matrix product of (2, {k}) and ({k}, {n}) into {output} with leading dimensions {leadingA}, {leadingB}, 5 does not exist",
            Assert.Throws<ShapeMismatchException>(() => device.Multiply(new GemmCall { M = 2, N = n, K = k, A = 256, LeadingA = leadingA, B = 256, LeadingB = leadingB, C = 256, LeadingC = 5, OutputType = output })).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Multiply_AddressIsNoDeviceMemory_NamesTheProduct()
    {
        using CudaDevice device = CudaTestKernels.Open();

        CudaException error = Assert.Throws<CudaException>(() => device.Multiply(new GemmCall { M = 2, N = 3, K = 4, A = 4096, LeadingA = 4, B = 4096, LeadingB = 3, C = 4096, LeadingC = 3, OutputType = DType.F32 }));
        Assert.Equal(("CUBLAS_STATUS_INVALID_VALUE", "cublasLtMatmul"), (error.StatusName, error.Call));
        Assert.EndsWith("The product was (2, 4) by (4, 3) into F32.", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Algorithms_AreChosenOncePerKindOfProduct()
    {
        using CudaDevice device = CudaTestKernels.Open();
        var problem = new Problem(6, 10, 12, 0, false, true, DType.BF16, 1, 0);
        Check(device, problem);
        byte[] once = device.GemmAlgorithms.Export();
        Check(device, problem);
        Assert.Equal(once, device.GemmAlgorithms.Export());
        Check(device, problem with { M = 7 });

        Assert.Equal(2, device.GemmAlgorithms.Count);
    }

    [Fact]
    public void Algorithms_ExportedAndImported_GiveTheSameTableAndResult()
    {
        Problem[] problems = [new(6, 10, 12, 0, false, true, DType.BF16, 1, 0), new(6, 10, 12, 0, true, true, DType.F32, 1, 1), new(5, 3, 9, 1, false, false, DType.F32, 2, 0)];
        byte[] exported;
        byte[][] results;
        using (CudaDevice device = CudaTestKernels.Open())
        {
            results = [.. problems.Select(problem => Check(device, problem))];
            exported = device.GemmAlgorithms.Export();
        }

        using CudaDevice resumed = CudaTestKernels.Open();
        Assert.True(resumed.GemmAlgorithms.TryImport(exported, out string? reason), reason);

        Assert.Equal(results, problems.Select(problem => Check(resumed, problem)));
        Assert.Equal(exported, resumed.GemmAlgorithms.Export());
        Assert.StartsWith($"gemm-algorithms 1\ncublasLt ", Encoding.UTF8.GetString(exported), StringComparison.Ordinal);
        Assert.Contains($"\ndevice {resumed.Info.Name}\n", Encoding.UTF8.GetString(exported), StringComparison.Ordinal);
    }

    /// <summary>The stand-in knows an algorithm that was made for another product; that it complains shows that the imported one is really what is used.</summary>
    [Fact]
    public void Algorithms_Imported_AreUsedAsTheyAre()
    {
        string text;
        using (CudaDevice device = CudaTestKernels.Open())
        {
            Check(device, new Problem(6, 10, 12, 0, false, true, DType.F32, 1, 0));
            text = Encoding.UTF8.GetString(device.GemmAlgorithms.Export());
        }

        using CudaDevice resumed = CudaTestKernels.Open();
        Assert.True(resumed.GemmAlgorithms.TryImport(Encoding.UTF8.GetBytes(text.Replace("6x10x12NT", "7x10x12NT", StringComparison.Ordinal)), out string? reason), reason);

        Check(resumed, new Problem(6, 10, 12, 0, false, true, DType.F32, 1, 0));
        Assert.Contains("The product was (7, 12) by (12, 10)^T into F32.", Assert.Throws<CudaException>(() => Check(resumed, new Problem(7, 10, 12, 0, false, true, DType.F32, 1, 0))).Message, StringComparison.Ordinal);
    }

    /// <summary>Computes on the device, compares with double precision, and returns the bytes of C.</summary>
    private static byte[] Check(CudaDevice device, Problem problem)
    {
        (int m, int n, int k) = (problem.M, problem.N, problem.K);
        int aRows = problem.TransposeA ? k : m, aColumns = problem.TransposeA ? m : k, bRows = problem.TransposeB ? n : k, bColumns = problem.TransposeB ? k : n;
        int lda = aColumns + problem.Extra, ldb = bColumns + problem.Extra, ldc = n + problem.Extra;
        float[] a = Values(aRows * lda, 1), b = Values(bRows * ldb, 2), c = Values(m * ldc, 3);
        if (problem.Beta == 0)
        {
            // Where beta is 0, C must not be read.
            Array.Fill(c, float.NaN);
        }

        using ArenaFrame frame = device.Arena.Frame();
        bool wide = problem.Output == DType.F32;
        Tensor deviceA = Uploaded(device, a, DType.BF16, problem.Shift), deviceB = Uploaded(device, b, DType.BF16, problem.Shift), deviceC = Uploaded(device, c, problem.Output, problem.Shift);
        Tensor workspace = device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(Math.Max(problem.WorkspaceBytes, 1)));
        device.Multiply(new GemmCall
        {
            M = m, N = n, K = k,
            A = deviceA.Address, LeadingA = lda, TransposeA = problem.TransposeA,
            B = deviceB.Address, LeadingB = ldb, TransposeB = problem.TransposeB,
            C = deviceC.Address, LeadingC = ldc, OutputType = problem.Output,
            Alpha = problem.Alpha, Beta = problem.Beta,
            Workspace = problem.WorkspaceBytes == 0 ? 0 : workspace.Address, WorkspaceBytes = problem.WorkspaceBytes,
        });
        byte[] bytes = new byte[deviceC.SizeBytes];
        device.Download(deviceC, bytes);
        float[] actual = wide ? MemoryMarshal.Cast<byte, float>(bytes).ToArray() : [.. MemoryMarshal.Cast<byte, ushort>(bytes).ToArray().Select(Widen)];
        for (int i = 0; i < m; i++)
        {
            for (int j = 0; j < ldc; j++)
            {
                float before = wide ? c[i * ldc + j] : Rounded(c[i * ldc + j]);
                if (j >= n)
                {
                    Assert.True(before.Equals(actual[i * ldc + j]), $"{problem}: the gap behind row {i} was written");
                    continue;
                }

                double sum = 0, size = 0;
                for (int x = 0; x < k; x++)
                {
                    double product = (double)Rounded(a[problem.TransposeA ? x * lda + i : i * lda + x]) * Rounded(b[problem.TransposeB ? j * ldb + x : x * ldb + j]);
                    sum += product;
                    size += Math.Abs(product);
                }

                double addend = problem.Beta == 0 ? 0 : (double)problem.Beta * before;
                double expected = problem.Alpha * sum + addend;
                double tolerance = (k + 2) * Math.Pow(2, -24) * (Math.Abs(problem.Alpha) * size + Math.Abs(addend)) + (wide ? 0 : Math.Abs(expected) * Math.Pow(2, -8));
                // Written so that NaN fails.
                Assert.True(Math.Abs(actual[i * ldc + j] - expected) <= tolerance, $"{problem}: element ({i}, {j}) is {actual[i * ldc + j]}, expected {expected} +- {tolerance}");
            }
        }

        return bytes;
    }

    private static Tensor Uploaded(CudaDevice device, float[] values, DType type, int shift)
    {
        Tensor tensor = device.Arena.Allocate(MemoryKind.Activations, type, new Shape(values.Length + shift)).Slice(shift, new Shape(values.Length));
        device.Upload(tensor, type == DType.F32 ? MemoryMarshal.AsBytes<float>(values) : MemoryMarshal.AsBytes<ushort>([.. values.Select(Narrow)]));
        return tensor;
    }

    private static float[] Values(int count, int seed) => [.. Enumerable.Range(0, count).Select(i => (int)((uint)(i * 31 + seed) * 2654435761u) / (float)int.MaxValue)];

    private static ushort Narrow(float value)
    {
        uint bits = BitConverter.SingleToUInt32Bits(value);
        return float.IsNaN(value) ? (ushort)0x7fff : (ushort)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }

    private static float Widen(ushort value) => BitConverter.UInt32BitsToSingle((uint)value << 16);

    private static float Rounded(float value) => Widen(Narrow(value));

    private sealed record Problem(int M, int N, int K, int Extra, bool TransposeA, bool TransposeB, DType Output, float Alpha, float Beta)
    {
        /// <summary>Elements by which every matrix is moved from an aligned address.</summary>
        public int Shift { get; init; }

        public long WorkspaceBytes { get; init; } = 1 << 20;
    }

    private sealed class CombinatorialCasesAttribute : Xunit.v3.DataAttribute
    {
        public override ValueTask<IReadOnlyCollection<ITheoryDataRow>> GetData(System.Reflection.MethodInfo testMethod, Xunit.Sdk.DisposalTracker disposalTracker)
        {
            bool[] both = [false, true];
            return new([.. from a in both from b in both from output in (DType[])[DType.F32, DType.BF16] from beta in (float[])[0, 1, -0.25f] from lazy in both select new TheoryDataRow(a, b, output, beta, lazy)]);
        }

        public override bool SupportsDiscoveryEnumeration() => true;
    }
}
