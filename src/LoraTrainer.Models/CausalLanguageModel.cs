using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Layers;

namespace LoraTrainer.Models;

/// <summary>
/// A decoder-only language model built as Llama is: embedding, blocks, final norm, output layer. It has a forward and a backward
/// pass written out; memory comes from the device's arena and goes back when a pass ends.
/// </summary>
public sealed class CausalLanguageModel
{
    // Behind those of the adapters. Part of what a seed means: never change it.
    private const uint EmbeddingNoiseStream = 0x30000;

    private readonly RopeFrequencies frequencies;
    private readonly DecoderLayer.Saved[] saved;
    private readonly Tensor[] layerInputs;
    private readonly Tensor[] hostInputs;
    private readonly float embeddingScale;
    private readonly float softcap;

    internal CausalLanguageModel(ModelConfig config, Device device)
    {
        Config = config;
        Device = device;
        Layers = [.. Enumerable.Range(0, config.NumHiddenLayers).Select(index => new DecoderLayer(index, config))];
        FinalNorm = new RmsNormLayer("model.norm", config.HiddenSize, (float)config.RmsNormEps, (float)config.NormGainOffset);
        embeddingScale = config.EmbeddingScale(device.ComputesInBF16);
        softcap = (float)(config.LogitSoftcap ?? 0);
        saved = new DecoderLayer.Saved[Layers.Count];
        layerInputs = new Tensor[Layers.Count + 1];
        hostInputs = new Tensor[Layers.Count];
        frequencies = config.Rope.ComputeInverseFrequencies(config.HeadDim, config.MaxPositionEmbeddings, config.MaxPositionEmbeddings);
    }

    /// <summary>What is odd about the files it was loaded from and changes nothing, a sentence each.</summary>
    public IReadOnlyList<string> Notices { get; init; } = [];

    public ModelConfig Config { get; }

    public Device Device { get; }

    /// <summary>Everything that is trained.</summary>
    public ParameterStore Parameters { get; } = new();

    public IReadOnlyList<DecoderLayer> Layers { get; }

    public RmsNormLayer FinalNorm { get; }

    /// <summary>(V, D) f32 or bf16; on a GPU perhaps in the host's memory</summary>
    public Tensor EmbeddingTable { get; internal set; }

    /// <summary>Set where the embedding is trained.</summary>
    public Parameter? TrainedEmbedding { get; internal set; }

    /// <summary>(V, D): the output layer; the embedding itself where the two are tied.</summary>
    public WeightMatrix Head { get; internal set; } = null!;

    /// <summary>Where the output layer's gradient goes, if it is trained; the embedding's parameter where the two are tied.</summary>
    public Parameter? TrainedHead { get; internal set; }

    /// <summary>Every linear layer of the blocks, in the order of the forward pass.</summary>
    public IEnumerable<AdaptedLinear> Linears => Layers.SelectMany(layer => layer.Linears);

    /// <summary>
    /// One micro-step: forward, loss and backward. Parameter gradients ACCUMULATE (of the sum of the losses times
    /// <paramref name="gradientScale"/>); losses is OVERWRITTEN.
    /// </summary>
    /// <param name="losses">(N) f32: each scored position's loss; 0 at the others.</param>
    /// <param name="batch">With targets.</param>
    /// <param name="dropout">Masks and noise of this optimizer step.</param>
    /// <param name="gradientScale">One over the scored tokens of the global batch.</param>
    /// <param name="recompute">Keep only each block's input and compute the rest again in backward: about a third more work for a fraction of the memory.</param>
    /// <param name="dEmbeddings">(N, D) activations, or none: receives the gradient at the first block's input.</param>
    /// <param name="inputsOnHost">With <paramref name="recompute"/>, on a GPU: these inputs go to the host's memory while the next block computes, and come back while the block above is gone through.</param>
    public void ForwardBackward(
        Tensor losses, in PackedBatch batch, DropoutState dropout, float gradientScale, bool recompute, Tensor dEmbeddings = default, bool inputsOnHost = false)
    {
        using ArenaFrame step = Device.Arena.Frame(), host = Device.HostArena.Frame();
        BlocksAndLoss(losses, batch, Begin(batch, dropout, isContinued: false), gradientScale, recompute, dEmbeddings, inputsOnHost);
    }

