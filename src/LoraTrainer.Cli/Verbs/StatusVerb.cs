using System.CommandLine;
using System.Globalization;
using LoraTrainer.Storage;
using LoraTrainer.Training;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Says how a run stands, wherever it runs.</summary>
internal static class StatusVerb
{
    private const string Examples = """
        Examples:
          lora-trainer status outputs/my-run
          lora-trainer status s3://my-bucket/runs/my-run
          lora-trainer status outputs/my-run --json | jq -r .state

        RUN is the output_dir of a run, or its place among the checkpoints (checkpoint.uri/run_name, a folder or s3://). Nothing is written and nobody
        waits for it. A process on another machine tells how it gets on three times in checkpoint.lease_seconds; the numbers are as old as that.
        States: training, silent (somebody has the run and gives no sign of life), released (whoever comes goes on; "ended" in --json says how the last
        process ended, such as failed), stopped (by request), finished, waiting (nobody has begun).
        """;

    private static readonly string BudgetReached = nameof(RunEnding.BudgetReached).ToLowerInvariant();

    // Before the first step of a process: of a run that is at a later step they are the way back to it.
    private static readonly TrainingPhase[] Beginnings = [TrainingPhase.Starting, TrainingPhase.Tokenizing, TrainingPhase.Loading, TrainingPhase.Quantizing];
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(3);

    public static Verb Create()
    {
        Argument<string> run = new("RUN") { Description = "The output_dir of the run, or its place among the checkpoints." };
        return new Verb("status", "Say how a run stands, here or on another machine.", Examples) { run }.WithWork(async context =>
        {
            string place = context.Arguments.GetRequiredValue(run);
            bool isTold = false;
            Task<RunStatus> reading = RunStatus.ReadAsync(place, TimeProvider.System, note =>
            {
                isTold = true;
                context.Terminal.Note(note);
            });
            if (await Task.WhenAny(reading, Task.Delay(Patience)) != reading && ObjectStore.IsUri(place) && !isTold)
            {
                context.Terminal.Note($"{place} has not answered yet. It is asked again until it does, or its retry_seconds (60 by default) are over.");
            }

            RunStatus status = await reading;
            context.Terminal.Result(Words(status));
            context.Terminal.Json(status.Write);
            return ExitCode.Done;
        });
    }

    internal static string Words(RunStatus status)
    {
        CultureInfo culture = CultureInfo.InvariantCulture;
        var lines = new List<string> { $"run:         {status.RunName}", $"state:       {State(status)}" };
        string total = status.TotalSteps is { } steps ? string.Create(culture, $" of {steps} ({100.0 * status.Step / Math.Max(1, steps):0} %)") : "";
        lines.Add(string.Create(culture, $"step:        {status.Step}{total}"));
        if (status.Loss is { } loss)
        {
            lines.Add(string.Create(culture, $"loss:        {loss:0.0000}"));
        }

        if (status.TokensPerSecond is { } speed)
        {
            lines.Add(string.Create(culture, $"speed:       {speed:#,0} tokens/s{(status.State == RunState.Training ? "" : ", at its last step")}"));
        }

        if (status.Device is { } device)
        {
            lines.Add($"device:      {device}");
        }

        lines.Add(status.SafeCheckpoint is { } safe
            ? string.Create(culture, $"checkpoint:  step {safe.Step}, {(safe.Created is { } created ? $"{Time(created)}, " : "")}{Quantities.Bytes(safe.Files.Sum(file => file.SizeBytes))}, {ObjectStore.Append(status.Location, safe.Name)}")
            : "checkpoint:  none is safe yet");
        lines.Add(string.Create(culture, $"attempts:    {status.Attempts}, {status.Interruptions} of them interrupted or failed, {Quantities.Time(TimeSpan.FromHours(status.Hours))} in all"));
        if (status.Requests.Count > 0)
        {
            lines.Add($"asked for:   {string.Join(", ", status.Requests.Select(request => request.Kind.ToString().ToLowerInvariant()))}");
        }

        if (status.State is RunState.Silent or RunState.Released or RunState.Stopped or RunState.Waiting)
        {
            string more = status.Ended == BudgetReached ? " --set cost.budget=MORE (or cost.max_hours)" : "";
            lines.Add($"go on with:  lora-trainer resume {(status.IsHere ? status.OutputDir : Quoted(status.Location))}{more}");
        }

        return string.Join(Environment.NewLine, lines);
    }

    /// <summary>What is going on with the run, in words.</summary>
    internal static string State(RunStatus status) => status.State switch
    {
        RunState.Training => $"{Doing(status)} on {Who(status.Holder)}{(status.Since is { } since ? $" since {Time(since)}" : "")}",
        RunState.Silent => $"no sign of life{(status.LastSeen is { } seen ? $" since {Time(seen)}" : "")} of {Who(status.Holder)}{(status.Holder?.IsProvablyDead == true ? ": it has ended" : "")}",
        RunState.Released when status.Ended == BudgetReached => "released: a limit of money or hours is reached",
        RunState.Released when status.Ended == AttemptRecord.Failed => "failed: the last process ended with an error; whoever comes goes on",
        RunState.Released => "released: nobody works on it, and whoever comes goes on",
        RunState.Stopped => "stopped by request: only an explicit resume goes on",
        RunState.Finished => "finished",
        _ => "waiting: nobody has begun with it",
    };

    /// <summary>As a shell takes it.</summary>
    private static string Quoted(string place) => place.Contains('?', StringComparison.Ordinal) ? $"'{place}'" : place;

    private static string Doing(RunStatus status) => status.Step > 0 && (status.Phase is not { } begun || Beginnings.Contains(begun))
        ? string.Create(CultureInfo.InvariantCulture, $"resuming at step {status.Step}")
        : status.Phase?.ToString().ToLowerInvariant() ?? "starting";

    private static string Who(LeaseHolder? holder) => holder is null ? "an unknown machine" : string.Create(CultureInfo.InvariantCulture, $"{holder.Host} (process {holder.ProcessId})");

    private static string Time(DateTimeOffset when) => when.ToUniversalTime().ToString("yyyy-MM-dd HH:mm:ss 'UTC'", CultureInfo.InvariantCulture);
}
