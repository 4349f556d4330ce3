using System.Globalization;

namespace LoraTrainer.Engine.Quantization;

/// <summary>A weight that is to be quantized is NaN or infinite: its whole block would be lost.</summary>
internal sealed class NonFiniteWeightException(long element, float value)
    : ArithmeticException(string.Create(
        CultureInfo.InvariantCulture,
        $"cannot quantize: element {element} of the flattened tensor is {value}, and quantization needs finite weights. The checkpoint is damaged, or was saved after training diverged"))
{
    /// <summary>Index in the flattened tensor.</summary>
    public long Element { get; } = element;

    public float Value { get; } = value;
}
