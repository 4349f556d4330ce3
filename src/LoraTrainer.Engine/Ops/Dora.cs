using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// What DoRA (Liu et al. 2024, PEFT tuners/lora/dora.py) adds to LoRA: with V = W + s B A, the row norms n = ||V||, and a trained magnitude m, the
/// layer computes g * (x V^T) with g = m/n, column by column. Gradients do not go through n. A row of V that is all zeros has g = 1.
/// </summary>
public static partial class Dora
{
    /// <summary>norms[o] = ||W[o] + s * (B A)[o]||; OVERWRITTEN. W is as products multiply with it: a quantized matrix dequantized, and on a device that computes in bf16 rounded to it. The sum is never stored.</summary>
    /// <param name="norms">(Out) f32</param>
    /// <param name="weight">(Out, In)</param>
    /// <param name="a">(R, In) f32, or none for the norms of W alone.</param>
    /// <param name="b">(Out, R) f32, or none as well.</param>
    /// <param name="scaling">s</param>
    public static void Norms(Tensor norms, WeightMatrix weight, Tensor a, Tensor b, float scaling)
    {
        const string op = "Dora.Norms";
        Contract.Expect(op, norms, DType.F32, weight.Out);
        long rank = 0;
        if (!a.IsNone)
        {
            rank = a.Shape[0];
            Contract.Expect(op, a, DType.F32, rank, weight.In);
            Contract.Expect(op, b, DType.F32, weight.Out, rank);
            Contract.ExpectSameDevice(op, norms, a, b);
        }

        Device device = norms.Device;
        using ArenaFrame frame = device.Arena.Frame();
        Tensor expanded = Linear.ExpansionScratch(device, weight);
        switch (device)
        {
            case CpuDevice cpu:
                NormsCpu(cpu, norms, Linear.Multiplied(cpu, expanded, weight), a, b, scaling);
                break;
            case CudaDevice cuda:
                NormsCuda(cuda, norms, expanded, weight, a, b, scaling);
                break;
            case MeasureDevice measure:
                measure.Count(WorkKind.Product, 2.0 * (rank + 1) * weight.Out * weight.In, weight.SizeBytes);
                break;
            default:
                Contract.ThrowNoKernel(op, device);
                break;
        }
    }

    /// <summary>output[i, o] = (m[o]/n[o] + shift) * input[i, o], overwritten or added to as <paramref name="mode"/> says.</summary>
    /// <param name="output">(N, Out) activations; may be the input.</param>
    /// <param name="input">(N, Out) activations</param>
    /// <param name="magnitude">m, (Out) f32</param>
    /// <param name="norms">n, (Out) f32</param>
    /// <param name="shift">0, or -1 for what DoRA adds to the layer without it.</param>
    /// <param name="mode">Overwrite, or add to what is there.</param>
    public static void Scale(Tensor output, Tensor input, Tensor magnitude, Tensor norms, float shift, GradientMode mode)
    {
        const string op = "Dora.Scale";
        (long n, long d) = Contract.ExpectActivations(op, output);
        Contract.Expect(op, input, output.DType, n, d);
        Contract.Expect(op, magnitude, DType.F32, d);
        Contract.Expect(op, norms, DType.F32, d);
        Contract.ExpectSameDevice(op, output, input, magnitude, norms);
        switch (output.Device)
        {
            case CpuDevice cpu:
                ScaleCpu(cpu, output, input, magnitude, norms, shift, mode);
                cpu.RoundActivations(output);
                break;
            case CudaDevice cuda:
                ScaleCuda(cuda, output, input, magnitude, norms, shift, mode);
                break;
            case MeasureDevice measure:
                measure.Count(2.0 * n * d, output, input);
                break;
            default:
                Contract.ThrowNoKernel(op, output.Device);
                break;
        }
    }

    /// <summary>dMagnitude[o] ACCUMULATES the sum over i, in their order, of dOutput[i, o] * product[i, o] / n[o]; 0 where n is 0.</summary>
    /// <param name="dMagnitude">(Out) f32</param>
    /// <param name="dOutput">(N, Out) activations</param>
    /// <param name="product">(N, Out) activations: x V^T.</param>
    /// <param name="norms">n, (Out) f32</param>
    public static void MagnitudeGradient(Tensor dMagnitude, Tensor dOutput, Tensor product, Tensor norms)
    {
        const string op = "Dora.MagnitudeGradient";
        (long n, long d) = Contract.ExpectActivations(op, dOutput);
        Contract.Expect(op, product, dOutput.DType, n, d);
        Contract.Expect(op, dMagnitude, DType.F32, d);
        Contract.Expect(op, norms, DType.F32, d);
        Contract.ExpectSameDevice(op, dOutput, product, dMagnitude, norms);
        switch (dOutput.Device)
        {
            case CpuDevice cpu:
                MagnitudeGradientCpu(cpu, dMagnitude, dOutput, product, norms);
                break;
            case CudaDevice cuda:
                MagnitudeGradientCuda(cuda, dMagnitude, dOutput, product, norms);
                break;
            case MeasureDevice measure:
                measure.Count(2.0 * n * d, dOutput, product);
                break;
            default:
                Contract.ThrowNoKernel(op, dOutput.Device);
                break;
        }
    }
}
