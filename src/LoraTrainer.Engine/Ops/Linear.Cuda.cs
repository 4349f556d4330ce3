using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Linear
{
    private const int ExpandedPerBlock = 8192;
    private const uint ExpansionThreads = 256;

    private static void ProductCuda(
        CudaDevice cuda, Tensor workspace, Tensor expanded, Tensor sums, MatrixColumns output, MatrixColumns input, WeightMatrix weight, bool transposeWeight, GradientMode mode, float alpha)
    {
        if (weight is Int8Matrix bytes && expanded.Shape[0] < bytes.Out)
        {
            ProductInParts(cuda, workspace, expanded, sums, output, input, bytes, transposeWeight, mode, alpha);
            return;
        }

        Tensor values = Multiplied(cuda, expanded, weight);
        cuda.Multiply(new GemmCall
        {
            M = input.Rows,
            N = output.Count,
            K = input.Count,
            A = input.Address,
            LeadingA = input.RowStride,
            B = values.Address,
            LeadingB = weight.In,
            TransposeB = transposeWeight,
            C = output.Address,
            LeadingC = output.RowStride,
            OutputType = output.DType,
            Alpha = alpha,
            Beta = mode == GradientMode.Accumulate ? 1 : 0,
            Workspace = workspace.Address,
            WorkspaceBytes = workspace.SizeBytes,
        });
    }

    /// <summary>Rows of the matrix after rows: each gives columns of x W^T, or a part of the sum that dY W is.</summary>
    private static void ProductInParts(
        CudaDevice cuda, Tensor workspace, Tensor expanded, Tensor sums, MatrixColumns output, MatrixColumns input, Int8Matrix weight, bool transposeWeight, GradientMode mode, float alpha)
    {
        MatrixColumns target = sums.IsNone ? output : sums;
        for (long first = 0; first < weight.Out; first += expanded.Shape[0])
        {
            Int8Matrix part = weight.Rows(first, Math.Min(expanded.Shape[0], weight.Out - first));
            Tensor values = Expand(cuda, expanded.Rows(0, part.Out), part);
            bool adds = mode == GradientMode.Accumulate || (first > 0 && !transposeWeight);
            cuda.Multiply(new GemmCall
            {
                M = input.Rows,
                N = transposeWeight ? part.Out : part.In,
                K = transposeWeight ? part.In : part.Out,
                A = input.Address + (transposeWeight ? 0 : (nint)first * input.DType.SizeBytes()),
                LeadingA = input.RowStride,
                B = values.Address,
                LeadingB = part.In,
                TransposeB = transposeWeight,
                C = target.Address + (transposeWeight ? (nint)first * target.DType.SizeBytes() : 0),
                LeadingC = target.RowStride,
                OutputType = target.DType,
                Alpha = alpha,
                Beta = adds ? 1 : 0,
                Workspace = workspace.Address,
                WorkspaceBytes = workspace.SizeBytes,
            });
        }

        if (!sums.IsNone)
        {
            // They are all columns: parts of columns come from dense matrices only.
            var all = new Shape(sums.ElementCount);
            Cast.ToBF16(output.Whole.Reshape(all), sums.Reshape(all));
        }
    }

    private static void BackwardWeightCuda(CudaDevice cuda, Tensor workspace, Tensor dWeight, Tensor dOutput, MatrixColumns input, float alpha)
    {
        if (input.Rows == 0)
        {
            // No rows add nothing; there is no matrix product without inner elements.
            return;
        }

        cuda.Multiply(new GemmCall
        {
            M = dWeight.Shape[0],
            N = dWeight.Shape[1],
            K = input.Rows,
            A = dOutput.Address,
            LeadingA = dOutput.Shape[1],
            TransposeA = true,
            B = input.Address,
            LeadingB = input.RowStride,
            C = dWeight.Address,
            LeadingC = dWeight.Shape[1],
            OutputType = DType.F32,
            Alpha = alpha,
            Beta = 1,
            Workspace = workspace.Address,
            WorkspaceBytes = workspace.SizeBytes,
        });
    }

    /// <summary>The whole matrix in bf16, as products multiply with it.</summary>
    /// <param name="cuda">Where it lies.</param>
    /// <param name="expanded">From <see cref="ExpansionScratch"/>: a quantized matrix is expanded into it.</param>
    /// <param name="weight">The matrix.</param>
    internal static Tensor Multiplied(CudaDevice cuda, Tensor expanded, WeightMatrix weight) => weight switch
    {
        DenseMatrix { Values.DType: DType.BF16 } dense => dense.Values,
        FourBitMatrix or Int8Matrix => Expand(cuda, expanded, weight),
        _ => throw new NotSupportedException($"A GPU has no kernel for {weight.GetType().Name} of this type."),
    };

    /// <summary>A quantized matrix in memory that the next product uses again.</summary>
    private static Tensor Expand(CudaDevice cuda, Tensor expanded, WeightMatrix matrix)
    {
        long count = expanded.ElementCount;
        LaunchShape shape = LaunchShape.Blocks(LaunchShape.Ceiling(count, ExpandedPerBlock), ExpansionThreads);
        switch (matrix)
        {
            case FourBitMatrix { IsDoubleQuantized: true } fourBit:
                cuda.Launch(
                    fourBit.Code == FourBitCode.Nf4 ? CudaKernels.Nf4DequantizeDouble : CudaKernels.Fp4DequantizeDouble, shape,
                    expanded, fourBit.Packed, fourBit.AbsmaxCodes, fourBit.NestedAbsmax, fourBit.NestedMap, fourBit.Offset, count);
                break;
            case FourBitMatrix fourBit:
                cuda.Launch(fourBit.Code == FourBitCode.Nf4 ? CudaKernels.Nf4Dequantize : CudaKernels.Fp4Dequantize, shape, expanded, fourBit.Packed, fourBit.Absmax, count);
                break;
            case Int8Matrix int8:
                cuda.Launch(CudaKernels.Int8Dequantize, LaunchShape.PerRow(int8.Out, int8.In), expanded, int8.Codes, int8.Scales, int8.Out, int8.In);
                break;
        }

        return expanded;
    }
}
