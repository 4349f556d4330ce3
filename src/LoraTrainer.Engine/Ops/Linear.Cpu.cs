using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Linear
{
    // expanded: where a CPU that rounds to bf16 puts the values of a quantized matrix; none otherwise.
    private static void ProductCpu(CpuDevice cpu, Tensor workspace, Tensor expanded, Tensor output, Tensor input, WeightMatrix weight, bool transposeWeight, GradientMode mode, float alpha)
    {
        int m = (int)input.Shape[0];
        int n = (int)output.Shape[1];
        int k = (int)input.Shape[1];
        CpuGemm.Run(
            cpu.Pool, workspace.U8, m, n, k, GemmOperand.F32(input.F32, k), Operand(expanded.IsNone ? weight : Expand(cpu, expanded, (Nf4Matrix)weight), transposeWeight), output.F32, n, alpha, mode == GradientMode.Accumulate);
    }

    private static void BackwardWeightCpu(CpuDevice cpu, Tensor workspace, Tensor dWeight, Tensor dOutput, Tensor input, float alpha)
    {
        int m = (int)dWeight.Shape[0];
        int n = (int)dWeight.Shape[1];
        int k = (int)input.Shape[0];
        CpuGemm.Run(
            cpu.Pool, workspace.U8, m, n, k, GemmOperand.F32(dOutput.F32, m, transposed: true), GemmOperand.F32(input.F32, n), dWeight.F32, n, alpha, accumulate: true);
    }

    private static DenseMatrix Expand(CpuDevice cpu, Tensor expanded, Nf4Matrix matrix)
    {
        var work = new ExpandWork(expanded.BF16, matrix.Blocks, expanded.ElementCount, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
        return new DenseMatrix(expanded);
    }

    private readonly struct ExpandWork(ushort* output, FourBitBlocks blocks, long count, int threads) : IParallelWork
    {
        private const int PieceElements = 512;

        public readonly RowSplit Split = new((count + PieceElements - 1) / PieceElements, threads, 8);

        public void Execute(int part, int worker)
        {
            float* values = stackalloc float[PieceElements];
            (long start, long end) = Split.Of(part);
            for (long first = start * PieceElements; first < Math.Min(count, end * PieceElements); first += PieceElements)
            {
                int piece = (int)Math.Min(PieceElements, count - first);
                blocks.Dequantize(first, piece, values);
                for (int i = 0; i < piece; i++)
                {
                    output[first + i] = BrainFloat.FromSingle(values[i]);
                }
            }
        }
    }

    private static GemmOperand Operand(WeightMatrix weight, bool transposed)
    {
        switch (weight)
        {
            case DenseMatrix { Values.DType: DType.BF16 } dense:
                return GemmOperand.BF16(dense.Values.BF16, weight.In, transposed);
            case DenseMatrix dense:
                return GemmOperand.F32(dense.Values.F32, weight.In, transposed);
            case Nf4Matrix nf4:
                return GemmOperand.FourBit(nf4.Blocks, weight.In, transposed);
            default:
                throw new NotSupportedException($"The CPU has no kernel for {weight.GetType().Name}.");
        }
    }
}
