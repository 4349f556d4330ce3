namespace LoraTrainer.Costs.Prices;

/// <summary>A service that fine-tunes a model of its own for a price per million training tokens, as it was read on a day.</summary>
/// <param name="Name">Who offers it.</param>
/// <param name="Model">Which model is trained.</param>
/// <param name="PerMillionTokens">Tokens of the data, times epochs.</param>
/// <param name="Source">Where the price was read.</param>
/// <param name="AsOf">When.</param>
public sealed record TuningService(string Name, string Model, Money PerMillionTokens, string Source, DateOnly AsOf)
{
    private const string ShippedFile = "services.csv";

    /// <summary>Those that the program knows.</summary>
    public static IReadOnlyList<TuningService> Shipped =>
    [
        .. CsvTable.Parse(ShippedFile, CsvTable.Shipped(typeof(TuningService), ShippedFile), ["service", "model", "price", "currency", "source", "as_of"])
            .Select(row => new TuningService(row.Text("service"), row.Text("model"), new Money(row.Number("price", 0, 1_000_000), row.Currency("currency")), row.Text("source"), row.Day("as_of"))),
    ];

    /// <summary>What training on so many tokens costs.</summary>
    /// <param name="tokens">Of the data, times epochs.</param>
    public Money Cost(long tokens) => PerMillionTokens * (tokens / 1_000_000m);
}
