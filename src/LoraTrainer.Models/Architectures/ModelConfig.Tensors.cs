using System.Text;
using LoraTrainer.Models.Formats;

namespace LoraTrainer.Models.Architectures;

/// <summary>A tensor that a model must have.</summary>
/// <param name="Name">as in the weight files</param>
/// <param name="Shape">matrices are (out, in)</param>
public readonly record struct ExpectedTensor(string Name, long[] Shape);

/// <summary>Where the embedding and the output head of a checked model folder are, and what was odd but harmless.</summary>
/// <param name="EmbeddingName">the tensor to take as the embedding matrix</param>
/// <param name="HeadName">the tensor to take as the output head; null where the embedding matrix is the head too</param>
/// <param name="Notices">a sentence each</param>
public sealed record ModelTensorLayout(string EmbeddingName, string? HeadName, IReadOnlyList<string> Notices)
{
    /// <summary>The matrices that the files hold quantized, by the names of their weights.</summary>
    internal IReadOnlyDictionary<string, StoredMatrix> Quantized { get; init; } = new Dictionary<string, StoredMatrix>();
}

public sealed partial record ModelConfig
{
    public const string EmbeddingTensor = "model.embed_tokens.weight";
    public const string HeadTensor = "lm_head.weight";

    private const string LayersPrefix = "model.layers.";
    private const int ProblemsShown = 20;

    /// <summary>The same model with more rows for tokens; the shape itself where there are as many already.</summary>
    /// <param name="rows">At least.</param>
    public ModelConfig WithVocabulary(int rows) => rows <= VocabSize ? this : this with { VocabSize = rows, AddedRows = AddedRows + rows - VocabSize };

    /// <summary>Every tensor of this model, in the order of the forward pass; lm_head only where it is not the embedding matrix (transformers, modeling_NAME.py).</summary>
    public IEnumerable<ExpectedTensor> ExpectedTensors() =>
    [
        new(EmbeddingTensor, [VocabSize, HiddenSize]),
        .. Enumerable.Range(0, NumHiddenLayers).SelectMany(layer => LayerTensors($"{LayersPrefix}{layer}.")),
        new("model.norm.weight", [HiddenSize]),
        .. TieWordEmbeddings ? Array.Empty<ExpectedTensor>() : [new(HeadTensor, [VocabSize, HiddenSize])],
    ];

    private List<ExpectedTensor> LayerTensors(string prefix)
    {
        long queries = (long)NumAttentionHeads * HeadDim;
        long keys = (long)NumKeyValueHeads * HeadDim;
        var tensors = new List<ExpectedTensor>();
        Norm("input_layernorm", HiddenSize);
        if (FusedProjections)
        {
            Linear("self_attn.qkv_proj", queries + (2 * keys), HiddenSize, AttentionBias);
        }
        else
        {
            Linear("self_attn.q_proj", queries, HiddenSize, AttentionBias);
            Linear("self_attn.k_proj", keys, HiddenSize, AttentionBias);
            Linear("self_attn.v_proj", keys, HiddenSize, AttentionBias);
        }

        if (QueryKeyNorm)
        {
            Norm("self_attn.q_norm", HeadDim);
            Norm("self_attn.k_norm", HeadDim);
        }

        Linear("self_attn.o_proj", HiddenSize, queries, OutputBias);
        Norm("post_attention_layernorm", HiddenSize);
        if (SandwichNorms)
        {
            Norm("pre_feedforward_layernorm", HiddenSize);
        }

        if (FusedProjections)
        {
            Linear("mlp.gate_up_proj", 2L * IntermediateSize, HiddenSize, MlpBias);
        }
        else
        {
            Linear("mlp.gate_proj", IntermediateSize, HiddenSize, MlpBias);
            Linear("mlp.up_proj", IntermediateSize, HiddenSize, MlpBias);
        }

        Linear("mlp.down_proj", HiddenSize, IntermediateSize, MlpBias);
        if (SandwichNorms)
        {
            Norm("post_feedforward_layernorm", HiddenSize);
        }

        return tensors;

        void Norm(string name, long width) => tensors.Add(new($"{prefix}{name}.weight", [width]));

        void Linear(string name, long outputs, long inputs, bool bias)
        {
            tensors.Add(new($"{prefix}{name}.weight", [outputs, inputs]));
            if (bias)
            {
                tensors.Add(new($"{prefix}{name}.bias", [outputs]));
            }
        }
    }

