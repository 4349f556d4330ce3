using System.Diagnostics;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>Runs the program as a user does: a process of its own, with its own standard streams.</summary>
internal sealed record CliProcess(int ExitCode, string Output, string Error)
{
    public static async Task<CliProcess> RunAsync(string folder, params string[] arguments)
    {
        string program = Path.Combine(AppContext.BaseDirectory, "lora-trainer.dll");
        Assert.True(File.Exists(program), $"the program is not beside the tests: {program}");
        ProcessStartInfo start = new("dotnet") { WorkingDirectory = folder, RedirectStandardOutput = true, RedirectStandardError = true, UseShellExecute = false };
        start.ArgumentList.Add("exec");
        start.ArgumentList.Add(program);
        foreach (string argument in arguments)
        {
            start.ArgumentList.Add(argument);
        }

        using Process process = Process.Start(start)!;
        Task<string> output = process.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        Task<string> error = process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);
        return new CliProcess(process.ExitCode, await output, await error);
    }
}
