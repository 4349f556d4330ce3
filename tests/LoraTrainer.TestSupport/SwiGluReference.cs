namespace LoraTrainer.TestSupport;

/// <summary>The gated activation in double precision: value(a, b) = silu(a) * b, and the slope of silu.</summary>
public static class SwiGluReference
{
    public static double Sigmoid(double a) => 1 / (1 + Math.Exp(-a));

    public static double Value(double a, double b) => a * Sigmoid(a) * b;

    public static double Slope(double a) => Sigmoid(a) * (1 + a * (1 - Sigmoid(a)));
}