    /// <summary>
    /// Records what <see cref="ForwardBackward"/> does behind the embedded tokens, and changes neither losses nor gradients. Such a pass must have been made once already; it may be
    /// launched for batches with as many tokens and scored tokens in the same places of the arenas.
    /// </summary>
    /// <param name="losses">(N) f32</param>
    /// <param name="batch">With targets and <see cref="PackedBatch.Numbers"/>.</param>
    /// <param name="dropout">Masks and noise.</param>
    /// <param name="gradientScale">As in the batch's numbers.</param>
    /// <param name="recompute">As in <see cref="ForwardBackward"/>.</param>
    /// <param name="inputsOnHost">As in <see cref="ForwardBackward"/>.</param>
    /// <param name="title">Names the pass in messages.</param>
    public RecordedWork Record(Tensor losses, in PackedBatch batch, DropoutState dropout, float gradientScale, bool recompute, bool inputsOnHost, string title)
    {
        if (batch.Numbers.IsNone)
        {
            throw new ArgumentException("A pass that is recorded needs its numbers on the device.", nameof(batch));
        }

        using ArenaFrame step = Device.Arena.Frame(), host = Device.HostArena.Frame();
        PassContext context = Begin(batch, dropout, isContinued: false);
        Device.StartRecording();
        try
        {
            BlocksAndLoss(losses, batch, context, gradientScale, recompute, dEmbeddings: default, inputsOnHost);
            return Device.FinishRecording(title);
        }
        catch
        {
            Device.AbandonRecording();
            throw;
        }
    }

    /// <summary>As <see cref="ForwardBackward"/>, with what <see cref="Record"/> recorded.</summary>
    /// <param name="work">Of a pass of the same size in the same place.</param>
    /// <param name="batch">With the pass's numbers; its memory is where that of the recorded one was.</param>
    /// <param name="dropout">As in the batch's numbers.</param>
    public void Replay(RecordedWork work, in PackedBatch batch, DropoutState dropout)
    {
        using ArenaFrame step = Device.Arena.Frame();
        _ = Begin(batch, dropout, isContinued: false);
        Device.Launch(work, dropout.Step + 1L);
    }

    /// <summary>A pass behind its beginning.</summary>
    private void BlocksAndLoss(Tensor losses, in PackedBatch batch, in PassContext context, float gradientScale, bool recompute, Tensor dEmbeddings, bool inputsOnHost)
    {
        Arena arena = Device.Arena;
        AllocateInputs(batch.TokenCount, inputsOnHost);
        for (int i = 0; i < Layers.Count; i++)
        {
            if (recompute)
            {
                if (inputsOnHost)
                {
                    // The copy of the input below has had the time of a block: its place takes this block's output.
                    Device.AwaitCopies();
                    StartInputOut(i);
                }

                using ArenaFrame frame = arena.Frame();
                Layers[i].Forward(layerInputs[i + 1], Layers[i].Allocate(layerInputs[i]), context);
            }
            else
            {
                saved[i] = Layers[i].Allocate(layerInputs[i]);
                Layers[i].Forward(layerInputs[i + 1], saved[i], context);
            }
        }

        Tensor dHidden = Hidden(batch.TokenCount);
        LossBackward(losses, dHidden, layerInputs[^1], batch, gradientScale);
        bool needsEmbeddingGradient = TrainedEmbedding is not null || !dEmbeddings.IsNone;
        for (int i = Layers.Count - 1; i >= 0; i--)
        {
            bool needsInputGradient = i > 0 || needsEmbeddingGradient;
            if (recompute)
            {
                if (inputsOnHost)
                {
                    Device.AwaitCopies();
                    StartInputBack(i - 1);
                }

                using ArenaFrame frame = arena.Frame();
                DecoderLayer.Saved again = Layers[i].Allocate(layerInputs[i]);
                // The block's output is known already; writing it again into the place where it lies changes nothing. Where that is needed for another input it is written beside.
                Layers[i].Forward(inputsOnHost ? Hidden(batch.TokenCount) : layerInputs[i + 1], again, context);
                Layers[i].Backward(dHidden, again, context, needsInputGradient);
            }
            else
            {
                Layers[i].Backward(dHidden, saved[i], context, needsInputGradient);
            }
        }

        if (!dEmbeddings.IsNone)
        {
            Device.Copy(dEmbeddings, dHidden);
        }

        if (TrainedEmbedding is not null)
        {
            Embedding.Backward(TrainedEmbedding.Gradient, dHidden, batch.Tokens, Config.PadTokenId ?? -1, embeddingScale);
        }
    }

