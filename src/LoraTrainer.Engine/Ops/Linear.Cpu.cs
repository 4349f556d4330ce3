using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class Linear
{
    private static void ProductCpu(CpuDevice cpu, Tensor workspace, Tensor output, Tensor input, WeightMatrix weight, bool transposeWeight, GradientMode mode, float alpha)
    {
        int m = (int)input.Shape[0];
        int n = (int)output.Shape[1];
        int k = (int)input.Shape[1];
        CpuGemm.Run(
            cpu.Pool, workspace.U8, m, n, k, GemmOperand.F32(input.F32, k), Operand(weight, transposeWeight), output.F32, n, alpha, mode == GradientMode.Accumulate);
    }

    private static void BackwardWeightCpu(CpuDevice cpu, Tensor workspace, Tensor dWeight, Tensor dOutput, Tensor input, float alpha)
    {
        int m = (int)dWeight.Shape[0];
        int n = (int)dWeight.Shape[1];
        int k = (int)input.Shape[0];
        CpuGemm.Run(
            cpu.Pool, workspace.U8, m, n, k, GemmOperand.F32(dOutput.F32, m, transposed: true), GemmOperand.F32(input.F32, n), dWeight.F32, n, alpha, accumulate: true);
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
