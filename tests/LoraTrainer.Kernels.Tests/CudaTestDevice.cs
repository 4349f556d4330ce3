using LoraTrainer.Engine.Devices;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>
/// The CUDA device under test: on the stand-ins, where work runs at once ("eager") or only when something waits for it ("lazy", as on a busy
/// card), or with LT_REQUIRE_CUDA=1 on the machine's own GPU ("gpu"), where nothing may be skipped.
/// </summary>
internal static class CudaTestDevice
{
    private const string RequireVariable = "LT_REQUIRE_CUDA";

    public static bool IsRealGpuRequired => Environment.GetEnvironmentVariable(RequireVariable) == "1";

    /// <summary>The ways in which whole models are run.</summary>
    public static string[] Modes => IsRealGpuRequired ? ["gpu"] : ["eager", "lazy"];

    /// <summary>Of work on several streams: besides <see cref="Modes"/> one in which copies from the host come as early as their waits allow, and all else late.</summary>
    public static string[] StreamModes => IsRealGpuRequired ? Modes : [.. Modes, "uploads first"];

    /// <summary>What a whole model runs in: Llama in each mode, other families, which have the same kernels and launches in the same order, in the first.</summary>
    /// <param name="model">A folder of the model fixtures.</param>
    public static string[] ModesOf(string model) => model.StartsWith("llama", StringComparison.Ordinal) ? Modes : Modes[..1];

    /// <param name="mode">One of <see cref="Modes"/>.</param>
    /// <param name="capacityBytes">Size of the arena.</param>
    public static CudaDevice Open(string mode, long capacityBytes) => Open(mode, new DeviceMemory(capacityBytes));

    /// <param name="mode">One of <see cref="StreamModes"/>.</param>
    /// <param name="memory">Of a plan.</param>
    public static CudaDevice Open(string mode, DeviceMemory memory)
    {
        if (mode == "gpu")
        {
            Assert.True(CudaDevice.TryOpen(memory, out CudaDevice? device, out string reason, out _), $"{RequireVariable}=1, and there is no GPU that can be used: {reason}");
            return device;
        }

        CudaStandin.Require();
        CudaStandin.Configure(lazy: mode != "eager", uploadsFirst: mode == "uploads first");
        return CudaStandin.Open(memory);
    }
}

/// <summary>Tests of the CUDA device run one after the other: the stand-ins' scheduling and counters are the process's. Those without it may run beside them.</summary>
[CollectionDefinition(Name)]
public sealed class OneDeviceAtATime
{
    public const string Name = CudaStandin.Collection;
}
