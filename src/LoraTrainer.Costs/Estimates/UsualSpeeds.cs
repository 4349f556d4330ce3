namespace LoraTrainer.Costs.Estimates;

/// <summary>What is known of devices on which nothing was measured yet. A test fits these numbers again to the measured rows that they come from.</summary>
public static class UsualSpeeds
{
    /// <summary>
    /// Fitted to whole training steps of Llama-3.1-8B on an NVIDIA H200: NF4 and bf16, 4 x 512 and 1 x 2048 tokens, with and without recomputation
    /// (tests/Benchmarks/results/2026-11-26-nvidia-h200.jsonl).
    /// </summary>
    public static TimeModel Gpu { get; } = new(1.4, 4.5, 1.4, 1.4, 5e-6);

    /// <summary>Against <see cref="ProcessorThread"/>.</summary>
    public static TimeModel Processor { get; } = new(1.2, 2, 1, 2, 5e-6);

    /// <summary>One thread of a processor with AVX2 or AVX-512: a yardstick that measured times are multiples of.</summary>
    public static DeviceRates ProcessorThread { get; } = new(100e9, 10e9);
}
