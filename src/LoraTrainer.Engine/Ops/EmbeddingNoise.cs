using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// Uniform noise on embedded tokens (NEFTune): x[t, j] += (2u - 1) * alpha / sqrt(L * D), u in [0, 1) drawn for each element from its address, L the length of the token's
/// document. The gradient passes through as it is.
/// </summary>
public static partial class EmbeddingNoise
{
    /// <summary>embedded is changed in place.</summary>
    /// <param name="embedded">(N, D) activations</param>
    /// <param name="documents">Of the N tokens.</param>
    /// <param name="alpha">Above 0.</param>
    /// <param name="key">Which random numbers.</param>
    public static void Add(Tensor embedded, in PackedDocuments documents, float alpha, DropoutKey key)
    {
        const string op = "EmbeddingNoise.Add";
        (long n, long d) = Contract.ExpectActivations(op, embedded);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(alpha);
        if (documents.Offsets.Length == 0 || documents.Offsets.Span[^1] != n)
        {
            throw new ShapeMismatchException($"{op}: the documents end at token {(documents.Offsets.Length == 0 ? 0 : documents.Offsets.Span[^1])}, expected {n}");
        }

        Device device = embedded.Device;
        using ArenaFrame frame = device.Arena.Frame();

        // On a GPU: what the numbers of each token are multiplied with.
        Tensor magnitudes = device.Platform == DevicePlatform.Cuda ? device.Arena.Allocate(MemoryKind.Workspace, DType.F32, new Shape(n)) : Tensor.None;
        switch (device)
        {
            case CpuDevice cpu:
                AddCpu(cpu, embedded, documents.Offsets, alpha, key);
                cpu.RoundActivations(embedded);
                break;
            case CudaDevice cuda:
                AddCuda(cuda, magnitudes, embedded, documents.Offsets.Span, alpha, key);
                break;
            case MeasureDevice measure:
                measure.Count(4.0 * n * d, embedded, embedded);
                break;
            default:
                Contract.ThrowNoKernel(op, device);
                break;
        }
    }

    /// <summary>alpha / sqrt(L * D) for a document of L tokens.</summary>
    private static float MagnitudeOf(float alpha, int tokens, int width) => (float)(alpha / Math.Sqrt((double)tokens * width));
}
