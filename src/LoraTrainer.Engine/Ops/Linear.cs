using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// Matrix products of a linear layer, y = x W^T with W (Out, In), in the three forms that training needs. On the CPU each output
/// element is one chain of fused multiply-adds over the inner dimension in its order, so the bits depend on neither threads nor instruction set;
/// on a GPU the bits are those of the algorithm that was chosen for the shape, which checkpoints keep.
/// </summary>
public static partial class Linear
{
    /// <summary>output = alpha * input W^T, overwritten or added to as <paramref name="mode"/> says.</summary>
    /// <param name="output">(N, Out) activations, or f32 (logits)</param>
    /// <param name="input">(N, In) activations, or such columns of a wider matrix</param>
    /// <param name="weight">(Out, In)</param>
    /// <param name="mode">Overwrite, or add to what is there.</param>
    /// <param name="alpha">Multiplies the input.</param>
    public static void Forward(Tensor output, MatrixColumns input, WeightMatrix weight, GradientMode mode = GradientMode.Overwrite, float alpha = 1)
    {
        const string op = "Linear.Forward";
        (long n, long _) = Contract.ExpectActivations(op, input.Whole, nameof(input));
        Contract.Expect(op, input, input.DType, n, weight.In);
        Contract.Expect(op, output, output.DType == DType.F32 ? DType.F32 : input.DType, n, weight.Out);
        Contract.ExpectNoAlias(op, output, input.Whole, inputName: nameof(input));
        Product(op, output, input, weight, transposeWeight: true, mode, alpha);
    }

    /// <summary>dInput = alpha * dOutput W, overwritten or added to as <paramref name="mode"/> says.</summary>
    /// <param name="dInput">(N, In) activations, or such columns of a wider matrix, whose others keep their content; not with a quantized matrix</param>
    /// <param name="dOutput">(N, Out) activations</param>
    /// <param name="weight">(Out, In)</param>
    /// <param name="mode">Overwrite, or add to what is there.</param>
    /// <param name="alpha">Multiplies dOutput.</param>
    public static void BackwardInput(MatrixColumns dInput, Tensor dOutput, WeightMatrix weight, GradientMode mode = GradientMode.Overwrite, float alpha = 1)
    {
        const string op = "Linear.BackwardInput";
        (long n, long _) = Contract.ExpectActivations(op, dOutput);
        Contract.Expect(op, dOutput, dOutput.DType, n, weight.Out);
        Contract.Expect(op, dInput, dOutput.DType, n, weight.In);
        Contract.ExpectNoAlias(op, dInput.Whole, dOutput, nameof(dInput));
        if (!dInput.IsAll && weight is not DenseMatrix)
        {
            throw new ShapeMismatchException($"{op}: with a quantized matrix dInput must be a matrix of its own, got {dInput.Count} columns of {dInput.Whole.Shape}.");
        }

        Product(op, dInput, dOutput, weight, transposeWeight: false, mode, alpha);
    }

