using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>Addresses the random numbers of one dropout: nothing is stored, the same address gives the same mask again (in backward, in recomputation, after a resume, on any device).</summary>
/// <param name="Seed">Of the run.</param>
/// <param name="Stream">One for each place in the model that drops.</param>
/// <param name="Step">Optimizer step.</param>
/// <param name="FirstRow">Rows of the same global batch that come before this tensor's first: masks do not depend on how a batch was cut.</param>
public readonly record struct DropoutKey(ulong Seed, uint Stream, uint Step, long FirstRow)
{
    /// <summary>A <see cref="PassNumbers"/> on the device with the same step and first row, or none: a GPU reads them from there, so that the launch can be recorded.</summary>
    public Tensor Numbers { get; init; }
}

/// <summary>Inverted dropout: output = keep ? input / (1 - p) : 0, with keep drawn for each element from its address. Forward and backward are the same function.</summary>
public static partial class Dropout
{
    /// <param name="output">activations; overwritten; may be the input.</param>
    /// <param name="input">activations, same size</param>
    /// <param name="probability">p in [0, 1): the part that is dropped.</param>
    /// <param name="key">Which random numbers.</param>
    public static void Apply(Tensor output, Tensor input, float probability, DropoutKey key)
    {
        const string op = "Dropout.Apply";
        (long n, long d) = Contract.ExpectActivations(op, input);
        Contract.Expect(op, output, input.DType, n, d);
        if (!(probability >= 0 && probability < 1))
        {
            throw new ArgumentOutOfRangeException(nameof(probability), probability, "the probability of dropping an element must be in [0, 1)");
        }

        Contract.ExpectSameDevice(op, input, output);
        switch (input.Device)
        {
            case CpuDevice cpu:
                ApplyCpu(cpu, output, input, probability, key);
                cpu.RoundActivations(output);
                break;
            case CudaDevice cuda:
                ApplyCuda(cuda, output, input, probability, key);
                break;
            case MeasureDevice measure:
                measure.Count((double)n * d, output, input);
                break;
            default:
                Contract.ThrowNoKernel(op, input.Device);
                break;
        }
    }
}
