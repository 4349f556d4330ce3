using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class Dropout
{
    private static void ApplyCuda(CudaDevice cuda, Tensor output, Tensor input, float probability, DropoutKey key)
    {
        float keepProbability = 1 - probability;
        cuda.Launch(
            CudaKernels.DropoutApply, LaunchShape.EightEach(input.ElementCount),
            output, input, input.ElementCount, (int)input.Shape[1], key.FirstRow, CounterRandom.KeepThreshold(keepProbability), 1 / keepProbability, key.Seed, key.Stream, key.Step,
            key.Numbers);
    }
}
