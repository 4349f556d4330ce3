using System.Diagnostics;
using System.Globalization;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli;

/// <summary>Where in a run a process is killed.</summary>
internal enum KillPlace
{
    Step,
    Save,
    Loading,
}

/// <summary>A kill that is to come.</summary>
/// <param name="Place">What the process is doing.</param>
/// <param name="AfterStep">Not before so many steps are done; means nothing while loading.</param>
/// <param name="Fraction">How far into the step, the save or the loading, of what that is expected to take.</param>
internal readonly record struct KillMoment(KillPlace Place, int AfterStep, double Fraction);

/// <summary>What a training of some steps takes, in seconds.</summary>
internal readonly record struct TrialPace(double Loading, double Step, double Save);

/// <summary>What a trial came to.</summary>
internal sealed record TrialResult(int Steps, int TotalSteps, IReadOnlyList<string> Kills, IReadOnlyList<string> Differences, TimeSpan Elapsed);

/// <summary>A process of the trial failed; its words are in the message.</summary>
internal sealed class TrialException(string message, ExitCode code) : Exception(message)
{
    public ExitCode Code => code;
}

/// <summary>
/// Trains a config once without a break, and once in processes that are killed at moments chosen by a seed until it comes to its end; then
/// compares the two. Everything lies in one folder. Evaluations are left out, they change nothing of what is learned.
/// </summary>
internal sealed class ResumeTrial(TrainingConfig config, string folder, int kills, ulong seed, int? steps, Action<string> say)
{
    private const int SavesInARun = 10;
    private const int FewestSteps = 4;
    private const int EnoughSteps = 30;
    private const int MostRounds = 5;

    // What the two runs together are to take, and what they may take where that would be too few steps to say much.
    private static readonly TimeSpan Aim = TimeSpan.FromMinutes(2);
    private static readonly TimeSpan Limit = TimeSpan.FromMinutes(9);

    // The first steps are measured for so long.
    private static readonly TimeSpan Measuring = TimeSpan.FromSeconds(3);

    private readonly CounterRandom random = new(seed, stream: 0, step: 0);
    private ulong drawn;

    public async Task<TrialResult> RunAsync(CancellationToken cancellation)
    {
        long start = Stopwatch.GetTimestamp();
        (int length, int? whole) = (steps ?? 0, null as int?);
        if (steps is null)
        {
            (TrialPace measured, int all) = await MeasureAsync(cancellation);
            (length, whole) = (Math.Min(all, StepsFor(measured, kills)), all);
            say(string.Create(CultureInfo.InvariantCulture, $"A step takes {measured.Step:0.###} s, loading {measured.Loading:0.0} s: {(length == all ? $"all {all}" : $"{length} of the {all}")} steps are run (--steps N for another number)."));
        }

        TrainingConfig one = Configure("uninterrupted", length), other = Configure("killed", length);
        (TrialPace pace, int total) = await RunWholeAsync(one, cancellation);
        var done = new List<string>();
        IReadOnlyList<string> differences = [];
        for (int round = 1; round <= MostRounds && done.Count < kills && differences.Count == 0; round++)
        {
            if (round > 1)
            {
                say($"The run came to its end after {done.Count} of {Quantities.Count(kills, "kill")}: it is trained once more.");
                Directory.Delete(other.OutputDir, recursive: true);
            }

            await RunKilledAsync(other, pace, total, done, cancellation);
            differences = await RunComparison.DifferencesAsync(one, other, say);
        }

        return new TrialResult(total, whole ?? total, done, differences, Stopwatch.GetElapsedTime(start));
    }

    /// <summary>How many steps fit into the time: two runs, and what kills make it load and train again.</summary>
    internal static int StepsFor(TrialPace pace, int kills)
    {
        int fits = In(Aim);
        return fits >= EnoughSteps ? fits : Math.Max(FewestSteps, Math.Min(EnoughSteps, In(Limit)));

        int In(TimeSpan time)
        {
            double left = time.TotalSeconds - (pace.Loading * (kills + 2)) - (pace.Save * (SavesInARun + 1) * 2);
            double perStep = pace.Step * (2 + (0.5 * kills / SavesInARun));
            return left <= 0 ? 0 : (int)Math.Min(1_000_000, left / Math.Max(1e-6, perStep));
        }
    }

