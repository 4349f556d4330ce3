using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Models.Formats;

namespace LoraTrainer.TestSupport;

/// <summary>
/// A Llama base with random weights, its byte-level tokenizer and a data set of ragged rows in a folder: all that a run needs, small enough that a
/// whole run takes about a second. The same seed writes the same bytes.
/// </summary>
public static class TinyRun
{
    /// <summary>Bytes 0..255, then <c>&lt;s&gt;</c> and <c>&lt;/s&gt;</c>.</summary>
    public const int VocabularySize = 258;

    public static ModelConfig Shape { get; } = new()
    {
        ModelType = "llama",
        Architecture = "LlamaForCausalLM",
        VocabSize = VocabularySize,
        HiddenSize = 64,
        IntermediateSize = 160,
        NumHiddenLayers = 2,
        NumAttentionHeads = 4,
        NumKeyValueHeads = 2,
        HeadDim = 16,
        MaxPositionEmbeddings = 256,
        RmsNormEps = 1e-5,
        TieWordEmbeddings = true,
        BosTokenId = 256,
        EosTokenIds = [257],
        DType = SafetensorsDType.BF16,
    };

    /// <summary>Writes config.json, model.safetensors, tokenizer.json and tokenizer_config.json.</summary>
    /// <param name="folder">Made if it is not there.</param>
    /// <param name="seed">Of the weights.</param>
    /// <param name="shape">Null: <see cref="Shape"/>. Its DType says how weights are stored.</param>
    /// <param name="change">May change the values of a tensor before they are rounded and stored.</param>
    public static void WriteBase(string folder, int seed = 1, ModelConfig? shape = null, Action<string, float[]>? change = null)
    {
        ModelConfig config = shape ?? Shape;
        Directory.CreateDirectory(folder);
        File.WriteAllText(Path.Combine(folder, "config.json"), config.ToJson());
        var writer = new SafetensorsWriter();
        var random = new Random(seed);
        foreach (ExpectedTensor tensor in config.ExpectedTensors())
        {
            float[] values = new float[tensor.Shape.Aggregate(1L, (product, extent) => product * extent)];
            for (int i = 0; i < values.Length; i++)
            {
                // Wide enough that the loss moves, narrow enough that nothing overflows.
                values[i] = tensor.Name.EndsWith("norm.weight", StringComparison.Ordinal) ? 1 : (float)(random.NextDouble() - 0.5) * 0.2f;
            }

            change?.Invoke(tensor.Name, values);
            byte[] bytes = config.DType == SafetensorsDType.BF16
                ? MemoryMarshal.AsBytes<ushort>(Array.ConvertAll(values, BrainFloat.FromSingle)).ToArray()
                : MemoryMarshal.AsBytes<float>(values).ToArray();
            writer.Add(tensor.Name, config.DType ?? SafetensorsDType.F32, tensor.Shape, bytes);
        }

        writer.Save(Path.Combine(folder, "model.safetensors"));
        File.WriteAllText(Path.Combine(folder, "tokenizer.json"), TokenizerJson());
        File.WriteAllText(Path.Combine(folder, "tokenizer_config.json"), """{"bos_token":"<s>","eos_token":"</s>","tokenizer_class":"PreTrainedTokenizerFast"}""");
    }

    /// <summary>The letters that the rows have, as a tokenizer.model of SentencePiece: an unknown piece, <c>&lt;s&gt;</c>, <c>&lt;/s&gt;</c>, a to z, = and U+2581.</summary>
    public static byte[] SentencePieceModel()
    {
        SentencePieceWriter model = new SentencePieceWriter().Piece("<unk>", kind: 2).Piece("<s>", kind: 3).Piece("</s>", kind: 3);
        foreach (char letter in "abcdefghijklmnopqrstuvwxyz=\u2581")
        {
            model.Piece(letter.ToString(), -1);
        }

        return model.Message(2, trainer => trainer.Number(3, 2)).Message(3, normalizer => normalizer.Number(4, 0)).ToArray();
    }

    /// <summary>Writes rows in alpaca's form whose lengths differ between a few and about <paramref name="longest"/> letters.</summary>
    public static void WriteData(string path, int rows, int longest = 40, int seed = 2)
    {
        var random = new Random(seed);
        var text = new StringBuilder();
        for (int row = 0; row < rows; row++)
        {
            text.Append("{\"instruction\":\"").Append(Letters(random, 1, longest / 2)).Append("\",\"input\":\"\",\"output\":\"").Append(Letters(random, 1, longest / 2)).Append("\"}\n");
        }

        File.WriteAllText(path, text.ToString());
    }

