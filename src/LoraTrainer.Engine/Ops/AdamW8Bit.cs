using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// AdamW on one tensor whose moments are kept in eight bits, by the rule of bitsandbytes' GPU kernel. Blocks of 256 consecutive elements share an absmax for each
/// moment: m = D[code] * absmax with the signed dynamic map D, v = U[code] * absmax with the unsigned map U. With g = gradient * clip coefficient, c1 = 1 - b1^t and
/// c2 = sqrt(1 - b2^t): m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*g*g;  p -= lr*c2/c1 * m / (sqrt(v) + c2*eps);  p *= 1 - lr*wd. The update uses m and v before they are
/// stored again: absmax = max |m| of the block, code = nearest to m / absmax, one further where that lost the sign of m (a negative m never becomes zero), and so for v.
/// Blocks are independent. There is a kernel for the CPU only.
/// </summary>
public static partial class AdamW8Bit
{
    /// <summary>Elements that share an absmax.</summary>
    public const int Blocksize = 256;

    /// <summary>Number of scales of <paramref name="count"/> elements.</summary>
    public static long Blocks(long count) => BlockwiseDynamic8.Blocks(count, Blocksize);

    /// <summary>parameters and both moments change in place; moments start as zeros in all four tensors.</summary>
    /// <param name="parameters">(n) f32</param>
    /// <param name="gradients">(n) f32</param>
    /// <param name="firstCodes">(n) u8: codes of m</param>
    /// <param name="firstAbsmax">(<see cref="Blocks"/>) f32: scales of m</param>
    /// <param name="secondCodes">(n) u8: codes of v</param>
    /// <param name="secondAbsmax">(<see cref="Blocks"/>) f32: scales of v</param>
    /// <param name="settings">Constants of the run; a weight decay of 0 for tensors without.</param>
    /// <param name="step">t, counted from 1.</param>
    /// <param name="learningRate">The rate of this tensor for this step.</param>
    /// <param name="report">(2) f64: the sum of the step's losses, the norm of all gradients. If either is not finite NOTHING changes.</param>
    /// <param name="maxGradientNorm">Gradients are scaled by <see cref="GradientNorm.ClipCoefficient"/> of the reported norm and this; 0: no clipping.</param>
    public static void Step(
        Tensor parameters, Tensor gradients, Tensor firstCodes, Tensor firstAbsmax, Tensor secondCodes, Tensor secondAbsmax,
        in AdamWSettings settings, int step, double learningRate, Tensor report, double maxGradientNorm)
    {
        const string op = "AdamW8Bit.Step";
        long count = parameters.ElementCount, blocks = Blocks(count);
        Contract.Expect(op, parameters, DType.F32, count);
        Contract.Expect(op, gradients, DType.F32, count);
        Contract.Expect(op, firstCodes, DType.U8, count);
        Contract.Expect(op, firstAbsmax, DType.F32, blocks);
        Contract.Expect(op, secondCodes, DType.U8, count);
        Contract.Expect(op, secondAbsmax, DType.F32, blocks);
        Contract.Expect(op, report, DType.F64, 2);
        ArgumentOutOfRangeException.ThrowIfLessThan(step, 1);
        Contract.ExpectSameDevice(op, parameters, gradients, firstCodes, firstAbsmax, secondCodes, secondAbsmax, report);
        switch (parameters.Device)
        {
            case CpuDevice cpu:
                StepCpu(cpu, parameters, gradients, firstCodes, firstAbsmax, secondCodes, secondAbsmax, FactorsOf(settings, step, learningRate), report, maxGradientNorm);
                break;
            case MeasureDevice measure:
                measure.Count(12.0 * count, parameters, parameters, gradients, firstCodes, firstCodes, firstAbsmax, firstAbsmax, secondCodes, secondCodes, secondAbsmax, secondAbsmax);
                break;
            default:
                Contract.ThrowNoKernel(op, parameters.Device);
                break;
        }
    }

    // The numbers of this step, in double and rounded once.
    private static Factors FactorsOf(in AdamWSettings settings, int step, double learningRate)
    {
        double correction1 = 1 - DeterministicMath.Pow(settings.Beta1, step), root2 = Math.Sqrt(1 - DeterministicMath.Pow(settings.Beta2, step));
        return new Factors(
            (float)settings.Beta1, (float)(1 - settings.Beta1), (float)settings.Beta2, (float)(1 - settings.Beta2),
            (float)(learningRate * root2 / correction1), (float)(root2 * settings.Epsilon), (float)(1 - learningRate * settings.WeightDecay));
    }

    private readonly record struct Factors(float Beta1, float OneMinusBeta1, float Beta2, float OneMinusBeta2, float StepSize, float Epsilon, float Keep);
}
