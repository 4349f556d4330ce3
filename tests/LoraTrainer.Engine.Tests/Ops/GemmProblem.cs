using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;

namespace LoraTrainer.Engine.Tests.Ops;

/// <summary>Which kind of storage an operand of a test has; the double-quantized ones have 8-bit scales.</summary>
public enum OperandKind
{
    F32,
    BF16,
    Nf4,
    Nf4Double,
    Fp4,
    Fp4Double,
    RowwiseBytes,
}

/// <summary>One random matrix in a kind of storage, and its values as the formulas of the formats give them, computed here element by element.</summary>
internal sealed unsafe class TestMatrix : IDisposable
{
    private readonly List<nint> owned = [];
    private readonly GemmOperand operand;

    public TestMatrix(Random random, OperandKind kind, int rows, int columns, bool transposed)
    {
        Rows = rows;
        Columns = columns;
        Transposed = transposed;
        int count = rows * columns;
        Values = new float[count];
        switch (kind)
        {
            case OperandKind.F32:
            {
                // Rows further apart than they are long; what lies between must not be read as an element.
                int stride = columns + 3;
                float* data = Allocate<float>(rows * stride);
                new Span<float>(data, rows * stride).Fill(float.NaN);
                for (int i = 0; i < count; i++)
                {
                    data[i / columns * stride + i % columns] = Values[i] = Next(random);
                }

                operand = GemmOperand.F32(data, stride, transposed);
                break;
            }

            case OperandKind.BF16:
            {
                ushort* data = Allocate<ushort>(count);
                for (int i = 0; i < count; i++)
                {
                    data[i] = (ushort)(BitConverter.SingleToUInt32Bits(Next(random)) >> 16);
                    Values[i] = BitConverter.UInt32BitsToSingle((uint)data[i] << 16);
                }

                operand = GemmOperand.BF16(data, columns, transposed);
                break;
            }

            case OperandKind.RowwiseBytes:
            {
                sbyte* data = Allocate<sbyte>(count);
                float* scales = Allocate<float>(rows);
                for (int i = 0; i < count; i++)
                {
                    if (i % columns == 0)
                    {
                        scales[i / columns] = random.NextSingle() / 127;
                    }

                    data[i] = (sbyte)random.Next(-127, 128);
                    Values[i] = data[i] * scales[i / columns];
                }

                operand = GemmOperand.Int8(data, scales, columns, transposed);
                break;
            }

            default:
                operand = GemmOperand.FourBit(FourBit(random, kind is OperandKind.Fp4 or OperandKind.Fp4Double ? FourBitCode.Fp4 : FourBitCode.Nf4, kind is OperandKind.Nf4Double or OperandKind.Fp4Double, count), columns, transposed);
                break;
        }
    }

    public ref readonly GemmOperand Operand => ref operand;

    public float[] Values { get; }

    private int Rows { get; }

    private int Columns { get; }

    private bool Transposed { get; }

    /// <summary>Element (i, j) of op(X).</summary>
    public float this[int i, int j] => Transposed ? Values[j * Columns + i] : Values[i * Columns + j];

    public void Dispose()
    {
        foreach (nint memory in owned)
        {
            NativeMemory.Free((void*)memory);
        }
    }

    private static float Next(Random random) => random.NextSingle() * 2 - 1;

    private FourBitBlocks FourBit(Random random, FourBitCode code, bool doubleQuantized, int count)
    {
        int blocks = (count + 63) / 64;
        byte* packed = Allocate<byte>((count + 1) / 2);
        random.NextBytes(new Span<byte>(packed, (count + 1) / 2));
        float* absmax = Allocate<float>(blocks);
        byte* codes = Allocate<byte>(blocks);
        float* nestedAbsmax = Allocate<float>(blocks / 256 + 1);
        float* map = Allocate<float>(256);
        new ReadOnlySpan<float>(DynamicMap.Signed.Values, 256).CopyTo(new Span<float>(map, 256));
        const float offset = 0.37f;
        for (int i = 0; i < blocks; i++)
        {
            nestedAbsmax[i / 256] = i % 256 == 0 ? random.NextSingle() * 0.2f : nestedAbsmax[i / 256];
            codes[i] = (byte)random.Next(256);
            absmax[i] = random.NextSingle();
            if (doubleQuantized)
            {
                float product = map[codes[i]] * nestedAbsmax[i / 256];
                absmax[i] = product + offset;
            }
        }

        for (int i = 0; i < count; i++)
        {
            int nibble = i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15;
            Values[i] = code.Values[nibble] * absmax[i / 64];
        }

        return doubleQuantized
            ? new FourBitBlocks(packed, code.Values, codes, nestedAbsmax, map, offset)
            : new FourBitBlocks(packed, code.Values, absmax);
    }

