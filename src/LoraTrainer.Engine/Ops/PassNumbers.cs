using System.Runtime.InteropServices;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// What differs from one pass to the next while its launches stay the same. On a GPU it lies in device memory beside the batch: work that was recorded (<see cref="Devices.Device.StartRecording"/>)
/// has its arguments for good, and reads these anew.
/// </summary>
/// <param name="FirstRow">Rows of the same global batch that come before this pass.</param>
/// <param name="Step">Optimizer step, for random numbers.</param>
/// <param name="GradientScale">One over the scored tokens of the global batch.</param>
[StructLayout(LayoutKind.Sequential)]
public readonly record struct PassNumbers(long FirstRow, uint Step, float GradientScale)
{
    /// <summary>i32 elements that it takes in a tensor.</summary>
    public const int Elements = 4;
}
