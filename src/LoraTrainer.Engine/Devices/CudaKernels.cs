using static LoraTrainer.Engine.Devices.KernelParameter;

namespace LoraTrainer.Engine.Devices;

/// <summary>
/// Every kernel of kernels/*.cu that the program launches, with its parameters in order. What each does and how it is launched is written above it
/// in its source; a test compares these lines with what the compiler made of the sources.
/// </summary>
internal static class CudaKernels
{
    /// <summary>Attention is compiled for head dims that are multiples of this; the rest of the last one is padding on the chip.</summary>
    public const int HeadDimStep = 16;

    public const int LargestHeadDim = 256;

    // What attention's kernels do to scores besides scaling them: the forms that they come in.
    public const int PlainScores = 0;
    public const int ScoresInAWindow = 1;
    public const int CappedScores = 2;

    private static readonly List<CudaKernel> Declared = [];

    public static readonly CudaKernel RmsNormGain = Declare("rms_norm.cu", "rms_norm_gain", Pointer("gain"), Pointer("weight"), Float32("offset"), Int64("count"));

    public static readonly CudaKernel RmsNormForward = Declare("rms_norm.cu", "rms_norm_forward", Pointer("output"), Pointer("rstd"), Pointer("input"), Pointer("weight"), Int32("width"), Float32("eps"));

    public static readonly CudaKernel RmsNormBackward = Declare("rms_norm.cu", "rms_norm_backward", Pointer("d_input"), Pointer("d_output"), Pointer("input"), Pointer("weight"), Pointer("rstd"), Int32("width"), Int32("accumulate"));

    public static readonly CudaKernel RmsNormWeightGradient = Declare("rms_norm.cu", "rms_norm_weight_gradient", Pointer("d_weight"), Pointer("d_output"), Pointer("input"), Pointer("rstd"), Int32("rows"), Int32("width"));

    public static readonly CudaKernel RopeTables = Declare("rope.cu", "rope_tables", Pointer("cosine"), Pointer("sine"), Pointer("positions"), Pointer("inverse_frequencies"), Int32("rows"), Int32("half"), Float32("attention_scaling"));

    public static readonly CudaKernel RopeApply = Declare("rope.cu", "rope_apply", Pointer("heads"), Pointer("cosine"), Pointer("sine"), Int32("rows"), Int32("head_count"), Int32("head_dim"), Int32("half"), Float32("direction"));

    public static readonly CudaKernel SwiGluForward = Declare("gated.cu", "swiglu_forward", Pointer("output"), Pointer("gate"), Pointer("up"), Int64("count"));

    public static readonly CudaKernel SwiGluBackward = Declare("gated.cu", "swiglu_backward", Pointer("d_gate"), Pointer("d_up"), Pointer("d_output"), Pointer("gate"), Pointer("up"), Int64("count"));

    public static readonly CudaKernel GeGluForward = Declare("gated.cu", "geglu_forward", Pointer("output"), Pointer("gate"), Pointer("up"), Int64("count"));

    public static readonly CudaKernel GeGluBackward = Declare("gated.cu", "geglu_backward", Pointer("d_gate"), Pointer("d_up"), Pointer("d_output"), Pointer("gate"), Pointer("up"), Int64("count"));

    public static readonly CudaKernel SoftcapForward = Declare("softcap.cu", "softcap_forward", Pointer("values"), Int64("count"), Float32("cap"));

    public static readonly CudaKernel SoftcapBackward = Declare("softcap.cu", "softcap_backward", Pointer("d_values"), Pointer("values"), Int64("count"), Float32("cap"));

    public static readonly CudaKernel EmbeddingForward = Declare("embedding.cu", "embedding_forward", Pointer("output"), Pointer("tokens"), Pointer("table"), Int32("rows"), Int32("width"), Float32("scale"));

    public static readonly CudaKernel EmbeddingBackward = Declare("embedding.cu", "embedding_backward", Pointer("d_table"), Pointer("d_output"), Pointer("tokens"), Int32("rows"), Int32("width"), Int32("padding_token"), Float32("scale"));