    private T* Allocate<T>(int count)
        where T : unmanaged
    {
        var memory = (T*)NativeMemory.Alloc((nuint)Math.Max(1, count) * (nuint)sizeof(T));
        owned.Add((nint)memory);
        return memory;
    }
}

/// <summary>A random product and the result that the contract defines for it, bit by bit.</summary>
internal sealed unsafe class GemmProblem : IDisposable
{
    private const int Gap = 5;
    private const int GuardRows = 8;

    private readonly TestMatrix a, b;
    private readonly float[] before;

    public GemmProblem(int seed, int m, int n, int k, OperandKind kindA, bool transposeA, OperandKind kindB, bool transposeB, float alpha = 1, bool accumulate = false)
    {
        var random = new Random(seed);
        (M, N, K, Alpha, Accumulate) = (m, n, k, alpha, accumulate);
        a = new TestMatrix(random, kindA, transposeA ? k : m, transposeA ? m : k, transposeA);
        b = new TestMatrix(random, kindB, transposeB ? n : k, transposeB ? k : n, transposeB);
        before = new float[(m + GuardRows) * (n + Gap)];
        for (int i = 0; i < before.Length; i++)
        {
            // Without accumulation the old contents must not matter.
            before[i] = accumulate ? random.NextSingle() - 0.5f : float.NaN;
        }

        Name = $"{m}x{n}x{k} A {kindA}{(transposeA ? "^T" : "")} B {kindB}{(transposeB ? "^T" : "")} alpha {alpha} accumulate {accumulate}";
    }

    public int M { get; }

    public int N { get; }

    public int K { get; }

    public float Alpha { get; }

    public bool Accumulate { get; }

    public string Name { get; }

    /// <summary>Runs the product in poisoned workspace. Returns (M + 8, N + 5): the last rows and columns lie outside C.</summary>
    public float[] Run(WorkerPool pool, GemmKernel kernel)
    {
        long bytes = CpuGemm.WorkspaceBytes(pool.ThreadCount);
        byte* workspace = (byte*)NativeMemory.AlignedAlloc((nuint)bytes, 64);
        new Span<byte>(workspace, checked((int)bytes)).Fill(0xFF);
        float[] result = [.. before];
        fixed (float* c = result)
        {
            CpuGemm.Run(kernel, pool, workspace, M, N, K, a.Operand, b.Operand, c, N + Gap, Alpha, Accumulate);
        }

        NativeMemory.AlignedFree(workspace);
        return result;
    }

    /// <summary>The chains of the contract, one element after the other; with the untouched rows and columns.</summary>
    public float[] Expected()
    {
        float[] result = [.. before];
        for (int i = 0; i < M; i++)
        {
            for (int j = 0; j < N; j++)
            {
                float sum = Accumulate ? before[i * (N + Gap) + j] : 0;
                for (int p = 0; p < K; p++)
                {
                    sum = MathF.FusedMultiplyAdd(Alpha * a[i, p], b[p, j], sum);
                }

                result[i * (N + Gap) + j] = sum;
            }
        }

        return result;
    }

    /// <summary>The largest of |result - exact| / bound, exact in fp64, bound = (K + 2) 2^-24 (|c| + sum |alpha a b|): at most 1 for a right result.</summary>
    public double ErrorAgainstBound(float[] result)
    {
        double worst = 0;
        for (int i = 0; i < M; i++)
        {
            for (int j = 0; j < N; j++)
            {
                double exact = Accumulate ? before[i * (N + Gap) + j] : 0, size = Math.Abs(exact);
                for (int p = 0; p < K; p++)
                {
                    double term = (double)Alpha * a[i, p] * b[p, j];
                    exact += term;
                    size += Math.Abs(term);
                }

                double error = Math.Abs(result[i * (N + Gap) + j] - exact) / ((K + 2) * Math.Pow(2, -24) * size + double.Epsilon);
                worst = error <= worst ? worst : error;
            }
        }

        return worst;
    }

    public void Dispose()
    {
        a.Dispose();
        b.Dispose();
    }
}
