using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Quantization;

/// <summary>
/// Quantizes one matrix to four bits on its device while it streams in: <see cref="Add"/> takes it piece by piece in row-major order,
/// <see cref="Finish"/> gives the matrix. What the matrix keeps is allocated first, so that scratch memory above it can go again.
/// </summary>
public sealed partial class FourBitQuantizer
{
    /// <summary>The largest piece that <see cref="Add"/> takes.</summary>
    public const int PieceElements = 1 << 18;

    private readonly Device device;
    // Its offset comes last.
    private readonly FourBitMatrix matrix;
    private readonly Arena.FrameMark scratchStart;
    private readonly Tensor absmax;

    // On a GPU: where a piece is put before it is quantized, and the sum of all absmax.
    private readonly Tensor piece;
    private readonly Tensor sum;
    private long position;

    /// <param name="device">Where the matrix is to live.</param>
    /// <param name="code">What the codes stand for.</param>
    /// <param name="rows">Out</param>
    /// <param name="columns">In</param>
    /// <param name="doubleQuantized">Quantize the scales too.</param>
    public FourBitQuantizer(Device device, FourBitCode code, int rows, int columns, bool doubleQuantized)
    {
        this.device = device;
        matrix = FourBitMatrix.Allocate(device, code, rows, columns, doubleQuantized, offset: 0);
        long elements = (long)rows * columns;
        Arena arena = device.Arena;
        scratchStart = arena.Mark();
        absmax = doubleQuantized ? arena.Allocate(MemoryKind.Workspace, DType.F32, new Shape(BlockwiseFourBit.Blocks(elements))) : matrix.Absmax;

        if (device.Platform == DevicePlatform.Cuda)
        {
            piece = arena.Allocate(MemoryKind.Workspace, DType.F32, new Shape(Math.Min(elements, PieceElements)));
            sum = arena.Allocate(MemoryKind.Workspace, DType.F64, new Shape(1));
        }
    }

    /// <summary>The next piece: at most <see cref="PieceElements"/>, a multiple of 64 elements, except for the last.</summary>
    public void Add(ReadOnlySpan<float> values)
    {
        switch (device)
        {
            case CpuDevice cpu:
                AddCpu(cpu, values);
                break;
            case CudaDevice cuda:
                AddCuda(cuda, values);
                break;
        }

        position += values.Length;
    }

    /// <summary>The matrix, once every element was added.</summary>
    public FourBitMatrix Finish()
    {
        float offset = !matrix.IsDoubleQuantized ? 0 : device switch
        {
            CpuDevice cpu => NestCpu(cpu),
            CudaDevice cuda => NestCuda(cuda),
            _ => 0,
        };
        device.Arena.Release(scratchStart);
        return matrix.IsDoubleQuantized
            ? new FourBitMatrix(matrix.Code, matrix.Out, matrix.In, matrix.Packed, matrix.AbsmaxCodes, matrix.NestedAbsmax, matrix.NestedMap, offset)
            : matrix;
    }
}
