using System.Collections.Concurrent;
using System.Globalization;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using Spectre.Console;
using Spectre.Console.Rendering;

namespace LoraTrainer.Cli;

/// <summary>
/// Shows how a run goes. On a terminal: two lines that are drawn anew four times a second, with remarks above them. Otherwise one plain line for
/// each new phase and each logging step. The training thread only leaves its news here; it never waits for the terminal.
/// </summary>
internal sealed class TrainingDisplay : ITrainingObserver, IAsyncDisposable
{
    private static readonly TimeSpan Redraw = TimeSpan.FromMilliseconds(250);

    private readonly Terminal terminal;
    private readonly int loggingSteps;
    private readonly bool showSamples;
    private readonly IAnsiConsole? console;
    private readonly Lock gate = new();
    private readonly ConcurrentQueue<string> remarks = new();
    private readonly TaskCompletionSource finished = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly Task drawing;
    private TrainingProgress latest;
    private TrainingPhase? shownPhase;
    private string? firstMessage;
    private int shownStep = -1;

    /// <summary>Draws live if a person watches <paramref name="terminal"/>; else a line is written each <paramref name="loggingSteps"/> steps.</summary>
    public TrainingDisplay(Terminal terminal, int loggingSteps, bool showSamples = false, IAnsiConsole? console = null)
    {
        this.terminal = terminal;
        this.loggingSteps = Math.Max(1, loggingSteps);
        this.showSamples = showSamples;
        bool live = terminal is { IsInteractive: true, IsJson: false, IsQuiet: false };
        this.console = live ? console ?? AnsiConsole.Console : null;
        drawing = this.console is null ? Task.CompletedTask : Task.Run(() => DrawAsync(this.console));
    }

    public void OnProgress(in TrainingProgress progress)
    {
        TrainingProgress before;
        lock (gate)
        {
            before = latest;
            latest = progress;
        }

        if (console is not null)
        {
            return;
        }

        bool newPhase = progress.Phase != shownPhase;
        bool loggingStep = progress.Phase == TrainingPhase.Training && progress.Step > 0 && progress.Step != shownStep
            && (progress.Step % loggingSteps == 0 || progress.Step == progress.TotalSteps);
        if (newPhase)
        {
            if (before.Phase == TrainingPhase.Tokenizing && before.Message != firstMessage)
            {
                // How many rows there are is known at the end only.
                terminal.Say(PhaseLine(before));
            }

            firstMessage = progress.Message;
            shownPhase = progress.Phase;
            if (progress.Phase != TrainingPhase.Training)
            {
                terminal.Say(PhaseLine(progress));
            }
        }

        if (loggingStep)
        {
            shownStep = progress.Step;
            terminal.Say(StepLine(progress));
        }
    }

    public void OnNotice(string sentence) => Remark(sentence, terminal.Note, "note: ");

    public void OnWarning(string sentence) => Remark(sentence, terminal.Warn, "warning: ");

    public void OnEvaluation(EvaluationPoint point, bool isBest) =>
        Remark(string.Create(CultureInfo.InvariantCulture, $"after step {point.Step}: held-out loss {point.Loss:0.0000}{(isBest ? ", the best so far" : "")}"), terminal.Say, "");

    public void OnSample(string prompt, string expected, string generated)
    {
        if (showSamples)
        {
            Remark($"prompt: {OneLine(prompt)}\n  expected:  {OneLine(expected)}\n  generated: {OneLine(generated)}", terminal.Say, "");
        }
    }

    /// <summary>Draws the last state and leaves it on the screen.</summary>
    public async ValueTask DisposeAsync()
    {
        finished.TrySetResult();
        await drawing;
    }

    /// <summary>The plain line of a phase.</summary>
    internal static string PhaseLine(in TrainingProgress progress)
    {
        string message = progress.Message is { Length: > 0 } words ? $": {words}" : "";
        return progress.Phase == TrainingPhase.Done
            ? $"done after {Quantities.Time(progress.Elapsed)}{message}"
            : $"{progress.Phase.ToString().ToLowerInvariant()}{message}";
    }

    /// <summary>The plain line of a step.</summary>
    internal static string StepLine(in TrainingProgress progress) => string.Join("  ", Parts(progress).Prepend(StepOf(progress)));

    private static string StepOf(in TrainingProgress progress) => progress.TotalSteps > 0
        ? string.Create(CultureInfo.InvariantCulture, $"step {progress.Step}/{progress.TotalSteps}")
        : string.Create(CultureInfo.InvariantCulture, $"step {progress.Step}");

