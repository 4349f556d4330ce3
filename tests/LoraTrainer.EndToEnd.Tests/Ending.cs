using System.Diagnostics;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>How a child process ended, and what it wrote. A process that was killed has 128 + 9. The one place where tests start processes.</summary>
internal sealed record Ending(int ExitCode, string Output, string Error)
{
    /// <summary>The program: the published one that LT_TEST_PROGRAM names, else that beside the tests, which takes twice as long to start.</summary>
    public static string Program { get; } = Environment.GetEnvironmentVariable("LT_TEST_PROGRAM") is { Length: > 0 } published ? Path.GetFullPath(published) : Path.Combine(AppContext.BaseDirectory, "lora-trainer.dll");

    /// <summary>Runs the program as a user does: a process of its own, with its own standard streams.</summary>
    public static Task<Ending> RunAsync(string folder, params string[] arguments) => OfAsync(folder, ["dotnet", "exec", Program, .. arguments]);

    /// <summary>The same with a text on standard input.</summary>
    public static async Task<Ending> RunWithInputAsync(string folder, string input, params string[] arguments)
    {
        using Process process = Start(folder, ["dotnet", "exec", Program, .. arguments], readsInput: true);
        Task<string> output = process.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        Task<string> error = process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        await process.StandardInput.WriteAsync(input);
        process.StandardInput.Close();
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);
        return new Ending(process.ExitCode, await output, await error);
    }

    /// <summary>Runs any command to its end.</summary>
    public static async Task<Ending> OfAsync(string folder, string[] command)
    {
        using Process process = Start(folder, command);
        Task<string> output = process.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        Task<string> error = process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);
        return new Ending(process.ExitCode, await output, await error);
    }

    /// <summary>Starts a command with its standard output and error redirected.</summary>
    private static readonly Lazy<string> Ledgers = new(() =>
    {
        string folder = Directory.CreateTempSubdirectory("lora-trainer-test-ledgers-").FullName;
        AppDomain.CurrentDomain.ProcessExit += (_, _) => Directory.Delete(folder, recursive: true);
        return folder;
    });

    /// <summary>The ledger of processes that are started in a folder; it lies elsewhere, so that a folder holds what its run left and nothing else.</summary>
    public static string LedgerOf(string folder) => Path.Combine(Ledgers.Value, Path.GetFileName(Path.TrimEndingDirectorySeparator(folder)) + ".db");

    public static Process Start(string folder, string[] command, IReadOnlyDictionary<string, string>? environment = null, bool readsInput = false)
    {
        Assert.True(File.Exists(Program), $"there is no program: {Program}");
        var start = new ProcessStartInfo(command[0], command[1..]) { WorkingDirectory = folder, RedirectStandardOutput = true, RedirectStandardError = true, RedirectStandardInput = readsInput, UseShellExecute = false };
        // Never that of whoever runs the tests.
        start.Environment["LT_LEDGER"] = LedgerOf(folder);
        start.Environment["LT_CALIBRATION"] = Path.ChangeExtension(LedgerOf(folder), ".calibration.jsonl");
        foreach ((string name, string value) in environment ?? new Dictionary<string, string>())
        {
            start.Environment[name] = value;
        }

        return Process.Start(start)!;
    }

    public override string ToString() => $"exit code {ExitCode}\n{Output}\n{Error}";
}
