using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>A moment in a run: when a line that starts so was written so many times, plus some time.</summary>
internal sealed record Moment(string Line, int Occurrence, double DelayMilliseconds)
{
    public override string ToString() => $"{DelayMilliseconds:0.0} ms after '{Line}' number {Occurrence}";
}

/// <summary>A folder with a tiny base, data and a config, and the program that runs in it as a process of its own.</summary>
internal sealed class TinyFolder : IDisposable
{
    public const int SignalInterrupt = 2;
    public const int SignalKill = 9;
    public const int SignalUser1 = 10;
    public const int SignalTerminate = 15;
    public const int SignalContinue = 18;
    public const int SignalStop = 19;

    // Guards against a hang, not a measure of speed.
    private static readonly TimeSpan Longest = TimeSpan.FromMinutes(4);

    private readonly TemporaryFolder folder = new();

    public TinyFolder(ModelConfig? shape = null, int rows = 43, int longest = 40, params (string Key, object? Value)[] changes)
    {
        TinyRun.WriteBase(folder.File("base"), shape: shape);
        TinyRun.WriteData(folder.File("train.jsonl"), rows, longest);
        File.WriteAllText(folder.File("tiny.yaml"), TinyRun.Config("", changes));
    }

    /// <summary>A base of which only the shape is there: enough to plan with.</summary>
    /// <param name="configJson">Of the base.</param>
    /// <param name="changes">Of the run's config.</param>
    public static TinyFolder OfShape(string configJson, params (string Key, object? Value)[] changes)
    {
        var made = new TinyFolder(changes: changes);
        Directory.Delete(made.PathOf("base"), recursive: true);
        Directory.CreateDirectory(made.PathOf("base"));
        File.WriteAllText(made.PathOf("base/config.json"), configJson);
        return made;
    }

    public string Path => folder.Path;

    public string Out => PathOf("out");

    public string Checkpoints => PathOf("out/checkpoints/tiny");

    public string PathOf(string name) => folder.File(name);

    public void Dispose() => folder.Dispose();

    /// <summary>Runs to the end, or until the moment, when the signals are sent one after the other.</summary>
    public async Task<Ending> RunAsync(string[] arguments, Moment? moment = null, int[]? signals = null, IReadOnlyDictionary<string, string>? environment = null)
    {
        using Process process = Start(arguments, environment);
        var output = new StringBuilder();
        Task<string> error = process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        using var hang = CancellationTokenSource.CreateLinkedTokenSource(TestContext.Current.CancellationToken);
        hang.CancelAfter(Longest);
        try
        {
            int seen = 0;
            while (await process.StandardOutput.ReadLineAsync(hang.Token) is { } line)
            {
                output.Append(line).Append('\n');
                if (moment is not null && line.StartsWith(moment.Line, StringComparison.Ordinal) && ++seen == moment.Occurrence)
                {
                    Wait(moment.DelayMilliseconds);
                    foreach (int signal in signals ?? [SignalKill])
                    {
                        _ = SendSignal(process.Id, signal);
                        Wait(signals?.Length > 1 ? 30 : 0);
                    }
                }
            }

            await process.WaitForExitAsync(hang.Token);
        }
        finally
        {
            if (!process.HasExited)
            {
                process.Kill();
            }
        }

        return new Ending(process.ExitCode, output.ToString(), await error);
    }

    public Task<Ending> RunAsync(params string[] arguments) => RunAsync(arguments, null);

    /// <summary>Runs to the end, which must be a good one.</summary>
    public async Task<Ending> SucceedsAsync(params string[] arguments)
    {
        Ending run = await RunAsync(arguments);
        Assert.True(run.ExitCode == 0, run.ToString());
        return run;
    }

    /// <summary>Runs what must be refused as wrong input, with this in the message and nothing on standard output.</summary>
    public async Task RefusesAsync(string sentence, params string[] arguments)
    {
        Ending run = await RunAsync(arguments);
        Assert.True(run.ExitCode == 2, run.ToString());
        Assert.Contains(sentence, run.Error, StringComparison.Ordinal);
        Assert.Equal("", run.Output);
    }

