using System.Diagnostics;
using System.Security.Cryptography;
using System.Text;
using Xunit;

namespace LoraTrainer.TestSupport;

/// <summary>
/// Reruns a test of the running program in a process of its own, where something that a process reads once can be different. The rerun test
/// is marked Explicit, so that it runs there only, and hands its results to <see cref="Report"/>.
/// </summary>
public static class ChildTest
{
    private const string ResultVariable = "LT_CHILD_RESULT";

    /// <summary>What the explicit test <paramref name="method"/> of <paramref name="type"/> reports with these environment variables.</summary>
    public static async Task<string> Run(Type type, string method, IReadOnlyDictionary<string, string> environment)
    {
        using var folder = new TemporaryFolder();
        string host = Environment.ProcessPath!;
        var start = new ProcessStartInfo(host) { RedirectStandardOutput = true, RedirectStandardError = true };
        if (Path.GetFileNameWithoutExtension(host) == "dotnet")
        {
            start.ArgumentList.Add(type.Assembly.Location);
        }

        foreach (string argument in (string[])["-explicit", "only", "-method", $"{type.FullName}.{method}"])
        {
            start.ArgumentList.Add(argument);
        }

        start.Environment[ResultVariable] = folder.File("result");
        foreach ((string name, string value) in environment)
        {
            start.Environment[name] = value;
        }

        using Process child = Process.Start(start)!;
        Task<string> errors = child.StandardError.ReadToEndAsync();
        string output = await child.StandardOutput.ReadToEndAsync();
        await child.WaitForExitAsync();
        string settings = string.Join(' ', environment.Select(pair => $"{pair.Key}={pair.Value}"));
        Assert.True(child.ExitCode == 0 && File.Exists(folder.File("result")), $"child with {settings} ended with {child.ExitCode}\n{output}\n{await errors}");
        return await File.ReadAllTextAsync(folder.File("result"));
    }

    /// <summary>In the child: hands the results to the parent, a line for each with the hash of its bytes.</summary>
    public static void Report(IEnumerable<(string Name, ReadOnlyMemory<byte> Bytes)> results) =>
        File.WriteAllText(Environment.GetEnvironmentVariable(ResultVariable)!, Lines(results));

    /// <summary>What <see cref="Report"/> hands over.</summary>
    public static string Lines(IEnumerable<(string Name, ReadOnlyMemory<byte> Bytes)> results)
    {
        var text = new StringBuilder();
        foreach ((string name, ReadOnlyMemory<byte> bytes) in results)
        {
            text.Append(name).Append(' ').AppendLine(Convert.ToHexString(SHA256.HashData(bytes.Span)));
        }

        return text.ToString();
    }
}
