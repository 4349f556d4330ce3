using System.Text.Json;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>What a run's time cost; money is null where no rate is known.</summary>
/// <param name="Amount">Over all attempts of the run, each at its own rate.</param>
/// <param name="Currency">Of the amount.</param>
/// <param name="GpuHours">Elapsed machine time times the number of GPUs; a CPU machine counts as one.</param>
/// <param name="Rate">For one hour.</param>
public readonly record struct RunCost(decimal? Amount, string Currency, double GpuHours, decimal? Rate);

/// <summary>What a finished run came to: the content of summary.json.</summary>
public sealed record RunSummary
{
    public required string RunName { get; init; }

    public required int Steps { get; init; }

    public required long Tokens { get; init; }

    public required long SupervisedTokens { get; init; }

    public required double TotalSeconds { get; init; }

    public required double TrainSeconds { get; init; }

    public required IReadOnlyDictionary<TrainingPhase, double> PhaseSeconds { get; init; }

    /// <summary>VmHWM of the process.</summary>
    public required long PeakBytes { get; init; }

    /// <summary>VmRSS just before the model was loaded.</summary>
    public required long BaselineBytes { get; init; }

    public required long ArenaBytes { get; init; }

    public required long PlannedArenaBytes { get; init; }

    /// <summary>Most that was in use of the page-locked memory of the host; 0 on the CPU.</summary>
    public required long HostBytes { get; init; }

    public required long PlannedHostBytes { get; init; }

    public required IReadOnlyDictionary<MemoryKind, long> ByKind { get; init; }

    /// <summary>See <see cref="Config.NonFiniteAction.Rollback"/>.</summary>
    public required IReadOnlyList<LeftOutSteps> LeftOut { get; init; }

    public required double? FirstLoss { get; init; }

    public required double? LastLoss { get; init; }

    public required EvaluationResult? Before { get; init; }

    public required EvaluationResult? After { get; init; }

    /// <summary>Those during the training.</summary>
    public required IReadOnlyList<EvaluationPoint> Evaluations { get; init; }

    /// <summary>The best of them, and the folder with its model; null where there were none, or its model is lost.</summary>
    public required (EvaluationPoint Point, string Folder)? Best { get; init; }

    /// <summary>The training ended because the held-out loss got no better.</summary>
    public required bool StoppedEarly { get; init; }

    public required string AdapterPath { get; init; }

    public required string AdapterSha256 { get; init; }

    public required long TrainableParameters { get; init; }

    public required RunCost Cost { get; init; }

    public required int Attempts { get; init; }

    public double TokensPerSecond => TrainSeconds > 0 ? Tokens / TrainSeconds : 0;

    /// <summary>Peak and planned bytes of the run that finished in a folder; null where none has, or its summary is not readable.</summary>
    /// <param name="folder">The run's <c>output_dir</c>.</param>
    public static (long PeakBytes, long PlannedArenaBytes)? ReadMemory(string folder)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, RunFolder.SummaryName)));
            JsonElement memory = document.RootElement.GetProperty("memory");
            return (memory.GetProperty("peak_bytes").GetInt64(), memory.GetProperty("planned_arena_bytes").GetInt64());
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or JsonException or KeyNotFoundException or InvalidOperationException or FormatException)
        {
            return null;
        }
    }

    public void Write(Utf8JsonWriter json)
    {
        json.WriteStartObject();
        json.WriteString("run_name", RunName);
        json.WriteNumber("steps", Steps);
        json.WriteStartObject("tokens");
        json.WriteNumber("total", Tokens);
        json.WriteNumber("supervised", SupervisedTokens);
        json.WriteEndObject();
        json.WriteNumber("tokens_per_second", Math.Round(TokensPerSecond, 2));
        json.WriteStartObject("seconds");
        json.WriteNumber("total", Math.Round(TotalSeconds, 3));
        json.WriteNumber("train", Math.Round(TrainSeconds, 3));
        foreach ((TrainingPhase phase, double seconds) in PhaseSeconds.Where(item => item.Key is not (TrainingPhase.Training or TrainingPhase.Done)))
        {
            json.WriteNumber(phase.ToString().ToLowerInvariant(), Math.Round(seconds, 3));
        }

        json.WriteEndObject();
        json.WriteStartObject("memory");
        json.WriteNumber("peak_bytes", PeakBytes);
        json.WriteNumber("baseline_bytes", BaselineBytes);
        json.WriteNumber("arena_bytes", ArenaBytes);
        json.WriteNumber("planned_arena_bytes", PlannedArenaBytes);
        json.WriteNumber("host_bytes", HostBytes);
        json.WriteNumber("planned_host_bytes", PlannedHostBytes);
        WriteByKind(json, ByKind);
        json.WriteEndObject();
        TrainerState.WriteLeftOut(json, LeftOut);
        json.WriteStartObject("loss");
        json.WriteNumberOrNull("first", FirstLoss);
        json.WriteNumberOrNull("last", LastLoss);
        json.WriteEndObject();
        json.WriteStartObject("evaluation");
        json.WritePropertyName("before");
        TrainerState.WriteEvaluation(json, Before);
        json.WritePropertyName("after");
        TrainerState.WriteEvaluation(json, After);
        TrainerState.WriteEvaluations(json, "during", Evaluations);
        if (Best is var (point, folder))
        {
            json.WriteStartObject("best");
            json.WriteNumber("step", point.Step);
            json.WriteNumber("loss", point.Loss);
            json.WriteString("path", folder);
            json.WriteEndObject();
        }
        else
        {
            json.WriteNull("best");
        }

        json.WriteBoolean("stopped_early", StoppedEarly);
        json.WriteEndObject();
        json.WriteStartObject("adapter");
        json.WriteString("path", AdapterPath);
        json.WriteString("sha256", AdapterSha256);
        json.WriteNumber("trainable_parameters", TrainableParameters);
        json.WriteEndObject();
        json.WriteStartObject("cost");
        json.WriteMoney("amount", Cost.Amount);
        json.WriteString("currency", Cost.Currency);
        json.WriteNumber("gpu_hours", Cost.GpuHours);
        json.WriteMoney("rate", Cost.Rate);
        json.WriteEndObject();
        json.WriteNumber("attempts", Attempts);
        json.WriteEndObject();
    }

    /// <summary>Memory by what it is used for, as an object with names in lower case.</summary>
    public static void WriteByKind(Utf8JsonWriter json, IReadOnlyDictionary<MemoryKind, long> byKind)
    {
        json.WriteStartObject("by_kind");
        foreach ((MemoryKind kind, long bytes) in byKind)
        {
            json.WriteNumber(kind == MemoryKind.KeyValueCache ? "key_value_cache" : kind.ToString().ToLowerInvariant(), bytes);
        }

        json.WriteEndObject();
    }
}