    /// <summary>Starts a process and kills it as soon as the condition holds, which is looked at all the time; or lets it end before.</summary>
    public async Task<Ending> KillWhenAsync(Func<bool> condition, string[] arguments, IReadOnlyDictionary<string, string>? environment = null)
    {
        using Process process = Start(arguments, environment);
        Task<string> error = process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        Task<string> output = process.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        while (!process.HasExited && !condition())
        {
            Thread.Sleep(0);
        }

        _ = SendSignal(process.Id, SignalKill);
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);
        return new Ending(process.ExitCode, await output, await error);
    }

    /// <summary>Starts a process and kills it after some time, wherever it is then.</summary>
    public async Task<Ending> KillAfterAsync(TimeSpan time, string[] arguments, IReadOnlyDictionary<string, string>? environment = null)
    {
        using Process process = Start(arguments, environment);
        Task<string> error = process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        Task<string> output = process.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        await Task.Delay(time, TestContext.Current.CancellationToken);
        _ = SendSignal(process.Id, SignalKill);
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);
        return new Ending(process.ExitCode, await output, await error);
    }

    public Process Start(string[] arguments, IReadOnlyDictionary<string, string>? environment) => Ending.Start(folder.Path, ["dotnet", "exec", Ending.Program, .. arguments], environment);

    /// <summary>The folders of the checkpoints that have a manifest, by step.</summary>
    public string[] CheckpointFolders(string? root = null) =>
        [.. Directory.EnumerateDirectories(root ?? Checkpoints, "step-*").Where(path => File.Exists(System.IO.Path.Combine(path, "manifest.json"))).Order(StringComparer.Ordinal)];

    /// <summary>Everything that two runs with the same result have in common: the weights, the optimizer's moments, what the log says of each step and evaluation.</summary>
    /// <param name="output">The output folder; null: <see cref="Out"/>.</param>
    /// <param name="checkpoints">Where the run lies among the checkpoints; null: <see cref="Checkpoints"/>.</param>
    public Dictionary<string, string> Result(string? output = null, string? checkpoints = null)
    {
        string weights = Directory.EnumerateFiles(output ?? Out, "*.safetensors").Single();
        string last = CheckpointFolders(checkpoints)[^1];
        var result = new Dictionary<string, string>
        {
            [System.IO.Path.GetFileName(weights)] = Hash(weights),
            ["optimizer.safetensors"] = Hash(System.IO.Path.Combine(last, "optimizer.safetensors")),
            ["log.jsonl"] = string.Join('\n', Log(output)),
        };
        foreach (string other in new[] { "best", "last" }.Select(name => System.IO.Path.Combine(output ?? Out, name)).Where(Directory.Exists))
        {
            result[System.IO.Path.GetFileName(other)] = Hash(Directory.EnumerateFiles(other, "*.safetensors").Single());
        }

        return result;
    }

    /// <summary>step, loss, learning_rate and grad_norm of each line, or step and eval_loss, as they are written.</summary>
    public string[] Log(string? output = null) =>
    [
        .. File.ReadAllLines(System.IO.Path.Combine(output ?? Out, "log.jsonl")).Select(line =>
        {
            using JsonDocument document = JsonDocument.Parse(line);
            string[] names = document.RootElement.TryGetProperty("eval_loss", out _) ? ["step", "epoch", "eval_loss", "eval_rows"] : ["step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "supervised_tokens"];
            return string.Join(' ', names.Select(name => document.RootElement.GetProperty(name).GetRawText()));
        }),
    ];

    /// <summary>Every file below a folder with the hash of its content: to see that nothing changed.</summary>
    public static Dictionary<string, string> Snapshot(string path) => Directory.EnumerateFiles(path, "*", SearchOption.AllDirectories)
        .ToDictionary(file => System.IO.Path.GetRelativePath(path, file), Hash, StringComparer.Ordinal);

    public static string Hash(string file) => Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(File.ReadAllBytes(file)));

    public static int SendSignal(int process, int signal) => Kill(process, signal);

    private static void Wait(double milliseconds)
    {
        // Finer than a timer: some of the moments lie within a save of a few milliseconds.
        long start = Stopwatch.GetTimestamp();
        while (Stopwatch.GetElapsedTime(start).TotalMilliseconds < milliseconds)
        {
            Thread.Sleep(milliseconds > 20 ? 1 : 0);
        }
    }

    [DllImport("libc", EntryPoint = "kill", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    private static extern int Kill(int process, int signal);
}
