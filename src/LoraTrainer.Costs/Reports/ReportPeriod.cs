using System.Diagnostics.CodeAnalysis;
using System.Globalization;

namespace LoraTrainer.Costs.Reports;

/// <summary>The time that a report is about. What happened in part within it counts with that part.</summary>
/// <param name="Since">Its first moment; null: from the beginning.</param>
/// <param name="Until">The first moment after it; null: without end.</param>
public readonly record struct ReportPeriod(DateTimeOffset? Since, DateTimeOffset? Until)
{
    /// <summary>Longer ago than any ledger: a mistake in a unit.</summary>
    private const int MostDays = 36_500;

    public static ReportPeriod Always => default;

    public bool IsAlways => Since is null && Until is null;

    public bool Holds(DateTimeOffset time) => (Since is null || time >= Since) && (Until is null || time < Until);

    /// <summary>Whether something that lasted from start to end lies in it from its first moment to its last.</summary>
    public bool HoldsAll(DateTimeOffset start, DateTimeOffset end) => (Since is null || start >= Since) && (Until is null || end <= Until);

    /// <summary>
    /// Reads a moment as people write it: a day (2026-11-01, its beginning in UTC), a time of a day (2026-11-01T15:30, UTC), or how long ago (90m, 24h, 7d, 2w).
    /// </summary>
    /// <param name="text">What was written.</param>
    /// <param name="now">What "ago" counts from.</param>
    /// <param name="moment">In UTC.</param>
    public static bool TryParse(string text, DateTimeOffset now, [NotNullWhen(true)] out DateTimeOffset? moment)
    {
        moment = null;
        CultureInfo culture = CultureInfo.InvariantCulture;
        if (text.Length > 1 && text[^1] is 'm' or 'h' or 'd' or 'w')
        {
            if (int.TryParse(text.AsSpan(0, text.Length - 1), NumberStyles.None, culture, out int count))
            {
                double days = text[^1] switch { 'm' => count / 1440.0, 'h' => count / 24.0, 'd' => count, _ => count * 7.0 };
                moment = days <= MostDays ? now.ToUniversalTime() - TimeSpan.FromDays(days) : null;
            }

            return moment is not null;
        }

        if (DateTimeOffset.TryParseExact(text, ["yyyy-MM-dd", "yyyy-MM-dd'T'HH:mm", "yyyy-MM-dd'T'HH:mm:ss", "yyyy-MM-dd'T'HH:mm:ssK"], culture, DateTimeStyles.AssumeUniversal | DateTimeStyles.AdjustToUniversal, out DateTimeOffset day))
        {
            moment = day;
        }

        return moment is not null;
    }
}
