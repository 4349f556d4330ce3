using System.Globalization;

namespace LoraTrainer.Costs.Ledger;

/// <summary>What the ledger takes. Whatever passes here can be added up later.</summary>
internal static class Check
{
    /// <exception cref="ArgumentException">The code has another form than those of ISO 4217.</exception>
    public static string Currency(string code) => code is { Length: 3 } && code.All(char.IsAsciiLetterUpper)
        ? code
        : throw new ArgumentException($"A currency is three capital letters as in USD or EUR, got \"{code}\".");

    public static string Text(string value, string what) => string.IsNullOrWhiteSpace(value) ? throw new ArgumentException($"The {what} is empty.") : value;

    public static int AtLeast(int value, int lowest, string what) => value >= lowest ? value : throw new ArgumentException($"The {what} must be at least {lowest}, got {value}.");

    public static string Number(decimal value) => value.ToString(CultureInfo.InvariantCulture);
}
