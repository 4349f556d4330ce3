namespace LoraTrainer.Engine.Devices;

/// <summary>What bounds an operation, as far as its time is concerned.</summary>
public enum WorkKind
{
    /// <summary>A matrix product.</summary>
    Product,

    /// <summary>Attention, forward or backward.</summary>
    Attention,

    /// <summary>A quantized matrix is expanded for a product.</summary>
    Expansion,

    /// <summary>Everything else: it moves memory, and what it computes is little beside that.</summary>
    Memory,
}

/// <summary>Equal operations that ran on a <see cref="MeasureDevice"/>.</summary>
/// <param name="Kind">Which kind of operation.</param>
/// <param name="Flops">Floating-point operations of one; a multiplication with an addition counts as two.</param>
/// <param name="Bytes">That one reads and writes, each tensor once.</param>
/// <param name="Count">How many of them ran.</param>
public readonly record struct DeviceWork(WorkKind Kind, double Flops, double Bytes, long Count);
