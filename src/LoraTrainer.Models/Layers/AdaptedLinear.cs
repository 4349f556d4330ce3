using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Models.Layers;

/// <summary>A low-rank update of one linear layer: y += Scaling * B (A dropout(x)); with a magnitude it is DoRA.</summary>
public sealed class LoraAdapter
{
    private readonly Parameter? joint;

    /// <summary>(R, In)</summary>
    public required Parameter A { get; init; }

    /// <summary>
    /// (sum of R, In): A of all adapters that read this one's input, one below another, which products take as one matrix; A itself where it is alone. Only without
    /// dropout: each adapter drops elements of its own.
    /// </summary>
    public Parameter Joint { get => joint ?? A; init => joint = value; }

    /// <summary>The row of <see cref="Joint"/> where A begins, and so the column where u begins in the product of all.</summary>
    public int JointRow { get; init; }

    /// <summary>(Out, R)</summary>
    public required Parameter B { get; init; }

    /// <summary>alpha/R, or alpha/sqrt(R) for rsLoRA.</summary>
    public required float Scaling { get; init; }

    /// <summary>Probability that an element of the adapter's input is dropped while training.</summary>
    public required float Dropout { get; init; }

    /// <summary>Names this place in the model to the random numbers of its dropout.</summary>
    public required uint Stream { get; init; }

    /// <summary>(Out): DoRA's m, the length of each row of the adapted matrix; null for plain LoRA.</summary>
    public Parameter? Magnitude { get; init; }

    /// <summary>(Out) f32, with a magnitude: the lengths that the rows of W + Scaling * B A have, of the parameters' current values.</summary>
    public Tensor Norms { get; init; }

    public int Rank => checked((int)A.Shape[0]);

    /// <summary>Of all adapters that read the input this one's layer runs first: it makes the product with all of A.</summary>
    internal bool IsFirstOfJoint => JointRow == 0;

    /// <summary>Of all adapters that read the input this one's layer runs last: it makes the gradients of all of A and of the input.</summary>
    internal bool IsLastOfJoint => JointRow + Rank == Joint.Shape[0];
}

