using System.Runtime.Intrinsics;

namespace LoraTrainer.Models.Adapters;

/// <summary>
/// What an adapter means for one weight matrix W (Out, In), written into the matrix itself: W' = W + s B A, and with DoRA's magnitude m
/// W' = (m / n) (W + s B A), where n are the norms of the rows of W + s B A (huggingface/peft, tuners/lora/layer.py and dora.py, merge). All in f32: an element of B A is one
/// chain of fused multiply-adds over the rank in ascending order, n is summed in fp64, so the bits depend on neither threads nor pieces.
/// Rows do not need each other: a matrix is updated in pieces of rows.
/// </summary>
public sealed unsafe class LowRankUpdate
{
    private readonly float[] a;
    private readonly float[] b;
    private readonly float[]? magnitude;
    private readonly float scaling;

    /// <param name="a">(R, In)</param>
    /// <param name="b">(Out, R)</param>
    /// <param name="rank">R</param>
    /// <param name="scaling">s: alpha / R, or alpha / sqrt(R) for rsLoRA; negative takes an update away.</param>
    /// <param name="magnitude">(Out): DoRA's m; null: LoRA.</param>
    public LowRankUpdate(float[] a, float[] b, int rank, float scaling, float[]? magnitude = null)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(rank, 1);
        if (a.Length % rank != 0 || b.Length % rank != 0 || (magnitude is not null && magnitude.Length != b.Length / rank))
        {
            throw new ArgumentException($"A of {a.Length}, B of {b.Length} and a magnitude of {magnitude?.Length} elements do not make an update of rank {rank}.");
        }

        this.a = a;
        this.b = b;
        this.scaling = scaling;
        this.magnitude = magnitude;
        Rank = rank;
        In = a.Length / rank;
        Out = b.Length / rank;
    }

    public int Rank { get; }

    public int In { get; }

    public int Out { get; }

    /// <summary>Updates rows of W in place.</summary>
    /// <param name="rows">(count, In) f32: the matrix's rows from <paramref name="firstRow"/> on; overwritten with W'.</param>
    /// <param name="firstRow">Of the matrix.</param>
    /// <param name="threads">That share the rows.</param>
    public void Apply(Span<float> rows, long firstRow, int threads)
    {
        int count = rows.Length / In;
        if (rows.Length % In != 0 || firstRow < 0 || firstRow + count > Out)
        {
            throw new ArgumentException($"{rows.Length} elements from row {firstRow} on are not whole rows of a matrix of {Out} x {In}.", nameof(rows));
        }

        fixed (float* start = rows)
        {
            float* target = start;
            int parts = Math.Min(count, Math.Max(1, threads));
            Parallel.For(0, parts, new ParallelOptions { MaxDegreeOfParallelism = parts }, part =>
            {
                for (long row = (long)count * part / parts; row < (long)count * (part + 1) / parts; row++)
                {
                    Apply(target + row * In, firstRow + row);
                }
            });
        }
    }

    private void Apply(float* weights, long row)
    {
        int rank = Rank, width = In, i = 0;
        fixed (float* firstA = a, firstB = b)
        {
            float* factors = firstB + row * rank;
            Vector256<float> scale = Vector256.Create(scaling);
            for (; i <= width - Vector256<float>.Count; i += Vector256<float>.Count)
            {
                Vector256<float> delta = Vector256<float>.Zero;
                for (int k = 0; k < rank; k++)
                {
                    delta = Vector256.FusedMultiplyAdd(Vector256.Create(factors[k]), Vector256.Load(firstA + (long)k * width + i), delta);
                }

                (Vector256.Load(weights + i) + delta * scale).Store(weights + i);
            }

            for (; i < width; i++)
            {
                float delta = 0;
                for (int k = 0; k < rank; k++)
                {
                    delta = MathF.FusedMultiplyAdd(factors[k], firstA[(long)k * width + i], delta);
                }

                float scaled = delta * scaling;
                weights[i] += scaled;
            }
        }

        if (magnitude is not null)
        {
            SetNorm(new Span<float>(weights, width), magnitude[row]);
        }
    }

    /// <summary>Gives a row another norm. One of zeros stays what it is: it has no direction.</summary>
    private static void SetNorm(Span<float> row, float norm)
    {
        double sum = 0;
        foreach (float value in row)
        {
            sum += (double)value * value;
        }

        if (sum == 0)
        {
            return;
        }

        float factor = (float)(norm / Math.Sqrt(sum));
        for (int i = 0; i < row.Length; i++)
        {
            row[i] *= factor;
        }
    }
}
