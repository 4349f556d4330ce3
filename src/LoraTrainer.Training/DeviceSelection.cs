using LoraTrainer.Engine.Devices;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>Which device a run computes on, and why. Decided before anything is planned, because the plan is one of that device.</summary>
/// <param name="Platform">Whose kernels run.</param>
/// <param name="Threads">CPU threads; the host's share of the work on a GPU.</param>
/// <param name="Reason">Why <c>device: auto</c> took this one; null where the choice was the user's.</param>
public sealed record DeviceSelection(DevicePlatform Platform, int Threads, string? Reason)
{
    /// <summary>How the choice is written in a config, up to the word itself.</summary>
    public const string ConfigSetting = "device: ";

    /// <summary>How the user writes the choice, for sentences about it.</summary>
    private string Setting { get; init; } = ConfigSetting;

    /// <summary>For a run: a GPU that was asked for must be there, and <c>auto</c> looks for one.</summary>
    /// <param name="choice">What the config says.</param>
    /// <param name="threads">0: one for each core the process may use.</param>
    /// <param name="setting">How the user writes the choice, up to the word itself.</param>
    /// <exception cref="TrainingSetupException">A GPU was asked for and cannot be used; says what is missing.</exception>
    public static DeviceSelection ForRun(DeviceChoice choice, int threads, string setting = ConfigSetting)
    {
        if (choice == DeviceChoice.Cpu)
        {
            return Of(DevicePlatform.Cpu, null);
        }

        bool usable = CudaDevice.TryDescribe(out CudaDeviceInfo? gpu, out string missing);
        if (choice == DeviceChoice.Cuda)
        {
            return usable
                ? Of(DevicePlatform.Cuda, null)
                : throw new TrainingSetupException($"{setting}cuda cannot be used: {missing} lora-trainer doctor tells more; {setting}cpu computes on the processor.");
        }

        return usable
            ? Of(DevicePlatform.Cuda, $"{setting}auto took the GPU {gpu!.Name}")
            : Of(DevicePlatform.Cpu, $"{setting}auto took the CPU: {Briefly(missing)}");

        DeviceSelection Of(DevicePlatform platform, string? reason) => new(platform, Workers(threads), reason) { Setting = setting };
    }

    /// <summary>For a plan: nothing is opened, and a GPU that was asked for need not be here.</summary>
    /// <param name="choice">What the config says.</param>
    /// <param name="threads">0: one for each core the process may use.</param>
    public static DeviceSelection ForPlan(DeviceChoice choice, int threads) => choice == DeviceChoice.Cuda
        ? new DeviceSelection(DevicePlatform.Cuda, Workers(threads), null)
        : ForRun(choice, threads);

    /// <summary>A device on which the same code only measures.</summary>
    public MeasureDevice Measure() => new(Threads, Platform);

    /// <summary>
    /// The device itself with the memory of the plan. A GPU that <c>auto</c> took and that has too little memory free is an error too: the CPU
    /// would compute other bits, and for hours, without having been asked for.
    /// </summary>
    /// <param name="planned">All memory that it needs.</param>
    /// <param name="lessMemory">What would need less memory, a sentence for the error.</param>
    /// <param name="notice">Receives what the user should see but need not act on, while the device works.</param>
    /// <exception cref="TrainingSetupException">The GPU does not have that much memory free, or is gone.</exception>
    public Device Open(DeviceMemory planned, string lessMemory, Action<string> notice)
    {
        if (Platform == DevicePlatform.Cpu)
        {
            return new CpuDevice(Threads, planned.ArenaBytes);
        }

        if (CudaDevice.TryOpen(planned, out CudaDevice? device, out string reason, out MemoryShortage shortage))
        {
            device.Notice = notice;
            return device;
        }

        throw new TrainingSetupException(shortage switch
        {
            MemoryShortage.Device => $"{reason} {lessMemory} {OnTheCpu()}",
            MemoryShortage.Host => $"{reason} Raise that, or do without embeddings: host and gradient_checkpointing: offload.",
            _ => reason,
        });
    }

    /// <summary>What computes, and why: a sentence for the user.</summary>
    /// <param name="device">The one that was opened.</param>
    public string Describe(Device device) => $"Device: {device.Description}{(Reason is null ? "" : $" ({Reason})")}.";

    private string OnTheCpu() => Reason is null
        ? $"{Setting}cpu computes on the processor."
        : $"{Reason}, and does not turn to the CPU for want of memory; {Setting}cpu computes there.";

    /// <summary>What is missing, without where it was looked for and what to do about it: that is for those who asked for a GPU, and for doctor.</summary>
    private static string Briefly(string reason)
    {
        string clause = reason.Split(": ")[0].Split(". ")[0].TrimEnd('.');
        return clause.StartsWith("The", StringComparison.Ordinal) ? $"t{clause[1..]}" : clause;
    }

    private static int Workers(int threads) => threads > 0 ? threads : Environment.ProcessorCount;
}