    public static readonly CudaKernel EmbeddingNoise = Declare("embedding_noise.cu", "embedding_noise", Pointer("embedded"), Pointer("magnitudes"), Int32("rows"), Int32("width"), UInt64("first_element"), UInt64("seed"), UInt32("stream"), UInt32("step"));

    public static readonly CudaKernel RowsGather = Declare("rows.cu", "rows_gather", Pointer("output"), Pointer("input"), Pointer("rows"), Int32("count"), Int32("width"));

    public static readonly CudaKernel RowsScatter = Declare("rows.cu", "rows_scatter", Pointer("output"), Pointer("input"), Pointer("rows"), Int32("count"), Int32("width"));

    public static readonly CudaKernel ColumnsGather = Declare("rows.cu", "columns_gather", Pointer("output"), Pointer("input"), Int32("count"), Int32("width"), Int32("whole_width"), Int32("first"));

    public static readonly CudaKernel ColumnsScatter = Declare("rows.cu", "columns_scatter", Pointer("output"), Pointer("input"), Int32("count"), Int32("width"), Int32("whole_width"), Int32("first"));

    public static readonly CudaKernel Add = Declare("elementwise.cu", "add", Pointer("output"), Pointer("first"), Pointer("second"), Int64("count"));

    public static readonly CudaKernel AddBias = Declare("elementwise.cu", "add_bias", Pointer("rows"), Pointer("bias"), Int32("row_count"), Int32("width"));

    public static readonly CudaKernel BiasGradient = Declare("elementwise.cu", "bias_gradient", Pointer("d_bias"), Pointer("d_output"), Int32("rows"), Int32("width"));

    public static readonly CudaKernel CastToBf16 = Declare("elementwise.cu", "cast_to_bf16", Pointer("output"), Pointer("input"), Int64("count"));

    public static readonly CudaKernel DropoutApply = Declare("dropout.cu", "dropout_apply", Pointer("output"), Pointer("input"), Int64("count"), Int32("width"), Int64("first_row"), UInt64("keep_threshold"), Float32("scale"), UInt64("seed"), UInt32("stream"), UInt32("step"), Pointer("numbers"));

    public static readonly CudaKernel DoraNorms = Declare("dora.cu", "dora_norms", Pointer("norms"), Pointer("weight"), Pointer("a"), Pointer("b"), Float32("scaling"), Int32("rank"), Int32("rows"), Int32("width"));

    public static readonly CudaKernel DoraScale = Declare("dora.cu", "dora_scale", Pointer("output"), Pointer("input"), Pointer("magnitude"), Pointer("norms"), Float32("shift"), Int32("rows"), Int32("width"), Int32("accumulate"));

    public static readonly CudaKernel DoraMagnitudeGradient = Declare("dora.cu", "dora_magnitude_gradient", Pointer("d_magnitude"), Pointer("d_output"), Pointer("product"), Pointer("norms"), Int32("rows"), Int32("width"));

    public static readonly CudaKernel SoftmaxCrossEntropy = Declare("cross_entropy.cu", "softmax_cross_entropy", Pointer("losses"), Pointer("d_logits"), Pointer("logits"), Pointer("targets"), Pointer("rows"), Int32("vocabulary"), Int32("kept_pieces"), Float32("gradient_scale"), Pointer("numbers"));

    public static readonly CudaKernel SumLosses = Declare("reductions.cu", "sum_losses", Pointer("total"), Pointer("losses"), Int32("count"));

    public static readonly CudaKernel SumValues = Declare("reductions.cu", "sum_values", Pointer("total"), Pointer("values"), Int64("count"));

    public static readonly CudaKernel SumOfSquares = Declare("reductions.cu", "sum_of_squares", Pointer("partials"), Pointer("values"), Int64("count"));

    public static readonly CudaKernel NormOfPartials = Declare("reductions.cu", "norm_of_partials", Pointer("norm"), Pointer("partials"), Int32("count"));

