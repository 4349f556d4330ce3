using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Quantization;

/// <summary>
/// Quantizes one matrix to NF4 on its device while it streams in: <see cref="Add"/> takes it piece by piece in row-major order,
/// <see cref="Finish"/> gives the matrix. What the matrix keeps is allocated first, so that scratch memory above it can go again.
/// </summary>
public sealed partial class Nf4Quantizer
{
    private readonly Device device;
    private readonly int rows;
    private readonly int columns;
    private readonly Tensor packed;
    private readonly Tensor absmaxCodes;
    private readonly Tensor nestedAbsmax;
    private readonly Tensor nestedMap;
    private readonly Arena.FrameMark scratchStart;
    private readonly Tensor absmax;
    private long position;

    /// <param name="device">Where the matrix is to live.</param>
    /// <param name="rows">Out</param>
    /// <param name="columns">In</param>
    /// <param name="doubleQuantized">Quantize the scales too.</param>
    public Nf4Quantizer(Device device, int rows, int columns, bool doubleQuantized)
    {
        this.device = device;
        this.rows = rows;
        this.columns = columns;
        long elements = (long)rows * columns;
        long blocks = (elements + Nf4.Blocksize - 1) / Nf4.Blocksize;
        Arena arena = device.Arena;
        packed = arena.Allocate(MemoryKind.Weights, DType.U8, new Shape((elements + 1) / 2));
        if (doubleQuantized)
        {
            absmaxCodes = arena.Allocate(MemoryKind.Weights, DType.U8, new Shape(blocks));
            nestedAbsmax = arena.Allocate(MemoryKind.Weights, DType.F32, new Shape((blocks + FourBitBlocks.NestedBlocksize - 1) / FourBitBlocks.NestedBlocksize));
            nestedMap = arena.Allocate(MemoryKind.Weights, DType.F32, new Shape(FourBitBlocks.NestedBlocksize));
        }

        scratchStart = arena.Mark();
        absmax = arena.Allocate(doubleQuantized ? MemoryKind.Workspace : MemoryKind.Weights, DType.F32, new Shape(blocks));
    }

    /// <summary>The next piece: a multiple of 64 elements, except for the last.</summary>
    public void Add(ReadOnlySpan<float> values)
    {
        if (device is CpuDevice cpu)
        {
            AddCpu(cpu, values);
        }

        position += values.Length;
    }

    /// <summary>The matrix, once every element was added.</summary>
    public Nf4Matrix Finish()
    {
        if (absmaxCodes.IsNone)
        {
            return new Nf4Matrix(rows, columns, packed, absmax);
        }

        float offset = device is CpuDevice cpu ? NestCpu(cpu) : 0;
        device.Arena.Release(scratchStart);
        return new Nf4Matrix(rows, columns, packed, absmaxCodes, nestedAbsmax, nestedMap, offset);
    }
}
