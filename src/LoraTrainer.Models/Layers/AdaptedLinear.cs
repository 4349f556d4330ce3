using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Models.Layers;

/// <summary>A low-rank update of one linear layer: y += Scaling * B (A dropout(x)), NUMERICS D.1.</summary>
public sealed class LoraAdapter
{
    /// <summary>(R, In)</summary>
    public required Parameter A { get; init; }

    /// <summary>(Out, R)</summary>
    public required Parameter B { get; init; }

    /// <summary>alpha/R, or alpha/sqrt(R) for rsLoRA.</summary>
    public required float Scaling { get; init; }

    /// <summary>Probability that an element of the adapter's input is dropped while training.</summary>
    public required float Dropout { get; init; }

    /// <summary>Names this place in the model to the random numbers of its dropout.</summary>
    public required uint Stream { get; init; }

    public int Rank => checked((int)A.Shape[0]);
}

/// <summary>
/// A linear layer with everything that can be attached to it: a frozen (dense or quantized) or trained base, a bias, an adapter. The one
/// forward and backward pair for all of them.
/// With u = dropout(x) A^T:  y = x W^T + b + s * u B^T.  Given G = dY:  dB += s * G^T u;  du = s * G B;  dA += du^T dropout(x);
/// dX = G W + mask/(1-p) * (du A);  dW += G^T x;  db += sum of the rows of G.
/// </summary>
public sealed class AdaptedLinear
{
    private LoraAdapter? adapter;
    private DenseMatrix? adapterA;
    private DenseMatrix? adapterB;

    public AdaptedLinear(string name, int inFeatures, int outFeatures, bool hasBias)
    {
        Name = name;
        HasBias = hasBias;
        In = inFeatures;
        Out = outFeatures;
    }

    /// <summary>Module path, as in <c>model.layers.0.self_attn.q_proj</c>.</summary>
    public string Name { get; }

    public int In { get; }

    public int Out { get; }

    /// <summary>Whether the model has a bias here; <see cref="Bias"/> holds it once it is loaded.</summary>
    public bool HasBias { get; }

    /// <summary>The base; for a trained one its current values.</summary>
    public WeightMatrix Weight { get; internal set; } = null!;

    /// <summary>Set where the base itself is trained.</summary>
    public Parameter? TrainedWeight { get; internal set; }

    /// <summary>(Out) f32, or none.</summary>
    public Tensor Bias { get; internal set; }

    /// <summary>Set where the bias is trained.</summary>
    public Parameter? TrainedBias { get; internal set; }

    public LoraAdapter? Adapter => adapter;

    /// <summary>True where backward needs the layer's input: something is trained here.</summary>
    public bool NeedsInput => adapter is not null || TrainedWeight is not null;

    /// <summary>Attaches an adapter whose parameters are allocated.</summary>
    public void Attach(LoraAdapter lora)
    {
        adapter = lora;
        adapterA = new DenseMatrix(lora.A.Operand);
        adapterB = new DenseMatrix(lora.B.Operand);
    }

    /// <summary>Takes the adapter off: the layer computes its base alone.</summary>
    public void Detach()
    {
        adapter = null;
        adapterA = null;
        adapterB = null;
    }

    /// <summary>Allocates what backward needs besides the input.</summary>
    public Saved Allocate(Device device, long tokens) =>
        new() { Projected = adapter is null ? Tensor.None : device.Arena.Allocate(MemoryKind.Activations, device.ActivationType, new Shape(tokens, adapter.Rank)) };

    /// <summary>output is OVERWRITTEN with the whole layer's result.</summary>
    /// <param name="output">(N, Out) activations</param>
    /// <param name="input">(N, In) activations</param>
    /// <param name="saved">From <see cref="Allocate"/>; filled.</param>
    /// <param name="dropout">Masks of this step.</param>
    /// <param name="firstToken">See <see cref="PackedBatch.FirstToken"/>.</param>
    public void Forward(Tensor output, Tensor input, in Saved saved, DropoutState dropout, long firstToken)
    {
        Linear.Forward(output, input, Weight);
        if (!Bias.IsNone)
        {
            Elementwise.AddBias(output, Bias);
        }

        if (adapter is not null)
        {
            using ArenaFrame frame = input.Device.Arena.Frame();
            Linear.Forward(saved.Projected, Dropped(input, dropout, firstToken), adapterA!);
            Linear.Forward(output, saved.Projected, adapterB!, GradientMode.Accumulate, adapter.Scaling);
        }
    }

