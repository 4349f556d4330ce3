using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.TestSupport;

/// <summary>The output layer and its loss in double precision, with a bound for the error of a computation in f32.</summary>
/// <param name="Losses">(N) 0 in rows that are not scored.</param>
/// <param name="LossBound">(N)</param>
/// <param name="DHidden">(N, D)</param>
/// <param name="DHiddenBound">(N, D)</param>
/// <param name="DWeight">(V, D)</param>
/// <param name="DWeightBound">(V, D)</param>
public sealed record LinearCrossEntropyReference(double[] Losses, double[] LossBound, double[] DHidden, double[] DHiddenBound, double[] DWeight, double[] DWeightBound)
{
    /// <param name="hidden">(N, D)</param>
    /// <param name="weight">(V, D)</param>
    /// <param name="targets">(N)</param>
    /// <param name="rows">Those that are scored.</param>
    /// <param name="vocabulary">V</param>
    /// <param name="scale">Of the gradient.</param>
    /// <param name="logitRounding">Relative error with which the gradient of a logit is stored.</param>
    /// <param name="softcap">Logits z become softcap * tanh(z/softcap); 0 for none.</param>
    public static LinearCrossEntropyReference Compute(
        double[] hidden, double[] weight, int[] targets, int[] rows, int vocabulary, double scale, double logitRounding = 0, double softcap = 0)
    {
        int n = targets.Length, d = weight.Length / vocabulary;
        var e = new LinearCrossEntropyReference(new double[n], new double[n], new double[n * d], new double[n * d], new double[vocabulary * d], new double[vocabulary * d]);
        foreach (int row in rows)
        {
            double[] z = new double[vocabulary];
            double size = 0;
            for (int v = 0; v < vocabulary; v++)
            {
                double magnitude = 0;
                for (int i = 0; i < d; i++)
                {
                    z[v] += hidden[row * d + i] * weight[v * d + i];
                    magnitude += Math.Abs(hidden[row * d + i] * weight[v * d + i]);
                }

                size = Math.Max(size, magnitude);
            }

            // The cap's slope is at most 1, so it makes no error of the logits larger; its own is a few roundings.
            double[] slope = [.. z.Select(x => softcap > 0 ? 1 - Math.Pow(Math.Tanh(x / softcap), 2) : 1)];
            double capRounding = softcap > 0 ? 20 * U : 0, capSteepness = softcap > 0 ? 1 / softcap : 0;
            size += softcap > 0 ? 8 * softcap / (d + 2) : 0;
            z = softcap > 0 ? [.. z.Select(x => softcap * Math.Tanh(x / softcap))] : z;
            double max = z.Max(), sum = z.Sum(x => Math.Exp(x - max));
            e.Losses[row] = max + Math.Log(sum) - z[targets[row]];

            // Logits are off by delta at most; a probability by the factor exp(2 delta), and by the roundings of exp and of the sum.
            double delta = (d + 2) * U * size, relative = Math.Exp(2 * delta) - 1 + (vocabulary + 40) * U;
            e.LossBound[row] = 2 * delta + 4 * U * (size + Math.Log(vocabulary) + 1) + vocabulary * U;
            for (int v = 0; v < vocabulary; v++)
            {
                double p = Math.Exp(z[v] - max) / sum, hit = v == targets[row] ? 1 : 0;
                for (int i = 0; i < d; i++)
                {
                    e.DHidden[row * d + i] += scale * (p - hit) * slope[v] * weight[v * d + i];
                    e.DHiddenBound[row * d + i] += scale * Math.Abs(weight[v * d + i]) * (p * relative + (p + hit) * ((vocabulary + 4) * U + logitRounding + capRounding + 2 * delta * capSteepness) + 1e-37);
                    e.DWeight[v * d + i] += scale * (p - hit) * slope[v] * hidden[row * d + i];
                    e.DWeightBound[v * d + i] += scale * Math.Abs(hidden[row * d + i]) * (p * relative + (p + hit) * ((n + 4) * U + logitRounding + capRounding + 2 * delta * capSteepness) + 1e-37);
                }
            }
        }

        return e;
    }
}
