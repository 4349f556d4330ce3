using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Models.Layers;

/// <summary>Keys and values of the tokens that one text consists of so far, for every block; generating a token then costs one row.</summary>
public sealed class KeyValueCache
{
    /// <param name="device">Where the model lives.</param>
    /// <param name="model">Whose keys and values these are.</param>
    /// <param name="capacityTokens">The longest text.</param>
    public KeyValueCache(Device device, CausalLanguageModel model, int capacityTokens)
    {
        Capacity = capacityTokens;
        int width = model.Layers[0].Heads.KeyValueWidth;
        Layers = [.. model.Layers.Select(_ => new LayerCache(
            device.Arena.Allocate(MemoryKind.KeyValueCache, device.ActivationType, new Shape(capacityTokens, width)),
            device.Arena.Allocate(MemoryKind.KeyValueCache, device.ActivationType, new Shape(capacityTokens, width))))];
    }

    public int Capacity { get; }

    /// <summary>Tokens held.</summary>
    public int Length => Layers[0].Length;

    public IReadOnlyList<LayerCache> Layers { get; }

    /// <summary>Forgets everything; the memory stays.</summary>
    public void Clear() => Truncate(0);

    /// <summary>Forgets what stands behind the first tokens.</summary>
    /// <param name="length">So many are kept, at most as many as are held.</param>
    public void Truncate(int length)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(length, Length);
        foreach (LayerCache layer in Layers)
        {
            layer.Length = length;
        }
    }
}

/// <summary>One block's part of a <see cref="KeyValueCache"/>.</summary>
public sealed class LayerCache
{
    private readonly Tensor keys;
    private readonly Tensor values;

    internal LayerCache(Tensor keys, Tensor values)
    {
        this.keys = keys;
        this.values = values;
    }

    public int Length { get; internal set; }

    /// <summary>Appends the new keys and values, then lets the new queries attend to everything held, causally.</summary>
    internal void Attend(Tensor output, Tensor q, Tensor k, Tensor v, in AttentionHeads heads)
    {
        int added = (int)k.Shape[0];
        Device device = q.Device;
        device.Copy(keys.Rows(Length, added), k);
        device.Copy(values.Rows(Length, added), v);
        Length += added;
        Attention.ForwardCached(output, q, keys.Rows(0, Length), values.Rows(0, Length), heads);
    }
}
