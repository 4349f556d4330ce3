using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Models.Layers;

/// <summary>What every layer of one forward or backward pass shares.</summary>
public readonly struct PassContext
{
    public required PackedBatch Batch { get; init; }

    public required DropoutState Dropout { get; init; }

    /// <summary>(N, rotary/2) f32</summary>
    public required Tensor Cosine { get; init; }

    /// <summary>(N, rotary/2) f32</summary>
    public required Tensor Sine { get; init; }
}

/// <summary>
/// One pre-norm transformer block: middle = input + o(attention(q, k, v of norm(input))); output = middle + down(silu(gate) * up of norm(middle)).
/// </summary>
public sealed class DecoderLayer
{
    internal DecoderLayer(int index, Architectures.ModelConfig config)
    {
        string prefix = $"model.layers.{index}";
        int queryWidth = config.NumAttentionHeads * config.HeadDim;
        int keyValueWidth = config.NumKeyValueHeads * config.HeadDim;
        Heads = new AttentionHeads(config.NumAttentionHeads, config.NumKeyValueHeads, config.HeadDim, (float)(1 / Math.Sqrt(config.HeadDim)), config.WindowOf(index));
        InputNorm = new RmsNormLayer(prefix + ".input_layernorm", (float)config.RmsNormEps);
        Query = new AdaptedLinear(prefix + ".self_attn.q_proj", config.HiddenSize, queryWidth);
        Key = new AdaptedLinear(prefix + ".self_attn.k_proj", config.HiddenSize, keyValueWidth);
        Value = new AdaptedLinear(prefix + ".self_attn.v_proj", config.HiddenSize, keyValueWidth);
        Output = new AdaptedLinear(prefix + ".self_attn.o_proj", queryWidth, config.HiddenSize);
        MlpNorm = new RmsNormLayer(prefix + ".post_attention_layernorm", (float)config.RmsNormEps);
        Gate = new AdaptedLinear(prefix + ".mlp.gate_proj", config.HiddenSize, config.IntermediateSize);
        Up = new AdaptedLinear(prefix + ".mlp.up_proj", config.HiddenSize, config.IntermediateSize);
        Down = new AdaptedLinear(prefix + ".mlp.down_proj", config.IntermediateSize, config.HiddenSize);
        Linears = [Query, Key, Value, Output, Gate, Up, Down];
        Norms = [InputNorm, MlpNorm];
    }

    public AttentionHeads Heads { get; }

    public RmsNormLayer InputNorm { get; }

    public AdaptedLinear Query { get; }

    public AdaptedLinear Key { get; }

    public AdaptedLinear Value { get; }

    public AdaptedLinear Output { get; }

    public RmsNormLayer MlpNorm { get; }

    public AdaptedLinear Gate { get; }

    public AdaptedLinear Up { get; }

    public AdaptedLinear Down { get; }

    /// <summary>All linear layers in the order of the forward pass.</summary>
    public IReadOnlyList<AdaptedLinear> Linears { get; }

    public IReadOnlyList<RmsNormLayer> Norms { get; }

