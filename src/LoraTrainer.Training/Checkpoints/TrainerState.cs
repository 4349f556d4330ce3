using System.Text.Json;
using LoraTrainer.Storage;
using LoraTrainer.Training.Evaluation;

namespace LoraTrainer.Training.Checkpoints;

/// <summary>One writer's part of a run's history: checkpoints of an epoch count only up to the step at which the next writer took over.</summary>
/// <param name="Epoch">Of the lease; grows with each takeover.</param>
/// <param name="UpToStep">The last step of that epoch that belongs to the run; null for the current one.</param>
public readonly record struct LineageEntry(int Epoch, int? UpToStep);

/// <summary>Steps of a run that were not applied, or undone, because a loss or gradient was not finite.</summary>
/// <param name="First">The first of them.</param>
/// <param name="Last">The last, where it showed.</param>
/// <param name="BackTo">The step whose values the run went on with.</param>
public readonly record struct LeftOutSteps(int First, int Last, int BackTo);

/// <summary>
/// Everything besides tensors that decides a run's future, and what its reports need of its past. Random numbers need no state: they are
/// functions of the seed and the step.
/// </summary>
public sealed record TrainerState
{
    /// <summary>Optimizer steps that are done; the position in the data follows from it.</summary>
    public required int Step { get; init; }

    public required int TotalSteps { get; init; }

    /// <summary>Updates that the values and moments have had; fewer than steps where some were left out.</summary>
    public required int Updates { get; init; }

    /// <summary>Identifies the run in every ledger, whatever its name.</summary>
    public required string RunId { get; init; }

    /// <summary>See Config.TrainingConfig.Hash.</summary>
    public required string ConfigHash { get; init; }

    /// <summary>SHA-256 over the base model's files.</summary>
    public required string BaseHash { get; init; }

    /// <summary>SHA-256 over the tokenized rows.</summary>
    public required string DataHash { get; init; }

    public long Tokens { get; init; }

    public long SupervisedTokens { get; init; }

    /// <summary>Wall time of the steps, over all attempts.</summary>
    public double TrainSeconds { get; init; }

    /// <summary>Wall time of the processes, over all attempts.</summary>
    public double TotalSeconds { get; init; }

    /// <summary>Processes that worked on this run.</summary>
    public int Attempts { get; init; } = 1;

    public EvaluationResult? EvaluationBefore { get; init; }

    /// <summary>In their order.</summary>
    public IReadOnlyList<LeftOutSteps> LeftOut { get; init; } = [];

    /// <summary>Those during the training, in the order of their steps.</summary>
    public IReadOnlyList<EvaluationPoint> Evaluations { get; init; } = [];

    /// <summary>The loss of every step; NaN where it was left out.</summary>
    public required IReadOnlyList<double> Losses { get; init; }

