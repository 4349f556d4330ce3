using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Text.Json;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Checkpoints;

/// <summary>
/// One process's work on a run, as it renews it beside its lease: <c>attempts/EPOCH.json</c>. If the machine vanishes, its time and its steps are
/// known up to the last renewal, even where its disk is gone.
/// </summary>
public sealed record AttemptRecord
{
    public required string RunId { get; init; }

    /// <summary>Of its lease; one for each attempt.</summary>
    public required int Epoch { get; init; }

    public required LeaseHolder Holder { get; init; }

    /// <summary>Start of the process, by its machine's clock.</summary>
    public required DateTimeOffset Started { get; init; }

    /// <summary>Of this renewal, by the same clock.</summary>
    public required DateTimeOffset LastSeen { get; init; }

    /// <summary>From the start of the process to this renewal, by a clock that nobody sets.</summary>
    public required double Seconds { get; init; }

    /// <summary>Wall time of each phase so far.</summary>
    public required IReadOnlyDictionary<TrainingPhase, double> PhaseSeconds { get; init; }

    public required TrainingPhase Phase { get; init; }

    /// <summary>The device it computes on; empty before it is opened.</summary>
    public string Device { get; init; } = string.Empty;

    /// <summary>The step that it started after.</summary>
    public int FirstStep { get; init; }

    /// <summary>Steps of the run that are done.</summary>
    public int Step { get; init; }

    public int TotalSteps { get; init; }

    /// <summary>The step of its newest checkpoint; null while it has saved none.</summary>
    public int? SavedStep { get; init; }

    /// <summary>Tokens of its own steps.</summary>
    public long Tokens { get; init; }

    public double? Loss { get; init; }

    public double? TokensPerSecond { get; init; }

    /// <summary>How long its saves have kept the steps waiting, all together.</summary>
    public double StallSeconds { get; init; }

    /// <summary>Price of an hour; null where it is not known.</summary>
    public decimal? Rate { get; init; }

    public required string Currency { get; init; }

    /// <summary>How it ended: finished, interrupted, stopped, failed; null while it runs, and for ever where it was killed.</summary>
    public string? Ended { get; init; }

    public static bool TryParse(ReadOnlyMemory<byte> utf8, [NotNullWhen(true)] out AttemptRecord? attempt)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(utf8);
            JsonElement root = document.RootElement;
            attempt = new AttemptRecord
            {
                RunId = root.GetProperty("run_id").GetString()!,
                Epoch = root.GetProperty("epoch").GetInt32(),
                Holder = LeaseHolder.Read(root),
                Started = root.GetProperty("started").GetDateTimeOffset(),
                LastSeen = root.GetProperty("last_seen").GetDateTimeOffset(),
                Seconds = root.GetProperty("seconds").GetDouble(),
                PhaseSeconds = root.GetProperty("phase_seconds").EnumerateObject().ToDictionary(item => Enum.Parse<TrainingPhase>(item.Name, ignoreCase: true), item => item.Value.GetDouble()),
                Phase = Enum.Parse<TrainingPhase>(root.GetProperty("phase").GetString()!, ignoreCase: true),
                Device = root.GetProperty("device").GetString()!,
                FirstStep = root.GetProperty("first_step").GetInt32(),
                Step = root.GetProperty("step").GetInt32(),
                TotalSteps = root.GetProperty("total_steps").GetInt32(),
                SavedStep = Number(root, "saved_step") is { } saved ? (int)saved : null,
                Tokens = root.GetProperty("tokens").GetInt64(),
                Loss = Number(root, "loss"),
                TokensPerSecond = Number(root, "tokens_per_second"),
                StallSeconds = root.GetProperty("stall_seconds").GetDouble(),
                Rate = root.GetProperty("rate") is { ValueKind: JsonValueKind.String } rate ? decimal.Parse(rate.GetString()!, CultureInfo.InvariantCulture) : null,
                Currency = root.GetProperty("currency").GetString()!,
                Ended = root.GetProperty("ended").GetString(),
            };

            // Written by who knows whom: nothing that would be a debt of a negative time, or an endless one.
            bool isSound = double.IsFinite(attempt.Seconds) && attempt is { Seconds: >= 0, FirstStep: >= 0, Step: >= 0, SavedStep: null or >= 0, Tokens: >= 0, Epoch: > 0 and <= LeaseRecord.HighestEpoch, Rate: null or >= 0 }
                && attempt.Seconds <= TimeSpan.FromDays(36_500).TotalSeconds && attempt.PhaseSeconds.Values.All(seconds => seconds >= 0 && seconds <= TimeSpan.FromDays(36_500).TotalSeconds)
                && attempt.RunId is { Length: > 0 } && attempt.Currency is not null && attempt.Device is not null;
            attempt = isSound ? attempt : null;
            return isSound;
        }
        catch (Exception exception) when (exception is JsonException or KeyNotFoundException or InvalidOperationException or FormatException or ArgumentException or OverflowException)
        {
            attempt = null;
            return false;
        }

        static double? Number(JsonElement root, string name) => root.GetProperty(name) is { ValueKind: JsonValueKind.Number } number ? number.GetDouble() : null;
    }

    public byte[] ToJson()
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            json.WriteString("run_id", RunId);
            json.WriteNumber("epoch", Epoch);
            Holder.Write(json);
            json.WriteString("started", Started);
            json.WriteString("last_seen", LastSeen);
            json.WriteNumber("seconds", Math.Round(Seconds, 3));
            json.WriteStartObject("phase_seconds");
            foreach ((TrainingPhase phase, double seconds) in PhaseSeconds)
            {
                json.WriteNumber(phase.ToString().ToLowerInvariant(), Math.Round(seconds, 3));
            }

            json.WriteEndObject();
            json.WriteString("phase", Phase.ToString().ToLowerInvariant());
            json.WriteString("device", Device);
            json.WriteNumber("first_step", FirstStep);
            json.WriteNumber("step", Step);
            json.WriteNumber("total_steps", TotalSteps);
            json.WriteNumberOrNull("saved_step", (long?)SavedStep);
            json.WriteNumber("tokens", Tokens);
            json.WriteNumberOrNull("loss", Loss);
            json.WriteNumberOrNull("tokens_per_second", TokensPerSecond);
            json.WriteNumber("stall_seconds", Math.Round(StallSeconds, 4));
            json.WriteMoney("rate", Rate);
            json.WriteString("currency", Currency);
            json.WriteString("ended", Ended);
            json.WriteEndObject();
        }

        return buffer.ToArray();
    }
}
