using LoraTrainer.Costs.Prices;

namespace LoraTrainer.Costs.Estimates;

/// <summary>A run on one GPU for one price.</summary>
public sealed record Offer
{
    public required Price Price { get; init; }

    public required Gpu Gpu { get; init; }

    /// <summary>Whether the run as it is configured fits with some micro-batch size.</summary>
    public required bool Fits { get; init; }

    /// <summary>Where it does not fit: what would make it fit, as it is written in a config; empty: nothing known does.</summary>
    public IReadOnlyList<string> FitsWith { get; init; } = [];

    /// <summary>Likewise, of what changes no bit of the result; empty where nothing of that does, or <see cref="FitsWith"/> is that already.</summary>
    public IReadOnlyList<string> FitsExactlyWith { get; init; } = [];

    /// <summary>The largest that fits and keeps the global batch, with the switches of <see cref="FitsWith"/> where those are needed.</summary>
    public int? MicroBatchSize { get; init; }

    /// <summary>Likewise with the switches of <see cref="FitsExactlyWith"/>; null where that is empty.</summary>
    public int? ExactMicroBatchSize { get; init; }

    /// <summary>While it trains; null where it does not fit or the GPU's rates are not known.</summary>
    public double? TokensPerSecond { get; init; }

    /// <summary>Null likewise, and where the run's tokens are not known.</summary>
    public RunTime? Time { get; init; }

    /// <summary>Null on a machine that is not taken away.</summary>
    public SpotTerms? Spot { get; init; }

    /// <summary>Machine hours, interruptions included.</summary>
    public double? Hours => Time?.Hours * Factor;

    public double? HoursLow => Time?.HoursLow * Factor;

    public double? HoursHigh => Time?.HoursHigh * Factor;

    /// <summary>For the whole machine, also where it has more GPUs than the run uses.</summary>
    public Money? Cost => CostOf(Hours);

    public Money? CostLow => CostOf(HoursLow);

    public Money? CostHigh => CostOf(HoursHigh);

    /// <summary>For a million tokens while it trains; null where the speed is not known.</summary>
    public Money? CostPerMillionTokens => TokensPerSecond is { } rate and > 0 ? Price.PerInstanceHour * (decimal)(1_000_000 / rate * Factor / 3600) : null;

    private double Factor => 1 + (Spot?.Overhead ?? 0);

    private Money? CostOf(double? hours) => hours is { } value and < 1e12 ? Price.PerInstanceHour * (Price.Billing.BilledSeconds((decimal)value * 3600) / 3600) : null;
}

/// <summary>Which offers are wanted, and in which order.</summary>
public sealed record OfferFilter
{
    /// <summary>Part of the GPU's name; null: any.</summary>
    public string? Gpu { get; init; }

    /// <summary>Null: any.</summary>
    public string? Provider { get; init; }

    /// <summary>Offers in another currency are not compared with it, and left out; null: no limit.</summary>
    public Money? Budget { get; init; }

    /// <summary>Null: no limit.</summary>
    public double? MaxHours { get; init; }

    /// <summary>By hours; else by cost.</summary>
    public bool FastestFirst { get; init; }

    /// <summary>Whether a price is looked at; can be told before anything is planned.</summary>
    public bool Takes(Price price) =>
        (Gpu is null || price.Gpu.Contains(Gpu, StringComparison.OrdinalIgnoreCase)) && (Provider is null || string.Equals(price.Provider, Provider, StringComparison.OrdinalIgnoreCase));

    /// <summary>
    /// The offers that are within the limits, the best first: those with a cost (or hours), then those that fit but whose time is not known, then those
    /// that do not fit. Amounts of different currencies are not compared: each currency stands for itself, in the order of their names.
    /// </summary>
    public IReadOnlyList<Offer> Apply(IEnumerable<Offer> offers)
    {
        IEnumerable<Offer> wanted = offers.Where(offer => Takes(offer.Price)
            && (Budget is not { } budget || (offer.Cost is { } cost && cost.Currency == budget.Currency && cost <= budget))
            && (MaxHours is not { } hours || offer.Hours <= hours));
        IOrderedEnumerable<Offer> ordered = wanted.OrderBy(offer => offer.Fits ? 0 : offer.FitsWith.Count > 0 ? 1 : 2);
        ordered = FastestFirst
            ? ordered.ThenBy(offer => offer.Time is null && offer.TokensPerSecond is null).ThenBy(offer => offer.Hours ?? 0).ThenByDescending(offer => offer.TokensPerSecond ?? 0)
            : ordered.ThenBy(offer => offer.Price.Amount.Currency, StringComparer.Ordinal).ThenBy(offer => offer.Cost is null && offer.CostPerMillionTokens is null)
                .ThenBy(offer => offer.Cost?.Amount ?? 0).ThenBy(offer => offer.CostPerMillionTokens?.Amount ?? 0);
        return [.. ordered.ThenBy(offer => offer.Price.PerInstanceHour.Amount).ThenBy(offer => offer.Price.Provider, StringComparer.Ordinal).ThenBy(offer => offer.Gpu.Name, StringComparer.Ordinal)];
    }
}
