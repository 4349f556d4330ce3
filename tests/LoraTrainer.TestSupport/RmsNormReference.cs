namespace LoraTrainer.TestSupport;

/// <summary>The RMS norm in double precision.</summary>
public static class RmsNormReference
{
    public static (double[] Y, double[] Rstd) Forward(double[] x, double[] w, int n, int d, double eps)
    {
        double[] r = [.. Enumerable.Range(0, n).Select(row => 1 / Math.Sqrt(Enumerable.Range(0, d).Sum(i => x[row * d + i] * x[row * d + i]) / d + eps))];
        return ([.. Enumerable.Range(0, n * d).Select(i => x[i] * r[i / d] * w[i % d])], r);
    }

    /// <summary>The gradients, and the sums of the magnitudes of what is added up in each element.</summary>
    public static (double[] Dx, double[] Dw, double[] DxSize, double[] DwSize) Backward(double[] dy, double[] x, double[] w, int n, int d, double eps)
    {
        double[] r = Forward(x, w, n, d, eps).Rstd;
        double[] dx = new double[n * d], dw = new double[d], dxSize = new double[n * d], dwSize = new double[d];
        for (int row = 0; row < n; row++)
        {
            double mean = 0, meanSize = 0;
            for (int i = 0; i < d; i++)
            {
                double product = dy[row * d + i] * w[i] * x[row * d + i] * r[row];
                mean += product / d;
                meanSize += Math.Abs(product) / d;
            }

            for (int i = 0; i < d; i++)
            {
                int at = row * d + i;
                double xh = x[at] * r[row], m = dy[at] * w[i];
                dx[at] = r[row] * (m - xh * mean);
                dxSize[at] = r[row] * (Math.Abs(m) + Math.Abs(xh) * meanSize);
                dw[i] += dy[at] * xh;
                dwSize[i] += Math.Abs(dy[at] * xh);
            }
        }

        return (dx, dw, dxSize, dwSize);
    }
}
