using System.Text.Json.Serialization;

namespace LoraTrainer.Costs.Ledger;

/// <summary>What an hourly price is for.</summary>
public enum RatePer
{
    Gpu,
    Machine,
}

/// <summary>The price of an attempt's hours, and where it is from.</summary>
/// <param name="Amount">Of one hour, before rounding of any kind.</param>
/// <param name="Currency">Three capital letters, ISO 4217.</param>
/// <param name="Per">Whether each GPU costs so much, or the machine with all of them.</param>
public sealed record AttemptRate(decimal Amount, string Currency, RatePer Per = RatePer.Gpu)
{
    /// <summary>Digits behind the point of a cost that was worked out.</summary>
    public const int Digits = 18;

    private const decimal SecondsInHour = 3600;

    /// <summary>More for an hour is a mistake in a unit: the largest machines on offer cost a thousandth of it.</summary>
    public const decimal Highest = 100_000;

    [JsonNumberHandling(JsonNumberHandling.WriteAsString | JsonNumberHandling.AllowReadingFromString)]
    public decimal Amount { get; } = Amount switch
    {
        < 0 => throw new ArgumentException($"A rate cannot be negative, got {Check.Number(Amount)} an hour. A credit is a cost line of its own."),
        > Highest => throw new ArgumentException($"A rate is a price of one hour, at most {Check.Number(Highest)}, got {Check.Number(Amount)}."),
        _ => Amount,
    };

    public string Currency { get; } = Check.Currency(Currency);

    /// <summary>Who says so: "config", "price list", a URL.</summary>
    public string Source { get; init; } = string.Empty;

    /// <summary>The day that the price was read on.</summary>
    public DateOnly? AsOf { get; init; }

    public BillingTerms Billing
    {
        get;
        init => field = value is { GranularitySeconds: > 0, MinimumSeconds: >= 0 }
            ? value
            : throw new ArgumentException($"Time is billed in units of more than 0 seconds with a minimum of at least 0, got {Check.Number(value.GranularitySeconds)} and {Check.Number(value.MinimumSeconds)}.");
    } = BillingTerms.PerSecond;

    /// <summary>What a time costs, before the provider's units and minimum.</summary>
    /// <param name="seconds">0 or more.</param>
    /// <param name="gpuCount">GPUs of the attempt.</param>
    public Money CostOf(decimal seconds, int gpuCount) =>
        // One division, at the end: an hourly price divided first would lose digits. It has to end somewhere, and with so many digits sums are exact, in any order.
        new(decimal.Round(Amount * (Per == RatePer.Machine ? 1 : gpuCount) * seconds / SecondsInHour, Digits), Currency);

    /// <summary>What an attempt of that length costs.</summary>
    /// <param name="seconds">0 or more.</param>
    /// <param name="gpuCount">GPUs of the attempt.</param>
    public Money BilledCostOf(decimal seconds, int gpuCount) => CostOf(Billing.BilledSeconds(seconds), gpuCount);
}
