using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Numerics;

/// <summary>
/// Reruns a test of this assembly in child processes with fewer instruction sets and compares what it computed. The rerun test is marked
/// Explicit, so that it runs there only, and hands its results to <see cref="Report"/>.
/// </summary>
internal static class InstructionSets
{
    private const string SwitchVariable = "LT_CHILD_SWITCH";

    /// <summary>The runtime's switches, each taking away more. With the last one no Vector type is accelerated at all.</summary>
    public static IReadOnlyList<string> Switches { get; } = ["DOTNET_EnableAVX512", "DOTNET_EnableAVX2", "DOTNET_EnableHWIntrinsic"];

    /// <summary>What the explicit test <paramref name="method"/> of <paramref name="type"/> reports when it runs under <paramref name="switchName"/>=0 ("" for none).</summary>
    public static Task<string> RunChild(Type type, string method, string switchName)
    {
        var environment = new Dictionary<string, string>(StringComparer.Ordinal) { [SwitchVariable] = switchName };
        if (switchName.Length > 0)
        {
            environment[switchName] = "0";
        }

        return ChildTest.Run(type, method, environment);
    }

    /// <summary>In the child: checks that the switch took, and hands the results to the parent.</summary>
    public static void Report(IEnumerable<(string Name, ReadOnlyMemory<byte> Bytes)> results)
    {
        string switchName = Environment.GetEnvironmentVariable(SwitchVariable)!;
        Assert.False(switchName == "DOTNET_EnableAVX512" && Avx512F.IsSupported);
        Assert.False(switchName == "DOTNET_EnableAVX2" && Avx2.IsSupported);
        Assert.False(switchName == "DOTNET_EnableHWIntrinsic" && Vector128.IsHardwareAccelerated);
        ChildTest.Report(results);
    }

    /// <summary>The bytes of some numbers; every NaN as the same one, since which NaN an operation returns is not specified.</summary>
    public static ReadOnlyMemory<byte> Bytes(IEnumerable<float> values)
        => values.SelectMany(v => BitConverter.GetBytes(float.IsNaN(v) ? float.NaN : v)).ToArray();
}
