using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;

namespace LoraTrainer.Models.Layers;

/// <summary>What every layer of one forward or backward pass shares.</summary>
public readonly struct PassContext
{
    public required PackedBatch Batch { get; init; }

    public required DropoutState Dropout { get; init; }

    /// <summary>The pass is one token of a text whose earlier ones lie in a cache: products are <see cref="Gemv"/>'s.</summary>
    public bool IsDecoding { get; init; }

    /// <summary>(N, rotary/2) f32</summary>
    public required Tensor Cosine { get; init; }

    /// <summary>(N, rotary/2) f32</summary>
    public required Tensor Sine { get; init; }
}

/// <summary>
/// One transformer block: middle = input + o(attention(q, k, v of norm(input))); output = middle + down(act(gate) * up of norm(middle)). The config
/// decides the rest: norms of each query and key head, a second norm behind attention and MLP, a window, a softcap, which activation, and whether q, k, v
/// and gate, up come from one linear layer each or from a fused one.
/// </summary>
public sealed class DecoderLayer
{
    private readonly GatedActivation activation;

    internal DecoderLayer(int index, ModelConfig config)
    {
        string prefix = $"model.layers.{index}";
        int queryWidth = config.NumAttentionHeads * config.HeadDim;
        int keyValueWidth = config.NumKeyValueHeads * config.HeadDim;
        activation = config.Activation;
        Heads = new AttentionHeads(
            config.NumAttentionHeads, config.NumKeyValueHeads, config.HeadDim, config.AttentionScale, config.WindowOf(index), (float)(config.AttentionSoftcap ?? 0));
        InputNorm = Norm(".input_layernorm", config.HiddenSize);
        QueryKeyValue = new JointLinears(
            prefix + ".self_attn.", ["q_proj", "k_proj", "v_proj"], config.FusedProjections ? "qkv_proj" : null, config.HiddenSize, [queryWidth, keyValueWidth, keyValueWidth], config.AttentionBias);
        QueryNorm = config.QueryKeyNorm ? Norm(".self_attn.q_norm", config.HeadDim) : null;
        KeyNorm = config.QueryKeyNorm ? Norm(".self_attn.k_norm", config.HeadDim) : null;
        Output = new AdaptedLinear(prefix + ".self_attn.o_proj", queryWidth, config.HiddenSize, config.OutputBias);
        AttentionOutputNorm = config.SandwichNorms ? Norm(".post_attention_layernorm", config.HiddenSize) : null;
        MlpNorm = Norm(config.SandwichNorms ? ".pre_feedforward_layernorm" : ".post_attention_layernorm", config.HiddenSize);
        GateUp = new JointLinears(
            prefix + ".mlp.", ["gate_proj", "up_proj"], config.FusedProjections ? "gate_up_proj" : null, config.HiddenSize, [config.IntermediateSize, config.IntermediateSize], config.MlpBias);
        Down = new AdaptedLinear(prefix + ".mlp.down_proj", config.IntermediateSize, config.HiddenSize, config.MlpBias);
        MlpOutputNorm = config.SandwichNorms ? Norm(".post_feedforward_layernorm", config.HiddenSize) : null;
        LinearsByInput = [QueryKeyValue.Linears, [Output], GateUp.Linears, [Down]];
        Linears = [.. LinearsByInput.SelectMany(readers => readers)];
        RmsNormLayer?[] norms = [InputNorm, QueryNorm, KeyNorm, AttentionOutputNorm, MlpNorm, MlpOutputNorm];
        Norms = [.. norms.OfType<RmsNormLayer>()];

        RmsNormLayer Norm(string name, int width) => new(prefix + name, width, (float)config.RmsNormEps, (float)config.NormGainOffset);
    }

    public AttentionHeads Heads { get; }

    public RmsNormLayer InputNorm { get; }

    public JointLinears QueryKeyValue { get; }

    /// <summary>Of each query head before the rotary embedding, or null.</summary>
    public RmsNormLayer? QueryNorm { get; }

    /// <summary>Of each key head before the rotary embedding, or null.</summary>
    public RmsNormLayer? KeyNorm { get; }

    public AdaptedLinear Output { get; }

    /// <summary>Of what attention adds to the residual stream, or null.</summary>
    public RmsNormLayer? AttentionOutputNorm { get; }

    public RmsNormLayer MlpNorm { get; }

    public JointLinears GateUp { get; }

    public AdaptedLinear Down { get; }

    /// <summary>Of what the MLP adds to the residual stream, or null.</summary>
    public RmsNormLayer? MlpOutputNorm { get; }

    /// <summary>All linear layers in the order of the forward pass.</summary>
    public IReadOnlyList<AdaptedLinear> Linears { get; }

    /// <summary>The same, those together that read the same tensor.</summary>
    public IReadOnlyList<IReadOnlyList<AdaptedLinear>> LinearsByInput { get; }

    /// <summary>All norms in the order of the forward pass.</summary>
    public IReadOnlyList<RmsNormLayer> Norms { get; }

