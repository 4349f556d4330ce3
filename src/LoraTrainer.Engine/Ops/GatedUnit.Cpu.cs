using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

internal static unsafe partial class GatedUnit<TActivation>
{
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

    private readonly struct ForwardWork(float* output, float* gate, float* up, long count, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new((count + 15) / 16, threads, 256);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long i = start * 16; i < end * 16; i += 16)
            {
                // The last vector may be a part: what follows a slice of a tensor is someone else's.
                long lanes = count - i;
                VectorMath.Store(TActivation.Value(VectorMath.Load(gate + i, lanes)) * VectorMath.Load(up + i, lanes), output + i, lanes);
            }
        }
    }

    private readonly struct BackwardWork(float* dGate, float* dUp, float* dOutput, float* gate, float* up, long count, int threads) : IParallelWork
    {
        public readonly RowSplit Split = new((count + 15) / 16, threads, 256);

        public void Execute(int part, int worker)
        {
            (long start, long end) = Split.Of(part);
            for (long i = start * 16; i < end * 16; i += 16)
            {
                long lanes = count - i;
                Vector512<float> b = VectorMath.Load(up + i, lanes);
                Vector512<float> dh = VectorMath.Load(dOutput + i, lanes);
                Vector512<float> value = TActivation.Value(VectorMath.Load(gate + i, lanes), out Vector512<float> slope);
                VectorMath.Store(dh * value, dUp + i, lanes);
                VectorMath.Store(dh * b * slope, dGate + i, lanes);
            }
        }
    }
}
