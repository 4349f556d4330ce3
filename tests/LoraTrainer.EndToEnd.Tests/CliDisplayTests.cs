using System.Diagnostics;
using LoraTrainer.Cli;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using Spectre.Console;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>What is written while a run goes on, and what is said when it fails.</summary>
public sealed class CliDisplayTests
{
    private static TrainingProgress StepNumber(int step) => new()
    {
        Phase = TrainingPhase.Training,
        Step = step,
        TotalSteps = 7,
        Loss = 2.34567,
        LearningRate = 2e-4,
        GradientNorm = 0.5,
        TokensPerSecond = 1234,
        SupervisedTokensPerSecond = 812,
        MemoryBytes = 3L << 29,
        Elapsed = TimeSpan.FromSeconds(62),
        Remaining = TimeSpan.FromHours(26),
        MoneySpent = 0.125m,
        Currency = "EUR",
    };

    private static async Task<(string Output, string Error)> ShowAsync(bool quiet = false, bool json = false)
    {
        StringWriter output = new(), error = new();
        Terminal terminal = new(output, error) { IsQuiet = quiet, IsJson = json };
        await using (TrainingDisplay display = new(terminal, loggingSteps: 3, showSamples: true))
        {
            display.OnProgress(new TrainingProgress { Phase = TrainingPhase.Tokenizing, Message = "1,000 rows" });
            display.OnProgress(new TrainingProgress { Phase = TrainingPhase.Tokenizing, Message = "2,000 rows" });
            display.OnProgress(new TrainingProgress { Phase = TrainingPhase.Tokenizing, Message = "2,345 rows" });
            display.OnProgress(new TrainingProgress { Phase = TrainingPhase.Loading, Message = "models/tiny" });
            display.OnProgress(new TrainingProgress { Phase = TrainingPhase.Loading, Fraction = 0.5 });
            for (int step = 0; step <= 7; step++)
            {
                display.OnProgress(StepNumber(step));
            }

            display.OnNotice("2 rows were dropped.");
            display.OnWarning("The loss rises.");
            display.OnSample("1 + 1\n=", "2", "3");
            display.OnProgress(new TrainingProgress { Phase = TrainingPhase.Done, Elapsed = TimeSpan.FromSeconds(62) });
        }

        return (output.ToString(), error.ToString());
    }

    [Fact]
    public async Task Piped_WritesOneLineForEachPhaseAndLoggingStep()
    {
        const string numbers = "loss 2.3457  lr 2.00e-4  grad 0.5  1,234 tokens/s (812 supervised)  1.5 GiB  0:01:02 elapsed  26:00:00 left  0.125 EUR spent";

        (string output, string error) = await ShowAsync();

        Assert.Equal($"tokenizing: 1,000 rows\ntokenizing: 2,345 rows\nloading: models/tiny\nstep 3/7  {numbers}\nstep 6/7  {numbers}\nstep 7/7  {numbers}\nprompt: 1 + 1 =\n  expected:  2\n  generated: 3\ndone after 0:01:02\n", output);
        Assert.Equal("note: 2 rows were dropped.\nwarning: The loss rises.\n", error);
    }

    [Fact]
    public async Task Quiet_WritesNothing() => Assert.Equal(("", ""), await ShowAsync(quiet: true));

