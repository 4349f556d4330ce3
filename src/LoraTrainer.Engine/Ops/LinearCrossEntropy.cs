using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// The output layer and its loss as one: logits = hidden W^T, with a softcap c then c * tanh(logits/c); loss_i = logsumexp(logits_i) - logits_i[target_i].
/// Only scored rows are computed,
/// a chunk of rows at a time, so that logits never exist as a whole; each chunk's gradient is formed at once, on the CPU in the logits' place.
/// </summary>
public static partial class LinearCrossEntropy
{
    // A chunk's logits stay near these sizes: large enough for the GEMM to run at full speed, small beside the activations.
    private const long CpuChunkBytes = 32 << 20;
    private const long CudaChunkBytes = 256 << 20;

    /// <summary>Rows of logits that exist at a time.</summary>
    public static int ChunkRows(DevicePlatform platform, long rows, int vocabularySize) => (int)Math.Min(rows, Math.Clamp(
        (platform == DevicePlatform.Cuda ? CudaChunkBytes : CpuChunkBytes) / (vocabularySize * sizeof(float)) / 16 * 16, 16, 1024));

    /// <summary>
    /// losses is OVERWRITTEN at the scored rows (0 elsewhere); dHidden is OVERWRITTEN (0 in rows without a target); dWeight ACCUMULATES.
    /// dlogits = (softmax(logits) - onehot(target)) * gradientScale, with a softcap c times 1 - (logits/c)^2.
    /// </summary>
    /// <param name="losses">(N) f32: negative log likelihood of each row's target.</param>
    /// <param name="dHidden">(N, D) activations, or none: only the losses are wanted.</param>
    /// <param name="dWeight">(V, D) f32, or none: the output layer is frozen.</param>
    /// <param name="hidden">(N, D) activations</param>
    /// <param name="weight">(V, D)</param>
    /// <param name="targets">(N) i32; read at scored rows only.</param>
    /// <param name="scoredRows">(M) i32, ascending: the rows that have a target.</param>
    /// <param name="gradientScale">One over the number of scored tokens of the whole global batch.</param>
    /// <param name="softcap">c; 0 for none.</param>
    /// <param name="numbers">A <see cref="PassNumbers"/> on the device with the same gradient scale, or none: a GPU reads it from there, so that the launch can be recorded.</param>
    public static void ForwardBackward(
        Tensor losses, Tensor dHidden, Tensor dWeight, Tensor hidden, WeightMatrix weight, Tensor targets, Tensor scoredRows, float gradientScale, float softcap = 0,
        Tensor numbers = default)
    {
        const string op = "LinearCrossEntropy.ForwardBackward";
        (long n, long d) = Contract.ExpectActivations(op, hidden);
        Contract.Expect(op, hidden, hidden.DType, n, weight.In);
        Contract.Expect(op, losses, DType.F32, n);
        Contract.Expect(op, targets, DType.I32, n);
        Contract.Expect(op, scoredRows, DType.I32, scoredRows.ElementCount);
        if (!dHidden.IsNone)
        {
            Contract.Expect(op, dHidden, hidden.DType, n, d);
            Contract.ExpectNoAlias(op, dHidden, hidden);
        }

        if (!dWeight.IsNone)
        {
            Contract.Expect(op, dWeight, DType.F32, weight.Out, d);
        }

        Contract.ExpectSameDevice(op, hidden, losses, targets, scoredRows, dHidden, dWeight);
        Device device = hidden.Device;
        device.Zero(losses);
        if (!dHidden.IsNone)
        {
            device.Zero(dHidden);
        }

        // By N, not by the number of scored rows: the plan must not depend on what a batch happens to contain.
        int chunkRows = ChunkRows(device.Platform, n, weight.Out);
        using ArenaFrame frame = device.Arena.Frame();
        Tensor hiddenChunk = device.Arena.Allocate(MemoryKind.Workspace, hidden.DType, new Shape(chunkRows, d));
        Tensor logitsChunk = device.Arena.Allocate(MemoryKind.Workspace, DType.F32, new Shape(chunkRows, weight.Out));
        bool needsGradient = !dHidden.IsNone || !dWeight.IsNone;
        bool inPlace = hidden.DType == DType.F32;
        Tensor cappedChunk = softcap > 0 && needsGradient && inPlace ? device.Arena.Allocate(MemoryKind.Workspace, DType.F32, logitsChunk.Shape) : Tensor.None;
        Tensor gradientChunk = inPlace || !needsGradient ? logitsChunk : device.Arena.Allocate(MemoryKind.Workspace, hidden.DType, logitsChunk.Shape);
        long scored = scoredRows.ElementCount;
        for (long start = 0; start < scored; start += chunkRows)
        {
            long count = Math.Min(chunkRows, scored - start);
            Tensor rows = scoredRows.Slice(start, new Shape(count));
            Tensor hiddenRows = hiddenChunk.Rows(0, count);
            Tensor logits = logitsChunk.Rows(0, count);
            Tensor dLogits = needsGradient ? gradientChunk.Rows(0, count) : Tensor.None;
            Rows.Gather(hiddenRows, hidden, rows);
            Linear.Forward(logits, hiddenRows, weight);
            if (softcap > 0)
            {
                Softcap.Forward(logits, softcap);
            }

            // Where the softmax writes its gradient over the logits the cap's gradient, which needs them, has a copy.
            Tensor capped = cappedChunk.IsNone ? logits : cappedChunk.Rows(0, count);
            if (!cappedChunk.IsNone)
            {
                device.Copy(capped, logits);
            }

            SoftmaxCrossEntropy(losses, dLogits, logits, targets, rows, gradientScale, numbers);
            if (softcap > 0 && needsGradient)
            {
                Softcap.Backward(dLogits, capped, softcap);
            }

            if (!dWeight.IsNone)
            {
                Linear.BackwardWeight(dWeight, dLogits, hiddenRows);
            }

            if (!dHidden.IsNone)
            {
                // The gathered rows have served: their place takes the gradient.
                Linear.BackwardInput(hiddenRows, dLogits, weight);
                Rows.Scatter(dHidden, hiddenRows, rows);
            }
        }
    }

    /// <summary>losses[rows[i]] = lse_i - logits_i[targets[rows[i]]]; dLogits_i, where it is wanted, becomes (softmax(logits_i) - onehot) * gradientScale. On the CPU dLogits is logits.</summary>
    private static void SoftmaxCrossEntropy(Tensor losses, Tensor dLogits, Tensor logits, Tensor targets, Tensor rows, float gradientScale, Tensor numbers)
    {
        switch (logits.Device)
        {
            case CpuDevice cpu:
                SoftmaxCrossEntropyCpu(cpu, losses, logits, targets, rows, gradientScale, withGradient: !dLogits.IsNone);
                cpu.RoundActivations(dLogits);
                break;
            case CudaDevice cuda:
                SoftmaxCrossEntropyCuda(cuda, losses, dLogits, logits, targets, rows, gradientScale, numbers);
                break;
            case MeasureDevice measure:
                measure.Count(6.0 * logits.ElementCount, logits, dLogits);
                break;
            default:
                Contract.ThrowNoKernel("LinearCrossEntropy.SoftmaxCrossEntropy", logits.Device);
                break;
        }
    }
}
