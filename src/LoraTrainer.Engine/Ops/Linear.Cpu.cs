using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Linear
{
    // expanded: where a CPU that rounds to bf16 puts the values of a quantized matrix; none otherwise.
    private static void ProductCpu(CpuDevice cpu, Tensor workspace, Tensor expanded, MatrixColumns output, MatrixColumns input, WeightMatrix weight, bool transposeWeight, GradientMode mode, float alpha)
    {
        int m = (int)input.Rows;
        int n = (int)output.Count;
        int k = (int)input.Count;
        GemmOperand operand = Operand(Multiplied(cpu, expanded, weight), transposeWeight);
        CpuGemm.Run(
            cpu.Pool, workspace.U8, m, n, k, GemmOperand.F32(input.F32, input.RowStride), operand, output.F32, (int)output.RowStride, alpha, mode == GradientMode.Accumulate);
    }

    private static void BackwardWeightCpu(CpuDevice cpu, Tensor workspace, Tensor dWeight, Tensor dOutput, MatrixColumns input, float alpha)
    {
        int m = (int)dWeight.Shape[0];
        int n = (int)dWeight.Shape[1];
        int k = (int)input.Rows;
        CpuGemm.Run(
            cpu.Pool, workspace.U8, m, n, k, GemmOperand.F32(dOutput.F32, m, transposed: true), GemmOperand.F32(input.F32, input.RowStride), dWeight.F32, n, alpha, accumulate: true);
    }

    /// <summary>The matrix as products multiply with it: where the CPU rounds to bf16 the rounded values of a quantized one.</summary>
    /// <param name="cpu">Where it lies.</param>
    /// <param name="expanded">From <see cref="ExpansionScratch"/>.</param>
    /// <param name="weight">The matrix.</param>
    internal static WeightMatrix Multiplied(CpuDevice cpu, Tensor expanded, WeightMatrix weight) => expanded.IsNone ? weight : Expand(cpu, expanded, weight);

    private static DenseMatrix Expand(CpuDevice cpu, Tensor expanded, WeightMatrix matrix)
    {
        var work = new ExpandWork(expanded.BF16, Operand(matrix, transposed: false), matrix, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
        return new DenseMatrix(expanded);
    }

    private readonly struct ExpandWork(ushort* output, GemmOperand operand, WeightMatrix matrix, int threads) : IParallelWork
    {
        private const int PieceElements = 512;

        private readonly int columns = matrix.In;

        public readonly RowSplit Split = new(matrix.Out, threads, 8);

        public void Execute(int part, int worker)
        {
            float* values = stackalloc float[PieceElements];
            (long start, long end) = Split.Of(part);
            for (long row = start; row < end; row++)
            {
                for (int first = 0; first < columns; first += PieceElements)
                {
                    int piece = Math.Min(PieceElements, columns - first);
                    operand.Load(row, first, piece, values);
                    for (int i = 0; i < piece; i++)
                    {
                        output[row * columns + first + i] = BrainFloat.FromSingle(values[i]);
                    }
                }
            }
        }
    }

    /// <summary>The elements as products multiply with them: those of a quantized matrix dequantized. On the CPU.</summary>
    /// <param name="rows">(count, In) f32, whole rows; overwritten</param>
    /// <param name="weight">In memory of a CPU.</param>
    /// <param name="firstRow">The first of them.</param>
    public static void ReadRows(Span<float> rows, WeightMatrix weight, long firstRow)
    {
        if (rows.Length % weight.In != 0 || firstRow < 0 || firstRow + rows.Length / weight.In > weight.Out)
        {
            throw new ShapeMismatchException($"Linear.ReadRows: {rows.Length} elements from row {firstRow} on are not whole rows of a matrix of {weight.Out} x {weight.In}.");
        }

        GemmOperand operand = Operand(weight, transposed: false);
        fixed (float* target = rows)
        {
            for (int row = 0; row < rows.Length / weight.In; row++)
            {
                operand.Load(firstRow + row, 0, weight.In, target + (long)row * weight.In);
            }
        }
    }

    /// <summary>A matrix as products read it.</summary>
    internal static GemmOperand Operand(WeightMatrix weight, bool transposed)
    {
        switch (weight)
        {
            case DenseMatrix { Values.DType: DType.BF16 } dense:
                return GemmOperand.BF16(dense.Values.BF16, weight.In, transposed);
            case DenseMatrix dense:
                return GemmOperand.F32(dense.Values.F32, weight.In, transposed);
            case FourBitMatrix fourBit:
                return GemmOperand.FourBit(fourBit.Blocks, weight.In, transposed);
            case Int8Matrix int8:
                return GemmOperand.Int8(int8.Codes.I8, int8.Scales.F32, weight.In, transposed);
            default:
                throw new NotSupportedException($"The CPU has no kernel for {weight.GetType().Name}.");
        }
    }
}
