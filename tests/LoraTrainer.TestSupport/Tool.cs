using System.ComponentModel;
using System.Diagnostics;
using Xunit;

namespace LoraTrainer.TestSupport;

/// <summary>Programs of the machine that tests run, compilers for example.</summary>
public static class Tool
{
    /// <summary>Runs a program to its end; its exit code, and all that it printed. 127 where it is not there.</summary>
    public static (int ExitCode, string Output) Run(string program, params string[] arguments)
    {
        var start = new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true };
        try
        {
            using Process process = Process.Start(start)!;
            Task<string> errors = process.StandardError.ReadToEndAsync();
            string output = process.StandardOutput.ReadToEnd();
            process.WaitForExit();
            return (process.ExitCode, output + errors.Result);
        }
        catch (Win32Exception exception)
        {
            return (127, exception.Message);
        }
    }

    /// <summary>Skips the running test where the program is not there, or fails it under CI=true.</summary>
    public static void Require(string program)
    {
        if (Run("bash", "-c", $"command -v {program}").ExitCode == 0)
        {
            return;
        }

        string reason = $"{program} is not here; scripts/install-test-dependencies.sh installs it where it may";
        if (Fixtures.IsContinuousIntegration)
        {
            Assert.Fail(reason);
        }

        Assert.Skip(reason);
    }
}