    /// <summary>Which kills are to come: each kind in turn, those that need steps spread over them. An order of kinds that differs with the seed.</summary>
    internal KillMoment[] Plan(int number, int total)
    {
        KillPlace[] kinds = [KillPlace.Step, KillPlace.Save, KillPlace.Loading];
        int first = (int)(Draw() * kinds.Length);
        bool backwards = Draw() < 0.5;
        KillPlace[] places = [.. Enumerable.Range(0, number).Select(i => kinds[(first + (backwards ? kinds.Length - (i % kinds.Length) : i)) % kinds.Length])];
        int inSteps = places.Count(place => place != KillPlace.Loading), placed = 0;
        return [.. places.Select(place => new KillMoment(place, place == KillPlace.Loading ? 0 : (int)((placed++ + Draw()) / inSteps * 0.85 * total), Draw()))];
    }

    private double Draw() => random.Uniform(drawn++);

    private TrainingConfig Configure(string name, int length) => config with
    {
        OutputDir = Path.Combine(folder, name),
        Batch = length > 0 ? config.Batch with { MaxSteps = length } : config.Batch,
        Checkpoint = new CheckpointOptions
        {
            EverySteps = length > 0 ? Math.Max(1, length / SavesInARun) : 2,
            EveryMinutes = 0,
            Keep = config.Checkpoint.Keep,
            LeaseSeconds = config.Checkpoint.LeaseSeconds,
            SingleWriter = true,
        },
        Evaluation = new EvaluationOptions { Before = false, After = false, MaxSamples = config.Evaluation.MaxSamples },
        Interruption = new InterruptionOptions { Sources = InterruptionSources.None },
        Cost = new CostOptions(),
        OnFinish = new FinishOptions(),
        Resume = ResumeMode.Auto,
        ResumeFromCheckpoint = null,
        LoggingSteps = 1,
    };

    private static string Write(TrainingConfig run)
    {
        string file = run.OutputDir + ".yaml";
        File.WriteAllText(file, run.ToYaml());
        return file;
    }

    /// <summary>Begins the whole run, to see how many steps it has and how long they take.</summary>
    private async Task<(TrialPace Pace, int Total)> MeasureAsync(CancellationToken cancellation)
    {
        TrainingConfig run = Configure("measured", length: 0);
        say("Measuring the first steps.");
        using var process = new TrainingProcess(Write(run));
        var stopwatch = new PaceWatch(process.Started);
        while (await process.NextLineAsync(cancellation) is { } line)
        {
            stopwatch.Saw(line);
            if (stopwatch.Steps >= FewestSteps && stopwatch.SinceFirstStep >= Measuring)
            {
                break;
            }
        }

        if (process.Step == 0 || process.Step < process.TotalSteps)
        {
            if (!await process.KillAsync(cancellation))
            {
                await RequireSuccessAsync(process, cancellation);
            }
        }

        int total = process.TotalSteps;
        if (Directory.Exists(run.OutputDir))
        {
            Directory.Delete(run.OutputDir, recursive: true);
        }

        return (stopwatch.Pace, total);
    }

    private async Task<(TrialPace Pace, int Total)> RunWholeAsync(TrainingConfig run, CancellationToken cancellation)
    {
        using var process = new TrainingProcess(Write(run));
        var stopwatch = new PaceWatch(process.Started);
        int told = -1;
        while (await process.NextLineAsync(cancellation) is { } line)
        {
            stopwatch.Saw(line);
            if (TrainingProcess.IsStep(line) && 10L * process.Step / process.TotalSteps is var tenth && tenth != told)
            {
                told = (int)tenth;
                say($"uninterrupted: step {process.Step} of {process.TotalSteps}");
            }
        }

        await RequireSuccessAsync(process, cancellation);
        return (stopwatch.Pace, process.TotalSteps);
    }

    /// <summary>Trains to the end, in as many processes as it takes.</summary>
    private async Task RunKilledAsync(TrainingConfig run, TrialPace pace, int total, List<string> done, CancellationToken cancellation)
    {
        string file = Write(run);
        foreach (KillMoment moment in Plan(kills - done.Count, total))
        {
            using var process = new TrainingProcess(file);
            if (await KillAtAsync(process, moment, pace, cancellation) is { } what)
            {
                done.Add(what);
                say($"kill {done.Count} of {kills}: {what}");
            }
            else
            {
                await RequireSuccessAsync(process, cancellation);
                return;
            }
        }

        using var last = new TrainingProcess(file);
        bool isTold = false;
        while (await last.NextLineAsync(cancellation) is { } line)
        {
            if (!isTold && TrainingProcess.IsStep(line))
            {
                isTold = true;
                say($"killed: goes on to its end from step {last.Step} of {last.TotalSteps}");
            }
        }

        await RequireSuccessAsync(last, cancellation);
    }

