using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Models.Layers;

/// <summary>An RMS norm with its gain, frozen or trained.</summary>
/// <param name="name">Module path.</param>
/// <param name="width">D</param>
/// <param name="eps">Added to the mean of the squares.</param>
/// <param name="gainOffset">What the stored weight is without: 0, or 1 where the gain is 1 + weight.</param>
public sealed class RmsNormLayer(string name, int width, float eps, float gainOffset)
{
    /// <summary>Module path, as in <c>model.norm</c>.</summary>
    public string Name { get; } = name;

    /// <summary>D</summary>
    public int Width { get; } = width;

    /// <summary>(D) f32, as stored: the gain less its offset.</summary>
    public Tensor Weight { get; internal set; }

    /// <summary>Set where the gain is trained.</summary>
    public Parameter? TrainedWeight { get; internal set; }

    /// <summary>output and rstd are OVERWRITTEN.</summary>
    public void Forward(Tensor output, Tensor rstd, Tensor input) => RmsNorm.Forward(output, rstd, input, Weight, eps, gainOffset);

    /// <summary>The gain's gradient ACCUMULATES; dInput as <paramref name="mode"/> says.</summary>
    public void Backward(Tensor dInput, Tensor dOutput, Tensor input, Tensor rstd, GradientMode mode) =>
        RmsNorm.Backward(dInput, TrainedWeight?.Gradient ?? Tensor.None, dOutput, input, Weight, rstd, mode, gainOffset);
}
