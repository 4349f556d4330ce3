using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;

namespace LoraTrainer.Engine.Quantization;

public sealed unsafe partial class Int8Quantizer
{
    private void AddCpu(CpuDevice cpu, ReadOnlySpan<float> values)
    {
        int columns = matrix.In;
        fixed (float* source = values)
        {
            var work = new QuantizeWork
            {
                Source = source, Columns = columns, Codes = matrix.Codes.I8 + row * columns, Scales = matrix.Scales.F32 + row, Split = new RowSplit(values.Length / columns, cpu.ThreadCount, 8),
            };
            cpu.Pool.Run(work.Split.Parts, ref work);
        }
    }

    private struct QuantizeWork : IParallelWork
    {
        public float* Source, Scales;
        public sbyte* Codes;
        public int Columns;
        public RowSplit Split;

        public readonly void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long r = start; r < end; r++)
            {
                float* values = Source + r * Columns;
                float absmax = 0;
                for (int i = 0; i < Columns; i++)
                {
                    absmax = Math.Max(absmax, Math.Abs((float)(Half)values[i]));
                }

                // The reciprocal times 127, two roundings; 127 / absmax differs from it in a few codes.
                float inverse = absmax == 0 ? 0 : 1 / absmax * 127;
                for (int i = 0; i < Columns; i++)
                {
                    Codes[r * Columns + i] = (sbyte)MathF.Round((float)(Half)values[i] * inverse, MidpointRounding.ToEven);
                }

                Scales[r] = absmax / 127;
            }
        }
    }
}