    /// <summary>dWeight ACCUMULATES alpha * dOutput^T input.</summary>
    /// <param name="dWeight">(Out, In) f32</param>
    /// <param name="dOutput">(N, Out) activations</param>
    /// <param name="input">(N, In) activations, or such columns of a wider matrix</param>
    /// <param name="alpha">Multiplies dOutput.</param>
    public static void BackwardWeight(Tensor dWeight, Tensor dOutput, MatrixColumns input, float alpha = 1)
    {
        const string op = "Linear.BackwardWeight";
        (long n, long _) = Contract.ExpectActivations(op, input.Whole, nameof(input));
        (long _, long height) = Contract.ExpectActivations(op, dOutput);
        long width = input.Count;
        Contract.Expect(op, dOutput, input.DType, n, height);
        Contract.Expect(op, dWeight, DType.F32, height, width);
        Contract.ExpectSameDevice(op, dWeight, dOutput, input.Whole);
        Device device = dWeight.Device;
        using ArenaFrame frame = device.Arena.Frame();
        Tensor workspace = device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(Workspace(device)));
        switch (device)
        {
            case CpuDevice cpu:
                BackwardWeightCpu(cpu, workspace, dWeight, dOutput, input, alpha);
                break;
            case CudaDevice cuda:
                BackwardWeightCuda(cuda, workspace, dWeight, dOutput, input, alpha);
                break;
            case MeasureDevice measure:
                measure.Count(WorkKind.Product, 2.0 * n * width * height, 2.0 * dWeight.SizeBytes + dOutput.SizeBytes + input.SizeBytes);
                break;
            default:
                Contract.ThrowNoKernel(op, device);
                break;
        }
    }

    /// <summary>Bytes that one product needs: packed panels on the CPU, what cuBLASLt may use on a GPU.</summary>
    internal static long Workspace(Device device) => device.Platform == DevicePlatform.Cuda ? CudaGemm.WorkspaceBytes : CpuGemm.WorkspaceBytes(device.ThreadCount);

    /// <summary>Elements that a GPU expands at once of a matrix of signed bytes: all of a layer of an 8B model, a part of its output layer.</summary>
    private const long LargestExpansion = 1L << 26;

    /// <summary>Where a device that computes in bf16 expands a quantized matrix just before its product; the CPU in f32 dequantizes while it packs.</summary>
    /// <param name="device">Where it lies.</param>
    /// <param name="weight">The matrix.</param>
    /// <param name="largest">Elements that a GPU expands at once, where it can take a part of the rows.</param>
    internal static Tensor ExpansionScratch(Device device, WeightMatrix weight, long largest = LargestExpansion) => device.ComputesInBF16 && weight is not DenseMatrix
        ? device.Arena.Allocate(MemoryKind.Workspace, DType.BF16, new Shape(ExpandedRows(device, weight, largest), weight.In))
        : Tensor.None;

    /// <summary>Rows that are expanded at once.</summary>
    private static long ExpandedRows(Device device, WeightMatrix weight, long largest) =>
        device.Platform == DevicePlatform.Cuda && weight is Int8Matrix ? Math.Clamp(largest / weight.In, 1, weight.Out) : weight.Out;

    /// <summary>The product with the matrix or its transpose; see <see cref="Forward"/> and <see cref="BackwardInput"/>. For tests, which cannot wait for large matrices.</summary>
    internal static void Product(
        string op, MatrixColumns output, MatrixColumns input, WeightMatrix weight, bool transposeWeight, GradientMode mode, float alpha, long largestExpansion = LargestExpansion)
    {
        Contract.ExpectSameDevice(op, output.Whole, input.Whole);
        Device device = output.Device;
        using ArenaFrame frame = device.Arena.Frame();
        Tensor workspace = device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(Workspace(device)));
        Tensor expanded = ExpansionScratch(device, weight, largestExpansion);

        // Where a GPU takes a matrix in parts their products are summed in f32, so that the sum is rounded once.
        Tensor sums = device.Platform == DevicePlatform.Cuda && !expanded.IsNone && expanded.Shape[0] < weight.Out && !transposeWeight && mode == GradientMode.Overwrite && output.DType == DType.BF16
            ? device.Arena.Allocate(MemoryKind.Workspace, DType.F32, output.Whole.Shape)
            : Tensor.None;
        switch (device)
        {
            case CpuDevice cpu:
                ProductCpu(cpu, workspace, expanded, output, input, weight, transposeWeight, mode, alpha);

                // Of columns beside these nothing changes: they are rounded already, or not yet written.
                cpu.RoundActivations(output.Whole);
                break;
            case CudaDevice cuda:
                ProductCuda(cuda, workspace, expanded, sums, output, input, weight, transposeWeight, mode, alpha);
                break;
            case MeasureDevice measure:
                CountProduct(measure, output, input, weight);
                break;
            default:
                Contract.ThrowNoKernel(op, device);
                break;
        }
    }

    /// <summary>A quantized matrix is expanded for each product: on a GPU into the scratch, on the CPU into the packed panels.</summary>
    private static void CountProduct(MeasureDevice measure, MatrixColumns output, MatrixColumns input, WeightMatrix weight)
    {
        double elements = (double)weight.In * weight.Out;
        double expanded = elements * measure.ActivationType.SizeBytes();
        bool isExpanded = weight is not DenseMatrix;
        if (isExpanded)
        {
            measure.Count(WorkKind.Expansion, 0, weight.SizeBytes + expanded);
        }

        measure.Count(WorkKind.Product, 2 * input.Rows * elements, output.SizeBytes + input.SizeBytes + (isExpanded ? expanded : weight.SizeBytes));
    }
}