    /// <summary>Where a forward pass first holds a number that is not finite, and in which token; null where its losses are finite. Slow: each block's output is looked at on the host.</summary>
    /// <param name="batch">With targets.</param>
    /// <param name="dropout">Masks of the pass that is looked into.</param>
    public (string Where, int Token)? FindNonFinite(in PackedBatch batch, DropoutState dropout)
    {
        using ArenaFrame pass = Device.Arena.Frame();
        int n = (int)batch.TokenCount;
        Tensor losses = Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(n));
        byte[] host = new byte[n * Config.HiddenSize * sizeof(float)];
        using (Device.Arena.Frame())
        {
            Tensor other = Hidden(n);
            PassContext context = Begin(batch, dropout, isContinued: false);
            Tensor input = layerInputs[0];
            if (FirstNonFinite(input) is { } embedded)
            {
                return ("the embeddings", embedded);
            }

            for (int i = 0; i < Layers.Count; i++)
            {
                using ArenaFrame frame = Device.Arena.Frame();
                Layers[i].Forward(other, Layers[i].Allocate(input), context);
                if (FirstNonFinite(other) is { } token)
                {
                    return ($"the output of model.layers.{i}", token);
                }

                (input, other) = (other, input);
            }
        }

        Losses(losses, batch);
        return FirstNonFinite(losses) is { } scored ? ("the output of lm_head", scored) : null;

