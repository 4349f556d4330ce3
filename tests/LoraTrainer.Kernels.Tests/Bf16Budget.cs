using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>
/// How far a bf16 device may be from the exact result: a small multiple of the distance of a run that computes in f32 and rounds each
/// operation's result to bf16 once. That run has the error which the format itself costs; a wrong formula, a lost term or a second rounding in a
/// long sum has more.
/// </summary>
internal static class Bf16Budget
{
    /// <summary>For logits and losses.</summary>
    public const double Forward = 2;

    /// <summary>For gradients and for what training ends with.</summary>
    public const double Backward = 3;

    /// <summary>The root of the mean square of the differences is at most <paramref name="factor"/> times that of the rounded run.</summary>
    public static void Within(ReadOnlySpan<float> exact, ReadOnlySpan<float> rounded, ReadOnlySpan<float> actual, double factor, string what)
    {
        double yardstick = Error(exact, rounded, what), error = Error(exact, actual, what);
        TestContext.Current.TestOutputHelper?.WriteLine($"{what}: error {error:G4}, of the rounded run {yardstick:G4}, ratio {error / yardstick:0.00}");
        Assert.True(error <= factor * yardstick, $"{what}: error {error:G4} is above {factor} times that of a run rounded to bf16, {yardstick:G4} (ratio {error / yardstick:0.00})");
    }

    /// <summary>Root mean square of the differences; NaN where either side holds one, which no comparison accepts.</summary>
    public static double Error(ReadOnlySpan<float> exact, ReadOnlySpan<float> actual, string what)
    {
        Assert.True(exact.Length == actual.Length, $"{what}: expected {exact.Length} elements, got {actual.Length}");
        double sum = 0;
        for (int i = 0; i < exact.Length; i++)
        {
            double difference = (double)actual[i] - exact[i];
            sum += difference * difference;
        }

        return Math.Sqrt(sum / Math.Max(1, exact.Length));
    }
}
