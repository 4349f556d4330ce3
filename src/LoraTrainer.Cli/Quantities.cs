using System.Globalization;
using LoraTrainer.Costs.Reports;

namespace LoraTrainer.Cli;

/// <summary>Numbers as people read them.</summary>
internal static class Quantities
{
    public static string Bytes(long bytes) => bytes switch
    {
        < 1L << 20 => string.Create(CultureInfo.InvariantCulture, $"{bytes / 1024.0:0.0} KiB"),
        < 1L << 30 => string.Create(CultureInfo.InvariantCulture, $"{bytes / 1048576.0:0} MiB"),
        _ => string.Create(CultureInfo.InvariantCulture, $"{bytes / 1073741824.0:0.0} GiB"),
    };

    /// <summary>Hours, minutes and seconds.</summary>
    public static string Time(TimeSpan time) =>
        string.Create(CultureInfo.InvariantCulture, $"{(long)time.TotalHours}:{time.Minutes:00}:{time.Seconds:00}");

    /// <summary>A number with what it counts: 1 step, 1,200 steps.</summary>
    public static string Count(long number, string one) => ReportText.Count(number, one);

    public static string Money(decimal amount, string? currency) => string.Create(CultureInfo.InvariantCulture, $"{amount:0.00##} {currency}").TrimEnd();
}