    /// <summary>What was hit, in words; null where the process came to its end first.</summary>
    private static async Task<string?> KillAtAsync(TrainingProcess process, KillMoment moment, TrialPace pace, CancellationToken cancellation)
    {
        while (await process.NextLineAsync(cancellation) is { } line)
        {
            bool isThere = moment.Place switch
            {
                KillPlace.Loading => line.StartsWith(PaceWatch.FirstOfLoading, StringComparison.Ordinal),
                KillPlace.Save => line.StartsWith(PaceWatch.Saving, StringComparison.Ordinal) && process.Step >= moment.AfterStep,
                _ => TrainingProcess.IsStep(line) && process.Step >= moment.AfterStep,
            };
            if (!isThere)
            {
                continue;
            }

            TimeSpan delay = TimeSpan.FromSeconds(moment.Fraction * (moment.Place switch { KillPlace.Loading => pace.Loading, KillPlace.Save => pace.Save, _ => pace.Step }));
            await WaitAsync(delay, cancellation);
            int step = process.Step;
            return !await process.KillAsync(cancellation) ? null : string.Create(CultureInfo.InvariantCulture, $"SIGKILL {delay.TotalMilliseconds:0.0} ms into {moment.Place switch
            {
                KillPlace.Loading => "loading",
                KillPlace.Save => $"the save after step {step}",
                _ => $"step {step + 1}",
            }}");
        }

        return null;
    }

    /// <summary>A timer is too coarse for what lies within a step or a save of a few milliseconds.</summary>
    private static async Task WaitAsync(TimeSpan time, CancellationToken cancellation)
    {
        long start = Stopwatch.GetTimestamp();
        TimeSpan coarse = time - TimeSpan.FromMilliseconds(20);
        if (coarse > TimeSpan.Zero)
        {
            await Task.Delay(coarse, cancellation);
        }

        while (Stopwatch.GetElapsedTime(start) < time)
        {
            Thread.Sleep(0);
        }
    }

    private static async Task RequireSuccessAsync(TrainingProcess process, CancellationToken cancellation)
    {
        int code = await process.ExitCodeAsync(cancellation);
        if (code != 0)
        {
            throw new TrialException($"A training of the trial ended with exit code {code}:\n{process.Errors.Trim()}", code == (int)ExitCode.WrongInput ? ExitCode.WrongInput : ExitCode.Failed);
        }
    }

    /// <summary>Measures by the lines that a training writes.</summary>
    private sealed class PaceWatch(long started)
    {
        public static readonly string FirstOfLoading = TrainingPhase.Tokenizing.ToString().ToLowerInvariant();
        public static readonly string Saving = TrainingPhase.Saving.ToString().ToLowerInvariant();

        // The median of the last so many: a step that the system delayed is no measure.
        private const int Kept = 101;

        private readonly Queue<double> stepSeconds = new();
        private readonly Queue<double> saveSeconds = new();
        private long loadingSince = started;
        private long last;
        private long savingSince;

        public int Steps { get; private set; }

        public TimeSpan SinceFirstStep { get; private set; }

        public TrialPace Pace => new(loading, Median(stepSeconds), Median(saveSeconds));

        private double loading;
        private long firstStep;

        public void Saw(string line)
        {
            long now = Stopwatch.GetTimestamp();
            if (line.StartsWith(FirstOfLoading, StringComparison.Ordinal))
            {
                loadingSince = now;
            }
            else if (line.StartsWith(Saving, StringComparison.Ordinal))
            {
                savingSince = now;
            }
            else if (TrainingProcess.IsStep(line))
            {
                if (Steps++ == 0)
                {
                    firstStep = now;
                    loading = Stopwatch.GetElapsedTime(loadingSince, now).TotalSeconds;
                }
                else if (savingSince == 0)
                {
                    Keep(stepSeconds, Stopwatch.GetElapsedTime(last, now).TotalSeconds);
                }
                else
                {
                    // A save and the step behind it.
                    Keep(saveSeconds, Math.Max(0.002, Stopwatch.GetElapsedTime(savingSince, now).TotalSeconds - Median(stepSeconds)));
                }

                (last, savingSince, SinceFirstStep) = (now, 0, Stopwatch.GetElapsedTime(firstStep, now));
            }
        }

        private static void Keep(Queue<double> values, double value)
        {
            values.Enqueue(value);
            if (values.Count > Kept)
            {
                values.Dequeue();
            }
        }

        private static double Median(Queue<double> values) => values.Count == 0 ? 0.005 : values.Order().ElementAt(values.Count / 2);
    }
}
