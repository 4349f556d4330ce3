using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using LoraTrainer.Cli.Watching;
using LoraTrainer.Costs;
using LoraTrainer.Costs.Estimates;
using LoraTrainer.Costs.Prices;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Runs a training from a config file.</summary>
internal static class TrainVerb
{
    private const string Examples = """
        Examples:
          lora-trainer train configs/quickstart.yaml
          lora-trainer train my.yaml --set learning_rate=1e-4 --set output_dir=outputs/second
          lora-trainer train my.yaml --json > summary.json      the summary alone on standard output

        The first Ctrl-C or SIGTERM saves a checkpoint and stops; lora-trainer resume OUTPUT_DIR goes on, on this machine or another.
        Exit code: 0 done, 1 failed while running, 2 the configuration or the data are wrong, 3 budget reached, 75 interrupted and resumable, 130 aborted.
        """;

    public static Verb Create()
    {
        Argument<string> config = new("CONFIG") { Description = "The configuration, a YAML file." };
        return new Verb("train", "Fine-tune a model as a configuration says.", Examples) { config, CommandLine.Set, CommandLine.Ledger }
            .WithWork(context => RunAsync(context, context.Arguments.GetRequiredValue(config)));
    }

    private static async Task<ExitCode> RunAsync(VerbContext context, string path)
    {
        ConfigurationResult result = ConfigurationLoader.LoadFile(path, context.Settings);
        context.Terminal.Remarks(result);
        TrainingConfig config = result.Require();
        if (config.Resume == ResumeMode.Must && !await new RunFolder(config).HoldsRunAnywhereAsync())
        {
            throw new TrainingSetupException($"resume: must was asked for, but {config.OutputDir} holds no run. Use resume: auto or never to start one.");
        }

        return await RunAsync(context, config, resume: config.Resume != ResumeMode.Never, force: false, evenIfStopped: false);
    }

    /// <summary>What train and resume have in common: the display, the run, the words at its end.</summary>
    internal static async Task<ExitCode> RunAsync(VerbContext context, TrainingConfig config, bool resume, bool force, bool evenIfStopped)
    {
        RunEnding ending;
        TrainingRun run;
        await using (var display = new TrainingDisplay(context.Terminal, config.LoggingSteps, showSamples: true))
        {
            CancellationToken stop = context.Signals.Listen("What was computed is saved, then the program ends; a run that has begun can be resumed.", display.OnWarning);
            using var ledger = new LedgerRecorder(context.Arguments.GetValue(CommandLine.Ledger), config, display.OnWarning);
            using TensorBoardLog? tensorBoard = config.UseTensorBoard ? new TensorBoardLog(config.OutputDir, TimeProvider.System, display.OnWarning) : null;
            using OtlpMetrics? metrics = OtlpMetrics.Start(config);
            run = new TrainingRun(config, new ObserverGroup(display, tensorBoard, metrics), TimeProvider.System) { AttemptSeen = ledger.Record, BilledUntil = ledger.BilledUntil, PriceOf = (machine, gpu) => MachinePrices.RateOf(machine, gpu, display.OnWarning), HoursOf = expected => Expected(config, expected, display.OnWarning) };
            ending = await run.RunAsync(resume, force, evenIfStopped, stop);
            if (run.Summary is { } measured)
            {
                tensorBoard?.Evaluated(measured);
            }
        }

        if (ending == RunEnding.Interrupted)
        {
            context.Terminal.Say(run.HasBegun
                ? $"Interrupted. Go on with: lora-trainer resume {config.OutputDir}"
                : "Interrupted before this process had begun with the run. Start it again with the same command.");
            WriteEnding(context, config, "interrupted", ExitCode.Interrupted);
            return ExitCode.Interrupted;
        }

        if (ending == RunEnding.Stopped)
        {
            context.Terminal.Say($"Stopped as asked. Nothing starts it again by itself; go on with: lora-trainer resume {config.OutputDir}");
            WriteEnding(context, config, "stopped", ExitCode.Done);
            return ExitCode.Done;
        }

        if (ending == RunEnding.BudgetReached)
        {
            string limit = config.Cost.Budget is null ? "cost.max_hours" : config.Cost.MaxHours is null ? "cost.budget" : "cost.budget (or cost.max_hours)";
            context.Terminal.Say($"Stopped at the limit, with everything saved. Go on with a higher one: lora-trainer resume {config.OutputDir} --set {limit}=MORE");
            if (config.OnFinish.Command is { } last)
            {
                await FinishAsync(context, last);
            }

            WriteEnding(context, config, "budget_reached", ExitCode.BudgetReached);
            return ExitCode.BudgetReached;
        }

        if (run.Measurement is { } speed)
        {
            Remember(context, config, speed);
        }

        if (run.Summary is not { } summary)
        {
            // It was finished before, and says again what it said then.
            context.Terminal.Json(json => json.WriteRawValue(File.ReadAllBytes(new RunFolder(config).SummaryFile)));
            return ExitCode.Done;
        }

        context.Terminal.Say(Words(summary, config));
        context.Terminal.Json(summary.Write);
        if (run.IsFirstEnd && config.OnFinish.Command is { } command)
        {
            await FinishAsync(context, command);
        }

        return ExitCode.Done;
    }

