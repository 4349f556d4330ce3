using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static unsafe partial class GeGlu
{
    private const float SqrtTwoOverPi = 0.7978845608028654f;
    private const float Cubic = 0.044715f;

    private static void ForwardCpu(CpuDevice cpu, Tensor output, Tensor gate, Tensor up)
    {
        var work = new ForwardWork(output.F32, gate.F32, up.F32, gate.ElementCount, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    private static void BackwardCpu(CpuDevice cpu, Tensor dGate, Tensor dUp, Tensor dOutput, Tensor gate, Tensor up)
    {
        var work = new BackwardWork(dGate.F32, dUp.F32, dOutput.F32, gate.F32, up.F32, gate.ElementCount, cpu.ThreadCount);
        cpu.Pool.Run(work.Split.Parts, ref work);
    }

    /// <summary>tanh(c * (a + 0.044715 a^3)) for a and its square.</summary>
    private static Vector512<float> Inner(Vector512<float> a, Vector512<float> square) =>
        VectorMath.Tanh(Vector512.Create(SqrtTwoOverPi) * (a * Vector512.FusedMultiplyAdd(square, Vector512.Create(Cubic), Vector512<float>.One)));

    private readonly struct ForwardWork(float* output, float* gate, float* up, long count, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new((count + 15) / 16, threads, 256);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            Vector512<float> half = Vector512.Create(0.5f);
            for (long i = start * 16; i < end * 16; i += 16)
            {
                // The last vector may be a part: what follows a slice of a tensor is someone else's.
                long lanes = count - i;
                Vector512<float> a = VectorMath.Load(gate + i, lanes);
                Vector512<float> t = Inner(a, a * a);
                VectorMath.Store(a * half * (Vector512<float>.One + t) * VectorMath.Load(up + i, lanes), output + i, lanes);
            }
        }
    }

    private readonly struct BackwardWork(float* dGate, float* dUp, float* dOutput, float* gate, float* up, long count, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new((count + 15) / 16, threads, 256);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            Vector512<float> half = Vector512.Create(0.5f), one = Vector512<float>.One;
            for (long i = start * 16; i < end * 16; i += 16)
            {
                long lanes = count - i;
                Vector512<float> a = VectorMath.Load(gate + i, lanes);
                Vector512<float> b = VectorMath.Load(up + i, lanes);
                Vector512<float> dh = VectorMath.Load(dOutput + i, lanes);
                Vector512<float> square = a * a;
                Vector512<float> t = Inner(a, square);
                Vector512<float> rise = Vector512.FusedMultiplyAdd(-t, t, one);
                Vector512<float> inside = Vector512.Create(SqrtTwoOverPi) * Vector512.FusedMultiplyAdd(square, Vector512.Create(3 * Cubic), one);

                // Where tanh is flat, a^2 may be infinite, and 0 * infinity is not what is meant.
                Vector512<float> bend = Vector512.ConditionalSelect(Vector512.Equals(rise, Vector512<float>.Zero), Vector512<float>.Zero, a * rise * inside);
                Vector512<float> slope = half * ((one + t) + bend);
                VectorMath.Store(dh * (a * half * (one + t)), dUp + i, lanes);
                VectorMath.Store(dh * b * slope, dGate + i, lanes);
            }
        }
    }
}