    /// <summary>Reads trainer_state.json; <paramref name="file"/> names it in messages.</summary>
    /// <exception cref="CheckpointFormatException">The content is not what this program writes.</exception>
    public static TrainerState Parse(string file, ReadOnlyMemory<byte> utf8)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(utf8);
            JsonElement root = document.RootElement;
            return new TrainerState
            {
                Step = root.GetProperty("step").GetInt32(),
                TotalSteps = root.GetProperty("total_steps").GetInt32(),
                Updates = root.GetProperty("updates").GetInt32(),
                LeftOut = [.. root.GetProperty("left_out").EnumerateArray().Select(item => new LeftOutSteps(
                    item.GetProperty("first").GetInt32(), item.GetProperty("last").GetInt32(), item.GetProperty("back_to").GetInt32()))],
                RunId = root.GetProperty("run_id").GetString()!,
                ConfigHash = root.GetProperty("config_hash").GetString()!,
                BaseHash = root.GetProperty("base_hash").GetString()!,
                DataHash = root.GetProperty("data_hash").GetString()!,
                Tokens = root.GetProperty("tokens").GetInt64(),
                SupervisedTokens = root.GetProperty("supervised_tokens").GetInt64(),
                TrainSeconds = root.GetProperty("train_seconds").GetDouble(),
                TotalSeconds = root.GetProperty("total_seconds").GetDouble(),
                Attempts = root.GetProperty("attempts").GetInt32(),
                EvaluationBefore = ParseEvaluation(root.GetProperty("evaluation_before")),
                Evaluations = [.. root.GetProperty("evaluations").EnumerateArray().Select(item => new EvaluationPoint(
                    item.GetProperty("step").GetInt32(), item.GetProperty("loss") is { ValueKind: JsonValueKind.Number } loss ? loss.GetDouble() : double.NaN))],
                Losses = [.. root.GetProperty("losses").EnumerateArray().Select(item => item.ValueKind == JsonValueKind.Null ? double.NaN : item.GetDouble())],
            };
        }
        catch (Exception exception) when (exception is JsonException or KeyNotFoundException or InvalidOperationException or FormatException)
        {
            throw new CheckpointFormatException($"{file}: this is not a trainer state of this program ({(exception is JsonException json ? JsonProblem.Reason(json) : exception.Message)})", exception);
        }
    }

    public byte[] ToJson()
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            json.WriteNumber("step", Step);
            json.WriteNumber("total_steps", TotalSteps);
            json.WriteNumber("updates", Updates);
            WriteLeftOut(json, LeftOut);
            json.WriteString("run_id", RunId);
            json.WriteString("config_hash", ConfigHash);
            json.WriteString("base_hash", BaseHash);
            json.WriteString("data_hash", DataHash);
            json.WriteNumber("tokens", Tokens);
            json.WriteNumber("supervised_tokens", SupervisedTokens);
            json.WriteNumber("train_seconds", TrainSeconds);
            json.WriteNumber("total_seconds", TotalSeconds);
            json.WriteNumber("attempts", Attempts);
            json.WritePropertyName("evaluation_before");
            WriteEvaluation(json, EvaluationBefore);
            WriteEvaluations(json, "evaluations", Evaluations);
            json.WriteStartArray("losses");
            foreach (double loss in Losses)
            {
                if (double.IsFinite(loss))
                {
                    json.WriteNumberValue(loss);
                }
                else
                {
                    json.WriteNullValue();
                }
            }

            json.WriteEndArray();
            json.WriteEndObject();
        }

        return buffer.ToArray();
    }

    /// <summary>An evaluation as an object with loss, exact_match and rows; null where there is none.</summary>
    internal static void WriteEvaluation(Utf8JsonWriter json, EvaluationResult? evaluation)
    {
        if (evaluation is not { } result)
        {
            json.WriteNullValue();
            return;
        }

        json.WriteStartObject();
        json.WriteNumberOrNull("loss", double.IsFinite(result.Loss) ? result.Loss : null);
        if (result.ExactMatch is { } match)
        {
            json.WriteNumber("exact_match", match);
        }
        else
        {
            json.WriteNull("exact_match");
        }

        json.WriteNumber("rows", result.Rows);
        json.WriteEndObject();
    }

    /// <summary>A list of objects with first, last and back_to, named left_out.</summary>
    internal static void WriteLeftOut(Utf8JsonWriter json, IEnumerable<LeftOutSteps> leftOut)
    {
        json.WriteStartArray("left_out");
        foreach (LeftOutSteps steps in leftOut)
        {
            json.WriteStartObject();
            json.WriteNumber("first", steps.First);
            json.WriteNumber("last", steps.Last);
            json.WriteNumber("back_to", steps.BackTo);
            json.WriteEndObject();
        }

        json.WriteEndArray();
    }

    /// <summary>A list of objects with step and loss; null where a loss is not a number.</summary>
    internal static void WriteEvaluations(Utf8JsonWriter json, string name, IEnumerable<EvaluationPoint> points)
    {
        json.WriteStartArray(name);
        foreach (EvaluationPoint point in points)
        {
            json.WriteStartObject();
            json.WriteNumber("step", point.Step);
            json.WriteNumberOrNull("loss", double.IsFinite(point.Loss) ? point.Loss : null);
            json.WriteEndObject();
        }

        json.WriteEndArray();
    }

    private static EvaluationResult? ParseEvaluation(JsonElement element) => element.ValueKind == JsonValueKind.Null
        ? null
        : new EvaluationResult(
            element.GetProperty("loss") is { ValueKind: JsonValueKind.Number } loss ? loss.GetDouble() : double.NaN,
            element.GetProperty("exact_match") is { ValueKind: JsonValueKind.Number } match ? match.GetDouble() : null,
            element.GetProperty("rows").GetInt32());
}

/// <summary>A checkpoint is damaged, or was not written by this program.</summary>
public sealed class CheckpointFormatException : FormatException
{
    public CheckpointFormatException(string message)
        : base(message)
    {
    }

    public CheckpointFormatException(string message, Exception cause)
        : base(message, cause)
    {
    }
}