    /// <summary>
    /// Checks that the folder has the weights that this config describes, before any is loaded. With tied embeddings the head may be absent,
    /// the same bits (tied), other bits (kept apart, as current transformers does), or stand alone for both.
    /// </summary>
    /// <exception cref="ModelFormatException">all problems at once, a sentence each</exception>
    public ModelTensorLayout CheckTensors(ModelFolder folder)
    {
        ArgumentNullException.ThrowIfNull(folder);
        var problems = new List<string>();
        var notices = new List<string>(folder.Notices);
        bool headForBoth = TieWordEmbeddings && folder.Find(EmbeddingTensor) is null && folder.Find(HeadTensor) is not null;
        bool headBesideTied = TieWordEmbeddings && !headForBoth && folder.Find(HeadTensor) is not null;
        var known = new HashSet<string>(StringComparer.Ordinal);
        var quantized = new Dictionary<string, StoredMatrix>(StringComparer.Ordinal);
        int storedRows = VocabSize - AddedRows;
        IEnumerable<ExpectedTensor> expected = (this with { VocabSize = storedRows, AddedRows = 0 }).ExpectedTensors();
        foreach (ExpectedTensor tensor in headBesideTied ? expected.Append(new ExpectedTensor(HeadTensor, [storedRows, HiddenSize])) : expected)
        {
            string name = headForBoth && tensor.Name == EmbeddingTensor ? HeadTensor : tensor.Name;
            known.Add(name);
            if (Quantization is not null && tensor.Shape.Length == 2 && name.StartsWith(LayersPrefix, StringComparison.Ordinal))
            {
                CheckMatrix(folder, tensor, quantized, known, problems);
            }
            else
            {
                CheckTensor(folder, name, tensor.Shape, problems);
            }
        }

        if (problems.Count > 0)
        {
            throw new ModelFormatException(Describe(folder.Path, problems));
        }

        NoteUnexpected(folder, known, notices);
        NotePlainMatrices(folder, quantized, notices);
        string? head = TieWordEmbeddings ? null : HeadTensor;
        if (headForBoth)
        {
            notices.Add($"{folder.Path}: there is no {EmbeddingTensor}; {HeadTensor} is taken for both, since tie_word_embeddings is true.");
        }
        else if (headBesideTied && !SameBytes(folder.Find(EmbeddingTensor)!.Value, folder.Find(HeadTensor)!.Value))
        {
            notices.Add($"{folder.Path}: tie_word_embeddings is true, but {HeadTensor} differs from {EmbeddingTensor}; they are kept apart, as transformers does since release 5. Earlier releases ignore {HeadTensor}.");
            head = HeadTensor;
        }

        return new ModelTensorLayout(headForBoth ? HeadTensor : EmbeddingTensor, head, notices) { Quantized = quantized };
    }

    /// <summary>A matrix of a base that is quantized: as quantization_config says, or else a plain one.</summary>
    private void CheckMatrix(ModelFolder folder, ExpectedTensor tensor, Dictionary<string, StoredMatrix> quantized, HashSet<string> known, List<string> problems)
    {
        try
        {
            if (StoredMatrix.Find(folder.Find, tensor.Name, checked((int)tensor.Shape[0]), checked((int)tensor.Shape[1])) is not { } matrix)
            {
                if (folder.Find(tensor.Name) is { Entry: { DType: SafetensorsDType.U8 or SafetensorsDType.I8 } entry })
                {
                    problems.Add($"tensor '{tensor.Name}' is {entry} and has no {(Quantization!.Format == BaseFormat.EightBit ? "SCB, which holds the scales of its rows" : "quant_state that says what its bytes are")}.");
                }
                else
                {
                    CheckTensor(folder, tensor.Name, tensor.Shape, problems);
                }
            }
            else if (matrix.Format == Quantization!.Format)
            {
                quantized.Add(tensor.Name, matrix);
                known.UnionWith(matrix.TensorNames);
            }
            else
            {
                problems.Add($"tensor '{tensor.Name}' is {new StoredQuantization(matrix.Format, []).Description}; quantization_config in config.json says {Quantization.Description}.");
            }
        }
        catch (ModelFormatException exception)
        {
            problems.Add(exception.Message);
        }
    }

