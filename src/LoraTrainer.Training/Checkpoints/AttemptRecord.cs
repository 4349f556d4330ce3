using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Text.Json;
using LoraTrainer.Costs;
using LoraTrainer.Costs.Ledger;
using LoraTrainer.Training.Interruptions;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Checkpoints;

/// <summary>
/// One process's work on a run, as it renews it beside its lease: <c>attempts/EPOCH.json</c>. If the machine vanishes, its time and its steps are
/// known up to the last renewal, even where its disk is gone.
/// </summary>
public sealed record AttemptRecord
{
    /// <summary>How a process <see cref="Ended"/> that met an error.</summary>
    public const string Failed = "failed";

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

    /// <summary>Hours that the whole run was expected to take when the process began; null: not known.</summary>
    public double? ExpectedHours { get; init; }

    /// <summary>Rows of the data that its own steps were trained on.</summary>
    public long Samples { get; init; }

    public double? Loss { get; init; }

    public double? TokensPerSecond { get; init; }

    /// <summary>How long its saves have kept the steps waiting, all together.</summary>
    public double StallSeconds { get; init; }

    /// <summary>Where it runs, as far as that is known.</summary>
    public MachineIdentity Machine { get; init; } = MachineIdentity.Unknown;

    /// <summary>The GPU it computes on, as its driver calls it; empty on a CPU.</summary>
    public string Gpu { get; init; } = string.Empty;

    /// <summary>Price of an hour; null where it is not known.</summary>
    public AttemptRate? Rate { get; init; }

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
                ExpectedHours = root.TryGetProperty("expected_hours", out JsonElement expected) && expected.ValueKind == JsonValueKind.Number ? expected.GetDouble() : null,
                Samples = root.TryGetProperty("samples", out JsonElement samples) ? samples.GetInt64() : 0,
                Loss = Number(root, "loss"),
                TokensPerSecond = Number(root, "tokens_per_second"),
                StallSeconds = root.GetProperty("stall_seconds").GetDouble(),
                Machine = ReadMachine(root),
                Gpu = Word(root, "gpu"),
                Rate = ReadRate(root),
                Ended = root.GetProperty("ended").GetString(),
            };

            // Written by who knows whom: nothing that would be a debt of a negative time, or an endless one.
            bool isSound = double.IsFinite(attempt.Seconds) && attempt is { Seconds: >= 0, FirstStep: >= 0, Step: >= 0, SavedStep: null or >= 0, Tokens: >= 0, Samples: >= 0, ExpectedHours: null or >= 0 and < 1e6, Epoch: > 0 and <= LeaseRecord.HighestEpoch }
                && attempt.Seconds <= TimeSpan.FromDays(36_500).TotalSeconds && attempt.PhaseSeconds.Values.All(seconds => seconds >= 0 && seconds <= TimeSpan.FromDays(36_500).TotalSeconds)
                && attempt.RunId is { Length: > 0 } && attempt.Device is not null;
            attempt = isSound ? attempt : null;
            return isSound;
        }
        catch (Exception exception) when (exception is JsonException or KeyNotFoundException or InvalidOperationException or FormatException or ArgumentException or OverflowException)
        {
            attempt = null;
            return false;
        }

        // What follows was not told by the first programs that wrote such records.
        static string Word(JsonElement root, string name) => root.TryGetProperty(name, out JsonElement value) && value.ValueKind == JsonValueKind.String ? value.GetString()! : string.Empty;

        static MachineIdentity ReadMachine(JsonElement root) => root.TryGetProperty("machine", out JsonElement machine) && machine.ValueKind == JsonValueKind.Object
            ? new MachineIdentity(Word(machine, "provider"), Word(machine, "instance_type"), Word(machine, "region"), machine.TryGetProperty("spot", out JsonElement spot) && spot.ValueKind is JsonValueKind.True or JsonValueKind.False ? spot.GetBoolean() : null)
            : MachineIdentity.Unknown;

        static AttemptRate? ReadRate(JsonElement root) => root.GetProperty("rate") is not { ValueKind: JsonValueKind.String } rate ? null
            : new AttemptRate(decimal.Parse(rate.GetString()!, CultureInfo.InvariantCulture), root.GetProperty("currency").GetString()!, Word(root, "rate_per") == "machine" ? RatePer.Machine : RatePer.Gpu)
            {
                Source = Word(root, "price_source"),
                AsOf = Word(root, "price_as_of") is { Length: > 0 } day ? DateOnly.ParseExact(day, "yyyy-MM-dd", CultureInfo.InvariantCulture) : null,
                Billing = new BillingTerms(Amount(root, "billing_granularity_seconds") ?? BillingTerms.PerSecond.GranularitySeconds, Amount(root, "billing_minimum_seconds") ?? 0),
            };

        static decimal? Amount(JsonElement root, string name) => Word(root, name) is { Length: > 0 } text ? decimal.Parse(text, CultureInfo.InvariantCulture) : null;

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
            json.WriteNumber("samples", Samples);
            json.WriteNumberOrNull("expected_hours", ExpectedHours is { } hours && double.IsFinite(hours) ? Math.Round(hours, 6) : null);
            json.WriteNumberOrNull("loss", Loss);
            json.WriteNumberOrNull("tokens_per_second", TokensPerSecond);
            json.WriteNumber("stall_seconds", Math.Round(StallSeconds, 4));
            json.WriteStartObject("machine");
            json.WriteString("provider", Machine.Provider);
            json.WriteString("instance_type", Machine.InstanceType);
            json.WriteString("region", Machine.Region);
            if (Machine.IsSpot is { } spot)
            {
                json.WriteBoolean("spot", spot);
            }

            json.WriteEndObject();
            json.WriteString("gpu", Gpu);
            json.WriteMoney("rate", Rate?.Amount);
            if (Rate is { } rate)
            {
                json.WriteString("currency", rate.Currency);
                json.WriteString("rate_per", rate.Per == RatePer.Machine ? "machine" : "gpu");
                json.WriteString("price_source", rate.Source);
                json.WriteString("price_as_of", rate.AsOf?.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture));
                json.WriteMoney("billing_granularity_seconds", rate.Billing.GranularitySeconds);
                json.WriteMoney("billing_minimum_seconds", rate.Billing.MinimumSeconds);
            }

            json.WriteString("ended", Ended);
            json.WriteEndObject();
        }

        return buffer.ToArray();
    }
}
