using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Models.Layers;

/// <summary>An RMS norm with its gain, frozen or trained.</summary>
public sealed class RmsNormLayer(string name, float eps)
{
    /// <summary>Module path, as in <c>model.norm</c>.</summary>
    public string Name { get; } = name;

    /// <summary>(D) f32</summary>
    public Tensor Weight { get; internal set; }

    /// <summary>Set where the gain is trained.</summary>
    public Parameter? TrainedWeight { get; internal set; }

    /// <summary>output and rstd are OVERWRITTEN.</summary>
    public void Forward(Tensor output, Tensor rstd, Tensor input) => RmsNorm.Forward(output, rstd, input, Weight, eps);

    /// <summary>The gain's gradient ACCUMULATES; dInput as <paramref name="mode"/> says.</summary>
    public void Backward(Tensor dInput, Tensor dOutput, Tensor input, Tensor rstd, GradientMode mode) =>
        RmsNorm.Backward(dInput, TrainedWeight?.Gradient ?? Tensor.None, dOutput, input, Weight, rstd, mode);
}
