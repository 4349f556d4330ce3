using System.Globalization;
using System.Text;
using Xunit;

namespace LoraTrainer.TestSupport;

/// <summary>Comparisons of arrays of numbers that say how many differ, by how much and where first. A NaN on one side only never passes.</summary>
public static class TensorAssert
{
    /// <summary>|actual - expected| &lt;= tolerance for every element.</summary>
    public static void Close(ReadOnlySpan<float> expected, ReadOnlySpan<float> actual, double tolerance, string what)
    {
        Assert.True(expected.Length == actual.Length, $"{what}: expected {expected.Length} elements, got {actual.Length}");
        double worst = 0;
        int wrong = 0;
        var mismatches = new StringBuilder();
        for (int i = 0; i < expected.Length; i++)
        {
            double error = Math.Abs((double)actual[i] - expected[i]);
            // Written so that NaN counts as wrong: every comparison with NaN is false.
            if (!(error <= tolerance))
            {
                if (wrong++ < 5)
                {
                    mismatches.Append(CultureInfo.InvariantCulture, $"\n  [{i}] expected {expected[i]:R}, got {actual[i]:R}, error {error:G4}");
                }
            }

            if (!(error <= worst))
            {
                worst = error;
            }
        }

        Assert.True(wrong == 0, $"{what}: {wrong} of {expected.Length} elements differ by more than {tolerance:G3}; largest error {worst:G4}{mismatches}");
    }

    /// <summary>||actual - expected|| / ||expected|| &lt;= tolerance in the L2 norm (absolute where the expected norm is zero).</summary>
    public static void RelativeL2(ReadOnlySpan<float> expected, ReadOnlySpan<float> actual, double tolerance, string what)
    {
        Assert.True(expected.Length == actual.Length, $"{what}: expected {expected.Length} elements, got {actual.Length}");
        double difference = 0, norm = 0;
        for (int i = 0; i < expected.Length; i++)
        {
            double d = (double)actual[i] - expected[i];
            difference += d * d;
            norm += (double)expected[i] * expected[i];
        }

        double error = norm > 0 ? Math.Sqrt(difference / norm) : Math.Sqrt(difference);
        Assert.True(error <= tolerance, $"{what}: relative L2 error {error:G4} is above {tolerance:G3} ({expected.Length} elements, expected norm {Math.Sqrt(norm):G5})");
    }

    /// <summary>Equal bit for bit.</summary>
    public static void BitEqual(ReadOnlySpan<float> expected, ReadOnlySpan<float> actual, string what)
    {
        Assert.True(expected.Length == actual.Length, $"{what}: expected {expected.Length} elements, got {actual.Length}");
        int wrong = 0;
        var mismatches = new StringBuilder();
        for (int i = 0; i < expected.Length; i++)
        {
            if (BitConverter.SingleToInt32Bits(expected[i]) != BitConverter.SingleToInt32Bits(actual[i]) && wrong++ < 5)
            {
                mismatches.Append(CultureInfo.InvariantCulture, $"\n  [{i}] expected {expected[i]:R} ({BitConverter.SingleToInt32Bits(expected[i]):X8}), got {actual[i]:R} ({BitConverter.SingleToInt32Bits(actual[i]):X8})");
            }
        }

        Assert.True(wrong == 0, $"{what}: {wrong} of {expected.Length} elements are not bit-equal{mismatches}");
    }
}
