using System.Runtime.InteropServices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.TestSupport;

namespace LoraTrainer.Kernels.Tests.Ops;

/// <summary>What a quantized matrix on any device stands for, by the CPU's code.</summary>
internal static unsafe class QuantizedValues
{
    public static float[] Of(FourBitMatrix matrix)
    {
        byte[] packed = matrix.Packed.DownloadBytes();
        float[] values = new float[(long)matrix.Out * matrix.In];
        byte[] codes = matrix.IsDoubleQuantized ? matrix.AbsmaxCodes.DownloadBytes() : [];
        float[] scales = (matrix.IsDoubleQuantized ? matrix.NestedAbsmax : matrix.Absmax).Download(), map = matrix.IsDoubleQuantized ? matrix.NestedMap.Download() : [];
        fixed (byte* p = packed, c = codes)
        fixed (float* s = scales, m = map, v = values)
        {
            FourBitBlocks blocks = matrix.IsDoubleQuantized ? new FourBitBlocks(p, matrix.Code.Values, c, s, m, matrix.Offset) : new FourBitBlocks(p, matrix.Code.Values, s);
            blocks.Dequantize(0, values.Length, v);
        }

        return values;
    }

    public static float[] Of(Int8Matrix matrix)
    {
        sbyte[] codes = MemoryMarshal.Cast<byte, sbyte>(matrix.Codes.DownloadBytes()).ToArray();
        float[] scales = matrix.Scales.Download();
        return [.. codes.Select((code, i) => code * scales[i / matrix.In])];
    }
}
