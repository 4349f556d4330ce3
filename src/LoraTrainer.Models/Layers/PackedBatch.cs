using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Models.Layers;

/// <summary>One micro-batch on a device: a packed stream of N tokens with document boundaries; there is no padding.</summary>
public readonly struct PackedBatch
{
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

    public static DropoutState Inactive => default;
}
