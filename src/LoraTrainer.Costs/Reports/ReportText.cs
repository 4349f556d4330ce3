using System.Globalization;

namespace LoraTrainer.Costs.Reports;

/// <summary>Numbers of a report as people read them. Whoever computes takes JSON or CSV, where nothing is rounded.</summary>
public static class ReportText
{
    private const decimal LongestClock = 100;

    /// <summary>h:mm:ss below 100 hours, whole seconds; "123.4 h" from there on.</summary>
    public static string Duration(decimal hours)
    {
        if (hours >= LongestClock)
        {
            return string.Create(CultureInfo.InvariantCulture, $"{hours:#,0.0} h");
        }

        long seconds = (long)decimal.Round(hours * 3600);
        return string.Create(CultureInfo.InvariantCulture, $"{seconds / 3600}:{seconds / 60 % 60:00}:{seconds % 60:00}");
    }

    /// <summary>Amounts beside each other, never added, and the time that has no rate.</summary>
    /// <param name="amounts">One for each currency.</param>
    /// <param name="unpricedHours">Machine time without a rate.</param>
    /// <param name="digits">See <see cref="Digits"/>; null: as many as each needs by itself.</param>
    public static string Amounts(IReadOnlyList<Money> amounts, decimal unpricedHours, int? digits = null) => string.Join(", ", Parts(amounts, unpricedHours, digits));

    /// <summary>The same one by one, for lines under each other; never empty.</summary>
    public static IReadOnlyList<string> Parts(IReadOnlyList<Money> amounts, decimal unpricedHours, int? digits = null)
    {
        ArgumentNullException.ThrowIfNull(amounts);
        string missing = unpricedHours == 0 ? "" : amounts.Count == 0 ? "no rate" : $"{Duration(unpricedHours)} without a rate";
        string[] parts = [.. amounts.Select(amount => digits is { } wanted ? amount.ToString(wanted) : amount.ToString()).Append(missing).Where(part => part.Length > 0)];
        return parts.Length > 0 ? parts : ["nothing"];
    }

    /// <summary>Digits behind the point for the parts of a whole: two, four where they would be nothing but cents.</summary>
    public static int Digits(IReadOnlyList<Money> whole)
    {
        ArgumentNullException.ThrowIfNull(whole);
        return whole.All(amount => Math.Abs(amount.Amount) >= 10) ? 2 : 4;
    }

    /// <summary>A price of something small: three digits that say something.</summary>
    public static string UnitPrice(Money price)
    {
        decimal size = Math.Abs(price.Amount);
        int digits = 2;
        for (decimal least = 1; digits < 12 && size > 0 && size < least; least /= 10)
        {
            digits++;
        }

        return string.Create(CultureInfo.InvariantCulture, $"{decimal.Round(price.Amount, digits).ToString("#,0.00##########", CultureInfo.InvariantCulture)} {price.Currency}");
    }

    public static string Whole(long number) => number.ToString("#,0", CultureInfo.InvariantCulture);

    /// <summary>A number with what it counts, as people say it: 1 step, 1,200 steps.</summary>
    /// <param name="number">How many.</param>
    /// <param name="one">The noun for one, which takes an s for more.</param>
    public static string Count(long number, string one) => $"{Whole(number)} {one}{(number == 1 ? "" : "s")}";

    public static string Percent(decimal share) => string.Create(CultureInfo.InvariantCulture, $"{share * 100:0.0} %");

    /// <summary>In UTC, to the minute.</summary>
    public static string Moment(DateTimeOffset time) => time.UtcDateTime.ToString("yyyy-MM-dd HH:mm", CultureInfo.InvariantCulture);

    /// <summary>The text on one line, without what would steer a terminal or turn the direction of what follows.</summary>
    public static string Plain(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        return text.All(letter => !IsSteering(letter)) && IsWhole(text) ? text : string.Concat(text.EnumerateRunes().Select(rune => rune.IsBmp && IsSteering((char)rune.Value) ? "\uFFFD" : rune.ToString()));

        // Half of a pair becomes the replacement character when runes are enumerated.
        static bool IsWhole(string text) => !text.Any(char.IsSurrogate);
    }

    private static bool IsSteering(char letter) => char.IsControl(letter) || letter is (>= '\u200B' and <= '\u200F') or (>= '\u2028' and <= '\u202E') or (>= '\u2066' and <= '\u2069') or '\uFEFF' or '\uFFFE' or '\uFFFF';
}
