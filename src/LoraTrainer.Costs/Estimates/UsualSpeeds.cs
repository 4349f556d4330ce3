namespace LoraTrainer.Costs.Estimates;

/// <summary>What is known of devices on which nothing was measured yet. A test computes these numbers again from the measured rows that they come from.</summary>
public static class UsualSpeeds
{
    /// <summary>
    /// What single kernels reached on an NVIDIA H200, against its data sheet: the median of the matrix products of a step with 2,048 tokens, attention at 4,096
    /// tokens, the median of the kernels that move memory (tests/Benchmarks/results/2026-11-26-nvidia-h200.jsonl), and 3 microseconds between operations.
    /// Ten whole steps of five configurations of Llama-3.1-8B, measured there too and not used for this, come out 1 % too short to 12 % too long.
    /// </summary>
    public static TimeModel Gpu { get; } = new(1.51, 4.50, 1.318, 1.393, 3e-6);

    /// <summary>
    /// Against <see cref="ProcessorThread"/>: the fit to ten runs of small models on two threads of an AMD EPYC with AVX-512
    /// (tests/Benchmarks/results/2026-11-26-plan-amd-epyc-2c.jsonl). A factor below 1 says that the yardstick is not the fastest that there is: another EPYC was half as fast.
    /// </summary>
    public static TimeModel Processor { get; } = new(0.54, 0.42, 0.31, 2.1, 2.3e-6);

    /// <summary>One thread of a processor, as a round number: a yardstick that measured times are multiples of.</summary>
    public static DeviceRates ProcessorThread { get; } = new(100e9, 10e9);
}
