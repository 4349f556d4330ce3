using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json.Nodes;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;

namespace LoraTrainer.TestSupport;

/// <summary>
/// Turns a base folder into one whose linear layers are quantized already, with the names, shapes and texts of bitsandbytes; the numbers are those of the
/// program's own quantizer.
/// </summary>
public static class QuantizedBase
{
    /// <summary>The tensors of a file that is to be written.</summary>
    public sealed class Tensors : SortedDictionary<string, (SafetensorsDType DType, long[] Shape, byte[] Bytes)>
    {
        public Tensors()
            : base(StringComparer.Ordinal)
        {
        }

        public void Save(string path)
        {
            var writer = new SafetensorsWriter();
            foreach ((string name, (SafetensorsDType dtype, long[] shape, byte[] bytes)) in this)
            {
                writer.Add(name, dtype, shape, bytes);
            }

            writer.Save(path);
        }
    }

    /// <summary>Quantizes the base where it lies.</summary>
    /// <param name="folder">With config.json and weights; both are replaced.</param>
    /// <param name="format">What the layers become.</param>
    /// <param name="change">May change the tensors that are written.</param>
    /// <param name="skipped">Modules that stay as they are; null: none is named.</param>
    public static void Quantize(string folder, BaseFormat format, Action<Tensors>? change = null, string[]? skipped = null)
    {
        var tensors = new Tensors();
        using (var device = new CpuDevice(1, 1 << 26))
        using (ModelFolder files = ModelFolder.Open(folder))
        {
            CausalLanguageModel model = ModelLoader.LoadFrozen(ModelConfig.Parse(folder), files, device, format);
            foreach ((string name, ModelTensor tensor) in files.Tensors)
            {
                byte[] bytes = new byte[tensor.Entry.ByteLength];
                tensor.ReadInto(0, bytes);
                tensors.Add(name, (tensor.Entry.DType, tensor.Entry.Shape.ToArray(), bytes));
            }

            foreach (AdaptedLinear linear in model.Linears.Where(linear => skipped?.Contains(linear.Name) != true))
            {
                Replace(tensors, linear, files);
            }
        }

        change?.Invoke(tensors);
        tensors.Save(Path.Combine(folder, ModelFolder.SingleFileName));
        string config = Path.Combine(folder, "config.json");
        JsonNode json = JsonNode.Parse(File.ReadAllText(config))!;
        json["quantization_config"] = Configuration(format, skipped);
        File.WriteAllText(config, json.ToJsonString());
    }

    private static JsonObject Configuration(BaseFormat format, string[]? skipped) => new()
    {
        ["_load_in_4bit"] = format != BaseFormat.EightBit,
        ["_load_in_8bit"] = format == BaseFormat.EightBit,
        ["bnb_4bit_compute_dtype"] = "bfloat16",
        ["bnb_4bit_quant_storage"] = "uint8",
        ["bnb_4bit_quant_type"] = format is BaseFormat.Fp4 or BaseFormat.Fp4DoubleQuantized ? "fp4" : "nf4",
        ["bnb_4bit_use_double_quant"] = format is BaseFormat.Fp4DoubleQuantized or BaseFormat.Nf4DoubleQuantized,
        ["llm_int8_enable_fp32_cpu_offload"] = false,
        ["llm_int8_has_fp16_weight"] = false,
        ["llm_int8_skip_modules"] = skipped is null ? null : new JsonArray([.. skipped.Select(name => (JsonNode)name)]),
        ["llm_int8_threshold"] = 6.0,
        ["load_in_4bit"] = format != BaseFormat.EightBit,
        ["load_in_8bit"] = format == BaseFormat.EightBit,
        ["quant_method"] = "bitsandbytes",
    };

    private static void Replace(Tensors tensors, AdaptedLinear linear, ModelFolder files)
    {
        string name = linear.Name + ".weight";
        if (linear.Weight is Int8Matrix bytes)
        {
            tensors[name] = (SafetensorsDType.I8, [bytes.Out, bytes.In], bytes.Codes.DownloadBytes());
            tensors[linear.Name + ".SCB"] = (SafetensorsDType.F32, [bytes.Out], LargestOfRows(files.Find(name)!.Value, bytes.Out, bytes.In));
            tensors[linear.Name + ".weight_format"] = (SafetensorsDType.U8, [], [0]);
            return;
        }

        var matrix = (FourBitMatrix)linear.Weight;
        tensors[name] = (SafetensorsDType.U8, [matrix.Packed.ElementCount, 1], matrix.Packed.DownloadBytes());
        tensors[name + ".quant_map"] = (SafetensorsDType.F32, [16], MemoryMarshal.AsBytes(matrix.Code.Table).ToArray());
        string nested = "";
        if (matrix.IsDoubleQuantized)
        {
            tensors[name + ".absmax"] = (SafetensorsDType.U8, [matrix.AbsmaxCodes.ElementCount], matrix.AbsmaxCodes.DownloadBytes());
            tensors[name + ".nested_absmax"] = Floats(matrix.NestedAbsmax);
            tensors[name + ".nested_quant_map"] = Floats(matrix.NestedMap);
            nested = string.Create(CultureInfo.InvariantCulture, $", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": {(double)matrix.Offset:R}");
        }
        else
        {
            tensors[name + ".absmax"] = Floats(matrix.Absmax);
        }

        byte[] state = Encoding.UTF8.GetBytes($"{{\"quant_type\": \"{matrix.Code.Name}\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [{matrix.Out}, {matrix.In}]{nested}}}");
        tensors[$"{name}.quant_state.bitsandbytes__{matrix.Code.Name}"] = (SafetensorsDType.U8, [state.Length], state);
    }

    private static (SafetensorsDType DType, long[] Shape, byte[] Bytes) Floats(Tensor tensor) => (SafetensorsDType.F32, [tensor.ElementCount], tensor.DownloadBytes());

    /// <summary>SCB: the largest |w| of each row, of the weights in f16.</summary>
    private static byte[] LargestOfRows(ModelTensor weights, int rows, int columns)
    {
        float[] values = weights.ReadSingles(), largest = new float[rows];
        for (int i = 0; i < values.Length; i++)
        {
            largest[i / columns] = Math.Max(largest[i / columns], Math.Abs((float)(Half)values[i]));
        }

        return MemoryMarshal.AsBytes(largest.AsSpan()).ToArray();
    }
}
