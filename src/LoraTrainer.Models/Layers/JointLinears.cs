using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Models.Layers;

/// <summary>
/// The linear layers that read one input and fill several tensors: one layer for each tensor, or a single one whose output is all of them, one
/// behind another in every row (fused). Callers see the tensors; adapters, quantization and files see the layers that there are. What their adapters
/// compute of the input they may compute together: <see cref="LoraAdapter.Joint"/>.
/// </summary>
public sealed class JointLinears
{
    private readonly AdaptedLinear[] layers;

    /// <param name="prefix">Module path up to the names, with the dot.</param>
    /// <param name="names">A layer for each tensor; at most three.</param>
    /// <param name="fusedName">The single layer that gives all of them; null where each has its own.</param>
    /// <param name="inFeatures">In</param>
    /// <param name="widths">Of the tensors.</param>
    /// <param name="hasBias">All layers have one, or none.</param>
    internal JointLinears(string prefix, ReadOnlySpan<string> names, string? fusedName, int inFeatures, ReadOnlySpan<int> widths, bool hasBias)
    {
        Count = names.Length;
        if (fusedName is not null)
        {
            int width = 0;
            foreach (int part in widths)
            {
                width += part;
            }

            layers = [new AdaptedLinear(prefix + fusedName, inFeatures, width, hasBias)];
            return;
        }

        layers = new AdaptedLinear[names.Length];
        for (int i = 0; i < layers.Length; i++)
        {
            layers[i] = new AdaptedLinear(prefix + names[i], inFeatures, widths[i], hasBias);
        }
    }

    /// <summary>Tensors that are filled.</summary>
    public int Count { get; }

    public bool IsFused => layers.Length < Count;

    /// <summary>In the order of the forward pass.</summary>
    public IReadOnlyList<AdaptedLinear> Linears => layers;

    /// <summary>True where backward needs the input: something is trained here.</summary>
    public bool NeedsInput
    {
        get
        {
            bool needs = false;
            foreach (AdaptedLinear layer in layers)
            {
                needs |= layer.NeedsInput;
            }

            return needs;
        }
    }

    /// <summary>Allocates what backward needs besides the input.</summary>
    public Saved Allocate(Device device, long tokens)
    {
        AdaptedLinear.Saved first = layers[0].Allocate(device, tokens), second = layers.Length > 1 ? layers[1].Allocate(device, tokens, first) : default;
        return new Saved { First = first, Second = second, Third = layers.Length > 2 ? layers[2].Allocate(device, tokens, second) : default };
    }

    /// <summary>outputs are OVERWRITTEN.</summary>
    /// <param name="outputs">(N, width) activations each.</param>
    /// <param name="input">(N, In) activations</param>
    /// <param name="saved">From <see cref="Allocate"/>; filled.</param>
    /// <param name="context">Of this pass.</param>
    public void Forward(ReadOnlySpan<Tensor> outputs, Tensor input, in Saved saved, in PassContext context)
    {
        if (!IsFused)
        {
            if (context.IsDecoding && Array.TrueForAll(layers, layer => layer.Adapter?.Magnitude is null))
            {
                // A row's products are so short that the threads meet once for all of them.
                Gemv.Forward(outputs, input, Array.ConvertAll(layers, layer => layer.Weight));
                for (int i = 0; i < layers.Length; i++)
                {
                    layers[i].AddUpdate(outputs[i], input, saved[i], context);
                }

                return;
            }

            for (int i = 0; i < layers.Length; i++)
            {
                layers[i].Forward(outputs[i], input, saved[i], context);
            }

            return;
        }

        using ArenaFrame frame = input.Device.Arena.Frame();
        Tensor whole = AllocateFused(input);
        layers[0].Forward(whole, input, saved.First, context);
        long column = 0;
        foreach (Tensor output in outputs)
        {
            Columns.Gather(output, whole, column);
            column += output.Shape[1];
        }
    }

    /// <summary>Parameter gradients ACCUMULATE; dInput is OVERWRITTEN, or none if nobody below needs it.</summary>
    /// <param name="dInput">(N, In) activations, or none</param>
    /// <param name="dOutputs">(N, width) activations each.</param>
    /// <param name="input">(N, In) activations; may be none where <see cref="NeedsInput"/> is false.</param>
    /// <param name="saved">From the forward pass.</param>
    /// <param name="context">Of the forward pass.</param>
    public void Backward(Tensor dInput, ReadOnlySpan<Tensor> dOutputs, Tensor input, in Saved saved, in PassContext context)
    {
        if (!IsFused)
        {
            for (int i = 0; i < layers.Length; i++)
            {
                layers[i].Backward(dInput, dOutputs[i], input, saved[i], context, i == 0 ? GradientMode.Overwrite : GradientMode.Accumulate);
            }

            return;
        }

        using ArenaFrame frame = dOutputs[0].Device.Arena.Frame();
        Tensor dWhole = AllocateFused(dOutputs[0]);
        long column = 0;
        foreach (Tensor dOutput in dOutputs)
        {
            Columns.Scatter(dWhole, dOutput, column);
            column += dOutput.Shape[1];
        }

        layers[0].Backward(dInput, dWhole, input, saved.First, context, GradientMode.Overwrite);
    }

    private Tensor AllocateFused(Tensor like) => like.Device.Arena.Allocate(MemoryKind.Activations, like.DType, new Shape(like.Shape[0], layers[0].Out));

    /// <summary>What backward needs of the forward pass besides the input, for each layer that there is.</summary>
    public readonly struct Saved
    {
        public AdaptedLinear.Saved First { get; init; }

        public AdaptedLinear.Saved Second { get; init; }

        public AdaptedLinear.Saved Third { get; init; }

        internal AdaptedLinear.Saved this[int layer] => layer switch { 0 => First, 1 => Second, _ => Third };
    }
}
