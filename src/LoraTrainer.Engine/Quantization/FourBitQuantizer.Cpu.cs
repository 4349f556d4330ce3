using LoraTrainer.Engine.Devices;

namespace LoraTrainer.Engine.Quantization;

public sealed unsafe partial class FourBitQuantizer
{
    private void AddCpu(CpuDevice cpu, ReadOnlySpan<float> values)
    {
        fixed (float* source = values)
        {
            BlockwiseFourBit.Quantize(cpu.Pool, matrix.Code, source, FloatFormat.F32, values.Length, matrix.Packed.U8 + position / 2, absmax.F32 + position / BlockwiseFourBit.Blocksize, position);
        }
    }

    private float NestCpu(CpuDevice cpu)
    {
        long blocks = absmax.ElementCount;
        float offset = DoubleQuantization.Offset(absmax.F32, blocks);
        DoubleQuantization.Quantize(cpu.Pool, absmax.F32, blocks, offset, matrix.AbsmaxCodes.U8, matrix.NestedAbsmax.F32);
        new ReadOnlySpan<float>(DynamicMap.Signed.Values, DynamicMap.Entries).CopyTo(new Span<float>(matrix.NestedMap.F32, DynamicMap.Entries));
        return offset;
    }
}
