using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Training.Loop;

/// <summary>The numbers of one optimizer step that the host wants to know. They are formed on the device and read once, when the step is done.</summary>
public readonly struct StepReport
{
    private StepReport(Tensor values) => Values = values;

    /// <summary>(2) f64: sum of the losses, gradient norm; what the optimizer looks at before it changes anything.</summary>
    public Tensor Values { get; }

    /// <summary>(1) f64: micro-batches add to it.</summary>
    public Tensor LossSum => Values.Slice(0, new Shape(1));

    /// <summary>(1) f64: before clipping.</summary>
    public Tensor GradientNorm => Values.Slice(1, new Shape(1));

    /// <summary>Zeros in the device's current arena frame.</summary>
    public static StepReport Allocate(Device device) => new(device.AllocateZeroed(MemoryKind.Workspace, DType.F64, new Shape(2)));

    /// <summary>Waits for the step.</summary>
    public (double LossSum, double GradientNorm) Read()
    {
        Span<double> numbers = stackalloc double[2];
        Values.Device.Download(Values, MemoryMarshal.AsBytes(numbers));
        return (numbers[0], numbers[1]);
    }
}
