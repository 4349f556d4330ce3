namespace LoraTrainer.Training.Loop;

/// <summary>The uses of randomness in a run. Numbers are part of what a seed means: never reuse or change one.</summary>
internal static class RandomStreams
{
    public const uint RowOrder = 1;
    public const uint BinOrder = 2;
    public const uint Sampling = 3;
    public const uint Split = 4;
    public const uint Mixture = 5;
}