    /// <summary>What plans would say of the run that begins.</summary>
    private static double? Expected(TrainingConfig config, ExpectedRun expected, Action<string> warn)
    {
        try
        {
            return PlannedTime.HoursOf(config, expected, GpuTable.Load(UserFiles.Gpus(null)), new CalibrationFile(CalibrationFile.Locate(null), warn));
        }
        catch (Exception exception) when (exception is CsvFormatException or IOException or UnauthorizedAccessException)
        {
            warn($"How long the run may take is not known: {exception.Message}");
            return null;
        }
    }

    /// <summary>Leaves what the run measured for later plans.</summary>
    private static void Remember(VerbContext context, TrainingConfig config, RunMeasurement measured)
    {
        try
        {
            if (PlannedTime.RowOf(config, measured, GpuTable.Load(UserFiles.Gpus(null))) is { } row)
            {
                new CalibrationFile(CalibrationFile.Locate(null), context.Terminal.Warn).Append(row);
            }
        }
        catch (Exception exception) when (exception is CsvFormatException or IOException or UnauthorizedAccessException)
        {
            context.Terminal.Warn($"What this run measured is not kept for later plans: {exception.Message}");
        }
    }

    /// <summary>What the user wants done at the end. Its failure cannot hurt a run that is finished and safe: it is told, loudly.</summary>
    private static async Task FinishAsync(VerbContext context, string command)
    {
        context.Terminal.Say($"on_finish: {command}");
        var start = new ProcessStartInfo("/bin/sh") { UseShellExecute = false };
        start.ArgumentList.Add("-c");
        start.ArgumentList.Add(context.Terminal.IsJson ? $"{{ {command}\n}} 1>&2" : command);
        using Process process = Process.Start(start)!;
        await process.WaitForExitAsync();
        if (process.ExitCode != 0)
        {
            context.Terminal.Warn($"The command of on_finish ended with exit code {process.ExitCode}: {command}. If it was to shut this machine down, the machine is still running, and billed.");
        }
    }

    /// <summary>What scripts are told of a run that has no summary yet.</summary>
    private static void WriteEnding(VerbContext context, TrainingConfig config, string ending, ExitCode code) => context.Terminal.Json(json =>
    {
        json.WriteStartObject();
        json.WriteString("run_name", config.RunName);
        json.WriteString("output_dir", config.OutputDir);
        json.WriteString("ending", ending);
        json.WriteNumber("exit_code", (int)code);
        json.WriteEndObject();
    });

    /// <summary>The end of a run in a few lines.</summary>
    private static string Words(RunSummary summary, TrainingConfig config)
    {
        CultureInfo culture = CultureInfo.InvariantCulture;
        var lines = new List<string>
        {
            string.Create(culture, $"{Quantities.Count(summary.Steps, "step")}, {Quantities.Count(summary.Tokens, "token")}, {summary.TokensPerSecond:#,0} tokens/s, {Quantities.Time(TimeSpan.FromSeconds(summary.TotalSeconds))} in all, peak memory {Quantities.Bytes(summary.PeakBytes)}"),
        };
        if (summary is { FirstLoss: { } first, LastLoss: { } last })
        {
            lines.Add(string.Create(culture, $"loss {first:0.0000} at the first step, {last:0.0000} at the last"));
        }

        if (summary.LeftOut.Count > 0)
        {
            lines.Add($"left out, because a loss or gradient was not finite: {string.Join(", ", summary.LeftOut.Select(steps => steps.First == steps.Last ? $"step {steps.Last}" : $"steps {steps.First} to {steps.Last}"))}");
        }

        if (summary.Before is not null || summary.After is not null)
        {
            lines.Add($"held out: before {Words(summary.Before)}; after {Words(summary.After)}");
        }

        if (summary.Best is var (best, folder))
        {
            string early = summary.StoppedEarly ? "the training ended early, because the held-out loss got no better; " : "";
            lines.Add(string.Create(culture, $"{early}best held-out loss {best.Loss:0.0000}, after step {best.Step}: {folder}"));
        }

        if (summary.Cost.Amount is { } amount)
        {
            lines.Add(string.Create(culture, $"cost {Quantities.Money(amount, summary.Cost.Currency)} for {summary.Cost.GpuHours:0.0000} hours"));
        }

        lines.Add($"{(config.Adapter.Kind == AdapterKind.None ? "model" : "adapter")}: {summary.AdapterPath}");
        return string.Join(Environment.NewLine, lines);
    }

    private static string Words(EvaluationResult? evaluation) => evaluation switch
    {
        null => "not evaluated",
        { ExactMatch: { } match } result => string.Create(CultureInfo.InvariantCulture, $"exact match {match * 100:0.0} % of {result.Rows}, loss {result.Loss:0.0000}"),
        { } result => string.Create(CultureInfo.InvariantCulture, $"loss {result.Loss:0.0000} on {Quantities.Count(result.Rows, "row")}"),
    };
}