        int? FirstNonFinite(Tensor values)
        {
            Span<byte> bytes = host.AsSpan(0, (int)values.ElementCount * values.DType.SizeBytes());
            Device.Download(values, bytes);
            int width = (int)(values.ElementCount / n);
            for (int i = 0; i < values.ElementCount; i++)
            {
                // bf16 is the upper half of f32.
                float value = values.DType == DType.BF16
                    ? BitConverter.UInt32BitsToSingle((uint)MemoryMarshal.Cast<byte, ushort>(bytes)[i] << 16)
                    : MemoryMarshal.Cast<byte, float>(bytes)[i];
                if (!float.IsFinite(value))
                {
                    return i / width;
                }
            }

            return null;
        }
    }

    /// <summary>Forward and loss without gradients: losses is OVERWRITTEN.</summary>
    /// <param name="losses">(N) f32</param>
    /// <param name="batch">With targets.</param>
    public void Losses(Tensor losses, in PackedBatch batch)
    {
        using ArenaFrame pass = Device.Arena.Frame();
        Tensor normed = ForwardNormed(batch, cache: null);
        LinearCrossEntropy.ForwardBackward(losses, Tensor.None, Tensor.None, normed, Head, batch.Targets, batch.ScoredRows, 0, softcap);
    }

    /// <summary>logits is OVERWRITTEN. Memory for V numbers per row: meant for few rows.</summary>
    /// <param name="logits">(M, V) f32</param>
    /// <param name="batch">Targets are not read.</param>
    /// <param name="rows">(M) i32, or none for all N rows.</param>
    /// <param name="cache">Keys and values of the tokens before these, or null; the batch is then one document that continues them.</param>
    public void Logits(Tensor logits, in PackedBatch batch, Tensor rows = default, KeyValueCache? cache = null)
    {
        Arena arena = Device.Arena;
        using ArenaFrame pass = arena.Frame();
        Tensor normed = ForwardNormed(batch, cache);
        if (!rows.IsNone)
        {
            Tensor chosen = arena.Allocate(MemoryKind.Activations, normed.DType, new Shape(rows.ElementCount, Config.HiddenSize));
            Rows.Gather(chosen, normed, rows);
            normed = chosen;
        }

        if (cache is not null && logits.Shape[0] == 1)
        {
            Gemv.Forward([logits], normed, [Head]);
        }
        else
        {
            Linear.Forward(logits, normed, Head);
        }

        if (softcap > 0)
        {
            Softcap.Forward(logits, softcap);
        }
    }

    /// <summary>Brings what depends on trained matrices up to date, embeds the tokens, fills the rotary tables; leaves the first block's input in layerInputs[0].</summary>
    private PassContext Begin(in PackedBatch batch, DropoutState dropout, bool isContinued, bool isDecoding = false)
    {
        Parameters.RefreshOperands();

        // A text that goes on has the parameters with which it began.
        for (int i = 0; i < Layers.Count && !isContinued; i++)
        {
            Layers[i].RefreshNorms();
        }

        Arena arena = Device.Arena;
        int half = frequencies.InverseFrequencies.Length;
        Tensor cosine = arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount, half));
        Tensor sine = arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount, half));
        RopeFrequencies current = Config.Rope.Type == RopeType.Dynamic
            ? Config.Rope.ComputeInverseFrequencies(Config.HeadDim, Config.MaxPositionEmbeddings, batch.LongestDocument)
            : frequencies;
        Rope.BuildTables(cosine, sine, batch.Positions, current.InverseFrequencies, current.AttentionScaling);
        layerInputs[0] = Hidden(batch.TokenCount);
        Embedding.Forward(layerInputs[0], batch.Tokens, EmbeddingTable, embeddingScale);
        if (dropout is { IsActive: true, NoiseAlpha: > 0 })
        {
            // In transformers the noise is on the rows before they are scaled.
            EmbeddingNoise.Add(layerInputs[0], batch.Documents, dropout.NoiseAlpha * embeddingScale, new DropoutKey(dropout.Seed, EmbeddingNoiseStream, dropout.Step, batch.FirstToken));
        }

        return new PassContext { Batch = batch, Dropout = dropout with { Numbers = batch.Numbers }, Cosine = cosine, Sine = sine, IsDecoding = isDecoding };
    }

    /// <summary>
    /// Where each block's input lies: a place for each, or two on the device that take turns and one on the host for all but the last, which backward needs first.
    /// </summary>
    private void AllocateInputs(long tokens, bool inputsOnHost)
    {
        for (int i = 1; i <= Layers.Count; i++)
        {
            layerInputs[i] = inputsOnHost && i > 1 ? layerInputs[i - 2] : Hidden(tokens);
        }

        for (int i = 0; inputsOnHost && i < Layers.Count - 1; i++)
        {
            hostInputs[i] = Device.HostArena.Allocate(MemoryKind.Activations, Device.ActivationType, layerInputs[i].Shape);
        }
    }

    private void StartInputOut(int layer)
    {
        if (layer < Layers.Count - 1)
        {
            Device.StartCopy(hostInputs[layer], layerInputs[layer]);
        }
    }

    private void StartInputBack(int layer)
    {
        if (layer >= 0)
        {
            Device.StartCopy(layerInputs[layer], hostInputs[layer]);
        }
    }

    private void LossBackward(Tensor losses, Tensor dHidden, Tensor hidden, in PackedBatch batch, float gradientScale)
    {
        Arena arena = Device.Arena;
        using ArenaFrame frame = arena.Frame();
        Tensor normed = Hidden(batch.TokenCount);
        Tensor rstd = arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount));
        FinalNorm.Forward(normed, rstd, hidden);
        LinearCrossEntropy.ForwardBackward(losses, dHidden, TrainedHead?.Gradient ?? Tensor.None, normed, Head, batch.Targets, batch.ScoredRows, gradientScale, softcap, batch.Numbers);
        FinalNorm.Backward(dHidden, dHidden, hidden, rstd, GradientMode.Overwrite);
    }

    /// <summary>The final norm's output, with nothing kept on the way but two rows of blocks' inputs.</summary>
    private Tensor ForwardNormed(in PackedBatch batch, KeyValueCache? cache)
    {
        Arena arena = Device.Arena;
        Tensor normed = Hidden(batch.TokenCount);
        Tensor other = Hidden(batch.TokenCount);
        PassContext context = Begin(batch, DropoutState.Inactive, isContinued: cache?.Length > 0, isDecoding: cache is not null && batch.TokenCount == 1);
        Tensor input = layerInputs[0];
        for (int i = 0; i < Layers.Count; i++)
        {
            using ArenaFrame frame = arena.Frame();
            Layers[i].Forward(other, Layers[i].Allocate(input), context, cache?.Layers[i]);
            (input, other) = (other, input);
        }

        Tensor rstd = arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount));
        FinalNorm.Forward(normed, rstd, input);
        return normed;
    }

    private Tensor Hidden(long tokens) => Device.Arena.Allocate(MemoryKind.Activations, Device.ActivationType, new Shape(tokens, Config.HiddenSize));
}
