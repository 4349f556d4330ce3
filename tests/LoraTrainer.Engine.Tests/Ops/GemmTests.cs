using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Ops;

public sealed unsafe class GemmTests
{
    // Shapes around every border: the tile (8 x 48, grain 16), the depth block (256), the row block (512) and the packed depth (2048 for 512 rows).
    private static readonly (int M, int N, int K)[] BorderShapes =
    [
        (1, 1, 1), (7, 15, 255), (8, 16, 256), (9, 17, 257), (8, 48, 300), (4, 32, 64), (5, 49, 64), (64, 96, 512), (65, 97, 513), (1, 200, 576), (3, 130, 70),
        (130, 8, 300), (512, 16, 40), (513, 50, 33), (1030, 20, 20), (1030, 40, 20), (512, 33, 2101), (520, 18, 300), (70, 1000, 9), (16, 400, 16),
    ];

    private static IEnumerable<GemmKernel> Kernels => Enum.GetValues<GemmKernel>().Where(kernel => kernel <= GemmKernels.Best);

    [Theory]
    [InlineData(OperandKind.F32, OperandKind.F32)]
    [InlineData(OperandKind.BF16, OperandKind.BF16)]
    [InlineData(OperandKind.F32, OperandKind.BF16)]
    [InlineData(OperandKind.F32, OperandKind.Nf4)]
    [InlineData(OperandKind.F32, OperandKind.Nf4Double)]
    [InlineData(OperandKind.F32, OperandKind.Fp4)]
    [InlineData(OperandKind.F32, OperandKind.Fp4Double)]
    [InlineData(OperandKind.F32, OperandKind.RowwiseBytes)]
    public void Run_OddShapes_EqualsTheChainAndIsCloseToFp64(OperandKind kindA, OperandKind kindB)
    {
        using var pool = new WorkerPool(2);
        var random = new Random(17);
        int cases = 0;
        for (int round = 0; round < 40; round++)
        {
            int m = random.Next(1, 71), n = random.Next(1, 71), k = random.Next(1, 71);
            for (int mode = 0; mode < 4; mode++)
            {
                float alpha = random.Next(3) switch { 0 => 1, 1 => 2, _ => 0.3f };
                using var problem = new GemmProblem(round, m, n, k, kindA, (mode & 1) != 0, kindB, (mode & 2) != 0, alpha, random.Next(2) == 0);
                Check(problem, pool, GemmKernels.Best);
                cases++;
            }
        }

        Assert.Equal(160, cases);
    }

    [Theory]
    [InlineData(OperandKind.F32, false)]
    [InlineData(OperandKind.F32, true)]
    [InlineData(OperandKind.Nf4Double, false)]
    [InlineData(OperandKind.Nf4Double, true)]
    public void Run_ShapesAroundEveryBlock_EqualsTheChain(OperandKind kindB, bool transposeB)
    {
        using var pool = new WorkerPool(2);
        foreach ((int m, int n, int k) in BorderShapes)
        {
            using var problem = new GemmProblem(m + n + k, m, n, k, OperandKind.F32, m % 2 == 0, kindB, transposeB, accumulate: k % 2 == 0);
            Check(problem, pool, GemmKernels.Best);
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void Run_EveryKernelAndThreadCount_SameBits(int threads)
    {
        using var pool = new WorkerPool(threads);
        Assert.NotEmpty(Kernels);
        foreach ((int m, int n, int k) in BorderShapes)
        {
            if ((long)m * n * k > 4_000_000)
            {
                continue;
            }

            using var problem = new GemmProblem(m, m, n, k, OperandKind.F32, false, OperandKind.Nf4, true, 0.7f, accumulate: true);
            foreach (GemmKernel kernel in Kernels)
            {
                Check(problem, pool, kernel);
            }
        }
    }

    [Fact]
    public void Run_EmptySum_ZeroesOrKeeps()
    {
        using var pool = new WorkerPool(1);
        float[] c = [1, 2, 3, 4, 5, 6];
        fixed (float* pointer = c)
        {
            CpuGemm.Run(pool, null, 2, 2, 0, GemmOperand.F32(null, 0), GemmOperand.F32(null, 2), pointer, 3, accumulate: true);
            Assert.Equal([1, 2, 3, 4, 5, 6], c);
            CpuGemm.Run(pool, null, 2, 2, 0, GemmOperand.F32(null, 0), GemmOperand.F32(null, 2), pointer, 3);
        }

        Assert.Equal([0, 0, 3, 0, 0, 6], c);
    }

    [Fact]
    public void Run_InfinityInOneRow_StaysInThatRow()
    {
        // Padding multiplies by zero; an infinity must not turn that into NaN elsewhere.
        const int m = 9, n = 17, k = 3;
        using var pool = new WorkerPool(1);
        byte* workspace = (byte*)NativeMemory.AlignedAlloc((nuint)CpuGemm.WorkspaceBytes(1), 64);
        float[] a = new float[m * k], b = new float[k * n], c = new float[m * n];
        Array.Fill(a, 1f);
        Array.Fill(b, 1f);
        a[7 * k] = float.PositiveInfinity;
        fixed (float* pa = a, pb = b, pc = c)
        {
            CpuGemm.Run(pool, workspace, m, n, k, GemmOperand.F32(pa, k), GemmOperand.F32(pb, n), pc, n);
        }

        NativeMemory.AlignedFree(workspace);
        for (int i = 0; i < c.Length; i++)
        {
            Assert.Equal(i / n == 7 ? float.PositiveInfinity : 3f, c[i]);
        }
    }

    [Fact]
    public void Run_Repeated_AllocatesNothing()
    {
        const int size = 128;
        using var pool = new WorkerPool(2);
        byte* workspace = (byte*)NativeMemory.AlignedAlloc((nuint)CpuGemm.WorkspaceBytes(2), 64);
        float* data = (float*)NativeMemory.AllocZeroed(3 * size * size, sizeof(float));
        GemmOperand a = GemmOperand.F32(data, size), b = GemmOperand.F32(data + size * size, size, transposed: true);
        CpuGemm.Run(pool, workspace, size, size, size, a, b, data + 2 * size * size, size);
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 50; i++)
        {
            CpuGemm.Run(pool, workspace, size, size, size, a, b, data + 2 * size * size, size);
        }

        long allocated = GC.GetAllocatedBytesForCurrentThread() - before;
        NativeMemory.AlignedFree(workspace);
        NativeMemory.Free(data);
        Assert.Equal(0, allocated);
    }

    private static void Check(GemmProblem problem, WorkerPool pool, GemmKernel kernel)
    {
        float[] actual = problem.Run(pool, kernel);
        TensorAssert.BitEqual(problem.Expected(), actual, $"{problem.Name}, {kernel}, {pool.ThreadCount} threads");
        double error = problem.ErrorAgainstBound(actual);
        Assert.True(error <= 1, $"{problem.Name}, {kernel}: {error} times the error bound");
    }
}
