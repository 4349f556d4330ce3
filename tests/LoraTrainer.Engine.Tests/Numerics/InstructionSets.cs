using System.Diagnostics;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using System.Security.Cryptography;
using System.Text;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Numerics;

/// <summary>
/// Reruns a test of this assembly in child processes with fewer instruction sets and compares what it computed. The rerun test is marked
/// Explicit, so that it runs there only, and hands its results to <see cref="Report"/>.
/// </summary>
internal static class InstructionSets
{
    private const string ResultVariable = "LT_CHILD_RESULT";
    private const string SwitchVariable = "LT_CHILD_SWITCH";

    /// <summary>The runtime's switches, each taking away more. With the last one no Vector type is accelerated at all.</summary>
    public static IReadOnlyList<string> Switches { get; } = ["DOTNET_EnableAVX512", "DOTNET_EnableAVX2", "DOTNET_EnableHWIntrinsic"];

    /// <summary>What the explicit test <paramref name="method"/> of <paramref name="type"/> reports when it runs under <paramref name="switchName"/>=0 ("" for none).</summary>
    public static async Task<string> RunChild(Type type, string method, string switchName)
    {
        using var folder = new TemporaryFolder();
        string host = Environment.ProcessPath!;
        var start = new ProcessStartInfo(host) { RedirectStandardOutput = true, RedirectStandardError = true };
        if (Path.GetFileNameWithoutExtension(host) == "dotnet")
        {
            start.ArgumentList.Add(type.Assembly.Location);
        }

        foreach (string argument in new[] { "-explicit", "only", "-method", $"{type.FullName}.{method}" })
        {
            start.ArgumentList.Add(argument);
        }

        start.Environment[ResultVariable] = folder.File("result");
        start.Environment[SwitchVariable] = switchName;
        if (switchName.Length > 0)
        {
            start.Environment[switchName] = "0";
        }

        using Process child = Process.Start(start)!;
        Task<string> errors = child.StandardError.ReadToEndAsync();
        string output = await child.StandardOutput.ReadToEndAsync();
        await child.WaitForExitAsync();
        Assert.True(child.ExitCode == 0 && File.Exists(folder.File("result")), $"child with {switchName}=0 ended with {child.ExitCode}\n{output}\n{await errors}");
        return await File.ReadAllTextAsync(folder.File("result"));
    }

    /// <summary>In the child: checks that the switch took, and hands the results to the parent.</summary>
    public static void Report(IEnumerable<(string Name, ReadOnlyMemory<byte> Bytes)> results)
    {
        string switchName = Environment.GetEnvironmentVariable(SwitchVariable)!;
        Assert.False(switchName == "DOTNET_EnableAVX512" && Avx512F.IsSupported);
        Assert.False(switchName == "DOTNET_EnableAVX2" && Avx2.IsSupported);
        Assert.False(switchName == "DOTNET_EnableHWIntrinsic" && Vector128.IsHardwareAccelerated);
        var text = new StringBuilder();
        foreach ((string name, ReadOnlyMemory<byte> bytes) in results)
        {
            text.Append(name).Append(' ').AppendLine(Convert.ToHexString(SHA256.HashData(bytes.Span)));
        }

        File.WriteAllText(Environment.GetEnvironmentVariable(ResultVariable)!, text.ToString());
    }

    /// <summary>The bytes of some numbers; every NaN as the same one, since which NaN an operation returns is not specified.</summary>
    public static ReadOnlyMemory<byte> Bytes(IEnumerable<float> values)
        => values.SelectMany(v => BitConverter.GetBytes(float.IsNaN(v) ? float.NaN : v)).ToArray();
}