/// <summary>
/// A linear layer with everything that can be attached to it: a frozen (dense or quantized) or trained base, a bias, an adapter. The one
/// forward and backward pair for all of them.
/// With u = dropout(x) A^T:  y = x W^T + b + s * u B^T.  Given G = dY:  dB += s * G^T u;  du = s * G B;  dA += du^T dropout(x);
/// dX = G W + mask/(1-p) * (du A);  dW += G^T x;  db += sum of the rows of G.
/// DoRA, with g = m/n and z = dropout(x) (W + s B A)^T:  y = g z + b without dropout, and as PEFT has it y = x W^T + b + (g - 1) dropout(x) W^T + g s u B^T
/// with it. n counts as a constant:  dm += sum of G z / n;  with H = g G:  dB += s * H^T u;  du = s * H B;  dX = H W + du A, and with dropout
/// G W + mask/(1-p) * ((g - 1) G W + du A).
/// Layers that read one input may share the products with A (<see cref="LoraAdapter.Joint"/>): the first computes u of all, each writes its du over its u, and the last
/// adds to dA of all and du A of all to dX. They run one after another, with the same input and the same dX.
/// </summary>
public sealed class AdaptedLinear
{
    private LoraAdapter? adapter;
    private DenseMatrix? jointA;
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
        jointA = new DenseMatrix(lora.Joint.Operand);
        adapterB = new DenseMatrix(lora.B.Operand);
    }

    /// <summary>Takes the adapter off: the layer computes its base alone.</summary>
    public void Detach()
    {
        adapter = null;
        jointA = null;
        adapterB = null;
    }

    /// <summary>Allocates what backward needs besides the input.</summary>
    /// <param name="device">Where the layer lives.</param>
    /// <param name="tokens">N</param>
    /// <param name="joint">What the layer before kept that reads the same input, or none.</param>
    public Saved Allocate(Device device, long tokens, in Saved joint = default) => new()
    {
        // A layer without an adapter hands on what is not its own.
        Projected = adapter is not { IsFirstOfJoint: true } ? joint.Projected : device.Arena.Allocate(MemoryKind.Activations, device.ActivationType, new Shape(tokens, adapter.Joint.Shape[0])),
        Product = adapter?.Magnitude is null ? Tensor.None : device.Arena.Allocate(MemoryKind.Activations, device.ActivationType, new Shape(tokens, Out)),
    };

    /// <summary>Brings DoRA's row norms up to the parameters' current values; nothing for other layers. To be called when these may have changed.</summary>
    public void RefreshNorms()
    {
        if (adapter?.Magnitude is not null)
        {
            Dora.Norms(adapter.Norms, Weight, adapter.A.Value, adapter.B.Value, adapter.Scaling);
        }
    }

    /// <summary>output is OVERWRITTEN with the whole layer's result.</summary>
    /// <param name="output">(N, Out) activations</param>
    /// <param name="input">(N, In) activations</param>
    /// <param name="saved">From <see cref="Allocate"/>; filled.</param>
    /// <param name="context">Of this pass.</param>
    public void Forward(Tensor output, Tensor input, in Saved saved, in PassContext context)
    {
        if (adapter?.Magnitude is null)
        {
            Multiply(context, output, input, Weight);
            AddUpdate(output, input, saved, context);
        }
        else
        {
            DoraForward(output, input, saved, context);
            AddBias(output);
        }
    }

    /// <summary>Makes x W^T the whole layer's result, where there is no magnitude.</summary>
    internal void AddUpdate(Tensor output, Tensor input, in Saved saved, in PassContext context)
    {
        AddBias(output);
        if (adapter is not null)
        {
            using ArenaFrame frame = input.Device.Arena.Frame();
            Project(context, saved, Dropped(input, context.Dropout, context.Batch.FirstToken));
            Multiply(context, output, Own(saved), adapterB!, GradientMode.Accumulate, adapter.Scaling);
        }
    }

    private void DoraForward(Tensor output, Tensor input, in Saved saved, in PassContext context)
    {
        using ArenaFrame frame = input.Device.Arena.Frame();
        Tensor dropped = Dropped(input, context.Dropout, context.Batch.FirstToken);
        Tensor magnitude = adapter!.Magnitude!.Value;
        Project(context, saved, dropped);
        Multiply(context, saved.Product, dropped, Weight);
        if (!IsDropping(context.Dropout))
        {
            Multiply(context, saved.Product, Own(saved), adapterB!, GradientMode.Accumulate, adapter.Scaling);
            Dora.Scale(output, saved.Product, magnitude, adapter.Norms, shift: 0, GradientMode.Overwrite);
            return;
        }

        Multiply(context, output, input, Weight);
        Dora.Scale(output, saved.Product, magnitude, adapter.Norms, shift: -1, GradientMode.Accumulate);
        Tensor update = Like(output);
        Multiply(context, update, Own(saved), adapterB!, GradientMode.Overwrite, adapter.Scaling);
        Dora.Scale(output, update, magnitude, adapter.Norms, shift: 0, GradientMode.Accumulate);
        Elementwise.Add(saved.Product, saved.Product, update);
    }

    private static void Multiply(in PassContext context, Tensor output, MatrixColumns input, WeightMatrix weight, GradientMode mode = GradientMode.Overwrite, float alpha = 1)
    {
        if (context.IsDecoding)
        {
            // Columns of one row lie together.
            Gemv.Forward([output], input.Whole.Slice(input.First, new Shape(1, input.Count)), [weight], mode, alpha);
        }
        else
        {
            Linear.Forward(output, input, weight, mode, alpha);
        }
    }

    /// <summary>dropout(x) A^T of all adapters that read the input, once.</summary>
    private void Project(in PassContext context, in Saved saved, Tensor dropped)
    {
        if (adapter!.IsFirstOfJoint)
        {
            Multiply(context, saved.Projected, dropped, jointA!);
        }
    }

    /// <summary>(N, R): this adapter's columns of u, in backward later of du.</summary>
    private MatrixColumns Own(in Saved saved) => new(saved.Projected, adapter!.JointRow, adapter.Rank);

    private void AddBias(Tensor output)
    {
        if (!Bias.IsNone)
        {
            Elementwise.AddBias(output, Bias);
        }
    }

    /// <summary>
    /// Parameter gradients ACCUMULATE; dInput as <paramref name="mode"/> says, or none if nobody below needs it. Destroys <paramref name="saved"/>, so it runs once for each
    /// forward pass.
    /// </summary>
    /// <param name="dInput">(N, In) activations, or none</param>
    /// <param name="dOutput">(N, Out) activations</param>
    /// <param name="input">(N, In) activations; may be none where <see cref="NeedsInput"/> is false.</param>
    /// <param name="saved">From the forward pass.</param>
    /// <param name="context">Of the forward pass.</param>
    /// <param name="mode">What happens to dInput.</param>
    public void Backward(Tensor dInput, Tensor dOutput, Tensor input, in Saved saved, in PassContext context, GradientMode mode)
    {
        using ArenaFrame frame = dOutput.Device.Arena.Frame();
        if (TrainedWeight is not null)
        {
            Linear.BackwardWeight(TrainedWeight.Gradient, dOutput, input);
        }

        if (TrainedBias is not null)
        {
            Elementwise.BiasGradient(TrainedBias.Gradient, dOutput);
        }

        bool dropping = adapter is not null && IsDropping(context.Dropout);

        // What arrives at x W^T and at the adapter: G itself; with DoRA the magnitudes' share of it.
        Tensor dAdapted = dOutput;
        if (adapter?.Magnitude is not null)
        {
            Dora.MagnitudeGradient(adapter.Magnitude.Gradient, dOutput, saved.Product, adapter.Norms);
            dAdapted = Like(dOutput);
            Dora.Scale(dAdapted, dOutput, adapter.Magnitude.Value, adapter.Norms, shift: 0, GradientMode.Overwrite);
        }

        if (!dInput.IsNone)
        {
            Linear.BackwardInput(dInput, dropping ? dOutput : dAdapted, Weight, mode);
        }

        if (adapter is null)
        {
            return;
        }

        // du takes the place of u, whose work is done with B's gradient.
        Linear.BackwardWeight(adapter.B.Gradient, dAdapted, Own(saved), adapter.Scaling);
        Linear.BackwardInput(Own(saved), dAdapted, adapterB!, GradientMode.Overwrite, adapter.Scaling);
        if (!adapter.IsLastOfJoint)
        {
            return;
        }

        Linear.BackwardWeight(adapter.Joint.Gradient, saved.Projected, Dropped(input, context.Dropout, context.Batch.FirstToken));
        if (dInput.IsNone)
        {
            return;
        }

        if (!dropping)
        {
            Linear.BackwardInput(dInput, saved.Projected, jointA!, GradientMode.Accumulate);
            return;
        }

        Tensor dDropped = dOutput.Device.Arena.Allocate(MemoryKind.Activations, dOutput.DType, new Shape(dOutput.Shape[0], In));
        Linear.BackwardInput(dDropped, saved.Projected, jointA!);
        if (adapter.Magnitude is not null)
        {
            // (g - 1) G overwrites g G, whose work is done.
            Dora.Scale(dAdapted, dOutput, adapter.Magnitude.Value, adapter.Norms, shift: -1, GradientMode.Overwrite);
            Linear.BackwardInput(dDropped, dAdapted, Weight, GradientMode.Accumulate);
        }

        Dropout.Apply(dDropped, dDropped, adapter.Dropout, Key(context.Dropout, context.Batch.FirstToken));
        Elementwise.Add(dInput, dInput, dDropped);
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

    private static Tensor Like(Tensor tensor) => tensor.Device.Arena.Allocate(MemoryKind.Activations, tensor.DType, tensor.Shape);

    private bool IsDropping(DropoutState dropout) => dropout.IsActive && adapter!.Dropout > 0;

    private DropoutKey Key(DropoutState dropout, long firstToken) => new(dropout.Seed, adapter!.Stream, dropout.Step, firstToken) { Numbers = dropout.Numbers };

    /// <summary>What backward needs of the forward pass besides the input.</summary>
    public readonly struct Saved
    {
        /// <summary>(N, sum of R): u = dropout(x) A^T of all adapters that read the input, each in its columns. A layer without an adapter reads nothing of it.</summary>
        public Tensor Projected { get; init; }

        /// <summary>(N, Out): dropout(x) (W + s B A)^T; none without DoRA's magnitude.</summary>
        public Tensor Product { get; init; }
    }
}
