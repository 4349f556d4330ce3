namespace LoraTrainer.Costs.Estimates;

/// <summary>
/// An amount of work on one device, as the least time in which its parts could be done: computing at the device's highest rate or moving bytes at its
/// full bandwidth, whichever takes longer. What it really takes is a multiple of each part; a <see cref="TimeModel"/> knows how large.
/// </summary>
/// <param name="Products">Seconds of matrix products.</param>
/// <param name="Attention">Seconds of attention.</param>
/// <param name="Expansion">Seconds of expanding 4-bit matrices.</param>
/// <param name="Memory">Seconds of everything else, which moves memory.</param>
/// <param name="Operations">How many operations: each has a cost of its own, however small it is.</param>
public readonly record struct RooflineTime(double Products, double Attention, double Expansion, double Memory, double Operations)
{
    /// <summary>The numbers in their order.</summary>
    public double[] Parts => [Products, Attention, Expansion, Memory, Operations];

    public static RooflineTime operator +(RooflineTime a, RooflineTime b) =>
        new(a.Products + b.Products, a.Attention + b.Attention, a.Expansion + b.Expansion, a.Memory + b.Memory, a.Operations + b.Operations);

    public static RooflineTime operator *(RooflineTime a, double factor) =>
        new(a.Products * factor, a.Attention * factor, a.Expansion * factor, a.Memory * factor, a.Operations * factor);
}

/// <summary>The highest rates of a device.</summary>
/// <param name="FlopsPerSecond">Of matrix products.</param>
/// <param name="BytesPerSecond">Of its memory.</param>
public readonly record struct DeviceRates(double FlopsPerSecond, double BytesPerSecond)
{
    /// <summary>The least time of one operation.</summary>
    /// <param name="flops">That it computes.</param>
    /// <param name="bytes">That it moves.</param>
    public double Seconds(double flops, double bytes) => Math.Max(flops / FlopsPerSecond, bytes / BytesPerSecond);
}
