using System.Runtime.InteropServices;
using LoraTrainer.Data.Packing;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Layers;

namespace LoraTrainer.Training.Loop;

/// <summary>
/// The micro-batches of a run on their way to the device, one ahead: while one is computed the next one is copied beside it. There are two places on the device: where a batch arrives,
/// and where passes read it, which is the same for all of them, so that a recorded pass finds the next batch where the last one was. Neither is written to while it is read: a copy from
/// the host begins when the batch before it has been taken, and taking one waits, on the device, for its copy.
/// </summary>
public sealed class StagedBatches
{
    private readonly Device device;
    private readonly int[] block;
    private readonly Tensor arrival;
    private readonly Tensor place;
    private (int Tokens, int Scored, ReadOnlyMemory<int> Offsets, long FirstToken)? underWay;

    /// <summary>Takes memory of the device's arena for good.</summary>
    /// <param name="device">Where the model lives.</param>
    /// <param name="tokenCapacity">N of the largest micro-batch.</param>
    public StagedBatches(Device device, int tokenCapacity)
    {
        this.device = device;
        block = new int[PackedBatch.BlockElements(tokenCapacity)];
        arrival = device.Arena.Allocate(MemoryKind.Activations, DType.I32, new Shape(block.Length));
        place = device.Arena.Allocate(MemoryKind.Activations, DType.I32, new Shape(block.Length));
    }

    /// <summary>Begins to copy a batch. One that was started before and not taken is forgotten.</summary>
    /// <param name="numbers">Of its pass.</param>
    /// <param name="batch">Its document offsets must stay as they are until the pass has been asked for.</param>
    public void Start(PassNumbers numbers, MicroBatch batch) => Start(numbers, batch.Tokens, batch.Positions, batch.DocumentOffsets, batch.Targets, batch.ScoredRows);

    /// <inheritdoc cref="Start(PassNumbers, MicroBatch)"/>
    /// <param name="numbers">Of its pass.</param>
    /// <param name="tokens">(N)</param>
    /// <param name="positions">(N)</param>
    /// <param name="documentOffsets">B+1 cumulative starts; kept, not copied.</param>
    /// <param name="targets">(N)</param>
    /// <param name="scoredRows">(M), ascending.</param>
    public void Start(PassNumbers numbers, ReadOnlySpan<int> tokens, ReadOnlySpan<int> positions, ReadOnlyMemory<int> documentOffsets, ReadOnlySpan<int> targets, ReadOnlySpan<int> scoredRows)
    {
        PackedBatch.Write(block, numbers, tokens, positions, targets, scoredRows);
        device.StartUpload(arrival, MemoryMarshal.AsBytes(block.AsSpan(0, PackedBatch.BlockElements(tokens.Length))));
        underWay = (tokens.Length, scoredRows.Length, documentOffsets, numbers.FirstRow);
    }

    /// <summary>The batch that was started last, for the pass that is asked for next. Valid until the next one is taken.</summary>
    public PackedBatch Take()
    {
        (int tokens, int scored, ReadOnlyMemory<int> offsets, long firstToken) = underWay ?? throw new InvalidOperationException("No batch is on its way to the device.");
        underWay = null;
        var used = new Shape(PackedBatch.BlockElements(tokens));
        device.AwaitUploads();
        device.Copy(place.Slice(0, used), arrival.Slice(0, used));
        return PackedBatch.In(place, tokens, scored, offsets, firstToken);
    }
}
