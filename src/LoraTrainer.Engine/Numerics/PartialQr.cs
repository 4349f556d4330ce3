namespace LoraTrainer.Engine.Numerics;

/// <summary>
/// The first columns of Q and rows of R of the decomposition W = Q R, by Householder reflections in fp64 with LAPACK's signs (dgeqrf). Only the first
/// columns of W decide about them.
/// </summary>
public static class PartialQr
{
    /// <summary>q (rows, count) and r (count, columns) with W's best share in the span of its first columns, q r.</summary>
    /// <param name="matrix">(rows, columns), row-major; not changed.</param>
    /// <param name="rows">Rows.</param>
    /// <param name="columns">Columns.</param>
    /// <param name="count">At most the smaller side.</param>
    /// <param name="threads">Workers.</param>
    public static (double[] Q, double[] R) Compute(float[] matrix, int rows, int columns, int count, int threads)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(matrix.Length, rows * columns);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(count, Math.Min(rows, columns));

        // The first columns, one behind another; a reflection is I - tau v v^T with v's leading zeros left out.
        double[][] work = new double[count][];
        for (int j = 0; j < count; j++)
        {
            work[j] = new double[rows];
            for (int i = 0; i < rows; i++)
            {
                work[j][i] = matrix[i * columns + j];
            }
        }

        double[][] reflections = new double[count][];
        double[] taus = new double[count];
        for (int k = 0; k < count; k++)
        {
            double[] v = new double[rows];
            double tail = 0;
            for (int i = k + 1; i < rows; i++)
            {
                tail += work[k][i] * work[k][i];
            }

            if (tail > 0)
            {
                double alpha = work[k][k];
                double beta = -Math.CopySign(Math.Sqrt(alpha * alpha + tail), alpha);
                taus[k] = (beta - alpha) / beta;
                for (int i = k + 1; i < rows; i++)
                {
                    v[i] = work[k][i] / (alpha - beta);
                }
            }

            v[k] = 1;
            reflections[k] = v;
            for (int j = k; j < count; j++)
            {
                Reflect(work[j], v, taus[k], k);
            }
        }

        double[] q = new double[rows * count];
        for (int j = 0; j < count; j++)
        {
            double[] column = new double[rows];
            column[j] = 1;
            for (int k = count - 1; k >= 0; k--)
            {
                Reflect(column, reflections[k], taus[k], k);
            }

            for (int i = 0; i < rows; i++)
            {
                q[i * count + j] = column[i];
            }
        }

        // R's rows are Q^T W.
        double[] r = new double[count * columns];
        Parallel.For(0, count, new ParallelOptions { MaxDegreeOfParallelism = threads }, k =>
        {
            for (int i = 0; i < rows; i++)
            {
                double factor = q[i * count + k];
                for (int j = 0; j < columns; j++)
                {
                    r[k * columns + j] = Math.FusedMultiplyAdd(factor, matrix[i * columns + j], r[k * columns + j]);
                }
            }
        });
        return (q, r);
    }

    private static void Reflect(double[] column, double[] v, double tau, int first)
    {
        double share = 0;
        for (int i = first; i < column.Length; i++)
        {
            share += v[i] * column[i];
        }

        for (int i = first; i < column.Length; i++)
        {
            column[i] -= tau * share * v[i];
        }
    }
}
