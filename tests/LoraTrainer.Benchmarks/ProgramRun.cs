using System.Diagnostics;
using System.Globalization;

namespace LoraTrainer.Benchmarks;

/// <summary>Runs the program itself as it is published, with machine code made ahead: a process of its own. It is published when the first row asks for it.</summary>
internal static class ProgramRun
{
    public static string RepositoryRoot { get; } = FindRepositoryRoot();

    private static readonly Lazy<string> Published = new(Publish);

    /// <exception cref="InvalidOperationException">It failed.</exception>
    public static void ToItsEnd(params string[] arguments)
    {
        using Process process = Start([.. arguments, "--quiet"]);
        process.StandardOutput.ReadToEnd();
        Finish(process, arguments[0]);
    }

    /// <summary>Does the work that the first run would have to do.</summary>
    public static void Prepare() => _ = Published.Value;

    /// <summary>Seconds from the start of the process to the first line that starts so.</summary>
    public static double SecondsToLine(string start, params string[] arguments)
    {
        long began = Stopwatch.GetTimestamp();
        using Process process = Start(arguments);
        double seconds = 0;
        while (process.StandardOutput.ReadLine() is { } line)
        {
            seconds = seconds == 0 && line.StartsWith(start, StringComparison.Ordinal) ? Stopwatch.GetElapsedTime(began).TotalSeconds : seconds;
        }

        Finish(process, arguments[0]);
        return seconds > 0 ? seconds : throw new InvalidOperationException($"lora-trainer {arguments[0]} wrote no line that starts with '{start}'.");
    }

    private static Process Start(string[] arguments)
    {
        var start = new ProcessStartInfo(Published.Value, arguments) { WorkingDirectory = RepositoryRoot, RedirectStandardOutput = true };
        return Process.Start(start) ?? throw new InvalidOperationException($"{Published.Value} could not be started.");
    }

    private static string Publish()
    {
        string target = Path.Combine(RepositoryRoot, "artifacts", "benchmark");
        var start = new ProcessStartInfo("dotnet", ["publish", "-c", "Release", "-v", "quiet", "-nologo", "src/LoraTrainer.Cli", "-r", "linux-x64", "--self-contained", "false", "-o", target])
        {
            WorkingDirectory = RepositoryRoot,
            RedirectStandardOutput = true,
        };
        using Process process = Process.Start(start) ?? throw new InvalidOperationException("dotnet could not be started.");
        Console.Error.Write(process.StandardOutput.ReadToEnd());
        Finish(process, "(dotnet publish)");
        return Path.Combine(target, "lora-trainer");
    }

    private static void Finish(Process process, string verb)
    {
        process.WaitForExit();
        if (process.ExitCode != 0)
        {
            throw new InvalidOperationException(string.Create(CultureInfo.InvariantCulture, $"lora-trainer {verb} ended with exit code {process.ExitCode}."));
        }
    }

    private static string FindRepositoryRoot()
    {
        DirectoryInfo? folder = new(AppContext.BaseDirectory);
        while (folder is not null && !File.Exists(Path.Combine(folder.FullName, "LoraTrainer.sln")))
        {
            folder = folder.Parent;
        }

        return folder?.FullName ?? throw new InvalidOperationException("These rows run from a build inside the repository.");
    }
}
