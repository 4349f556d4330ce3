using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Quantization;

public sealed partial class Int8Quantizer
{
    private void AddCuda(CudaDevice cuda, ReadOnlySpan<float> values)
    {
        int columns = matrix.In, rows = values.Length / columns;
        Tensor source = piece.Rows(0, rows);
        cuda.Upload(source, MemoryMarshal.AsBytes(values));
        cuda.Launch(CudaKernels.Int8Quantize, LaunchShape.PerRow(rows, columns), matrix.Codes.Rows(row, rows), matrix.Scales.Slice(row, new Shape(rows)), source, rows, columns);
    }
}
