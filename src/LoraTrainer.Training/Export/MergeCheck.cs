using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Export;

/// <summary>How far the logits of a merged model are from those of base and adapter, on the same tokens.</summary>
public sealed record MergeCheck
{
    // Long enough for attention to matter, few enough that the logits of a large vocabulary stay small.
    private const int Rows = 2;
    private const int RowTokens = 32;

    /// <summary>Positions that were compared.</summary>
    public required int Positions { get; init; }

    /// <summary>max |merged - adapted| over all logits.</summary>
    public required double LargestDifference { get; init; }

    /// <summary>The same between the base alone and base with adapter: what the adapter does.</summary>
    public required double AdapterEffect { get; init; }

    /// <summary>Root mean square of the difference over that of the logits, the mean of each position taken away.</summary>
    public required double RelativeError { get; init; }

    /// <summary>What <see cref="RelativeError"/> may be.</summary>
    public required double Limit { get; init; }

    /// <summary>Share of the positions at which both have the same most likely token.</summary>
    public required double SameToken { get; init; }

    public bool Passes => RelativeError <= Limit;

    /// <summary>Runs both models, one after the other, on tokens drawn from a fixed seed. Each is in memory as a whole while it runs.</summary>
    /// <param name="adapted">Base and adapter, as trained.</param>
    /// <param name="mergedFolder">The merged model.</param>
    /// <param name="stored">The type of its weights, which decides what rounding costs.</param>
    /// <param name="selection">Where both compute.</param>
    /// <param name="notice">Receives what the user should see but need not act on.</param>
    public static MergeCheck Run(TextModelSource adapted, string mergedFolder, SafetensorsDType stored, DeviceSelection selection, Action<string> notice)
    {
        float[] expected, alone;
        int vocabulary;
        using (LoadedModel model = Load(adapted, selection, notice))
        {
            vocabulary = model.Model.Config.VocabSize;
            expected = Logits(model.Model);
            model.Adapters!.SetActive(false);
            alone = Logits(model.Model);
        }

        using LoadedModel merged = Load(new TextModelSource(mergedFolder, null, BaseFormat.AsStored), selection, notice);
        return Compare(expected, alone, Logits(merged.Model), vocabulary, Limits(stored, selection.Platform));
    }

    internal static MergeCheck Compare(float[] expected, float[] alone, float[] merged, int vocabulary, double limit)
    {
        if (merged.Length != expected.Length)
        {
            throw new TrainingSetupException($"The merged model has another vocabulary than base and adapter: {merged.Length} logits, expected {expected.Length}. This cannot be compared.");
        }

        double largest = 0, effect = 0, error = 0, spread = 0;
        int same = 0, positions = expected.Length / vocabulary;
        for (int position = 0; position < positions; position++)
        {
            ReadOnlySpan<float> wanted = expected.AsSpan(position * vocabulary, vocabulary), got = merged.AsSpan(position * vocabulary, vocabulary), without = alone.AsSpan(position * vocabulary, vocabulary);
            double mean = 0;
            foreach (float value in wanted)
            {
                mean += value;
            }

            mean /= vocabulary;
            int bestWanted = 0, bestGot = 0;
            for (int i = 0; i < vocabulary; i++)
            {
                double difference = Math.Abs((double)got[i] - wanted[i]);
                largest = Math.Max(largest, difference);
                effect = Math.Max(effect, Math.Abs((double)without[i] - wanted[i]));
                error += difference * difference;
                spread += (wanted[i] - mean) * (wanted[i] - mean);
                bestWanted = wanted[i] > wanted[bestWanted] ? i : bestWanted;
                bestGot = got[i] > got[bestGot] ? i : bestGot;
            }

            same += bestWanted == bestGot ? 1 : 0;
        }

        return new MergeCheck
        {
            Positions = positions,
            LargestDifference = largest,
            AdapterEffect = effect,
            RelativeError = Math.Sqrt(error / spread),
            Limit = limit,
            SameToken = (double)same / positions,
        };
    }

    /// <summary>
    /// A weight is rounded by at most 2^-9 of itself in bf16 and 2^-12 in f16; through the layers of a model that grows to a few times as much. A product that was
    /// forgotten or added twice is far beyond. A GPU computes in bf16, whatever is stored.
    /// </summary>
    private static double Limits(SafetensorsDType stored, DevicePlatform platform) =>
        stored == SafetensorsDType.BF16 || platform == DevicePlatform.Cuda ? 0.05 : stored == SafetensorsDType.F16 ? 0.01 : 1e-4;

    private static LoadedModel Load(TextModelSource source, DeviceSelection selection, Action<string> notice) =>
        LoadedModel.Load(source, selection, model => _ = Logits(model), "Leave --verify out, or verify with --device cpu.", notice);

    /// <summary>(positions, V)</summary>
    private static float[] Logits(CausalLanguageModel model)
    {
        int length = Math.Min(RowTokens, model.Config.MaxPositionEmbeddings);
        int[] tokens = new int[Rows * length], positions = new int[tokens.Length];
        var random = new CounterRandom(seed: 1, RandomStreams.Sampling, 0);
        for (int i = 0; i < tokens.Length; i++)
        {
            tokens[i] = (int)Math.Min(random.Uniform((ulong)i) * model.Config.VocabSize, model.Config.VocabSize - 1);
            positions[i] = i % length;
        }

        using ArenaFrame frame = model.Device.Arena.Frame();
        PackedBatch batch = PackedBatch.Upload(model.Device, tokens, positions, Enumerable.Range(0, Rows + 1).Select(row => row * length).ToArray());
        Tensor logits = model.Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(tokens.Length, model.Config.VocabSize));
        model.Logits(logits, batch);
        float[] values = new float[model.Device is MeasureDevice ? 0 : logits.ElementCount];
        if (values.Length > 0)
        {
            model.Device.Download(logits, MemoryMarshal.AsBytes(values.AsSpan()));
        }

        return values;
    }
}
