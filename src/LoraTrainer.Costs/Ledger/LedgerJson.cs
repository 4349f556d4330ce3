using System.Text.Json.Serialization;

namespace LoraTrainer.Costs.Ledger;

/// <summary>One line of a journal: what would have been written to the ledger. Both kinds may be written twice without counting twice.</summary>
internal sealed record LedgerEvent
{
    public AttemptSnapshot? Attempt { get; init; }

    public CostLine? Line { get; init; }
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.SnakeCaseLower, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull, UseStringEnumConverter = true, RespectNullableAnnotations = true)]
[JsonSerializable(typeof(LedgerEvent))]
[JsonSerializable(typeof(IReadOnlyList<string>))]
[JsonSerializable(typeof(IReadOnlyDictionary<string, string>))]
internal sealed partial class LedgerJson : JsonSerializerContext;
