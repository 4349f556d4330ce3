using System.Text.Json.Serialization;

namespace LoraTrainer.Costs.Ledger;

public enum CostCategory
{
    Gpu,
    Storage,
    Egress,
    Labor,
    Data,
    Inference,
    Other,
}

/// <summary>A cost that is not an attempt's time: of a run, or of a project as a whole. Negative for a credit.</summary>
/// <param name="Category">What it is for.</param>
/// <param name="Amount">Units of <paramref name="Currency"/>, any number of digits.</param>
/// <param name="Currency">Three capital letters, ISO 4217.</param>
/// <param name="Date">The day that it belongs to.</param>
public sealed record CostLine(CostCategory Category, decimal Amount, string Currency, DateOnly Date)
{
    /// <summary>More is a mistake in a unit.</summary>
    public const decimal Highest = 1_000_000_000;

    /// <summary>A line is one cost however often it is written down.</summary>
    public string Id { get; init; } = Guid.NewGuid().ToString("N");

    [JsonNumberHandling(JsonNumberHandling.WriteAsString | JsonNumberHandling.AllowReadingFromString)]
    public decimal Amount { get; } = Math.Abs(Amount) <= Highest
        ? Amount
        : throw new ArgumentException($"A cost line is at most {Check.Number(Highest)}, got {Check.Number(Amount)}.");

    public string Currency { get; } = Check.Currency(Currency);

    /// <summary>The run that it belongs to; null for a cost of a project.</summary>
    public string? RunId { get; init; }

    /// <summary>The project that it belongs to, where it belongs to no run.</summary>
    public string? Project { get; init; }

    public string Description { get; init; } = string.Empty;

    /// <summary>Whether a person entered it; false where it was worked out from sizes and prices.</summary>
    public bool ByHand { get; init; }

    [JsonIgnore]
    public Money Money => new(Amount, Currency);
}