    private static List<string> Parts(in TrainingProgress progress)
    {
        CultureInfo culture = CultureInfo.InvariantCulture;
        List<string> parts = [];
        if (progress.Loss is { } loss)
        {
            parts.Add(string.Create(culture, $"loss {loss:0.0000}"));
        }

        if (progress.LearningRate is { } rate)
        {
            parts.Add(string.Create(culture, $"lr {rate:0.00e-0}"));
        }

        if (progress.GradientNorm is { } norm)
        {
            parts.Add(string.Create(culture, $"grad {norm:0.###}"));
        }

        if (progress.TokensPerSecond is { } tokens)
        {
            string supervised = progress.SupervisedTokensPerSecond is { } some ? string.Create(culture, $" ({some:#,0} supervised)") : "";
            parts.Add(string.Create(culture, $"{tokens:#,0} tokens/s{supervised}"));
        }

        if (progress.MemoryBytes is { } memory)
        {
            parts.Add(Quantities.Bytes(memory));
        }

        parts.Add($"{Quantities.Time(progress.Elapsed)} elapsed");
        if (progress.Remaining is { } remaining)
        {
            parts.Add($"{Quantities.Time(remaining)} left");
        }

        if (progress.MoneySpent is { } money)
        {
            string whole = progress.MoneyForecast is { } forecast ? $", about {Quantities.Money(forecast, null)} in all" : "";
            parts.Add($"{Quantities.Money(money, progress.Currency)} spent{whole}");
        }

        return parts;
    }

    /// <summary>The numbers in a line: where it is narrow, what nobody watches all the time is left out first, and the time left and the money stay.</summary>
    private static string Fitted(in TrainingProgress progress, int width)
    {
        TrainingProgress shown = progress;
        string all = string.Join("  ", Parts(shown));
        for (int step = 0; all.Length >= width && step < 5; step++)
        {
            shown = step switch
            {
                0 => shown with { GradientNorm = null },
                1 => shown with { LearningRate = null },
                2 => shown with { SupervisedTokensPerSecond = null },
                3 => shown with { MemoryBytes = null },
                _ => shown with { TokensPerSecond = null },
            };
            all = string.Join("  ", Parts(shown));
        }

        return all;
    }

    private static string OneLine(string text)
    {
        string line = text.ReplaceLineEndings(" ").Trim();
        return line.Length > 200 ? string.Concat(line.AsSpan(0, 197), "...") : line;
    }

    private void Remark(string text, Action<string> write, string prefix)
    {
        // What comes after the last drawing, as during a command at the end, would not be drawn any more.
        if (console is null || drawing.IsCompleted)
        {
            write(text);
        }
        else
        {
            remarks.Enqueue(prefix + text);
        }
    }

    /// <summary>The only code that touches the terminal while the display is live.</summary>
    private async Task DrawAsync(IAnsiConsole screen)
    {
        await screen.Live(Text.Empty).Overflow(VerticalOverflow.Crop).StartAsync(async context =>
        {
            bool last;
            do
            {
                last = finished.Task.IsCompleted;
                while (remarks.TryDequeue(out string? remark))
                {
                    screen.Write(new OverOldLines(remark));
                }

                TrainingProgress progress;
                lock (gate)
                {
                    progress = latest;
                }

                context.UpdateTarget(TwoLines(progress, screen.Profile.Width));
                if (!last)
                {
                    await Task.WhenAny(finished.Task, Task.Delay(Redraw));
                }
            }
            while (!last);
        });
    }

    /// <summary>A bar with the phase and the step; below it the numbers. Both fit the width.</summary>
    private static Rows TwoLines(in TrainingProgress progress, int width)
    {
        bool training = progress.Phase == TrainingPhase.Training;
        double fraction = Math.Clamp(progress.Fraction ?? (progress.TotalSteps > 0 && training ? (double)progress.Step / progress.TotalSteps : 0), 0, 1);
        string head = training ? StepOf(progress) : PhaseLine(progress);
        string percent = progress.Fraction is not null || training ? string.Create(CultureInfo.InvariantCulture, $"{fraction * 100,4:0}%") : "";
        int room = Math.Max(8, Math.Min(40, width - head.Length - percent.Length - 3));
        int done = (int)(fraction * room);
        Paragraph bar = new();
        bar.Append(new string('━', done), new Style(Color.Green));
        bar.Append(new string('━', room - done), new Style(Color.Grey));
        bar.Append($"{percent} {head}");
        string numbers = Fitted(progress, width);
        return new Rows(Cropped(bar), new Text(numbers.Length >= width ? numbers[..Math.Max(0, width - 1)] : numbers));

        static IRenderable Cropped(Paragraph paragraph)
        {
            paragraph.Overflow = Overflow.Ellipsis;
            return paragraph;
        }
    }

    /// <summary>Text where the two live lines are: they are wiped first, or what is longer than the text would show behind it.</summary>
    private sealed class OverOldLines(string text) : Renderable
    {
        private const string EraseToEndOfScreen = "\u001b[J";

        protected override IEnumerable<Segment> Render(RenderOptions options, int maxWidth) =>
            [Segment.Control(EraseToEndOfScreen), .. ((IRenderable)new Text(text)).Render(options, maxWidth), Segment.LineBreak];
    }
}
