using System.Buffers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>Settings of one AdamW update.</summary>
/// <param name="Beta1">Decay of the first moment.</param>
/// <param name="Beta2">Decay of the second moment.</param>
/// <param name="Epsilon">Added to the root of the second moment.</param>
/// <param name="WeightDecay">Decoupled; applied where the segment says so.</param>
public readonly record struct AdamWSettings(double Beta1, double Beta2, double Epsilon, double WeightDecay);

/// <summary>One tensor's place in the flat buffers, and what the optimizer does to it.</summary>
/// <param name="Offset">First element; a multiple of <see cref="Alignment"/>.</param>
/// <param name="Count">Elements of the tensor; the padding after them is left alone.</param>
/// <param name="LearningRateScale">Multiplies the schedule's rate (LoRA+: the ratio for B).</param>
/// <param name="Decays">False for tensors without weight decay.</param>
public readonly record struct ParameterSegment(long Offset, long Count, double LearningRateScale, bool Decays)
{
    /// <summary>Segments start at multiples of 256 elements: the block size of 8-bit moments, so that blocks never span two tensors.</summary>
    public const int Alignment = 256;
}

/// <summary>
/// Decoupled-weight-decay Adam over all trainable parameters at once (torch.optim.AdamW, single-tensor form). With g = gradient * clip coefficient:
/// p *= 1 - lr*wd;  m += (1-b1)*(g - m);  v = b2*v + (1-b2)*g*g;  p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps).
/// </summary>
public static partial class AdamW
{
    /// <summary>parameters, firstMoment and secondMoment change in place.</summary>
    /// <param name="parameters">(P) f32, all segments</param>
    /// <param name="gradients">(P) f32</param>
    /// <param name="firstMoment">(P) f32</param>
    /// <param name="secondMoment">(P) f32</param>
    /// <param name="segments">The tensors in the flat buffers.</param>
    /// <param name="settings">Constants of the run.</param>
    /// <param name="step">t, counted from 1.</param>
    /// <param name="learningRate">The schedule's rate for this step.</param>
    /// <param name="report">(2) f64: the sum of the step's losses, the norm of all gradients. If either is not finite NOTHING changes.</param>
    /// <param name="maxGradientNorm">Gradients are scaled by <see cref="GradientNorm.ClipCoefficient"/> of the reported norm and this; 0: no clipping.</param>
    public static void Step(
        Tensor parameters, Tensor gradients, Tensor firstMoment, Tensor secondMoment,
        ReadOnlySpan<ParameterSegment> segments, in AdamWSettings settings, int step, double learningRate, Tensor report, double maxGradientNorm)
    {
        const string op = "AdamW.Step";
        long count = parameters.ElementCount;
        Contract.Expect(op, parameters, DType.F32, count);
        Contract.Expect(op, gradients, DType.F32, count);
        Contract.Expect(op, firstMoment, DType.F32, count);
        Contract.Expect(op, secondMoment, DType.F32, count);
        Contract.Expect(op, report, DType.F64, 2);
        ArgumentOutOfRangeException.ThrowIfLessThan(step, 1);
        foreach (ParameterSegment segment in segments)
        {
            if (segment.Offset < 0 || segment.Offset % ParameterSegment.Alignment != 0 || segment.Count < 0 || segment.Count > count - segment.Offset)
            {
                ThrowSegment(op, segment, count);
            }
        }

        Contract.ExpectSameDevice(op, parameters, gradients, firstMoment, secondMoment, report);
        Device device = parameters.Device;
        using ArenaFrame frame = device.Arena.Frame();
        Tensor table = device.Platform == DevicePlatform.Cuda ? SegmentTable(device, segments.Length) : Tensor.None;
        AdamWSegment[] rented = ArrayPool<AdamWSegment>.Shared.Rent(segments.Length);
        Span<AdamWSegment> factors = rented.AsSpan(0, segments.Length);
        AdamWConstants constants = Factors(factors, segments, settings, step, learningRate);
        switch (device)
        {
            case CpuDevice cpu:
                StepCpu(cpu, parameters, gradients, firstMoment, secondMoment, factors, constants, report, maxGradientNorm);
                break;
            case CudaDevice cuda when segments.Length > 0:
                StepCuda(cuda, parameters, gradients, firstMoment, secondMoment, table, factors, constants, report, maxGradientNorm);
                break;
            case CudaDevice:
                break;
            case MeasureDevice measure:
                measure.Count(12.0 * count, parameters, parameters, gradients, firstMoment, firstMoment, secondMoment, secondMoment);
                break;
            default:
                Contract.ThrowNoKernel(op, device);
                break;
        }

        ArrayPool<AdamWSegment>.Shared.Return(rented);
    }

    // The numbers of this step, in double and rounded once: those of each segment, and those of all.
    private static AdamWConstants Factors(Span<AdamWSegment> factors, ReadOnlySpan<ParameterSegment> segments, in AdamWSettings settings, int step, double learningRate)
    {
        double correction1 = 1 - DeterministicMath.Pow(settings.Beta1, step), correction2 = 1 - DeterministicMath.Pow(settings.Beta2, step);
        for (int i = 0; i < segments.Length; i++)
        {
            double rate = learningRate * segments[i].LearningRateScale;
            factors[i] = new AdamWSegment
            {
                Offset = segments[i].Offset,
                Count = segments[i].Count,
                Keep = segments[i].Decays ? (float)(1 - rate * settings.WeightDecay) : 1,
                StepSize = (float)(rate / correction1),
            };
        }

        return new AdamWConstants
        {
            OneMinusBeta1 = (float)(1 - settings.Beta1),
            Beta2 = (float)settings.Beta2,
            OneMinusBeta2 = (float)(1 - settings.Beta2),
            RootCorrection2 = (float)Math.Sqrt(correction2),
            Epsilon = (float)settings.Epsilon,
        };
    }

    private static void ThrowSegment(string op, ParameterSegment segment, long count) => throw new ShapeMismatchException(
        $"{op}: a segment of {segment.Count} elements at {segment.Offset} must lie within the {count} parameters and start at a multiple of {ParameterSegment.Alignment}.");
}
