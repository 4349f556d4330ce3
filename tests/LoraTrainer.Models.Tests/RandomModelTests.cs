using System.Text;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests;

public sealed class RandomModelTests
{
    private const string Shape = """
        {
          "model_type": "llama", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
          "num_key_value_heads": 2, "vocab_size": 4001, "attention_bias": true, "mlp_bias": true, "initializer_range": 0.05
        }
        """;

    [Theory]
    [InlineData(null, SafetensorsDType.BF16)]
    [InlineData("float32", SafetensorsDType.F32)]
    [InlineData("float16", SafetensorsDType.F16)]
    public void Write_EveryDType_HoldsTheDocumentedNumbers(string? dtype, SafetensorsDType expected)
    {
        using var temporary = new TemporaryFolder();
        ModelConfig config = Write(temporary.Path, dtype, largestFileBytes: long.MaxValue);
        using ModelFolder folder = ModelFolder.Open(temporary.Path);
        Assert.Empty(ModelConfig.Parse(temporary.Path).CheckTensors(folder).Notices);
        uint stream = 0;
        foreach (ExpectedTensor tensor in config.ExpectedTensors())
        {
            ModelTensor stored = folder.Find(tensor.Name)!.Value;
            Assert.Equal(expected, stored.Entry.DType);
            byte[] bytes = Read(stored);
            float[] values = new float[bytes.Length * 8 / expected.Bits()];
            FloatConversion.ToSingle(expected, bytes, values);
            if (tensor.Shape.Length == 1)
            {
                Assert.All(values, value => Assert.Equal(tensor.Name.EndsWith(".bias", StringComparison.Ordinal) ? 0 : 1, value));
            }
            else
            {
                // The definition, number by number.
                var random = new CounterRandom(7, stream, 0);
                float[] drawn = [.. Enumerable.Range(0, values.Length).Select(i => (float)(0.05 * random.Normal((ulong)i)))];
                byte[] rounded = new byte[bytes.Length];
                FloatConversion.FromSingle(expected, drawn, rounded);
                Assert.Equal(rounded, bytes);
                double error = 5 * 0.05 / Math.Sqrt(values.Length);
                Assert.InRange(values.Average(), -error, error);
                Assert.InRange(Math.Sqrt(values.Average(value => (double)value * value)), 0.05 - error, 0.05 + error);
            }

            stream++;
        }
    }

    [Fact]
    public void Write_InShards_HoldsTheSameTensors()
    {
        using var one = new TemporaryFolder();
        using var many = new TemporaryFolder();
        ModelConfig config = Write(one.Path, null, long.MaxValue);
        Write(many.Path, null, largestFileBytes: 400_000);
        using ModelFolder whole = ModelFolder.Open(one.Path);
        using ModelFolder shards = ModelFolder.Open(many.Path);
        Assert.Single(whole.Files);
        Assert.True(shards.Files.Count >= 3, $"{shards.Files.Count} files");
        Assert.EndsWith($"model-00001-of-{shards.Files.Count:D5}.safetensors", shards.Files[0].Path, StringComparison.Ordinal);
        Assert.Equal(whole.TotalBytes, shards.TotalBytes);
        Assert.Empty(config.CheckTensors(shards).Notices);
        foreach (ExpectedTensor tensor in config.ExpectedTensors())
        {
            Assert.Equal(Read(whole.Find(tensor.Name)!.Value), Read(shards.Find(tensor.Name)!.Value));
        }
    }

    private static byte[] Read(ModelTensor tensor)
    {
        byte[] bytes = new byte[tensor.Entry.ByteLength];
        tensor.ReadInto(0, bytes);
        return bytes;
    }

    private static ModelConfig Write(string folder, string? dtype, long largestFileBytes)
    {
        string json = dtype is null ? Shape : Shape.Replace("{", $"{{ \"torch_dtype\": \"{dtype}\",", StringComparison.Ordinal);
        ModelConfig config = ModelConfig.Parse("config.json", Encoding.UTF8.GetBytes(json));
        RandomModel.Write(config, folder, seed: 7, largestFileBytes);
        return config;
    }
}
