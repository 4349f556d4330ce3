using System.Text;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests.Formats;

/// <summary>Bases that bitsandbytes has quantized already.</summary>
public sealed class StoredMatrixTests
{
    private const string Weight = "model.layers.1.mlp.down_proj.weight";
    private const string State = Weight + ".quant_state.bitsandbytes__nf4";

    public static TheoryData<BaseFormat> Formats => [.. Enum.GetValues<BaseFormat>().Where(format => format != BaseFormat.AsStored)];

    [Theory]
    [MemberData(nameof(Formats))]
    public void LoadFrozen_QuantizedAlready_HasTheBytesOfTheFiles(BaseFormat format)
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path);
        using var device = new CpuDevice(1, 1 << 26);
        Dictionary<string, byte[]> expected = Contents(Load(folder.Path, device, format));
        QuantizedBase.Quantize(folder.Path, format);
        CausalLanguageModel model = Load(folder.Path, device, format);
        Assert.Empty(model.Notices);
        Assert.All(model.Linears, linear => Assert.IsNotType<DenseMatrix>(linear.Weight));
        Dictionary<string, byte[]> actual = Contents(model);
        Assert.Equal(expected.Keys, actual.Keys);
        Assert.True(actual.Count == 14);
        Assert.All(expected, pair => Assert.True(pair.Value.AsSpan().SequenceEqual(actual[pair.Key]), pair.Key));
    }

    /// <summary>A layer of bitsandbytes itself, as q_proj of a model of that width.</summary>
    [Fact]
    [Trait("Category", "Fixtures")]
    public void LoadFrozen_LayerOfBitsandbytes_GivesItsOutput()
    {
        var io = new FixtureTensors(Fixtures.Require("bitsandbytes/linear4bit_io.safetensors"));
        using SafetensorsFile fixture = SafetensorsFile.Open(Fixtures.Require("bitsandbytes/linear4bit_state_dict.safetensors"));
        int inputs = (int)io.Shape("x")[1], outputs = (int)io.Shape("y")[1], headDim = outputs / 3;
        const string layer = "model.layers.0.self_attn.q_proj";
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path, shape: TinyRun.Shape with { HiddenSize = inputs, NumAttentionHeads = 3, NumKeyValueHeads = 1, HeadDim = headDim, NumHiddenLayers = 1 });
        string[] others = [.. ModelConfig.Parse(folder.Path).ExpectedTensors().Where(tensor => tensor.Shape.Length == 2 && tensor.Name.StartsWith("model.layers.0.", StringComparison.Ordinal)).Select(tensor => tensor.Name[..^".weight".Length])];
        QuantizedBase.Quantize(
            folder.Path,
            BaseFormat.Nf4DoubleQuantized,
            tensors =>
            {
                foreach (SafetensorsEntry entry in fixture.Entries)
                {
                    byte[] bytes = new byte[entry.ByteLength];
                    fixture.ReadInto(entry, 0, bytes);
                    tensors[entry.Name.Replace("layer.", layer + ".", StringComparison.Ordinal)] = (entry.DType, entry.Shape.ToArray(), bytes);
                }
            },
            others);
        using var device = new CpuDevice(1, 1 << 24);
        CausalLanguageModel model = Load(folder.Path, device, BaseFormat.Nf4DoubleQuantized);
        AdaptedLinear linear = model.Linears.Single(linear => linear.Name == layer);
        Assert.IsType<FourBitMatrix>(linear.Weight);
        Assert.All(model.Linears.Where(other => other.Name != layer), other => Assert.IsType<DenseMatrix>(other.Weight));
        Tensor output = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(io.Shape("x")[0], outputs));
        Linear.Forward(output, device.Upload(io.Floats("x"), new Shape(io.Shape("x")[0], inputs)), linear.Weight);
        float[] actual = output.Download(), y = io.Floats("y");
        Assert.All(Enumerable.Range(0, y.Length), i => Assert.True(Math.Abs(actual[i] - y[i]) <= 1e-5, $"{i}: {actual[i]} {y[i]}"));
    }

    [Theory]
    [InlineData(2, SafetensorsDType.F16)]
    [InlineData(2, SafetensorsDType.BF16)]
    [InlineData(4, SafetensorsDType.F32)]
    public void LoadFrozen_CodesInAWiderType_AreTheSameBytes(int size, SafetensorsDType dtype)
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path);
        using var device = new CpuDevice(1, 1 << 26);
        Dictionary<string, byte[]> expected = Contents(Load(folder.Path, device, BaseFormat.Nf4));
        QuantizedBase.Quantize(folder.Path, BaseFormat.Nf4, tensors =>
        {
            (_, _, byte[] bytes) = tensors[Weight];
            tensors[Weight] = (dtype, [bytes.Length / size, 1], bytes);
        });
        Dictionary<string, byte[]> actual = Contents(Load(folder.Path, device, BaseFormat.Nf4));
        Assert.Equal(expected[Weight[..^".weight".Length]], actual[Weight[..^".weight".Length]]);
    }

    [Fact]
    public void LoadFrozen_ModulesThatAreNotQuantized_StayAsTheyAre()
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path);
        string[] skipped = ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"];
        QuantizedBase.Quantize(folder.Path, BaseFormat.Nf4, skipped: skipped);
        using var device = new CpuDevice(1, 1 << 24);
        CausalLanguageModel model = Load(folder.Path, device, BaseFormat.Nf4);
        Assert.Equal(skipped, model.Linears.Where(linear => linear.Weight is DenseMatrix).Select(linear => linear.Name).Order(StringComparer.Ordinal));
        Assert.Empty(model.Notices);

        // A plan without the files lays out the same.
        using var measure = new MeasureDevice(1, DevicePlatform.Cpu);
        ModelLoader.LoadFrozen(ModelConfig.Parse(folder.Path), null, measure, BaseFormat.Nf4);
        Assert.Equal(device.Arena.UsedBytes, measure.Arena.UsedBytes);
    }

    [Fact]
    public void LoadFrozen_PlainModuleThatNobodyNames_IsNotice()
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path);
        QuantizedBase.Quantize(folder.Path, BaseFormat.EightBit, skipped: ["model.layers.0.mlp.up_proj"]);
        string config = folder.File("config.json");
        File.WriteAllText(config, File.ReadAllText(config).Replace("[\"model.layers.0.mlp.up_proj\"]", "[\"lm_head\"]", StringComparison.Ordinal));
        using var device = new CpuDevice(1, 1 << 24);
        Assert.Equal(
            [$"{folder.Path}: 1 linear layers are not quantized in the files, though llm_int8_skip_modules does not name them; they stay as they are: model.layers.0.mlp.up_proj."],
            Load(folder.Path, device, BaseFormat.EightBit).Notices);
    }

    [Theory]
    [InlineData(Weight + ".quant_map", $"tensor '{Weight}.quant_map' (16) is missing.|tensor '{Weight}.quant_map' is F32 (15); it must be F32 (16).|tensor '{Weight}.quant_map' is not the table of nf4; another one is not supported.|tensor '{Weight}.quant_map' holds NaN at element 0; it must be finite.")]
    [InlineData(Weight + ".absmax", $"tensor '{Weight}.absmax' (160) is missing.|tensor '{Weight}.absmax' is U8 (159); it must be U8 (160).||")]
    [InlineData(Weight + ".nested_absmax", $"tensor '{Weight}.nested_absmax' (1) is missing.|tensor '{Weight}.nested_absmax' is F32 (0); it must be F32 (1).||tensor '{Weight}.nested_absmax' holds NaN at element 0; it must be finite.")]
    [InlineData(Weight + ".nested_quant_map", $"tensor '{Weight}.nested_quant_map' (256) is missing.|tensor '{Weight}.nested_quant_map' is F32 (255); it must be F32 (256).||tensor '{Weight}.nested_quant_map' holds NaN at element 0; it must be finite.")]
    [InlineData(State, $"tensor '{Weight}' is U8 (5120, 1) and has no quant_state that says what its bytes are.|||")]
    [InlineData(Weight, $"tensor '{Weight}' is missing; its description is there.|tensor '{Weight}' is U8 (5119); 64 x 160 weights in 4 bits are 5120 bytes, of shape (5120, 1) where they are U8.||")]
    public void LoadFrozen_DamagedPart_IsNamed(string part, string messages)
    {
        string[] expected = messages.Split('|');
        int cases = 0;
        foreach ((string message, Action<QuantizedBase.Tensors> damage) in expected.Zip([Remove, Shorten, OtherValue, NotANumber]))
        {
            if (message.Length > 0)
            {
                string got = Refusal(BaseFormat.Nf4DoubleQuantized, damage);
                Assert.Contains(message, got, StringComparison.Ordinal);
                cases++;
            }
        }

        Assert.True(cases > 0);

        void Remove(QuantizedBase.Tensors tensors) => tensors.Remove(part);

        void Shorten(QuantizedBase.Tensors tensors)
        {
            (SafetensorsDType dtype, long[] shape, byte[] bytes) = tensors[part];
            tensors[part] = (dtype, [shape[0] - 1], bytes[..^(dtype.Bits() / 8)]);
        }

        void OtherValue(QuantizedBase.Tensors tensors) => tensors[part].Bytes[1] ^= 0x40;

        void NotANumber(QuantizedBase.Tensors tensors) => BitConverter.TryWriteBytes(tensors[part].Bytes, float.NaN);
    }

    [Theory]
    [InlineData("\"nf4\"", "\"fp4\"", "quant_type must be nf4, got \"fp4\".")]
    [InlineData("\"blocksize\": 64", "\"blocksize\": 128", "blocksize must be 64; other sizes of a block are not supported, got 128.")]
    [InlineData("\"blocksize\": 64, ", "", "blocksize is missing; it must be 64; other sizes of a block are not supported.")]
    [InlineData("[64, 160]", "[160, 64]", "shape must be [64, 160], as config.json makes it, got [160, 64].")]
    [InlineData("[64, 160]", "[64, 160, 1]", "shape must be [64, 160], as config.json makes it, got [64, 160, 1].")]
    [InlineData("bfloat16", "int4", "dtype must be float32, float16 or bfloat16, got \"int4\".")]
    [InlineData("\"nested_blocksize\": 256", "\"nested_blocksize\": 64", "nested_blocksize must be 256, got 64.")]
    [InlineData("\"nested_dtype\": \"float32\"", "\"nested_dtype\": \"float16\"", "nested_dtype must be float32, got \"float16\".")]
    [InlineData("\"nested_offset\": ", "\"nested_offset\": 1e39, \"x\": ", "nested_offset must be a number from")]
    [InlineData("\"nested_offset\": ", "\"nested_offset\": 3.4e38, \"x\": ", "")]
    [InlineData("\"nested_offset\": ", "\"nested_offset\": NaN, \"x\": ", "this is not the JSON it should be")]
    [InlineData("{", "[", "this is not the JSON it should be")]
    public void LoadFrozen_OtherState_IsRefused(string old, string replacement, string message)
    {
        Action<QuantizedBase.Tensors> change = tensors =>
        {
            string text = Encoding.UTF8.GetString(tensors[State].Bytes), changed = text.Replace(old, replacement, StringComparison.Ordinal);
            Assert.NotEqual(text, changed);
            byte[] bytes = Encoding.UTF8.GetBytes(changed);
            tensors[State] = (SafetensorsDType.U8, [bytes.Length], bytes);
        };
        if (message.Length > 0)
        {
            string got = Refusal(BaseFormat.Nf4DoubleQuantized, change);
            Assert.Contains($"tensor '{State}'", got, StringComparison.Ordinal);
            Assert.Contains(message, got, StringComparison.Ordinal);
            return;
        }

        // At the end of the range a product that is added makes infinity.
        Assert.Contains("with nested_absmax, nested_quant_map and nested_offset its scales would not be finite", Refusal(BaseFormat.Nf4DoubleQuantized, tensors =>
        {
            change(tensors);
            BitConverter.TryWriteBytes(tensors[Weight + ".nested_absmax"].Bytes, 3e38f);
        }), StringComparison.Ordinal);
    }

    [Fact]
    public void LoadFrozen_TwoStatesOfOneMatrix_IsRefused() => Assert.Contains(
        $"tensor '{Weight}' has two descriptions, of nf4 and of fp4; there must be one.",
        Refusal(BaseFormat.Nf4, tensors => tensors[Weight + ".quant_state.bitsandbytes__fp4"] = tensors[State]),
        StringComparison.Ordinal);

    [Fact]
    public void LoadFrozen_ScaleThatIsNoNumber_IsRefused() => Assert.Contains(
        $"tensor '{Weight}.absmax' holds NaN at element 3; weights must be finite.",
        Refusal(BaseFormat.Nf4, tensors => BitConverter.TryWriteBytes(tensors[Weight + ".absmax"].Bytes.AsSpan(12), float.NaN)),
        StringComparison.Ordinal);

    [Theory]
    [InlineData(".weight_format", "is 2, an order of bytes that is made for a certain GPU; only 0, rows, is read.")]
    [InlineData(".SCB", "holds NaN at element 0; weights must be finite.")]
    public void LoadFrozen_EightBitOutOfOrder_IsRefused(string part, string message) => Assert.Contains(
        message,
        Refusal(BaseFormat.EightBit, tensors =>
        {
            byte[] bytes = tensors[Weight[..^".weight".Length] + part].Bytes;
            if (bytes.Length == 1)
            {
                bytes[0] = 2;
            }
            else
            {
                BitConverter.TryWriteBytes(bytes, float.NaN);
            }
        }),
        StringComparison.Ordinal);

    [Fact]
    public void LoadFrozen_OtherFormatThanConfigSays_IsRefused()
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path);
        QuantizedBase.Quantize(folder.Path, BaseFormat.Nf4);
        string config = folder.File("config.json");
        File.WriteAllText(config, File.ReadAllText(config).Replace("\"bnb_4bit_use_double_quant\":false", "\"bnb_4bit_use_double_quant\":true", StringComparison.Ordinal));
        using var device = new CpuDevice(1, 1 << 24);
        Assert.Contains(
            $"tensor '{Weight}' is in 4 bits (nf4); quantization_config in config.json says in 4 bits (nf4, scales quantized too).",
            Assert.Throws<ModelFormatException>(() => Load(folder.Path, device, BaseFormat.Nf4DoubleQuantized)).Message, StringComparison.Ordinal);
    }

    private static string Refusal(BaseFormat format, Action<QuantizedBase.Tensors> damage)
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path);
        QuantizedBase.Quantize(folder.Path, format, damage);
        using var device = new CpuDevice(1, 1 << 24);
        return Assert.Throws<ModelFormatException>(() => Load(folder.Path, device, format)).Message;
    }

    private static CausalLanguageModel Load(string folder, CpuDevice device, BaseFormat format)
    {
        using ModelFolder files = ModelFolder.Open(folder);
        return ModelLoader.LoadFrozen(ModelConfig.Parse(folder), files, device, format);
    }

    /// <summary>All that a device keeps of each matrix, one after the other.</summary>
    private static Dictionary<string, byte[]> Contents(CausalLanguageModel model) => model.Linears.ToDictionary(linear => linear.Name, linear => linear.Weight switch
    {
        FourBitMatrix { IsDoubleQuantized: true } four => [.. four.Packed.DownloadBytes(), .. four.AbsmaxCodes.DownloadBytes(), .. four.NestedAbsmax.DownloadBytes(), .. four.NestedMap.DownloadBytes(), .. BitConverter.GetBytes(four.Offset)],
        FourBitMatrix four => [.. four.Packed.DownloadBytes(), .. four.Absmax.DownloadBytes()],
        Int8Matrix eight => [.. eight.Codes.DownloadBytes(), .. eight.Scales.DownloadBytes()],
        DenseMatrix dense => dense.Values.DownloadBytes(),
        _ => throw new InvalidOperationException(linear.Name),
    });
}