    /// <summary>
    /// The lines of a config that trains LoRA on <c>base</c> and <c>train.jsonl</c> of the current folder in a dozen steps with everything that
    /// has state or randomness in it: dropout, accumulation, a schedule with warmup, held-out rows, checkpoints in the middle of an epoch.
    /// </summary>
    /// <param name="folder">Where base, data and outputs lie; empty: relative to the current folder.</param>
    /// <param name="changes">key: value pairs (dotted keys of one level) that replace or add to it; a null value removes the key.</param>
    public static string Config(string folder, params (string Key, object? Value)[] changes)
    {
        var values = new Dictionary<string, object?>(StringComparer.Ordinal)
        {
            ["base_model"] = Path.Combine(folder, "base"),
            ["run_name"] = "tiny",
            ["output_dir"] = Path.Combine(folder, "out"),
            ["adapter"] = "lora",
            ["lora_r"] = 4,
            ["lora_alpha"] = 8,
            ["lora_dropout"] = 0.1,
            ["lora_target_linear"] = "true",
            ["datasets"] = $"[{{path: {Path.Combine(folder, "train.jsonl")}, type: {{field_instruction: instruction, field_output: output, format: '{{instruction}}=', no_input_format: '{{instruction}}='}}}}]",
            ["sequence_len"] = 64,
            ["sample_packing"] = "false",
            ["micro_batch_size"] = 2,
            ["gradient_accumulation_steps"] = 4,
            ["num_epochs"] = 2.4,
            ["learning_rate"] = "5e-3",
            ["lr_scheduler"] = "cosine",
            ["warmup_steps"] = 2,
            ["weight_decay"] = 0.01,
            ["val_set_size"] = 3,
            ["eval_max_new_tokens"] = 4,
            ["threads"] = 1,
            ["seed"] = 7,
            ["checkpoint"] = "{every_steps: 2, keep: 2}",
        };
        foreach ((string key, object? value) in changes)
        {
            values[key] = value;
        }

        return string.Concat(values.Where(pair => pair.Value is not null).Select(pair => string.Create(CultureInfo.InvariantCulture, $"{pair.Key}: {pair.Value}\n")));
    }

    /// <summary>What makes a run without an adapter of <see cref="Config"/>.</summary>
    public static (string Key, object? Value)[] AllParameters => [("adapter", null), ("lora_r", null), ("lora_alpha", null), ("lora_dropout", null), ("lora_target_linear", null)];

    private static string Letters(Random random, int shortest, int longest)
    {
        char[] letters = new char[random.Next(shortest, longest + 1)];
        for (int i = 0; i < letters.Length; i++)
        {
            letters[i] = (char)('a' + random.Next(26));
        }

        return new string(letters);
    }

    /// <summary>One token for each byte, no merges.</summary>
    private static string TokenizerJson()
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer))
        {
            json.WriteStartObject();
            json.WriteString("version", "1.0");
            json.WriteNull("truncation");
            json.WriteNull("padding");
            json.WriteStartArray("added_tokens");
            WriteSpecial(json, 256, "<s>");
            WriteSpecial(json, 257, "</s>");
            json.WriteEndArray();
            json.WriteNull("normalizer");
            json.WritePropertyName("pre_tokenizer");
            json.WriteRawValue("""{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}""");
            json.WriteNull("post_processor");
            json.WritePropertyName("decoder");
            json.WriteRawValue("""{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}""");
            json.WriteStartObject("model");
            json.WriteString("type", "BPE");
            json.WriteNull("dropout");
            json.WriteStartObject("vocab");
            int shifted = 0;
            for (int value = 0; value < 256; value++)
            {
                // GPT-2's alphabet: printable bytes stand for themselves, the others move behind U+0100.
                bool printable = value is (>= 33 and <= 126) or (>= 161 and <= 172) or >= 174;
                json.WriteNumber(((char)(printable ? value : 256 + shifted++)).ToString(), value);
            }

            json.WriteEndObject();
            json.WriteStartArray("merges");
            json.WriteEndArray();
            json.WriteEndObject();
            json.WriteEndObject();
        }

        return Encoding.UTF8.GetString(buffer.ToArray());
    }

    private static void WriteSpecial(Utf8JsonWriter json, int id, string content)
    {
        json.WriteStartObject();
        json.WriteNumber("id", id);
        json.WriteString("content", content);
        foreach (string flag in (string[])["single_word", "lstrip", "rstrip", "normalized"])
        {
            json.WriteBoolean(flag, false);
        }

        json.WriteBoolean("special", true);
        json.WriteEndObject();
    }
}