    private void NotePlainMatrices(ModelFolder folder, Dictionary<string, StoredMatrix> quantized, List<string> notices)
    {
        if (Quantization is { } quantization)
        {
            string[] plain = [.. ExpectedTensors()
                .Where(tensor => tensor.Shape.Length == 2 && tensor.Name.StartsWith(LayersPrefix, StringComparison.Ordinal) && !quantized.ContainsKey(tensor.Name))
                .Select(tensor => tensor.Name[..tensor.Name.LastIndexOf('.')])
                .Where(module => !quantization.Skips(module))];
            if (plain.Length > 0)
            {
                notices.Add($"{folder.Path}: {plain.Length} linear layers are not quantized in the files, though llm_int8_skip_modules does not name them; they stay as they are: {string.Join(", ", plain.Take(3))}{(plain.Length > 3 ? ", ..." : "")}.");
            }
        }
    }

    private static void CheckTensor(ModelFolder folder, string name, long[] shape, List<string> problems)
    {
        if (folder.Find(name) is not { } tensor)
        {
            problems.Add($"tensor '{name}' {SafetensorsEntry.DescribeShape(shape)} is missing.");
        }
        else if (!tensor.Entry.Shape.SequenceEqual(shape))
        {
            problems.Add($"tensor '{name}' has the shape {SafetensorsEntry.DescribeShape(tensor.Entry.Shape)}; config.json makes it {SafetensorsEntry.DescribeShape(shape)}.");
        }
        else if (tensor.Entry.DType is not (SafetensorsDType.F32 or SafetensorsDType.F16 or SafetensorsDType.BF16))
        {
            problems.Add($"tensor '{name}' is stored as {tensor.Entry.DType.Name()}; weights must be F32, F16 or BF16.");
        }
    }

    private static void NoteUnexpected(ModelFolder folder, HashSet<string> known, List<string> notices)
    {
        // Old releases saved the rotary frequencies with the weights; they follow from the config.
        string[] unexpected = [.. folder.Tensors.Keys
            .Where(name => !known.Contains(name) && !name.EndsWith(".rotary_emb.inv_freq", StringComparison.Ordinal))
            .Order(StringComparer.Ordinal)];
        if (unexpected.Length > 0)
        {
            string shown = string.Join(", ", unexpected.Take(5).Select(SafetensorsFile.Shorten));
            notices.Add($"{folder.Path}: {unexpected.Length} tensors are not part of the model that config.json describes and are not used: {shown}{(unexpected.Length > 5 ? ", ..." : "")}.");
        }
    }

    private static string Describe(string path, List<string> problems)
    {
        var text = new StringBuilder($"{path}: the weights do not fit config.json ({problems.Count} {(problems.Count == 1 ? "problem" : "problems")}). Check that both are of the same model.");
        foreach (string problem in problems.Take(ProblemsShown))
        {
            text.Append("\n  ").Append(problem);
        }

        return problems.Count > ProblemsShown ? text.Append("\n  ... and ").Append(problems.Count - ProblemsShown).Append(" more.").ToString() : text.ToString();
    }

    private static bool SameBytes(ModelTensor a, ModelTensor b)
    {
        if (a.Entry.DType != b.Entry.DType || a.Entry.ByteLength != b.Entry.ByteLength)
        {
            return false;
        }

        const int piece = 1 << 16;
        byte[] left = new byte[piece];
        byte[] right = new byte[piece];
        for (long offset = 0; offset < a.Entry.ByteLength; offset += piece)
        {
            int length = (int)Math.Min(piece, a.Entry.ByteLength - offset);
            a.ReadInto(offset, left.AsSpan(0, length));
            b.ReadInto(offset, right.AsSpan(0, length));
            if (!left.AsSpan(0, length).SequenceEqual(right.AsSpan(0, length)))
            {
                return false;
            }
        }

        return true;
    }
}
