using LoraTrainer.Models;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Planning;

/// <summary>What a run will need on the device that its config names, known before it starts. No device is opened and no weight is read.</summary>
/// <param name="Device">What it is planned for, and why.</param>
/// <param name="Memory">Of the device, to the byte.</param>
/// <param name="HostBytes">Of the host beside it: buffers through which weights stream in, and what a GPU run keeps there.</param>
/// <param name="MicroBatchTokens">N of the largest micro-batch that <paramref name="Memory"/> is for.</param>
public sealed record RunPlan(DeviceSelection Device, MemoryPlan Memory, long HostBytes, int MicroBatchTokens)
{
    /// <summary>Plans a run.</summary>
    public static RunPlan Of(RunInputs inputs)
    {
        TrainingConfig config = inputs.Config;
        DeviceSelection selection = DeviceSelection.ForPlan(config.Device.Choice, config.Device.Threads);
        int tokens = inputs.Cut(config.Batch.MicroBatchSize)!.Value.LargestTokens;
        MemoryPlan memory = inputs.Memory(config, selection, tokens);
        return new RunPlan(selection, memory, ModelLoader.HostBufferBytes + memory.HostBytes, tokens);
    }
}