    /// <summary>Allocates what backward needs of one forward pass.</summary>
    /// <param name="input">(N, D) the block's input; kept, not copied.</param>
    public Saved Allocate(Tensor input)
    {
        long n = input.Shape[0];
        Device device = input.Device;
        Arena arena = device.Arena;
        Tensor Activation(int width) => arena.Allocate(MemoryKind.Activations, input.DType, new Shape(n, width));
        return new Saved
        {
            Input = input,
            InputRstd = arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(n)),
            Q = Activation(Query.Out),
            K = Activation(Key.Out),
            V = Activation(Value.Out),
            Attended = Activation(Output.In),
            Lse = arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(Heads.Query, n)),
            Middle = Activation(Output.Out),
            MiddleRstd = arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(n)),
            GateOutput = Activation(Gate.Out),
            UpOutput = Activation(Up.Out),
            Query = Query.Allocate(device, n),
            Key = Key.Allocate(device, n),
            Value = Value.Allocate(device, n),
            Output = Output.Allocate(device, n),
            Gate = Gate.Allocate(device, n),
            Up = Up.Allocate(device, n),
            Down = Down.Allocate(device, n),
        };
    }

    /// <summary>output is OVERWRITTEN; <paramref name="saved"/> is filled. With a cache, keys and values are appended to it and attention reads it.</summary>
    /// <param name="output">(N, D) activations; may not be the input.</param>
    /// <param name="saved">From <see cref="Allocate"/>.</param>
    /// <param name="context">Of this pass.</param>
    /// <param name="cache">This layer's keys and values of earlier tokens, or null.</param>
    public void Forward(Tensor output, in Saved saved, in PassContext context, LayerCache? cache = null)
    {
        long first = context.Batch.FirstToken;
        Arena arena = output.Device.Arena;
        using (arena.Frame())
        {
            Tensor normed = Normed(InputNorm, saved.Input, saved.InputRstd);
            Query.Forward(saved.Q, normed, saved.Query, context.Dropout, first);
            Key.Forward(saved.K, normed, saved.Key, context.Dropout, first);
            Value.Forward(saved.V, normed, saved.Value, context.Dropout, first);
        }

        Rope.Forward(saved.Q, Heads.Dim, context.Cosine, context.Sine);
        Rope.Forward(saved.K, Heads.Dim, context.Cosine, context.Sine);
        if (cache is null)
        {
            Attention.Forward(saved.Attended, saved.Lse, saved.Q, saved.K, saved.V, context.Batch.Documents, Heads);
        }
        else
        {
            cache.Attend(saved.Attended, saved.Q, saved.K, saved.V, Heads);
        }

        Output.Forward(saved.Middle, saved.Attended, saved.Output, context.Dropout, first);
        Elementwise.Add(saved.Middle, saved.Middle, saved.Input);
        using (arena.Frame())
        {
            Tensor normed = Normed(MlpNorm, saved.Middle, saved.MiddleRstd);
            Gate.Forward(saved.GateOutput, normed, saved.Gate, context.Dropout, first);
            Up.Forward(saved.UpOutput, normed, saved.Up, context.Dropout, first);
        }

        using ArenaFrame frame = arena.Frame();
        Tensor activated = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.GateOutput.Shape);
        SwiGlu.Forward(activated, saved.GateOutput, saved.UpOutput);
        Down.Forward(output, activated, saved.Down, context.Dropout, first);
        Elementwise.Add(output, output, saved.Middle);
    }

    /// <summary>
    /// Turns the gradient of the block's output into that of its input, in place; parameter gradients ACCUMULATE. Destroys parts of
    /// <paramref name="saved"/> (gate, up), so it runs once for each forward pass.
    /// </summary>
    /// <param name="dHidden">(N, D) activations; in: gradient of the output; out: of the input, or undefined if that is not needed.</param>
    /// <param name="saved">Of the forward pass.</param>
    /// <param name="context">Of the forward pass.</param>
    /// <param name="needsInputGradient">False for the lowest block over a frozen embedding.</param>
    public void Backward(Tensor dHidden, in Saved saved, in PassContext context, bool needsInputGradient)
    {
        MlpBackward(dHidden, saved, context);
        AttentionBackward(dHidden, saved, context, needsInputGradient);
    }

    private void MlpBackward(Tensor dHidden, in Saved saved, in PassContext context)
    {
        long first = context.Batch.FirstToken;
        Arena arena = dHidden.Device.Arena;
        using ArenaFrame frame = arena.Frame();
        Tensor dActivated = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.GateOutput.Shape);
        Tensor activated = Tensor.None;
        if (Down.NeedsInput)
        {
            activated = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.GateOutput.Shape);
            SwiGlu.Forward(activated, saved.GateOutput, saved.UpOutput);
        }

        Down.Backward(dActivated, dHidden, activated, saved.Down, context.Dropout, first, GradientMode.Overwrite);
        SwiGlu.Backward(saved.GateOutput, saved.UpOutput, dActivated, saved.GateOutput, saved.UpOutput);
        Tensor normed = Gate.NeedsInput || Up.NeedsInput ? Normed(MlpNorm, saved.Middle, saved.MiddleRstd) : Tensor.None;
        Tensor dNormed = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.Middle.Shape);
        Gate.Backward(dNormed, saved.GateOutput, normed, saved.Gate, context.Dropout, first, GradientMode.Overwrite);
        Up.Backward(dNormed, saved.UpOutput, normed, saved.Up, context.Dropout, first, GradientMode.Accumulate);
        MlpNorm.Backward(dHidden, dNormed, saved.Middle, saved.MiddleRstd, GradientMode.Accumulate);
    }

    private void AttentionBackward(Tensor dHidden, in Saved saved, in PassContext context, bool needsInputGradient)
    {
        long first = context.Batch.FirstToken;
        Arena arena = dHidden.Device.Arena;
        using ArenaFrame frame = arena.Frame();
        Tensor dAttended = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.Attended.Shape);
        Tensor dQ = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.Q.Shape);
        Tensor dK = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.K.Shape);
        Tensor dV = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.V.Shape);
        Output.Backward(dAttended, dHidden, saved.Attended, saved.Output, context.Dropout, first, GradientMode.Overwrite);
        Attention.Backward(dQ, dK, dV, dAttended, saved.Attended, saved.Lse, saved.Q, saved.K, saved.V, context.Batch.Documents, Heads);
        Rope.Backward(dQ, Heads.Dim, context.Cosine, context.Sine);
        Rope.Backward(dK, Heads.Dim, context.Cosine, context.Sine);
        Tensor normed = Query.NeedsInput || Key.NeedsInput || Value.NeedsInput ? Normed(InputNorm, saved.Input, saved.InputRstd) : Tensor.None;
        Tensor dNormed = needsInputGradient ? arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.Input.Shape) : Tensor.None;
        Query.Backward(dNormed, dQ, normed, saved.Query, context.Dropout, first, GradientMode.Overwrite);
        Key.Backward(dNormed, dK, normed, saved.Key, context.Dropout, first, GradientMode.Accumulate);
        Value.Backward(dNormed, dV, normed, saved.Value, context.Dropout, first, GradientMode.Accumulate);
        if (needsInputGradient)
        {
            InputNorm.Backward(dHidden, dNormed, saved.Input, saved.InputRstd, GradientMode.Accumulate);
        }
    }

    /// <summary>The norm's output in the current frame. It is cheap to form again, so it is not kept for backward.</summary>
    private static Tensor Normed(RmsNormLayer norm, Tensor input, Tensor rstd)
    {
        Tensor normed = input.Device.Arena.Allocate(MemoryKind.Activations, input.DType, input.Shape);
        norm.Forward(normed, rstd, input);
        return normed;
    }

    /// <summary>What backward needs of one forward pass: activations, and f32 statistics (rstd, lse).</summary>
    public readonly struct Saved
    {
        /// <summary>(N, D)</summary>
        public Tensor Input { get; init; }

        /// <summary>(N)</summary>
        public Tensor InputRstd { get; init; }

        /// <summary>(N, H*Dh), after the rotary embedding</summary>
        public Tensor Q { get; init; }

        /// <summary>(N, Hkv*Dh), after the rotary embedding</summary>
        public Tensor K { get; init; }

        /// <summary>(N, Hkv*Dh)</summary>
        public Tensor V { get; init; }

        /// <summary>(N, H*Dh)</summary>
        public Tensor Attended { get; init; }

        /// <summary>(H, N)</summary>
        public Tensor Lse { get; init; }

        /// <summary>(N, D): after the attention's residual</summary>
        public Tensor Middle { get; init; }

        /// <summary>(N)</summary>
        public Tensor MiddleRstd { get; init; }

        /// <summary>(N, F)</summary>
        public Tensor GateOutput { get; init; }

        /// <summary>(N, F)</summary>
        public Tensor UpOutput { get; init; }

        public AdaptedLinear.Saved Query { get; init; }

        public AdaptedLinear.Saved Key { get; init; }

        public AdaptedLinear.Saved Value { get; init; }

        public AdaptedLinear.Saved Output { get; init; }

        public AdaptedLinear.Saved Gate { get; init; }

        public AdaptedLinear.Saved Up { get; init; }

        public AdaptedLinear.Saved Down { get; init; }
    }
}