    /// <summary>Parameter gradients ACCUMULATE; dInput as <paramref name="mode"/> says, or none if nobody below needs it.</summary>
    /// <param name="dInput">(N, In) activations, or none</param>
    /// <param name="dOutput">(N, Out) activations</param>
    /// <param name="input">(N, In) activations; may be none where <see cref="NeedsInput"/> is false.</param>
    /// <param name="saved">From the forward pass.</param>
    /// <param name="dropout">As in the forward pass.</param>
    /// <param name="firstToken">As in the forward pass.</param>
    /// <param name="mode">What happens to dInput.</param>
    public void Backward(Tensor dInput, Tensor dOutput, Tensor input, in Saved saved, DropoutState dropout, long firstToken, GradientMode mode)
    {
        if (!dInput.IsNone)
        {
            Linear.BackwardInput(dInput, dOutput, Weight, mode);
        }

        if (TrainedWeight is not null)
        {
            Linear.BackwardWeight(TrainedWeight.Gradient, dOutput, input);
        }

        if (TrainedBias is not null)
        {
            Elementwise.BiasGradient(TrainedBias.Gradient, dOutput);
        }

        if (adapter is not null)
        {
            AdapterBackward(dInput, dOutput, input, saved, dropout, firstToken);
        }
    }

    private void AdapterBackward(Tensor dInput, Tensor dOutput, Tensor input, in Saved saved, DropoutState dropout, long firstToken)
    {
        Arena arena = dOutput.Device.Arena;
        long tokens = dOutput.Shape[0];
        using ArenaFrame frame = arena.Frame();
        Linear.BackwardWeight(adapter!.B.Gradient, dOutput, saved.Projected, adapter.Scaling);
        Tensor dProjected = arena.Allocate(MemoryKind.Activations, dOutput.DType, new Shape(tokens, adapter.Rank));
        Linear.BackwardInput(dProjected, dOutput, adapterB!, GradientMode.Overwrite, adapter.Scaling);
        Linear.BackwardWeight(adapter.A.Gradient, dProjected, Dropped(input, dropout, firstToken));
        if (dInput.IsNone)
        {
            return;
        }

        if (IsDropping(dropout))
        {
            Tensor dDropped = arena.Allocate(MemoryKind.Activations, dOutput.DType, new Shape(tokens, In));
            Linear.BackwardInput(dDropped, dProjected, adapterA!);
            Dropout.Apply(dDropped, dDropped, adapter.Dropout, Key(dropout, firstToken));
            Elementwise.Add(dInput, dInput, dDropped);
        }
        else
        {
            Linear.BackwardInput(dInput, dProjected, adapterA!, GradientMode.Accumulate);
        }
    }

    /// <summary>The adapter's input. With dropout a tensor of the current frame: masks are drawn again instead of being kept.</summary>
    private Tensor Dropped(Tensor input, DropoutState dropout, long firstToken)
    {
        if (!IsDropping(dropout))
        {
            return input;
        }

        Tensor dropped = input.Device.Arena.Allocate(MemoryKind.Activations, input.DType, input.Shape);
        Dropout.Apply(dropped, input, adapter!.Dropout, Key(dropout, firstToken));
        return dropped;
    }

    private bool IsDropping(DropoutState dropout) => dropout.IsActive && adapter!.Dropout > 0;

    private DropoutKey Key(DropoutState dropout, long firstToken) => new(dropout.Seed, adapter!.Stream, dropout.Step, firstToken);

    /// <summary>What backward needs of the forward pass besides the input.</summary>
    public readonly struct Saved
    {
        /// <summary>(N, R): dropout(x) A^T; none without an adapter.</summary>
        public Tensor Projected { get; init; }
    }
}