    /// <summary>See <see cref="AdaptedLinear.RefreshNorms"/>.</summary>
    internal void RefreshNorms()
    {
        for (int i = 0; i < Linears.Count; i++)
        {
            Linears[i].RefreshNorms();
        }
    }

    /// <summary>Allocates what backward needs of one forward pass.</summary>
    /// <param name="input">(N, D) the block's input; kept, not copied.</param>
    public Saved Allocate(Tensor input)
    {
        long n = input.Shape[0];
        Device device = input.Device;
        Arena arena = device.Arena;
        Tensor Activation(int width) => arena.Allocate(MemoryKind.Activations, input.DType, new Shape(n, width));
        Tensor Statistics(long rows) => arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(rows));
        return new Saved
        {
            Input = input,
            InputRstd = Statistics(n),
            Q = Activation(Heads.QueryWidth),
            K = Activation(Heads.KeyValueWidth),
            V = Activation(Heads.KeyValueWidth),
            QueryNormInput = QueryNorm is null ? Tensor.None : Activation(Heads.QueryWidth),
            QueryNormRstd = QueryNorm is null ? Tensor.None : Statistics(n * Heads.Query),
            KeyNormInput = KeyNorm is null ? Tensor.None : Activation(Heads.KeyValueWidth),
            KeyNormRstd = KeyNorm is null ? Tensor.None : Statistics(n * Heads.KeyValue),
            Attended = Activation(Output.In),
            Lse = arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(Heads.Query, n)),
            AttentionOutput = AttentionOutputNorm is null ? Tensor.None : Activation(Output.Out),
            AttentionOutputRstd = AttentionOutputNorm is null ? Tensor.None : Statistics(n),
            Middle = Activation(Output.Out),
            MiddleRstd = Statistics(n),
            GateOutput = Activation(Down.In),
            UpOutput = Activation(Down.In),
            MlpOutput = MlpOutputNorm is null ? Tensor.None : Activation(Down.Out),
            MlpOutputRstd = MlpOutputNorm is null ? Tensor.None : Statistics(n),
            QueryKeyValue = QueryKeyValue.Allocate(device, n),
            Output = Output.Allocate(device, n),
            GateUp = GateUp.Allocate(device, n),
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
        Arena arena = output.Device.Arena;
        using (arena.Frame())
        {
            Tensor normed = Normed(InputNorm, saved.Input, saved.InputRstd);
            Tensor q = QueryNorm is null ? saved.Q : saved.QueryNormInput;
            Tensor k = KeyNorm is null ? saved.K : saved.KeyNormInput;
            QueryKeyValue.Forward([q, k, saved.V], normed, saved.QueryKeyValue, context);
        }

        QueryNorm?.Forward(PerHead(saved.Q), saved.QueryNormRstd, PerHead(saved.QueryNormInput));
        KeyNorm?.Forward(PerHead(saved.K), saved.KeyNormRstd, PerHead(saved.KeyNormInput));
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

        Output.Forward(AttentionOutputNorm is null ? saved.Middle : saved.AttentionOutput, saved.Attended, saved.Output, context);
        AttentionOutputNorm?.Forward(saved.Middle, saved.AttentionOutputRstd, saved.AttentionOutput);
        Elementwise.Add(saved.Middle, saved.Middle, saved.Input);
        using (arena.Frame())
        {
            Tensor normed = Normed(MlpNorm, saved.Middle, saved.MiddleRstd);
            GateUp.Forward([saved.GateOutput, saved.UpOutput], normed, saved.GateUp, context);
        }

