using System.Buffers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>A tensor whose moments are kept in eight bits.</summary>
/// <param name="Parameters">Its place in the flat buffers, and what the optimizer does to it.</param>
/// <param name="Moments">Its first element in the buffers of codes; a multiple of <see cref="AdamW8Bit.Blocksize"/>.</param>
public readonly record struct EightBitSegment(ParameterSegment Parameters, long Moments);

/// <summary>
/// AdamW on tensors whose moments are kept in eight bits, by the rule of bitsandbytes' GPU kernel. Blocks of 256 consecutive elements of a tensor share an absmax for each
/// moment: m = D[code] * absmax with the signed dynamic map D, v = U[code] * absmax with the unsigned map U. With g = gradient * clip coefficient, c1 = 1 - b1^t and
/// c2 = sqrt(1 - b2^t): m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*g*g;  p -= lr*c2/c1 * m / (sqrt(v) + c2*eps);  p *= 1 - lr*wd. The update uses m and v before they are
/// stored again: absmax = max |m| of the block, code = nearest to m / absmax, one further where that lost the sign of m (a negative m never becomes zero), and so for v.
/// Blocks are independent.
/// </summary>
public static partial class AdamW8Bit
{
    /// <summary>Elements that share an absmax.</summary>
    public const int Blocksize = 256;

    /// <summary>Number of scales of <paramref name="count"/> elements.</summary>
    public static long Blocks(long count) => BlockwiseDynamic8.Blocks(count, Blocksize);

    /// <summary>parameters and both moments change in place, inside the segments; moments start as zeros in all four tensors.</summary>
    /// <param name="parameters">(P) f32, all tensors</param>
    /// <param name="gradients">(P) f32</param>
    /// <param name="firstCodes">(Q) u8: codes of m</param>
    /// <param name="firstAbsmax">(<see cref="Blocks"/> of Q) f32: scales of m</param>
    /// <param name="secondCodes">(Q) u8: codes of v</param>
    /// <param name="secondAbsmax">(<see cref="Blocks"/> of Q) f32: scales of v</param>
    /// <param name="segments">The tensors, by ascending places of their codes.</param>
    /// <param name="settings">Constants of the run.</param>
    /// <param name="step">t, counted from 1.</param>
    /// <param name="learningRate">The schedule's rate for this step.</param>
    /// <param name="report">(2) f64: the sum of the step's losses, the norm of all gradients. If either is not finite NOTHING changes.</param>
    /// <param name="maxGradientNorm">Gradients are scaled by <see cref="GradientNorm.ClipCoefficient"/> of the reported norm and this; 0: no clipping.</param>
    public static void Step(
        Tensor parameters, Tensor gradients, Tensor firstCodes, Tensor firstAbsmax, Tensor secondCodes, Tensor secondAbsmax,
        ReadOnlySpan<EightBitSegment> segments, in AdamWSettings settings, int step, double learningRate, Tensor report, double maxGradientNorm)
    {
        const string op = "AdamW8Bit.Step";
        long count = parameters.ElementCount, codes = firstCodes.ElementCount, blocks = Blocks(codes);
        Contract.Expect(op, parameters, DType.F32, count);
        Contract.Expect(op, gradients, DType.F32, count);
        Contract.Expect(op, firstCodes, DType.U8, codes);
        Contract.Expect(op, firstAbsmax, DType.F32, blocks);
        Contract.Expect(op, secondCodes, DType.U8, codes);
        Contract.Expect(op, secondAbsmax, DType.F32, blocks);
        Contract.Expect(op, report, DType.F64, 2);
        ArgumentOutOfRangeException.ThrowIfLessThan(step, 1);
        long free = 0;
        foreach (EightBitSegment segment in segments)
        {
            long length = segment.Parameters.Count;
            if (segment.Parameters.Offset < 0 || length < 0 || length > count - segment.Parameters.Offset || segment.Moments < free || segment.Moments % Blocksize != 0 || length > codes - segment.Moments)
            {
                ThrowSegment(op, segment, count, codes);
            }

            free = segment.Moments + length;
        }

        Contract.ExpectSameDevice(op, parameters, gradients, firstCodes, firstAbsmax, secondCodes, secondAbsmax, report);
        Device device = parameters.Device;
        using ArenaFrame frame = device.Arena.Frame();
        Tensor table = device.Platform == DevicePlatform.Cuda ? Table(device, segments.Length) : Tensor.None;
        AdamW8BitSegment[] rented = ArrayPool<AdamW8BitSegment>.Shared.Rent(segments.Length);
        Span<AdamW8BitSegment> factors = rented.AsSpan(0, segments.Length);
        AdamW8BitConstants constants = Factors(factors, segments, settings, step, learningRate);
        switch (device)
        {
            case CpuDevice cpu:
                StepCpu(cpu, parameters, gradients, firstCodes, firstAbsmax, secondCodes, secondAbsmax, factors, constants, report, maxGradientNorm);
                break;
            case CudaDevice cuda when segments.Length > 0:
                StepCuda(cuda, parameters, gradients, firstCodes, firstAbsmax, secondCodes, secondAbsmax, table, factors, constants, report, maxGradientNorm);
                break;
            case CudaDevice:
                break;
            case MeasureDevice measure:
                measure.Count(WorkKind.Memory, 12.0 * codes, 16.0 * (codes + blocks));
                break;
            default:
                Contract.ThrowNoKernel(op, device);
                break;
        }

        ArrayPool<AdamW8BitSegment>.Shared.Return(rented);
    }

    // The numbers of this step, in double and rounded once: those of each segment, and those of all.
    private static AdamW8BitConstants Factors(Span<AdamW8BitSegment> factors, ReadOnlySpan<EightBitSegment> segments, in AdamWSettings settings, int step, double learningRate)
    {
        double correction1 = 1 - DeterministicMath.Pow(settings.Beta1, step), root2 = Math.Sqrt(1 - DeterministicMath.Pow(settings.Beta2, step));
        for (int i = 0; i < segments.Length; i++)
        {
            ParameterSegment parameters = segments[i].Parameters;
            double rate = learningRate * parameters.LearningRateScale;
            factors[i] = new AdamW8BitSegment
            {
                Offset = parameters.Offset,
                Moments = segments[i].Moments,
                Count = parameters.Count,
                StepSize = (float)(rate * root2 / correction1),
                Keep = parameters.Decays ? (float)(1 - rate * settings.WeightDecay) : 1,
            };
        }

        return new AdamW8BitConstants
        {
            Beta1 = (float)settings.Beta1,
            OneMinusBeta1 = (float)(1 - settings.Beta1),
            Beta2 = (float)settings.Beta2,
            OneMinusBeta2 = (float)(1 - settings.Beta2),
            Epsilon = (float)(root2 * settings.Epsilon),
        };
    }

    private static void ThrowSegment(string op, EightBitSegment segment, long count, long codes) => throw new ShapeMismatchException(
        $"{op}: a segment of {segment.Parameters.Count} elements at {segment.Parameters.Offset}, with codes at {segment.Moments}, must lie within the {count} parameters and the {codes} codes; codes start at a multiple of {Blocksize}, behind those before.");
}
