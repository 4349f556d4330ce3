using System.Globalization;

namespace LoraTrainer.Costs.Reports;

/// <summary>Round numbers along an axis: steps of 1, 2 or 5 times a power of ten, from the one at or below the least value to the one at or above the greatest.</summary>
internal sealed record AxisTicks(double Step, IReadOnlyList<double> Values)
{
    private const int MostDigits = 12;

    // Binary fractions that should be round are so but for their last digits.
    private const double Slack = 1e-9;

    public double Least => Values[0];

    public double Greatest => Values[^1];

    /// <param name="least">Finite.</param>
    /// <param name="greatest">Finite, at least <paramref name="least"/>.</param>
    /// <param name="wanted">About so many intervals.</param>
    public static AxisTicks Between(double least, double greatest, int wanted)
    {
        double span = greatest - least;
        if (span <= Math.Max(Math.Abs(least), Math.Abs(greatest)) * 1e-9)
        {
            // All values are one: room on both sides of it.
            span = Math.Max(Math.Abs(least), 1e-9);
            (least, greatest) = (least - (span / 2), greatest + (span / 2));
        }

        double power = Math.Pow(10, Math.Floor(Math.Log10(span / wanted)));
        double step = power * (span / wanted / power) switch { <= 1.5 => 1, <= 3 => 2, <= 7.5 => 5, _ => 10 };
        long first = (long)Math.Floor((least / step) + Slack), last = (long)Math.Ceiling((greatest / step) - Slack);
        return new AxisTicks(step, [.. Enumerable.Range(0, (int)(last - first) + 1).Select(index => (first + index) * step)]);
    }

    /// <summary>With as many digits as the step needs.</summary>
    public string Label(double value) => Label(value, 0);

    /// <summary>A value between the ticks: two digits finer.</summary>
    public string Fine(double value) => Label(value, 2);

    private string Label(double value, int more)
    {
        int digits = Math.Clamp((int)Math.Ceiling(-Math.Log10(Step) - Slack) + more, 0, MostDigits);
        return (value == 0 ? 0 : value).ToString("#,0." + new string('0', digits), CultureInfo.InvariantCulture);
    }
}
