using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Models.Layers;

/// <summary>One micro-batch on a device: a packed stream of N tokens with document boundaries; there is no padding.</summary>
public readonly struct PackedBatch
{
    // Each array starts where a tensor of its own would.
    private const int AlignmentElements = Arena.AlignmentBytes / sizeof(int);

    /// <summary>(N) i32</summary>
    public required Tensor Tokens { get; init; }

    /// <summary>(N) i32, restarting at 0 with each document.</summary>
    public required Tensor Positions { get; init; }

    /// <summary>(N) i32: the token that each position is to predict; read at scored rows only.</summary>
    public Tensor Targets { get; init; }

    /// <summary>(M) i32, ascending: the positions that have a target.</summary>
    public Tensor ScoredRows { get; init; }

    /// <summary>B+1 cumulative starts on the host; the first is 0, the last N.</summary>
    public required ReadOnlyMemory<int> DocumentOffsets { get; init; }

    /// <summary>Tokens of the global batch that come before this micro-batch: with it dropout masks do not depend on how the batch was cut.</summary>
    public long FirstToken { get; init; }

    /// <summary>(<see cref="PassNumbers.Elements"/>) i32: a <see cref="PassNumbers"/> of the pass, or none. A pass that is recorded needs it.</summary>
    public Tensor Numbers { get; init; }

    /// <summary>Both forms of the document boundaries.</summary>
    public PackedDocuments Documents => new(Positions, DocumentOffsets);

    /// <summary>Copies a batch from the host into the device's current arena frame. Its memory depends on N alone.</summary>
    /// <param name="device">Where the model lives.</param>
    /// <param name="tokens">(N)</param>
    /// <param name="positions">(N)</param>
    /// <param name="documentOffsets">B+1 cumulative starts; kept, not copied.</param>
    /// <param name="targets">(N), or empty where no loss is wanted.</param>
    /// <param name="scoredRows">(M), ascending.</param>
    /// <param name="firstToken">See <see cref="FirstToken"/>.</param>
    public static PackedBatch Upload(
        Device device, ReadOnlySpan<int> tokens, ReadOnlySpan<int> positions, ReadOnlyMemory<int> documentOffsets,
        ReadOnlySpan<int> targets = default, ReadOnlySpan<int> scoredRows = default, long firstToken = 0)
    {
        int n = tokens.Length;
        Tensor scored = UploadIntegers(device, scoredRows, n);
        return new PackedBatch
        {
            Tokens = UploadIntegers(device, tokens, n),
            Positions = UploadIntegers(device, positions, n),
            Targets = UploadIntegers(device, targets, n),
            ScoredRows = scored.Slice(0, new Shape(scoredRows.Length)),
            DocumentOffsets = documentOffsets,
            FirstToken = firstToken,
        };
    }

    /// <summary>i32 elements of a block that holds a whole batch, its numbers included; it depends on N alone.</summary>
    /// <param name="tokens">N</param>
    public static int BlockElements(int tokens) => AlignmentElements + 4 * ArrayElements(tokens);

    /// <summary>Lays a batch out as <see cref="In"/> finds it. What is behind the last array's end stays as it is.</summary>
    /// <param name="block">(<see cref="BlockElements"/>) or longer, on the host.</param>
    /// <param name="numbers">Of the pass.</param>
    /// <param name="tokens">(N)</param>
    /// <param name="positions">(N)</param>
    /// <param name="targets">(N)</param>
    /// <param name="scoredRows">(M), ascending.</param>
    public static void Write(Span<int> block, PassNumbers numbers, ReadOnlySpan<int> tokens, ReadOnlySpan<int> positions, ReadOnlySpan<int> targets, ReadOnlySpan<int> scoredRows)
    {
        int each = ArrayElements(tokens.Length);
        MemoryMarshal.Write(MemoryMarshal.AsBytes(block), in numbers);
        Span<int> arrays = block[AlignmentElements..];
        tokens.CopyTo(arrays);
        positions.CopyTo(arrays[each..]);
        targets.CopyTo(arrays[(2 * each)..]);
        scoredRows.CopyTo(arrays[(3 * each)..]);
    }

    /// <summary>The batch in a block that <see cref="Write"/> laid out, on the device.</summary>
    /// <param name="block">(<see cref="BlockElements"/>) i32 or longer.</param>
    /// <param name="tokens">N</param>
    /// <param name="scored">M</param>
    /// <param name="documentOffsets">B+1 cumulative starts; kept, not copied.</param>
    /// <param name="firstToken">As in the numbers.</param>
    public static PackedBatch In(Tensor block, int tokens, int scored, ReadOnlyMemory<int> documentOffsets, long firstToken)
    {
        long each = ArrayElements(tokens);
        var all = new Shape(tokens);
        return new PackedBatch
        {
            Numbers = block.Slice(0, new Shape(PassNumbers.Elements)),
            Tokens = block.Slice(AlignmentElements, all),
            Positions = block.Slice(AlignmentElements + each, all),
            Targets = block.Slice(AlignmentElements + 2 * each, all),
            ScoredRows = block.Slice(AlignmentElements + 3 * each, new Shape(scored)),
            DocumentOffsets = documentOffsets,
            FirstToken = firstToken,
        };
    }

    private static int ArrayElements(int tokens) => (tokens + AlignmentElements - 1) / AlignmentElements * AlignmentElements;

    /// <summary>N</summary>
    public long TokenCount => Tokens.ElementCount;

    /// <summary>The longest document, in tokens.</summary>
    public int LongestDocument
    {
        get
        {
            int longest = 0;
            ReadOnlySpan<int> offsets = DocumentOffsets.Span;
            for (int i = 1; i < offsets.Length; i++)
            {
                longest = Math.Max(longest, offsets[i] - offsets[i - 1]);
            }

            return longest;
        }
    }

    private static Tensor UploadIntegers(Device device, ReadOnlySpan<int> values, int capacity)
    {
        Tensor tensor = device.Arena.Allocate(MemoryKind.Activations, DType.I32, new Shape(capacity));
        device.Upload(tensor, MemoryMarshal.AsBytes(values));
        return tensor;
    }
}

/// <summary>Addresses the random numbers of one optimizer step: dropout masks, and noise on the embeddings; <see cref="Inactive"/> outside training.</summary>
/// <param name="IsActive">False: everything passes as it is.</param>
/// <param name="Seed">Of the run.</param>
/// <param name="Step">Optimizer step.</param>
public readonly record struct DropoutState(bool IsActive, ulong Seed, uint Step)
{
    /// <summary>alpha of <see cref="EmbeddingNoise"/>; 0: no noise.</summary>
    public float NoiseAlpha { get; init; }

    /// <summary>See <see cref="PackedBatch.Numbers"/>.</summary>
    public Tensor Numbers { get; init; }

    public static DropoutState Inactive => default;
}
