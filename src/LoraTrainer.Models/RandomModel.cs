using System.Text;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;

namespace LoraTrainer.Models;

/// <summary>
/// Writes a base of a given shape with random weights, as transformers would start it: N(0, initializer_range) for matrices, ones as the gains of norms,
/// zeros for biases. Tensor t of <see cref="ModelConfig.ExpectedTensors"/> draws from stream t of the seed, so the same seed gives the same
/// bytes on every machine.
/// </summary>
public static class RandomModel
{
    /// <summary>Above this the weights are cut into several files.</summary>
    private const long LargestFileBytes = 4_000_000_000;

    /// <summary>Elements that one worker makes at a time.</summary>
    private const int BlockElements = 1 << 13;

    /// <summary>Writes config.json and the weights into a folder.</summary>
    /// <param name="config">The shape; weights are stored as its dtype, bf16 where it names none.</param>
    /// <param name="folder">Exists, and holds no model.</param>
    /// <param name="seed">Of the weights.</param>
    /// <param name="progress">Is told the fraction that is done, after each file.</param>
    public static void Write(ModelConfig config, string folder, ulong seed, Action<double>? progress = null) => Write(config, folder, seed, LargestFileBytes, progress);

    /// <summary>The same, with files of at most <paramref name="largestFileBytes"/> unless a single tensor is larger.</summary>
    internal static void Write(ModelConfig config, string folder, ulong seed, long largestFileBytes, Action<double>? progress = null)
    {
        SafetensorsDType dtype = config.DType ?? SafetensorsDType.BF16;
        ModelFolderWriter.Write(folder, config.ExpectedTensors().Select((tensor, index) => Random(tensor, (uint)index)), dtype, largestFileBytes, progress);
        AtomicFile.WriteAllBytes(Path.Combine(folder, "config.json"), Encoding.UTF8.GetBytes((config with { DType = dtype }).ToJson()));

        WrittenTensor Random(ExpectedTensor tensor, uint stream)
        {
            var random = new CounterRandom(seed, stream, 0);
            return new WrittenTensor(tensor.Name, tensor.Shape, (offset, destination) => Fill(destination, offset, dtype, tensor, random, config));
        }
    }

    /// <summary>Fills a piece of a tensor. Any split into pieces and workers gives the same bytes.</summary>
    private static unsafe void Fill(Span<byte> destination, long offsetBytes, SafetensorsDType dtype, ExpectedTensor tensor, CounterRandom random, ModelConfig config)
    {
        int size = dtype.Bits() / 8;
        int count = destination.Length / size;
        long first = offsetBytes / size;

        // One-dimensional tensors are the gains of norms, 1 in the end, and the biases of linear layers.
        float? constant = tensor.Shape.Length > 1 ? null : tensor.Name.EndsWith(".bias", StringComparison.Ordinal) ? 0 : (float)(1 - config.NormGainOffset);
        fixed (byte* start = destination)
        {
            byte* target = start;
            Parallel.For(0, (count + BlockElements - 1) / BlockElements, block =>
            {
                int begin = block * BlockElements;
                Span<float> values = stackalloc float[Math.Min(BlockElements, count - begin)];
                if (constant is { } value)
                {
                    values.Fill(value);
                }
                else
                {
                    random.FillNormal(values, (ulong)(first + begin));
                    for (int i = 0; i < values.Length; i++)
                    {
                        values[i] = (float)(config.InitializerRange * values[i]);
                    }
                }

                FloatConversion.FromSingle(dtype, values, new Span<byte>(target + ((long)begin * size), values.Length * size));
            });
        }
    }
}