    [Fact]
    public async Task Json_LeavesStandardOutputAlone()
    {
        (string output, string error) = await ShowAsync(json: true);

        Assert.Equal("", output);
        Assert.Contains("step 7/7", error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Terminal_ShowsBarNumbersAndRemarks()
    {
        string shown = await ScreenAsync(width: 200);

        Assert.Contains(" 86% step 6/7", shown, StringComparison.Ordinal);
        Assert.Contains("loss 2.3457  lr 2.00e-4", shown, StringComparison.Ordinal);
        Assert.Contains("note: A remark with [brackets].", shown, StringComparison.Ordinal);
    }

    /// <summary>Where it is narrow, the time left and the money stay.</summary>
    [Fact]
    public async Task NarrowTerminal_LeavesOutWhatNobodyWatches()
    {
        string shown = await ScreenAsync(width: 80);

        Assert.Contains("loss 2.3457", shown, StringComparison.Ordinal);
        Assert.DoesNotContain("lr 2.00e-4", shown, StringComparison.Ordinal);
        Assert.Contains(" left", shown, StringComparison.Ordinal);
        Assert.Contains(" EUR spent", shown, StringComparison.Ordinal);
    }

    private static async Task<string> ScreenAsync(int width)
    {
        StringWriter screen = new();
        IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings { Ansi = AnsiSupport.Yes, ColorSystem = ColorSystemSupport.NoColors, Interactive = InteractionSupport.Yes, Out = new AnsiConsoleOutput(screen) });
        console.Profile.Width = width;
        Terminal terminal = new(new StringWriter(), new StringWriter()) { IsInteractive = true };
        await using (TrainingDisplay display = new(terminal, 1, console: console))
        {
            display.OnProgress(StepNumber(6));
            display.OnNotice("A remark with [brackets].");
        }

        return screen.ToString();
    }

    public static TheoryData<Exception, bool, int, string> Failures => new()
    {
        { new ConfigurationException([new ConfigurationIssue(ConfigurationIssueKind.Wrong, "a", default, "a is wrong.")]), false, 2, "a is wrong." },
        { new InvalidDataException("row 7 has no output"), false, 2, "row 7 has no output." },
        { new FormatException("the header is cut"), false, 2, "the header is cut." },
        { new IOException("No space left on device : 'x'", 28), false, 1, "The disk is full: No space left on device : 'x'. Free some space, or put output_dir on another disk." },
        { new IOException("broken"), false, 1, "broken." },
        { new InsufficientMemoryException("The system refuses 5 bytes of memory."), false, 1, "There is not enough memory: The system refuses 5 bytes of memory. Use a smaller micro_batch_size or sequence_len, or gradient_checkpointing: true." },
        { new OperationCanceledException(), true, 75, "Stopped as requested." },
        { new InvalidOperationException("index off by one"), false, 1, "index off by one. This is a defect of lora-trainer, not a mistake of yours. Please report it with what the same command says with --debug." },
    };

    [Theory]
    [MemberData(nameof(Failures), DisableDiscoveryEnumeration = true)]
    public void Failure_IsASentenceAndAnExitCode(Exception exception, bool stopRequested, int code, string sentence)
    {
        StringWriter error = new();

        ExitCode reported = Failure.Report(exception, new Terminal(new StringWriter(), error), stopRequested, debug: false);

        Assert.Equal((code, $"error: {sentence}\n"), ((int)reported, error.ToString()));
    }

    [Theory]
    [InlineData("""{"cuda":{"available":true,"device":{"free_bytes":1}}}""", GpuFault.Kernel, "The GPU is not lost: a new process can use it.")]
    [InlineData("""{"cuda":{"available":true,"device":{"free_bytes":1}}}""", GpuFault.Unclear, "The GPU is not lost: a new process can use it. So a kernel was at fault, or the card failed for a moment;")]
    [InlineData("""{"cuda":{"available":true,"device":{"free_bytes":null}}}""", GpuFault.Unclear, "A new process sees the GPU and cannot work on it. nvidia-smi")]
    [InlineData("""{"cuda":{"available":false,"reason":"There is none.","device":null}}""", GpuFault.Unclear, "The GPU is lost, it failed or was taken away: a new process cannot use it. There is none. nvidia-smi")]
    public void GpuInquiry_SaysWhatANewProcessFound(string doctor, GpuFault fault, string begin) => Assert.StartsWith(begin, GpuInquiry.Sentence(doctor, fault), StringComparison.Ordinal);

    [Fact]
    public void Failure_WithDebug_ShowsWhere()
    {
        StringWriter error = new();

        Failure.Report(new InvalidOperationException("x"), new Terminal(new StringWriter(), error), false, debug: true);

        Assert.Contains("System.InvalidOperationException: x", error.ToString(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Signals_FirstStopsSecondAborts()
    {
        StringWriter error = new();
        using StopSignals signals = new(new Terminal(new StringWriter(), error));
        CancellationToken stop = signals.Listen("A checkpoint is being saved.");

        await SendTerminateAsync();
        await Task.Delay(Timeout.Infinite, stop).ContinueWith(_ => { }, TaskScheduler.Default).WaitAsync(TimeSpan.FromSeconds(20), TestContext.Current.CancellationToken);
        Assert.False(signals.Aborted.IsCompleted);
        Assert.Equal("warning: Stop requested. A checkpoint is being saved. Press Ctrl-C again to abort at once.\n", error.ToString());

        // Who stops a machine may signal a process and its group: that is one stop.
        await SendTerminateAsync();
        await Task.Delay(TimeSpan.FromSeconds(1.2), TestContext.Current.CancellationToken);
        Assert.False(signals.Aborted.IsCompleted);

        await SendTerminateAsync();
        await signals.Aborted.WaitAsync(TimeSpan.FromSeconds(20), TestContext.Current.CancellationToken);
    }

    private static async Task SendTerminateAsync()
    {
        using Process kill = Process.Start("kill", ["-TERM", $"{Environment.ProcessId}"]);
        await kill.WaitForExitAsync();
        Assert.Equal(0, kill.ExitCode);
    }
}
