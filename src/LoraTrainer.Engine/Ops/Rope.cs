using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// Rotary position embedding in the half-split layout of HF checkpoints: of the first R elements of each head (R = rotary dimension), the pair
/// (i, i + R/2) turns by the angle position * inverseFrequency[i]; elements from R on pass through. NUMERICS: angle = fl32(inv_freq * position),
/// sine and cosine of that, times the attention scaling, rounded to f32.
/// </summary>
public static partial class Rope
{
    /// <summary>Fills the tables of one batch; OVERWRITTEN.</summary>
    /// <param name="cosine">(N, R/2) f32</param>
    /// <param name="sine">(N, R/2) f32</param>
    /// <param name="positions">(N) i32, restarting at 0 with each document.</param>
    /// <param name="inverseFrequencies">R/2 values on the host.</param>
    /// <param name="attentionScaling">1 except for yarn and longrope.</param>
    public static void BuildTables(Tensor cosine, Tensor sine, Tensor positions, ReadOnlySpan<float> inverseFrequencies, float attentionScaling)
    {
        const string op = "Rope.BuildTables";
        (long n, long half) = Contract.ExpectMatrix(op, cosine, DType.F32);
        Contract.Expect(op, sine, DType.F32, n, half);
        Contract.Expect(op, positions, DType.I32, n);
        if (inverseFrequencies.Length != half)
        {
            throw new ShapeMismatchException($"{op}: {inverseFrequencies.Length} frequencies for tables with {half} columns.");
        }

        Contract.ExpectSameDevice(op, cosine, sine, positions);
        Device device = cosine.Device;
        using ArenaFrame frame = device.Arena.Frame();
        Tensor frequencies = device.Platform == DevicePlatform.Cuda ? device.Arena.Allocate(MemoryKind.Workspace, DType.F32, new Shape(half)) : Tensor.None;
        switch (device)
        {
            case CpuDevice cpu:
                BuildTablesCpu(cpu, cosine, sine, positions, inverseFrequencies, attentionScaling);
                break;
            case CudaDevice cuda:
                BuildTablesCuda(cuda, cosine, sine, positions, frequencies, inverseFrequencies, attentionScaling);
                break;
            case MeasureDevice measure:
                measure.Count(2.0 * n * half, cosine, sine);
                break;
            default:
                Contract.ThrowNoKernel(op, device);
                break;
        }
    }

    /// <summary>Turns all heads in place: x' = x*cos + rotate_half(x)*sin.</summary>
    /// <param name="heads">(N, heads*Dh) activations; changed in place.</param>
    /// <param name="headDim">Dh</param>
    /// <param name="cosine">(N, R/2) f32</param>
    /// <param name="sine">(N, R/2) f32</param>
    public static void Forward(Tensor heads, int headDim, Tensor cosine, Tensor sine) => Turn("Rope.Forward", heads, headDim, cosine, sine, 1);

    /// <summary>The transpose of <see cref="Forward"/>, in place on the gradient: dx = dy*cos - rotate_half(dy)*sin.</summary>
    /// <param name="heads">(N, heads*Dh) activations; changed in place.</param>
    /// <param name="headDim">Dh</param>
    /// <param name="cosine">(N, R/2) f32</param>
    /// <param name="sine">(N, R/2) f32</param>
    public static void Backward(Tensor heads, int headDim, Tensor cosine, Tensor sine) => Turn("Rope.Backward", heads, headDim, cosine, sine, -1);

    private static void Turn(string op, Tensor heads, int headDim, Tensor cosine, Tensor sine, float direction)
    {
        (long n, long width) = Contract.ExpectActivations(op, heads);
        (long _, long half) = Contract.ExpectMatrix(op, cosine, DType.F32);
        Contract.Expect(op, cosine, DType.F32, n, half);
        Contract.Expect(op, sine, DType.F32, n, half);
        if (width % headDim != 0 || 2 * half > headDim)
        {
            throw new ShapeMismatchException($"{op}: heads of {headDim} elements do not divide a row of {width}, or their rotary part ({2 * half}) is larger than a head.");
        }

        Contract.ExpectSameDevice(op, heads, cosine, sine);
        switch (heads.Device)
        {
            case CpuDevice cpu:
                TurnCpu(cpu, heads, headDim, cosine, sine, direction);
                cpu.RoundActivations(heads);
                break;
            case CudaDevice cuda:
                TurnCuda(cuda, heads, headDim, cosine, sine, direction);
                break;
            case MeasureDevice measure:
                measure.Count(6.0 * n * (width / headDim) * half, heads, heads, cosine, sine);
                break;
            default:
                Contract.ThrowNoKernel(op, heads.Device);
                break;
        }
    }
}
