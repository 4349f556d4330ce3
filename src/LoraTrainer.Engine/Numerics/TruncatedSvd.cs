using System.Runtime.Intrinsics;

namespace LoraTrainer.Engine.Numerics;

/// <summary>
/// The largest singular values of a matrix and their vectors, W ~ U diag(S) V^T, by Golub-Kahan-Lanczos bidiagonalization with full
/// reorthogonalization (Golub and Van Loan, Matrix Computations, 10.4). The matrix is only read, twice a step; vectors and sums are fp64. The order of every sum
/// is fixed, so the result depends on neither threads nor instruction set. Signs of the vectors are arbitrary, as always.
/// </summary>
public sealed class TruncatedSvd
{
    /// <summary>Of the largest singular value: what may be missing from each wanted pair. f32 itself has 6e-8.</summary>
    private const double Tolerance = 1e-8;

    private const int ColumnBlock = 512;

    private readonly float[] matrix;
    private readonly int rows;
    private readonly int columns;
    private readonly ParallelOptions parallel;

    private TruncatedSvd(float[] matrix, int rows, int columns, int threads)
    {
        this.matrix = matrix;
        this.rows = rows;
        this.columns = columns;
        parallel = new ParallelOptions { MaxDegreeOfParallelism = threads };
    }

    /// <summary>(k) in falling order.</summary>
    public double[] S { get; private set; } = [];

    /// <summary>(k, rows): the left vectors, one behind another.</summary>
    public double[][] U { get; private set; } = [];

    /// <summary>(k, columns): the right vectors, one behind another.</summary>
    public double[][] V { get; private set; } = [];

