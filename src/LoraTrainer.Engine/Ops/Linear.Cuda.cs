using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Linear
{
    private static void ProductCuda(CudaDevice cuda, Tensor workspace, Tensor expanded, Tensor output, Tensor input, WeightMatrix weight, bool transposeWeight, GradientMode mode, float alpha)
    {
        Tensor values = weight switch
        {
            DenseMatrix { Values.DType: DType.BF16 } dense => dense.Values,
            Nf4Matrix nf4 => Expand(cuda, expanded, nf4),
            _ => throw new NotSupportedException($"A GPU has no kernel for {weight.GetType().Name} in this type."),
        };
        cuda.Gemm.Multiply(workspace, new GemmCall
        {
            A = input, B = values, C = output,
            M = (int)input.Shape[0], N = (int)output.Shape[1], K = (int)input.Shape[1],
            TransposeB = transposeWeight, Alpha = alpha, Accumulate = mode == GradientMode.Accumulate,
        });
    }

    private static void BackwardWeightCuda(CudaDevice cuda, Tensor workspace, Tensor dWeight, Tensor dOutput, Tensor input, float alpha) =>
        cuda.Gemm.Multiply(workspace, new GemmCall
        {
            A = dOutput, B = input, C = dWeight,
            M = (int)dWeight.Shape[0], N = (int)dWeight.Shape[1], K = (int)input.Shape[0],
            TransposeA = true, Alpha = alpha, Accumulate = true,
        });

    /// <summary>The whole matrix in bf16, in memory that the next product uses again.</summary>
    private static Tensor Expand(CudaDevice cuda, Tensor expanded, Nf4Matrix matrix)
    {
        long count = expanded.ElementCount;
        if (matrix.IsDoubleQuantized)
        {
            cuda.Launch(
                CudaKernels.Nf4DequantizeDouble, CudaGrid.OfPacked(count), CudaGrid.Block,
                [expanded.Address, matrix.Packed.Address, matrix.AbsmaxCodes.Address, matrix.NestedAbsmax.Address, matrix.NestedMap.Address, matrix.Offset, count]);
        }
        else
        {
            cuda.Launch(CudaKernels.Nf4Dequantize, CudaGrid.OfPacked(count), CudaGrid.Block, [expanded.Address, matrix.Packed.Address, matrix.Absmax.Address, count]);
        }

        return expanded;
    }
}
