using System.Buffers;
using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

public static partial class EmbeddingNoise
{
    private static void AddCuda(CudaDevice cuda, Tensor magnitudes, Tensor embedded, ReadOnlySpan<int> offsets, float alpha, DropoutKey key)
    {
        (int rows, int width) = ((int)embedded.Shape[0], (int)embedded.Shape[1]);
        float[] rented = ArrayPool<float>.Shared.Rent(rows);
        for (int document = 0; document + 1 < offsets.Length; document++)
        {
            int tokens = offsets[document + 1] - offsets[document];
            rented.AsSpan(offsets[document], tokens).Fill(MagnitudeOf(alpha, tokens, width));
        }

        cuda.Upload(magnitudes, MemoryMarshal.AsBytes(rented.AsSpan(0, rows)));
        ArrayPool<float>.Shared.Return(rented);
        cuda.Launch(
            CudaKernels.EmbeddingNoise, LaunchShape.EightEach(embedded.ElementCount),
            embedded, magnitudes, rows, width, (ulong)key.FirstRow * (ulong)width, key.Seed, key.Stream, key.Step);
    }
}