    /// <param name="matrix">(rows, columns), row-major; not changed.</param>
    /// <param name="rows">Rows.</param>
    /// <param name="columns">Columns.</param>
    /// <param name="count">k: how many are wanted; at most the smaller side.</param>
    /// <param name="threads">Workers.</param>
    public static TruncatedSvd Compute(float[] matrix, int rows, int columns, int count, int threads)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(matrix.Length, rows * columns);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(count, Math.Min(rows, columns));
        var svd = new TruncatedSvd(matrix, rows, columns, threads);
        svd.Run(count);
        return svd;
    }

    private void Run(int count)
    {
        int most = Math.Min(rows, columns);
        int next = Math.Min(most, 2 * count + 20);
        var left = new List<double[]>();
        var right = new List<double[]> { Fresh([], columns, 0) };
        var alphas = new List<double>();
        var betas = new List<double>();
        while (true)
        {
            int k = left.Count;

            // u_k = W v_k - beta_{k-1} u_{k-1};  v_{k+1} = W^T u_k - alpha_k v_k: both kept orthogonal to all before them.
            double[] u = Multiply(right[k]);
            alphas.Add(Settle(u, left, rows, (uint)(2 * k + 1)));
            left.Add(u);
            double[] v = MultiplyTransposed(u);
            bool isWhole = left.Count == most;
            betas.Add(isWhole ? 0 : Settle(v, right, columns, (uint)(2 * k + 2)));
            right.Add(v);
            if (left.Count < next)
            {
                continue;
            }

            (double[] s, double[][] p, double[][] q) = SmallSvd(alphas, betas);

            // What the pair i lacks is beta_k times the last component of its left vector.
            bool isConverged = Enumerable.Range(0, count).All(i => Math.Abs(betas[^1] * p[i][left.Count - 1]) <= Tolerance * s[0]);
            if (isConverged || isWhole)
            {
                S = s[..count];
                U = [.. Enumerable.Range(0, count).Select(i => Combine(left, p[i], rows))];
                V = [.. Enumerable.Range(0, count).Select(i => Combine(right, q[i], columns))];
                return;
            }

            next = Math.Min(most, left.Count + Math.Max(20, left.Count / 2));
        }
    }

    /// <summary>Makes the vector orthogonal to the others and of length 1; returns what its length was. One that vanishes is replaced by a new direction, and its length is 0.</summary>
    private static double Settle(double[] vector, List<double[]> others, int length, uint stream)
    {
        double before = Norm(vector);
        Orthogonalize(vector, others);
        double norm = Norm(vector);
        if (norm <= 1e-14 * before || norm == 0)
        {
            Fresh(others, length, stream).CopyTo(vector, 0);
            return 0;
        }

        for (int i = 0; i < vector.Length; i++)
        {
            vector[i] /= norm;
        }

        return norm;
    }

    /// <summary>A random direction, orthogonal to the others.</summary>
    private static double[] Fresh(List<double[]> others, int length, uint stream)
    {
        var random = new CounterRandom(0, stream, 0);
        double[] vector = new double[length];
        for (int i = 0; i < length; i++)
        {
            vector[i] = random.Normal((ulong)i);
        }

        Orthogonalize(vector, others);
        double norm = Norm(vector);
        for (int i = 0; i < length; i++)
        {
            vector[i] /= norm;
        }

        return vector;
    }

    // Twice is enough (Kahan, Parlett).
    private static void Orthogonalize(double[] vector, List<double[]> others)
    {
        for (int pass = 0; pass < 2; pass++)
        {
            foreach (double[] other in others)
            {
                double share = Dot(other, vector);
                for (int i = 0; i < vector.Length; i++)
                {
                    vector[i] = Math.FusedMultiplyAdd(-share, other[i], vector[i]);
                }
            }
        }
    }

    private double[] Multiply(double[] x)
    {
        double[] y = new double[rows];
        Parallel.For(0, (rows + 63) / 64, parallel, block =>
        {
            for (int row = block * 64; row < Math.Min(rows, block * 64 + 64); row++)
            {
                y[row] = Dot(matrix.AsSpan(row * columns, columns), x);
            }
        });
        return y;
    }

    private double[] MultiplyTransposed(double[] x)
    {
        double[] y = new double[columns];
        Parallel.For(0, (columns + ColumnBlock - 1) / ColumnBlock, parallel, block =>
        {
            int first = block * ColumnBlock;
            Span<double> sums = y.AsSpan(first, Math.Min(ColumnBlock, columns - first));
            for (int row = 0; row < rows; row++)
            {
                AddScaled(sums, matrix.AsSpan(row * columns + first, sums.Length), x[row]);
            }
        });
        return y;
    }

    private static double Dot(ReadOnlySpan<float> a, ReadOnlySpan<double> b)
    {
        Vector512<double> low = Vector512<double>.Zero, high = Vector512<double>.Zero;
        int i = 0;
        for (; i <= a.Length - 16; i += 16)
        {
            (Vector512<double> first, Vector512<double> second) = Vector512.Widen(Vector512.Create(a.Slice(i, 16)));
            low = Vector512.FusedMultiplyAdd(first, Vector512.Create(b.Slice(i, 8)), low);
            high = Vector512.FusedMultiplyAdd(second, Vector512.Create(b.Slice(i + 8, 8)), high);
        }

        double sum = Fold(low + high);
        for (; i < a.Length; i++)
        {
            sum = Math.FusedMultiplyAdd(a[i], b[i], sum);
        }

        return sum;
    }

    private static double Dot(ReadOnlySpan<double> a, ReadOnlySpan<double> b)
    {
        Vector512<double> sums = Vector512<double>.Zero;
        int i = 0;
        for (; i <= a.Length - 8; i += 8)
        {
            sums = Vector512.FusedMultiplyAdd(Vector512.Create(a.Slice(i, 8)), Vector512.Create(b.Slice(i, 8)), sums);
        }

        double sum = Fold(sums);
        for (; i < a.Length; i++)
        {
            sum = Math.FusedMultiplyAdd(a[i], b[i], sum);
        }

        return sum;
    }

    private static void AddScaled(Span<double> sums, ReadOnlySpan<float> values, double factor)
    {
        int i = 0;
        Vector512<double> by = Vector512.Create(factor);
        for (; i <= values.Length - 16; i += 16)
        {
            (Vector512<double> first, Vector512<double> second) = Vector512.Widen(Vector512.Create(values.Slice(i, 16)));
            Vector512.FusedMultiplyAdd(first, by, Vector512.Create<double>(sums.Slice(i, 8))).CopyTo(sums[i..]);
            Vector512.FusedMultiplyAdd(second, by, Vector512.Create<double>(sums.Slice(i + 8, 8))).CopyTo(sums[(i + 8)..]);
        }

        for (; i < values.Length; i++)
        {
            sums[i] = Math.FusedMultiplyAdd(values[i], factor, sums[i]);
        }
    }

    private static double Norm(double[] vector) => Math.Sqrt(Dot(vector.AsSpan(), vector));

    // One fixed tree.
    private static double Fold(Vector512<double> x)
    {
        Vector256<double> half = x.GetLower() + x.GetUpper();
        Vector128<double> quarter = half.GetLower() + half.GetUpper();
        return quarter[0] + quarter[1];
    }

    private static double[] Combine(List<double[]> vectors, double[] weights, int length)
    {
        double[] sum = new double[length];
        for (int k = 0; k < weights.Length; k++)
        {
            double weight = weights[k];
            double[] vector = vectors[k];
            for (int i = 0; i < length; i++)
            {
                sum[i] = Math.FusedMultiplyAdd(weight, vector[i], sum[i]);
            }
        }

        return sum;
    }

    /// <summary>The upper bidiagonal matrix with these diagonals by one-sided Jacobi rotations: values in falling order, left and right vectors.</summary>
    private static (double[] S, double[][] Left, double[][] Right) SmallSvd(List<double> alphas, List<double> betas)
    {
        int n = alphas.Count;

        // Columns of B and of the right rotations; B v = s u.
        double[][] columns = new double[n][];
        double[][] rotations = new double[n][];
        for (int j = 0; j < n; j++)
        {
            columns[j] = new double[n];
            columns[j][j] = alphas[j];
            if (j > 0)
            {
                columns[j][j - 1] = betas[j - 1];
            }

            rotations[j] = new double[n];
            rotations[j][j] = 1;
        }

        for (int sweep = 0; sweep < 60; sweep++)
        {
            bool isDone = true;
            for (int p = 0; p < n - 1; p++)
            {
                for (int q = p + 1; q < n; q++)
                {
                    double pp = Dot(columns[p].AsSpan(), columns[p]), qq = Dot(columns[q].AsSpan(), columns[q]), pq = Dot(columns[p].AsSpan(), columns[q]);
                    if (Math.Abs(pq) <= 1e-15 * Math.Sqrt(pp * qq) || pq == 0)
                    {
                        continue;
                    }

                    isDone = false;
                    double zeta = (qq - pp) / (2 * pq);
                    double t = (zeta >= 0 ? 1 : -1) / (Math.Abs(zeta) + Math.Sqrt(1 + zeta * zeta));
                    double c = 1 / Math.Sqrt(1 + t * t);
                    Rotate(columns[p], columns[q], c, c * t);
                    Rotate(rotations[p], rotations[q], c, c * t);
                }
            }

            if (isDone)
            {
                break;
            }
        }

        double[] norms = [.. columns.Select(Norm)];
        int[] order = [.. Enumerable.Range(0, n).OrderByDescending(j => norms[j])];
        foreach (int j in order)
        {
            for (int i = 0; i < n && norms[j] > 0; i++)
            {
                columns[j][i] /= norms[j];
            }
        }

        return ([.. order.Select(j => norms[j])], [.. order.Select(j => columns[j])], [.. order.Select(j => rotations[j])]);
    }

    private static void Rotate(double[] p, double[] q, double c, double s)
    {
        for (int i = 0; i < p.Length; i++)
        {
            double x = p[i], y = q[i];
            p[i] = c * x - s * y;
            q[i] = s * x + c * y;
        }
    }
}
