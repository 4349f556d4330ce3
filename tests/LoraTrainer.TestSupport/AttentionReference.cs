namespace LoraTrainer.TestSupport;

/// <summary>Attention in double precision, one row of scores at a time, as its definition says. Dense arrays: q (N, H*Dh), k and v (N, Hkv*Dh).</summary>
public sealed record AttentionReference(int H, int Hkv, int Dh, int[] DocumentOffsets, double Scale, int Window = 0, double Softcap = 0)
{
    /// <summary>
    /// What each tensor is stored as between two operations of a plain implementation (scores, probabilities, their gradients, results). With
    /// rounding to bf16 this is the plain computation in bf16, whose error is the yardstick for a kernel's; as it stands nothing is rounded.
    /// </summary>
    public Func<double, double> Stored { get; init; } = value => value;

    private int Tokens => DocumentOffsets[^1];

    public (double[] Output, double[] Lse) Forward(double[] q, double[] k, double[] v)
    {
        double[] output = new double[Tokens * H * Dh];
        double[] lse = new double[H * Tokens];
        ForEachRow((head, row, firstKey) =>
        {
            (double[] p, _, lse[(head * Tokens) + row]) = Probabilities(q, k, head, row, firstKey);
            for (int j = firstKey; j <= row; j++)
            {
                for (int c = 0; c < Dh; c++)
                {
                    output[Query(row, head) + c] += p[j - firstKey] * v[Key(j, head) + c];
                }
            }
        });
        return (Array.ConvertAll(output, x => Stored(x)), lse);
    }

    public (double[] DQ, double[] DK, double[] DV) Backward(double[] dOutput, double[] q, double[] k, double[] v)
    {
        double[] dq = new double[q.Length], dk = new double[k.Length], dv = new double[v.Length];
        ForEachRow((head, row, firstKey) =>
        {
            (double[] p, double[] slope, _) = Probabilities(q, k, head, row, firstKey);
            double[] dp = new double[p.Length];
            double mean = 0;
            for (int j = firstKey; j <= row; j++)
            {
                for (int c = 0; c < Dh; c++)
                {
                    dp[j - firstKey] += dOutput[Query(row, head) + c] * v[Key(j, head) + c];
                    dv[Key(j, head) + c] += p[j - firstKey] * dOutput[Query(row, head) + c];
                }

                dp[j - firstKey] = Stored(dp[j - firstKey]);
                mean += p[j - firstKey] * dp[j - firstKey];
            }

            for (int j = firstKey; j <= row; j++)
            {
                double ds = Stored(p[j - firstKey] * (dp[j - firstKey] - mean) * slope[j - firstKey]);
                for (int c = 0; c < Dh; c++)
                {
                    dq[Query(row, head) + c] += ds * k[Key(j, head) + c];
                    dk[Key(j, head) + c] += ds * q[Query(row, head) + c];
                }
            }
        });
        return (Array.ConvertAll(dq, x => Stored(x)), Array.ConvertAll(dk, x => Stored(x)), Array.ConvertAll(dv, x => Stored(x)));
    }

    /// <summary>The softmax of a row, the derivative of each score by its inner product, and log sum exp.</summary>
    private (double[] P, double[] Slope, double Lse) Probabilities(double[] q, double[] k, int head, int row, int firstKey)
    {
        double[] s = new double[row + 1 - firstKey];
        double[] slope = new double[s.Length];
        for (int j = firstKey; j <= row; j++)
        {
            double product = 0;
            for (int c = 0; c < Dh; c++)
            {
                product += q[Query(row, head) + c] * k[Key(j, head) + c];
            }

            double tanh = Softcap > 0 ? Math.Tanh(product * Scale / Softcap) : 0;
            s[j - firstKey] = Stored(Softcap > 0 ? Softcap * tanh : product * Scale);
            slope[j - firstKey] = Scale * (1 - (tanh * tanh));
        }

        double max = s.Max();
        double sum = s.Sum(x => Math.Exp(x - max));
        return ([.. s.Select(x => Stored(Math.Exp(x - max) / sum))], slope, max + Math.Log(sum));
    }

    private void ForEachRow(Action<int, int, int> action)
    {
        for (int document = 0; document + 1 < DocumentOffsets.Length; document++)
        {
            for (int row = DocumentOffsets[document]; row < DocumentOffsets[document + 1]; row++)
            {
                for (int head = 0; head < H; head++)
                {
                    action(head, row, Math.Max(DocumentOffsets[document], Window > 0 ? row - Window + 1 : 0));
                }
            }
        }
    }

    private int Query(int row, int head) => ((row * H) + head) * Dh;

    private int Key(int row, int head) => ((row * Hkv) + (head / (H / Hkv))) * Dh;
}
