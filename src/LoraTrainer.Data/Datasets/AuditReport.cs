using System.Text.Json;

namespace LoraTrainer.Data.Datasets;

/// <summary>How much a finding matters.</summary>
public enum AuditSeverity
{
    /// <summary>Worth knowing.</summary>
    Notice,

    /// <summary>Training goes on, perhaps not as meant.</summary>
    Warning,

    /// <summary>Training would waste what it costs: it is not started.</summary>
    Error,
}

/// <summary>One line of an audit.</summary>
/// <param name="Severity">How much it matters.</param>
/// <param name="Code">A word for scripts.</param>
/// <param name="Message">A sentence for people, with the first places.</param>
/// <param name="File">The file that it is about; null: the data as a whole.</param>
/// <param name="Count">Rows that it is about; 0 where it is not about rows.</param>
/// <param name="Rows">Numbers of the first of them, from 1.</param>
public sealed record AuditFinding(AuditSeverity Severity, string Code, string Message, string? File, int Count, IReadOnlyList<int> Rows);

/// <summary>Tokens per kept row: the values that so many percent of the rows do not exceed.</summary>
public readonly record struct LengthPercentiles(int Shortest, int P50, int P90, int P99, int Longest);

/// <summary>What an epoch trains on: the kept rows, as often as the weights of their data sets say.</summary>
public readonly record struct EpochSize(long Rows, long Tokens, long SupervisedTokens);

/// <summary>What a data set holds, and what is dubious in it, as counted by <see cref="DatasetAudit"/>.</summary>
public sealed record AuditReport
{
    /// <summary>Rows read to train on.</summary>
    public required int Rows { get; init; }

    public required int Kept { get; init; }

    public int Dropped => Rows - Kept;

    /// <summary>Of those kept.</summary>
    public required int Truncated { get; init; }

    public required long Tokens { get; init; }

    public required long SupervisedTokens { get; init; }

    public required EpochSize Epoch { get; init; }

    /// <summary>Rows besides these that are only evaluated.</summary>
    public required int HeldOut { get; init; }

    public required LengthPercentiles Lengths { get; init; }

    /// <summary>The most important first.</summary>
    public required IReadOnlyList<AuditFinding> Findings { get; init; }

    public bool HasErrors => Findings.Any(finding => finding.Severity == AuditSeverity.Error);

    /// <summary>As one JSON object.</summary>
    public void Write(Utf8JsonWriter json)
    {
        json.WriteStartObject();
        json.WriteNumber("rows", Rows);
        json.WriteNumber("kept", Kept);
        json.WriteNumber("dropped", Dropped);
        json.WriteNumber("truncated", Truncated);
        json.WriteNumber("tokens", Tokens);
        json.WriteNumber("supervised_tokens", SupervisedTokens);
        json.WriteStartObject("epoch");
        json.WriteNumber("rows", Epoch.Rows);
        json.WriteNumber("tokens", Epoch.Tokens);
        json.WriteNumber("supervised_tokens", Epoch.SupervisedTokens);
        json.WriteEndObject();
        json.WriteNumber("held_out", HeldOut);
        json.WriteStartObject("lengths");
        json.WriteNumber("min", Lengths.Shortest);
        json.WriteNumber("p50", Lengths.P50);
        json.WriteNumber("p90", Lengths.P90);
        json.WriteNumber("p99", Lengths.P99);
        json.WriteNumber("max", Lengths.Longest);
        json.WriteEndObject();
        json.WriteStartArray("findings");
        foreach (AuditFinding finding in Findings)
        {
            json.WriteStartObject();
            json.WriteString("severity", Word(finding.Severity));
            json.WriteString("code", finding.Code);
            json.WriteString("message", finding.Message);
            json.WriteString("file", finding.File);
            json.WriteNumber("count", finding.Count);
            json.WriteStartArray("rows");
            foreach (int row in finding.Rows)
            {
                json.WriteNumberValue(row);
            }

            json.WriteEndArray();
            json.WriteEndObject();
        }

        json.WriteEndArray();
        json.WriteEndObject();
    }

    /// <summary>What <see cref="Write"/> wrote.</summary>
    internal static AuditReport Read(JsonElement json)
    {
        int Number(string name) => json.GetProperty(name).GetInt32();
        JsonElement lengths = json.GetProperty("lengths"), epoch = json.GetProperty("epoch");
        return new AuditReport
        {
            Rows = Number("rows"),
            Kept = Number("kept"),
            Truncated = Number("truncated"),
            Tokens = json.GetProperty("tokens").GetInt64(),
            SupervisedTokens = json.GetProperty("supervised_tokens").GetInt64(),
            Epoch = new EpochSize(epoch.GetProperty("rows").GetInt64(), epoch.GetProperty("tokens").GetInt64(), epoch.GetProperty("supervised_tokens").GetInt64()),
            HeldOut = Number("held_out"),
            Lengths = new LengthPercentiles(
                lengths.GetProperty("min").GetInt32(), lengths.GetProperty("p50").GetInt32(), lengths.GetProperty("p90").GetInt32(), lengths.GetProperty("p99").GetInt32(), lengths.GetProperty("max").GetInt32()),
            Findings = [.. json.GetProperty("findings").EnumerateArray().Select(finding => new AuditFinding(
                Severity(finding.GetProperty("severity").GetString()), finding.GetProperty("code").GetString()!, finding.GetProperty("message").GetString()!, finding.GetProperty("file").GetString(),
                finding.GetProperty("count").GetInt32(), [.. finding.GetProperty("rows").EnumerateArray().Select(row => row.GetInt32())]))],
        };
    }

    /// <summary>notice, warning or error.</summary>
    public static string Word(AuditSeverity severity) => severity switch { AuditSeverity.Notice => "notice", AuditSeverity.Warning => "warning", _ => "error" };

    private static AuditSeverity Severity(string? word) => word switch { "notice" => AuditSeverity.Notice, "warning" => AuditSeverity.Warning, "error" => AuditSeverity.Error, _ => throw new FormatException($"severity {word}") };
}
