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
    /// <summary>For a run: a GPU that was asked for must be there, and <c>auto</c> looks for one.</summary>
    /// <param name="choice">What the config says.</param>
    /// <param name="threads">0: one for each core the process may use.</param>
    /// <exception cref="TrainingSetupException">A GPU was asked for and cannot be used; says what is missing.</exception>
    public static DeviceSelection ForRun(DeviceChoice choice, int threads)
    {
        if (choice == DeviceChoice.Cpu)
        {
            return new DeviceSelection(DevicePlatform.Cpu, Workers(threads), null);
        }

        bool usable = CudaDevice.TryDescribe(out CudaDeviceInfo? gpu, out string missing);
        if (choice == DeviceChoice.Cuda)
        {
            return usable
                ? new DeviceSelection(DevicePlatform.Cuda, Workers(threads), null)
                : throw new TrainingSetupException($"device: cuda cannot be used: {missing} lora-trainer doctor tells more; device: cpu trains on the processor.");
        }

        return usable
            ? new DeviceSelection(DevicePlatform.Cuda, Workers(threads), $"device: auto took the GPU {gpu!.Name}")
            : new DeviceSelection(DevicePlatform.Cpu, Workers(threads), $"device: auto took the CPU: {FirstSentence(missing)}");
    }

    /// <summary>For a plan: nothing is opened, and a GPU that was asked for need not be here.</summary>
    /// <param name="choice">What the config says.</param>
    /// <param name="threads">0: one for each core the process may use.</param>
    public static DeviceSelection ForPlan(DeviceChoice choice, int threads) => choice == DeviceChoice.Cuda
        ? new DeviceSelection(DevicePlatform.Cuda, Workers(threads), null)
        : ForRun(choice, threads);

    /// <summary>A device on which the same code only measures.</summary>
    public MeasureDevice Measure() => new(Threads, Platform);

    /// <summary>The device itself with an arena of the planned size.</summary>
    /// <exception cref="TrainingSetupException">The GPU does not have that much memory free, or is gone.</exception>
    public Device Open(long arenaBytes)
    {
        if (Platform == DevicePlatform.Cpu)
        {
            return new CpuDevice(Threads, arenaBytes);
        }

        return CudaDevice.TryOpen(arenaBytes, out CudaDevice? device, out string reason)
            ? device!
            : throw new TrainingSetupException(reason);
    }

    /// <summary>What is missing; what to do about it is for those who asked for a GPU.</summary>
    private static string FirstSentence(string text) => text.Split(". ")[0].TrimEnd('.');

    private static int Workers(int threads) => threads > 0 ? threads : Environment.ProcessorCount;
}
