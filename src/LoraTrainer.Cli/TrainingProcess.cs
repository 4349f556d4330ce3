using System.Diagnostics;
using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;

namespace LoraTrainer.Cli;

/// <summary>A training as a process of this very program, followed by what it writes; killed when it is disposed before its end.</summary>
internal sealed partial class TrainingProcess : IDisposable
{
    // Of 128 + 9: ended by SIGKILL.
    private const int KilledCode = 137;

    private readonly Process process;
    private readonly StringBuilder errors = new();

    /// <param name="config">The file that is trained.</param>
    public TrainingProcess(string config)
    {
        process = new Process { StartInfo = StartOf("train", config) };
        process.ErrorDataReceived += (_, line) =>
        {
            lock (errors)
            {
                errors.AppendLine(line.Data);
            }
        };
        Started = Stopwatch.GetTimestamp();
        process.Start();
        process.BeginErrorReadLine();
    }

    /// <summary>How this program is started once more, with its output to be read.</summary>
    public static ProcessStartInfo StartOf(params string[] arguments)
    {
        string host = Environment.ProcessPath ?? throw new InvalidOperationException("this program does not know where it lies");
        bool isHosted = Path.GetFileNameWithoutExtension(host) == "dotnet";
        return new ProcessStartInfo(host, [.. isHosted ? new[] { "exec", Environment.GetCommandLineArgs()[0] } : [], .. arguments])
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            UseShellExecute = false,
        };
    }

    /// <summary>On <see cref="Stopwatch"/>.</summary>
    public long Started { get; }

    /// <summary>The last step it has told of; 0 before the first.</summary>
    public int Step { get; private set; }

    /// <summary>0 before the first step.</summary>
    public int TotalSteps { get; private set; }

    /// <summary>What it wrote to standard error.</summary>
    public string Errors
    {
        get
        {
            lock (errors)
            {
                return errors.ToString();
            }
        }
    }

    /// <summary>The next line, after taking note of its step; null at the end.</summary>
    public async Task<string?> NextLineAsync(CancellationToken cancellation)
    {
        string? line = await process.StandardOutput.ReadLineAsync(cancellation);
        if (line is not null && StepLine().Match(line) is { Success: true } match)
        {
            Step = int.Parse(match.Groups[1].Value, CultureInfo.InvariantCulture);
            TotalSteps = int.Parse(match.Groups[2].Value, CultureInfo.InvariantCulture);
        }

        return line;
    }

    /// <summary>True for the line of a step, false for all others.</summary>
    public static bool IsStep(string line) => StepLine().IsMatch(line);

    /// <summary>Kills it, whatever it is doing. True where that ended it; false where it had ended by itself.</summary>
    public async Task<bool> KillAsync(CancellationToken cancellation)
    {
        process.Kill();
        return await ExitCodeAsync(cancellation) == KilledCode;
    }

    public async Task<int> ExitCodeAsync(CancellationToken cancellation)
    {
        await process.WaitForExitAsync(cancellation);
        return process.ExitCode;
    }

    public void Dispose()
    {
        if (!process.HasExited)
        {
            process.Kill();
            process.WaitForExit();
        }

        process.Dispose();
    }

    [GeneratedRegex(@"^step (\d+)/(\d+) ", RegexOptions.CultureInvariant)]
    private static partial Regex StepLine();
}