        using ArenaFrame frame = arena.Frame();
        Tensor activated = Activated(saved);
        Down.Forward(MlpOutputNorm is null ? output : saved.MlpOutput, activated, saved.Down, context);
        MlpOutputNorm?.Forward(output, saved.MlpOutputRstd, saved.MlpOutput);
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
        Arena arena = dHidden.Device.Arena;
        using ArenaFrame frame = arena.Frame();
        Tensor dActivated = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.GateOutput.Shape);
        Tensor activated = Down.NeedsInput ? Activated(saved) : Tensor.None;
        Tensor dOutput = BeforeNorm(MlpOutputNorm, dHidden, saved.MlpOutput, saved.MlpOutputRstd);
        Down.Backward(dActivated, dOutput, activated, saved.Down, context, GradientMode.Overwrite);
        ActivationBackward(saved, dActivated);
        Tensor normed = GateUp.NeedsInput ? Normed(MlpNorm, saved.Middle, saved.MiddleRstd) : Tensor.None;
        Tensor dNormed = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.Middle.Shape);
        GateUp.Backward(dNormed, [saved.GateOutput, saved.UpOutput], normed, saved.GateUp, context);
        MlpNorm.Backward(dHidden, dNormed, saved.Middle, saved.MiddleRstd, GradientMode.Accumulate);
    }

    private void AttentionBackward(Tensor dHidden, in Saved saved, in PassContext context, bool needsInputGradient)
    {
        Arena arena = dHidden.Device.Arena;
        using ArenaFrame frame = arena.Frame();
        Tensor dAttended = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.Attended.Shape);
        Tensor dQ = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.Q.Shape);
        Tensor dK = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.K.Shape);
        Tensor dV = arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.V.Shape);
        Tensor dOutput = BeforeNorm(AttentionOutputNorm, dHidden, saved.AttentionOutput, saved.AttentionOutputRstd);
        Output.Backward(dAttended, dOutput, saved.Attended, saved.Output, context, GradientMode.Overwrite);
        Attention.Backward(dQ, dK, dV, dAttended, saved.Attended, saved.Lse, saved.Q, saved.K, saved.V, context.Batch.Documents, Heads);
        Rope.Backward(dQ, Heads.Dim, context.Cosine, context.Sine);
        Rope.Backward(dK, Heads.Dim, context.Cosine, context.Sine);
        QueryNorm?.Backward(PerHead(dQ), PerHead(dQ), PerHead(saved.QueryNormInput), saved.QueryNormRstd, GradientMode.Overwrite);
        KeyNorm?.Backward(PerHead(dK), PerHead(dK), PerHead(saved.KeyNormInput), saved.KeyNormRstd, GradientMode.Overwrite);
        Tensor normed = QueryKeyValue.NeedsInput ? Normed(InputNorm, saved.Input, saved.InputRstd) : Tensor.None;
        Tensor dNormed = needsInputGradient ? arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.Input.Shape) : Tensor.None;
        QueryKeyValue.Backward(dNormed, [dQ, dK, dV], normed, saved.QueryKeyValue, context);
        if (needsInputGradient)
        {
            InputNorm.Backward(dHidden, dNormed, saved.Input, saved.InputRstd, GradientMode.Accumulate);
        }
    }

    /// <summary>act(gate) * up in the current frame.</summary>
    private Tensor Activated(in Saved saved)
    {
        Tensor activated = saved.Input.Device.Arena.Allocate(MemoryKind.Activations, saved.Input.DType, saved.GateOutput.Shape);
        if (activation == GatedActivation.GeluTanh)
        {
            GeGlu.Forward(activated, saved.GateOutput, saved.UpOutput);
        }
        else
        {
            SwiGlu.Forward(activated, saved.GateOutput, saved.UpOutput);
        }

        return activated;
    }

    /// <summary>The gradients of gate and up, in their places.</summary>
    private void ActivationBackward(in Saved saved, Tensor dActivated)
    {
        if (activation == GatedActivation.GeluTanh)
        {
            GeGlu.Backward(saved.GateOutput, saved.UpOutput, dActivated, saved.GateOutput, saved.UpOutput);
        }
        else
        {
            SwiGlu.Backward(saved.GateOutput, saved.UpOutput, dActivated, saved.GateOutput, saved.UpOutput);
        }
    }

    /// <summary>The gradient at the input of a norm before the residual sum, in the current frame; where there is none, that of the sum itself.</summary>
    private static Tensor BeforeNorm(RmsNormLayer? norm, Tensor dHidden, Tensor input, Tensor rstd)
    {
        if (norm is null)
        {
            return dHidden;
        }

        Tensor dInput = dHidden.Device.Arena.Allocate(MemoryKind.Activations, dHidden.DType, dHidden.Shape);
        norm.Backward(dInput, dHidden, input, rstd, GradientMode.Overwrite);
        return dInput;
    }

    /// <summary>(N, heads*Dh) as (N*heads, Dh).</summary>
    private Tensor PerHead(Tensor heads) => heads.Reshape(new Shape(heads.ElementCount / Heads.Dim, Heads.Dim));

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

        /// <summary>(N, H*Dh), or none without a norm of query heads</summary>
        public Tensor QueryNormInput { get; init; }

        /// <summary>(N*H), or none</summary>
        public Tensor QueryNormRstd { get; init; }

        /// <summary>(N, Hkv*Dh), or none without a norm of key heads</summary>
        public Tensor KeyNormInput { get; init; }

        /// <summary>(N*Hkv), or none</summary>
        public Tensor KeyNormRstd { get; init; }

        /// <summary>(N, H*Dh)</summary>
        public Tensor Attended { get; init; }

        /// <summary>(H, N)</summary>
        public Tensor Lse { get; init; }

        /// <summary>(N, D): what attention gave, or none without a norm behind it</summary>
        public Tensor AttentionOutput { get; init; }

        /// <summary>(N), or none</summary>
        public Tensor AttentionOutputRstd { get; init; }

        /// <summary>(N, D): after the attention's residual</summary>
        public Tensor Middle { get; init; }

        /// <summary>(N)</summary>
        public Tensor MiddleRstd { get; init; }

        /// <summary>(N, F)</summary>
        public Tensor GateOutput { get; init; }

        /// <summary>(N, F)</summary>
        public Tensor UpOutput { get; init; }

        /// <summary>(N, D): what the MLP gave, or none without a norm behind it</summary>
        public Tensor MlpOutput { get; init; }

        /// <summary>(N), or none</summary>
        public Tensor MlpOutputRstd { get; init; }

        public JointLinears.Saved QueryKeyValue { get; init; }

        public AdaptedLinear.Saved Output { get; init; }

        public JointLinears.Saved GateUp { get; init; }

        public AdaptedLinear.Saved Down { get; init; }
    }
}