    public static readonly CudaKernel AdamWStep = Declare("adamw.cu", "adamw_step", Pointer("parameters"), Pointer("gradients"), Pointer("first_moment"), Pointer("second_moment"), Pointer("segments"), Int32("segment_count"), Pointer("report"), Float64("max_grad_norm"), Struct<AdamWConstants>("constants"));

    public static readonly CudaKernel AdamW8BitStep = Declare("adamw.cu", "adamw_8bit_step", Pointer("parameters"), Pointer("gradients"), Pointer("first_codes"), Pointer("first_absmax"), Pointer("second_codes"), Pointer("second_absmax"), Pointer("segments"), Int32("segment_count"), Pointer("first_map"), Pointer("second_map"), Pointer("report"), Float64("max_grad_norm"), Struct<AdamW8BitConstants>("constants"));

    public static readonly CudaKernel Nf4Quantize = Declare("four_bit.cu", "nf4_quantize", Pointer("packed"), Pointer("absmax"), Pointer("values"), Int64("count"));

    public static readonly CudaKernel Nf4Dequantize = Declare("four_bit.cu", "nf4_dequantize", Pointer("output"), Pointer("packed"), Pointer("absmax"), Int64("count"));

    public static readonly CudaKernel Nf4DequantizeDouble = Declare("four_bit.cu", "nf4_dequantize_double", Pointer("output"), Pointer("packed"), Pointer("absmax_codes"), Pointer("nested_absmax"), Pointer("nested_map"), Float32("offset"), Int64("count"));

    public static readonly CudaKernel Fp4Quantize = Declare("four_bit.cu", "fp4_quantize", Pointer("packed"), Pointer("absmax"), Pointer("values"), Int64("count"));

    public static readonly CudaKernel Fp4Dequantize = Declare("four_bit.cu", "fp4_dequantize", Pointer("output"), Pointer("packed"), Pointer("absmax"), Int64("count"));

    public static readonly CudaKernel Fp4DequantizeDouble = Declare("four_bit.cu", "fp4_dequantize_double", Pointer("output"), Pointer("packed"), Pointer("absmax_codes"), Pointer("nested_absmax"), Pointer("nested_map"), Float32("offset"), Int64("count"));

    public static readonly CudaKernel QuantizeAbsmax = Declare("four_bit.cu", "quantize_absmax", Pointer("codes"), Pointer("nested_absmax"), Pointer("absmax"), Pointer("nested_map"), Float32("offset"), Int64("blocks"));

    public static readonly CudaKernel Int8Quantize = Declare("int8.cu", "int8_quantize", Pointer("codes"), Pointer("scales"), Pointer("values"), Int32("rows"), Int32("width"));

    public static readonly CudaKernel Int8Dequantize = Declare("int8.cu", "int8_dequantize", Pointer("output"), Pointer("codes"), Pointer("scales"), Int32("rows"), Int32("width"));

    public static readonly CudaKernel AttentionForward = DeclareForHeadDims("attention_forward", Struct<AttentionArguments>("arguments"));

    public static readonly CudaKernel AttentionDelta = DeclareForHeadDims("attention_delta", Struct<AttentionGradients>("arguments"));

    public static readonly CudaKernel AttentionBackwardKeys = DeclareForHeadDims("attention_backward_keys", Struct<AttentionGradients>("arguments"));

    public static readonly CudaKernel AttentionBackwardQueries = DeclareForHeadDims("attention_backward_queries", Struct<AttentionGradients>("arguments"));

    /// <summary>All of them, in the order above.</summary>
    public static IReadOnlyList<CudaKernel> All => Declared;

    private static CudaKernel Declare(string file, string name, params KernelParameter[] parameters) => Listed(new CudaKernel(file, name, parameters));

    private static CudaKernel DeclareForHeadDims(string name, params KernelParameter[] parameters) => Listed(CudaKernel.WithVariants("attention.cu", name, "LT_HEAD_DIM", HeadDimStep, LargestHeadDim, "LT_SCORES", CappedScores + 1, parameters));

    private static CudaKernel Listed(CudaKernel kernel)
    {
        Declared.Add(kernel);
        return kernel;
    }
}
