using System.Globalization;

namespace LoraTrainer.Costs;

/// <summary>
/// An amount in one currency. Decimal, never binary; amounts of two currencies are never added, since that needs an exchange rate and a date that
/// nobody gave. Nothing is rounded here: rounding is for what is printed.
/// </summary>
/// <param name="Amount">Units of the currency, any number of digits.</param>
/// <param name="Currency">Three capital letters, ISO 4217.</param>
public readonly record struct Money(decimal Amount, string Currency) : IComparable<Money>
{
    public static Money Zero(string currency) => new(0, currency);

    public static Money operator +(Money a, Money b) => new(a.Amount + Same(a, b).Amount, a.Currency);

    public static Money operator -(Money a, Money b) => new(a.Amount - Same(a, b).Amount, a.Currency);

    public static Money operator *(Money a, decimal factor) => a with { Amount = a.Amount * factor };

    public static bool operator <(Money a, Money b) => a.CompareTo(b) < 0;

    public static bool operator >(Money a, Money b) => a.CompareTo(b) > 0;

    public static bool operator <=(Money a, Money b) => a.CompareTo(b) <= 0;

    public static bool operator >=(Money a, Money b) => a.CompareTo(b) >= 0;

    /// <summary>One total for each currency, by its name.</summary>
    public static IReadOnlyList<Money> Totals(IEnumerable<Money> amounts) =>
        [.. amounts.GroupBy(amount => amount.Currency).OrderBy(group => group.Key, StringComparer.Ordinal).Select(group => new Money(group.Sum(amount => amount.Amount), group.Key))];

    /// <exception cref="InvalidOperationException">The currencies differ.</exception>
    public int CompareTo(Money other) => Amount.CompareTo(Same(this, other).Amount);

    /// <summary>For people: rounded half to even at two digits behind the point, four where that would be nothing.</summary>
    public override string ToString()
    {
        string digits = Amount != 0 && Math.Abs(Amount) < 0.01m ? "0.0000" : "#,0.00";
        return string.Create(CultureInfo.InvariantCulture, $"{Math.Round(Amount, digits == "0.0000" ? 4 : 2).ToString(digits, CultureInfo.InvariantCulture)} {Currency}");
    }

    /// <summary>For people: rounded half to even at so many digits behind the point, so that amounts under each other look alike.</summary>
    public string ToString(int digits) =>
        $"{Math.Round(Amount, digits).ToString("#,0." + new string('0', digits), CultureInfo.InvariantCulture)} {Currency}";

    private static Money Same(Money a, Money b) => a.Currency == b.Currency
        ? b
        : throw new InvalidOperationException($"Amounts in {a.Currency} and {b.Currency} cannot be added or compared: there is no exchange rate.");
}
