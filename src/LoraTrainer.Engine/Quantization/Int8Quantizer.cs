using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Quantization;

/// <summary>
/// Quantizes one matrix to signed bytes with a scale a row, as bitsandbytes does for an 8-bit base, while it streams in. Every weight is rounded to f16 first;
/// then with absmax = max |w| of the row: q = round(fl32(w * fl32(fl32(1 / absmax) * 127))), half to even, and scale = fl32(absmax / 127). A row of zeros stays one.
/// </summary>
public sealed partial class Int8Quantizer
{
    /// <summary>From here on a weight would be infinite in f16.</summary>
    public const float FirstTooLarge = 65520;

    private readonly Device device;
    private readonly Int8Matrix matrix;
    private readonly Arena.FrameMark scratchStart;

    // On a GPU: where rows are put before they are quantized.
    private readonly Tensor piece;
    private long row;

    /// <param name="device">Where the matrix is to live.</param>
    /// <param name="rows">Out</param>
    /// <param name="columns">In</param>
    public Int8Quantizer(Device device, int rows, int columns)
    {
        this.device = device;
        matrix = Int8Matrix.Allocate(device, rows, columns);
        scratchStart = device.Arena.Mark();
        if (device.Platform == DevicePlatform.Cuda)
        {
            piece = device.Arena.Allocate(MemoryKind.Workspace, DType.F32, new Shape(Math.Min(rows, RowsOfAPiece(columns)), columns));
        }
    }

    /// <summary>Rows that <see cref="Add"/> takes at most.</summary>
    /// <param name="columns">In</param>
    public static int RowsOfAPiece(int columns) => Math.Max(1, FourBitQuantizer.PieceElements / columns);

    /// <summary>The next rows, whole ones, at most <see cref="RowsOfAPiece"/>; finite, and |w| below <see cref="FirstTooLarge"/>.</summary>
    public void Add(ReadOnlySpan<float> values)
    {
        if (values.Length % matrix.In != 0)
        {
            throw new ArgumentException($"Rows of {matrix.In} elements are added whole, got {values.Length} elements.", nameof(values));
        }

        switch (device)
        {
            case CpuDevice cpu:
                AddCpu(cpu, values);
                break;
            case CudaDevice cuda:
                AddCuda(cuda, values);
                break;
        }

        row += values.Length / matrix.In;
    }

    /// <summary>The matrix, once every row was added.</summary>
    public Int8Matrix Finish()
    {
        device.Arena.Release(scratchStart);
        return matrix;
    }
}
