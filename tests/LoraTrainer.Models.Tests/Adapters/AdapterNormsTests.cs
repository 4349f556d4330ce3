using System.Runtime.InteropServices;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests.Adapters;

public sealed class AdapterNormsTests
{
    [Fact]
    public void Of_IsTheNormOfTheProduct()
    {
        using var folder = new TemporaryFolder();
        var random = new Random(5);
        var writer = new SafetensorsWriter();
        const int rank = 3, columns = 11, rows = 7;
        float[] a = Draw(rank * columns), b = Draw(rows * rank);
        Add("model.layers.10.mlp.up_proj", a, b);
        Add("model.layers.2.mlp.up_proj", a, new float[rows * rank]);
        PeftAdapterFolder.Save(folder.Path, new AdapterConfig { R = rank, LoraAlpha = 6, TargetModules = ModuleNames.Of("up_proj"), AlphaPattern = [KeyValuePair.Create("layers.10.mlp.up_proj", 12.0)] }, writer);
        using PeftAdapterFolder adapter = PeftAdapterFolder.Open(folder.Path);
        IReadOnlyList<AdapterNorms> norms = AdapterNorms.Of(adapter);

        Assert.Equal(["model.layers.2.mlp.up_proj", "model.layers.10.mlp.up_proj"], norms.Select(item => item.Module));
        Assert.Equal((0, 0), (norms[0].B, norms[0].Update));
        double square = 0;
        for (int row = 0; row < rows; row++)
        {
            for (int column = 0; column < columns; column++)
            {
                double product = Enumerable.Range(0, rank).Sum(k => (double)b[row * rank + k] * a[k * columns + column]);
                square += product * product;
            }
        }

        AdapterNorms learned = norms[1];
        Assert.Equal((rows, columns, rank, 4.0), (learned.Out, learned.In, learned.Rank, learned.Scaling));
        Assert.Equal(4 * Math.Sqrt(square), learned.Update, 1e-12);
        Assert.Equal(Math.Sqrt(a.Sum(value => (double)value * value)), learned.A, 1e-12);
        Assert.Equal(Math.Sqrt(b.Sum(value => (double)value * value)), learned.B, 1e-12);
        Assert.Equal((10, null), (AdapterNorms.LayerOf(learned.Module), AdapterNorms.LayerOf("lm_head")));

        float[] Draw(int count) => [.. Enumerable.Range(0, count).Select(_ => (float)(random.NextDouble() - 0.5))];

        void Add(string module, float[] first, float[] second)
        {
            writer.Add($"base_model.model.{module}.lora_A.weight", SafetensorsDType.F32, [rank, columns], MemoryMarshal.AsBytes<float>(first).ToArray());
            writer.Add($"base_model.model.{module}.lora_B.weight", SafetensorsDType.F32, [rows, rank], MemoryMarshal.AsBytes<float>(second).ToArray());
        }
    }
}
