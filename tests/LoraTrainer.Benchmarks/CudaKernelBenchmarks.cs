using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Benchmarks;

/// <summary>
/// cuda_copy, cuda_kernel_*: each kernel alone, at the sizes of training 8B, in GB/s of what has to be moved at least: every input read once, every
/// output written once. The baseline is a copy in the same turns.
/// </summary>
internal static class CudaKernelBenchmarks
{
    private const int BF16 = 2, F32 = 4;

    public static IEnumerable<CudaRow> Rows(CudaSizes s) =>
        [.. Copies(s), .. Norms(s), .. Ropes(s), .. Activations(s), .. Gemma(s), .. Magnitudes(s), .. TokenRows(s), .. Elementwise(s), .. Loss(s), .. Optimizer(s), .. Quantization(s)];

    private static CudaRow Row(string kernel, string size, double bytes, Func<CudaBench, Action<int>> prepare) => new($"cuda_kernel_{kernel}_{size}", bytes, CudaBaseline.Copy, prepare);

    private static IEnumerable<CudaRow> Copies(CudaSizes s)
    {
        // The baseline against itself: how far the machine is to be believed.
        yield return new CudaRow("cuda_copy", 2.0 * s.CopyBytes, CudaBaseline.Copy, bench =>
        {
            Tensor from = bench.Bytes(s.CopyBytes), to = bench.Bytes(s.CopyBytes);
            return _ => bench.Device.Copy(to, from);
        });
    }

    private static IEnumerable<CudaRow> Norms(CudaSizes s)
    {
        (int n, int d) = (s.Tokens, s.Hidden);
        double matrix = (double)n * d * BF16;
        string size = $"{n}x{d}";
        yield return Row("rms_norm_forward", size, 2 * matrix, bench =>
        {
            var sets = bench.Sets(2 * matrix, () => (X: bench.BF16(n, d), Y: bench.BF16(n, d)));
            Tensor weight = bench.F32(d), rstd = bench.F32(n);
            return i => bench.Device.Launch(CudaKernels.RmsNormForward, LaunchShape.PerRow(n, d), sets[i % sets.Length].Y, rstd, sets[i % sets.Length].X, weight, d, 1e-5f);
        });
        foreach (int accumulate in (int[])[0, 1])
        {
            yield return Row(accumulate == 0 ? "rms_norm_backward" : "rms_norm_backward_accumulate", size, (3 + accumulate) * matrix, bench =>
            {
                var sets = bench.Sets(3 * matrix, () => (X: bench.BF16(n, d), G: bench.BF16(n, d), R: bench.BF16(n, d)));
                Tensor weight = bench.F32(d), rstd = bench.Positive(n);
                return i =>
                {
                    var (x, gradient, result) = sets[i % sets.Length];
                    bench.Device.Launch(CudaKernels.RmsNormBackward, LaunchShape.PerRow(n, d), result, gradient, x, weight, rstd, d, accumulate);
                };
            });
        }

        yield return Row("rms_norm_weight_gradient", size, 2 * matrix, bench =>
        {
            var sets = bench.Sets(2 * matrix, () => (X: bench.BF16(n, d), G: bench.BF16(n, d)));
            Tensor gradient = bench.F32(d), rstd = bench.Positive(n);
            return i => bench.Device.Launch(CudaKernels.RmsNormWeightGradient, LaunchShape.PerColumns(d), gradient, sets[i % sets.Length].G, sets[i % sets.Length].X, rstd, n, d);
        });
    }

    private static IEnumerable<CudaRow> Ropes(CudaSizes s)
    {
        int n = s.Tokens, dim = s.HeadDims[0], half = dim / 2, heads = s.QueryHeads;
        double tables = 2.0 * n * half * F32;
        yield return Row("rope_tables", $"{n}x{half}", tables, bench =>
        {
            Tensor cosine = bench.F32(n, half), sine = bench.F32(n, half), positions = bench.Positions(n), frequencies = bench.Positive(half);
            return _ => bench.Device.Launch(
                CudaKernels.RopeTables, LaunchShape.Blocks(LaunchShape.Ceiling((long)n * half, 256), 256), cosine, sine, positions, frequencies, n, half, 1f);
        });
        double matrix = (double)n * heads * dim * BF16;
        yield return Row("rope_apply", $"{n}x{heads}x{dim}", 2 * matrix + tables, bench =>
        {
            Tensor[] sets = bench.Sets(2 * matrix, () => bench.BF16(n, heads * dim));
            Tensor cosine = bench.F32(n, half), sine = bench.F32(n, half);
            return i => bench.Device.Launch(CudaKernels.RopeApply, LaunchShape.PerRow(n, heads * dim), sets[i % sets.Length], cosine, sine, n, heads, dim, half, 1f);
        });
    }

    private static IEnumerable<CudaRow> Activations(CudaSizes s)
    {
        (int n, int f) = (s.Tokens, s.Intermediate);
        long count = (long)n * f;
        double matrix = (double)count * BF16;
        yield return Row("swiglu_forward", $"{n}x{f}", 3 * matrix, bench =>
        {
            var sets = bench.Sets(3 * matrix, () => (Gate: bench.BF16(n, f), Up: bench.BF16(n, f), Out: bench.BF16(n, f)));
            return i => bench.Device.Launch(CudaKernels.SwiGluForward, LaunchShape.EightEach(count), sets[i % sets.Length].Out, sets[i % sets.Length].Gate, sets[i % sets.Length].Up, count);
        });
        yield return Row("swiglu_backward", $"{n}x{f}", 5 * matrix, bench =>
        {
            var sets = bench.Sets(5 * matrix, () => (DGate: bench.BF16(n, f), DUp: bench.BF16(n, f), DOut: bench.BF16(n, f), Gate: bench.BF16(n, f), Up: bench.BF16(n, f)));
            return i =>
            {
                var (dGate, dUp, dOut, gate, up) = sets[i % sets.Length];
                bench.Device.Launch(CudaKernels.SwiGluBackward, LaunchShape.EightEach(count), dGate, dUp, dOut, gate, up, count);
            };
        });
    }

    /// <summary>What Gemma has in place of Llama's activation and norms, and its capped logits.</summary>
    private static IEnumerable<CudaRow> Gemma(CudaSizes s)
    {
        (int n, int f, int d, int v) = (s.Tokens, s.Intermediate, s.Hidden, s.Vocabulary);
        long count = (long)n * f;
        double matrix = (double)count * BF16;
        yield return Row("geglu_forward", $"{n}x{f}", 3 * matrix, bench =>
        {
            var sets = bench.Sets(3 * matrix, () => (Gate: bench.BF16(n, f), Up: bench.BF16(n, f), Out: bench.BF16(n, f)));
            return i => bench.Device.Launch(CudaKernels.GeGluForward, LaunchShape.EightEach(count), sets[i % sets.Length].Out, sets[i % sets.Length].Gate, sets[i % sets.Length].Up, count);
        });
        yield return Row("geglu_backward", $"{n}x{f}", 5 * matrix, bench =>
        {
            var sets = bench.Sets(5 * matrix, () => (DGate: bench.BF16(n, f), DUp: bench.BF16(n, f), DOut: bench.BF16(n, f), Gate: bench.BF16(n, f), Up: bench.BF16(n, f)));
            return i =>
            {
                var (dGate, dUp, dOut, gate, up) = sets[i % sets.Length];
                bench.Device.Launch(CudaKernels.GeGluBackward, LaunchShape.EightEach(count), dGate, dUp, dOut, gate, up, count);
            };
        });
        yield return Row("rms_norm_gain", $"{d}", 2.0 * d * F32, bench =>
        {
            Tensor gain = bench.F32(d), weight = bench.F32(d);
            return _ => bench.Device.Launch(CudaKernels.RmsNormGain, LaunchShape.EightEach(d), gain, weight, 1f, (long)d);
        });
        int rows = LinearCrossEntropy.ChunkRows(DevicePlatform.Cuda, n, v);
        long logits = (long)rows * v;
        yield return Row("softcap_forward", $"{rows}x{v}", 2.0 * logits * F32, bench =>
        {
            Tensor[] sets = bench.Sets((double)logits * F32, () => bench.F32(rows, v));
            return i => bench.Device.Launch(CudaKernels.SoftcapForward, LaunchShape.EightEach(logits), sets[i % sets.Length], logits, 30f);
        });
        yield return Row("softcap_backward", $"{rows}x{v}", (double)logits * (F32 + 2 * BF16), bench =>
        {
            var sets = bench.Sets((double)logits * (F32 + BF16), () => (Gradient: bench.BF16(rows, v), Values: bench.F32(rows, v)));
            return i => bench.Device.Launch(CudaKernels.SoftcapBackward, LaunchShape.EightEach(logits), sets[i % sets.Length].Gradient, sets[i % sets.Length].Values, logits, 30f);
        });
    }

    /// <summary>DoRA on the square matrix of a block at rank 16, and what it does to activations.</summary>
    private static IEnumerable<CudaRow> Magnitudes(CudaSizes s)
    {
        const int rank = 16;
        (int n, int d) = (s.Tokens, s.Hidden);
        double matrix = (double)n * d * BF16, weights = (double)d * d * BF16;
        yield return Row("dora_norms", $"{d}x{d}", weights + 2.0 * rank * d * F32, bench =>
        {
            Tensor[] sets = bench.Sets(weights, () => bench.BF16(d, d));
            Tensor a = bench.F32(rank, d), b = bench.F32(d, rank), norms = bench.F32(d);
            return i => Dora.Norms(norms, new DenseMatrix(sets[i % sets.Length]), a, b, 2);
        });
        foreach (GradientMode mode in (GradientMode[])[GradientMode.Overwrite, GradientMode.Accumulate])
        {
            bool adds = mode == GradientMode.Accumulate;
            yield return Row(adds ? "dora_scale_accumulate" : "dora_scale", $"{n}x{d}", (adds ? 3 : 2) * matrix, bench =>
            {
                var sets = bench.Sets(2 * matrix, () => (X: bench.BF16(n, d), Y: bench.BF16(n, d)));
                Tensor magnitude = bench.Positive(d), norms = bench.Positive(d);
                return i => Dora.Scale(sets[i % sets.Length].Y, sets[i % sets.Length].X, magnitude, norms, 0, mode);
            });
        }

        yield return Row("dora_magnitude_gradient", $"{n}x{d}", 2 * matrix, bench =>
        {
            var sets = bench.Sets(2 * matrix, () => (Gradient: bench.BF16(n, d), Product: bench.BF16(n, d)));
            Tensor gradient = bench.F32(d), norms = bench.Positive(d);
            return i => Dora.MagnitudeGradient(gradient, sets[i % sets.Length].Gradient, sets[i % sets.Length].Product, norms);
        });
    }

    private static IEnumerable<CudaRow> TokenRows(CudaSizes s)
    {
        (int n, int d, int v) = (s.Tokens, s.Hidden, s.Vocabulary);
        double matrix = (double)n * d * BF16;
        int[] tokens = RandomTokens(n, v);
        int different = tokens.Distinct().Count();
        yield return Row("embedding_forward", $"{n}x{d}", 2 * matrix, bench =>
        {
            Tensor table = bench.BF16(v, d), ids = bench.Integers(tokens);
            Tensor[] outputs = bench.Sets(matrix, () => bench.BF16(n, d));
            return i => bench.Device.Launch(CudaKernels.EmbeddingForward, LaunchShape.PerRow(n, d), outputs[i % outputs.Length], ids, table, n, d, 1f);
        });
        yield return Row("embedding_backward", $"{n}x{d}", matrix + 2.0 * different * d * F32, bench =>
        {
            Tensor table = bench.F32(v, d), ids = bench.Integers(tokens);
            Tensor[] gradients = bench.Sets(matrix, () => bench.BF16(n, d));
            var shape = new LaunchShape((uint)n, (uint)LaunchShape.Ceiling(d, 2048), 1, 256, 0);
            return i => bench.Device.Launch(CudaKernels.EmbeddingBackward, shape, table, gradients[i % gradients.Length], ids, n, d, -1, 1f);
        });
        yield return Row("embedding_noise", $"{n}x{d}", 2 * matrix, bench =>
        {
            Tensor[] sets = bench.Sets(matrix, () => bench.BF16(n, d));
            Tensor magnitudes = bench.Positive(n);
            return i => bench.Device.Launch(CudaKernels.EmbeddingNoise, LaunchShape.EightEach((long)n * d), sets[i % sets.Length], magnitudes, n, d, 0ul, 1ul, 2u, 3u);
        });
        foreach (bool gather in (bool[])[true, false])
        {
            yield return Row(gather ? "columns_gather" : "columns_scatter", $"{n}x{d}", 2 * matrix, bench =>
            {
                var sets = bench.Sets(4 * matrix, () => (Whole: bench.BF16(n, 3 * d), Part: bench.BF16(n, d)));
                return i =>
                {
                    var (whole, part) = sets[i % sets.Length];
                    bench.Device.Launch(gather ? CudaKernels.ColumnsGather : CudaKernels.ColumnsScatter, LaunchShape.PerRow(n, d), gather ? part : whole, gather ? whole : part, n, d, 3 * d, d);
                };
            });
        }

        int chosen = n / 2;
        int[] every = [.. Enumerable.Range(0, chosen).Select(row => 2 * row)];
        foreach (CudaKernel kernel in (CudaKernel[])[CudaKernels.RowsGather, CudaKernels.RowsScatter])
        {
            bool gather = kernel == CudaKernels.RowsGather;
            yield return Row(kernel.Name, $"{chosen}x{d}", matrix, bench =>
            {
                Tensor rows = bench.Integers(every);
                var sets = bench.Sets(1.5 * matrix, () => (Whole: bench.BF16(n, d), Part: bench.BF16(chosen, d)));
                return i =>
                {
                    var (whole, part) = sets[i % sets.Length];
                    bench.Device.Launch(kernel, LaunchShape.PerRow(chosen, d), gather ? part : whole, gather ? whole : part, rows, chosen, d);
                };
            });
        }
    }

    private static IEnumerable<CudaRow> Elementwise(CudaSizes s)
    {
        (int n, int d) = (s.Tokens, s.Hidden);
        long count = (long)n * d;
        double matrix = (double)count * BF16;
        string size = $"{n}x{d}";
        yield return Row("add", size, 3 * matrix, bench =>
        {
            var sets = bench.Sets(3 * matrix, () => (A: bench.BF16(n, d), B: bench.BF16(n, d), C: bench.BF16(n, d)));
            return i => bench.Device.Launch(CudaKernels.Add, LaunchShape.EightEach(count), sets[i % sets.Length].C, sets[i % sets.Length].A, sets[i % sets.Length].B, count);
        });
        yield return Row("add_bias", size, 2 * matrix, bench =>
        {
            Tensor[] sets = bench.Sets(2 * matrix, () => bench.BF16(n, d));
            Tensor bias = bench.F32(d);
            return i => bench.Device.Launch(CudaKernels.AddBias, LaunchShape.PerRow(n, d), sets[i % sets.Length], bias, n, d);
        });
        yield return Row("bias_gradient", size, matrix, bench =>
        {
            Tensor[] sets = bench.Sets(matrix, () => bench.BF16(n, d));
            Tensor gradient = bench.F32(d);
            return i => bench.Device.Launch(CudaKernels.BiasGradient, LaunchShape.PerColumns(d), gradient, sets[i % sets.Length], n, d);
        });
        yield return Row("cast_to_bf16", size, 3 * matrix, bench =>
        {
            var sets = bench.Sets(3 * matrix, () => (Narrow: bench.BF16(n, d), Wide: bench.F32(n, d)));
            return i => bench.Device.Launch(CudaKernels.CastToBf16, LaunchShape.EightEach(count), sets[i % sets.Length].Narrow, sets[i % sets.Length].Wide, count);
        });
        yield return Row("dropout_apply", size, 2 * matrix, bench =>
        {
            var sets = bench.Sets(2 * matrix, () => (X: bench.BF16(n, d), Y: bench.BF16(n, d)));
            ulong keep = Engine.Numerics.CounterRandom.KeepThreshold(0.9f);
            return i => bench.Device.Launch(
                CudaKernels.DropoutApply, LaunchShape.EightEach(count), sets[i % sets.Length].Y, sets[i % sets.Length].X, count, d, 0L, keep, 1 / 0.9f, 1ul, 2u, 3u, Tensor.None);
        });
    }

    private static IEnumerable<CudaRow> Loss(CudaSizes s)
    {
        int v = s.Vocabulary, m = LinearCrossEntropy.ChunkRows(DevicePlatform.Cuda, s.Tokens, v);
        double logits = (double)m * v * F32;
        yield return Row("softmax_cross_entropy", $"{m}x{v}", 1.5 * logits, bench =>
        {
            var sets = bench.Sets(1.5 * logits, () => (Logits: bench.F32(m, v), Gradient: bench.BF16(m, v)));
            Tensor losses = bench.F32(m), targets = bench.Integers(RandomTokens(m, v)), rows = bench.Positions(m);
            (LaunchShape shape, int kept) = LinearCrossEntropy.CudaLaunch(m, v, bench.Device.Info.SharedBytesPerBlock);
            return i => bench.Device.Launch(CudaKernels.SoftmaxCrossEntropy, shape, losses, sets[i % sets.Length].Gradient, sets[i % sets.Length].Logits, targets, rows, v, kept, 1f / m, Tensor.None);
        });
        yield return Row("sum_losses", $"{s.Tokens}", (double)s.Tokens * F32, bench =>
        {
            Tensor losses = bench.F32(s.Tokens), total = bench.F64(1);
            return _ => bench.Device.Launch(CudaKernels.SumLosses, LaunchShape.OneBlock, total, losses, s.Tokens);
        });
    }

    private static IEnumerable<CudaRow> Optimizer(CudaSizes s)
    {
        long count = s.Trained;
        int partials = (int)LaunchShape.Ceiling(count, 32768);
        yield return Row("sum_of_squares", $"{count}", (double)count * F32, bench =>
        {
            Tensor[] sets = bench.Sets((double)count * F32, () => bench.F32(count));
            Tensor sums = bench.F64(partials);
            return i => bench.Device.Launch(CudaKernels.SumOfSquares, LaunchShape.Blocks(partials, 512), sums, sets[i % sets.Length], count);
        });
        yield return Row("norm_of_partials", $"{partials}", 8.0 * partials, bench =>
        {
            Tensor sums = bench.F64(partials), norm = bench.F64(1);
            return _ => bench.Device.Launch(CudaKernels.NormOfPartials, LaunchShape.OneBlock, norm, sums, partials);
        });
        yield return Row("adamw_step", $"{count}", 7.0 * count * F32, bench => AdamW(bench, count));
        yield return Row("adamw_8bit_step", $"{count}", 3.0 * count * F32 + 4.0 * count, bench =>
        {
            long blocks = AdamW8Bit.Blocks(count);
            Tensor parameters = bench.F32(count), gradients = bench.F32(count), first = bench.Bytes(count), second = bench.Bytes(count), m = bench.Positive(blocks), v = bench.Positive(blocks), report = bench.F64(2);
            EightBitSegment[] segments = [new(new(0, count, 1, false), 0)];
            return i => AdamW8Bit.Step(parameters, gradients, first, m, second, v, segments, new AdamWSettings(0.9, 0.999, 1e-8, 0), i + 1, 1e-4, report, 1);
        });
    }

    private static unsafe Action<int> AdamW(CudaBench bench, long count)
    {
        Tensor parameters = bench.F32(count), gradients = bench.F32(count), first = bench.F32(count), second = bench.Positive(count), report = bench.F64(2);
        var segments = new AdamWSegment[] { new() { Offset = 0, Count = count, Keep = 1, StepSize = 1e-4f } };
        Tensor table = bench.Device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(sizeof(AdamWSegment)));
        bench.Device.Upload(table, System.Runtime.InteropServices.MemoryMarshal.AsBytes(segments.AsSpan()));
        return _ =>
        {
            var constants = new AdamWConstants { OneMinusBeta1 = 0.1f, Beta2 = 0.999f, OneMinusBeta2 = 0.001f, RootCorrection2 = 1, Epsilon = 1e-8f };
            bench.Device.Launch(
                CudaKernels.AdamWStep, LaunchShape.EightEach(count), parameters, gradients, first, second, table, 1, report, 1.0, KernelArgument.Struct(&constants));
        };
    }

    private static IEnumerable<CudaRow> Quantization(CudaSizes s)
    {
        long count = (long)s.Intermediate * s.Hidden, blocks = LaunchShape.Ceiling(count, BlockwiseFourBit.Blocksize), nested = LaunchShape.Ceiling(blocks, FourBitBlocks.NestedBlocksize);
        string size = $"{s.Intermediate}x{s.Hidden}";
        double packedBytes = count / 2.0, scales = (double)blocks * F32;
        var expansion = LaunchShape.Blocks(LaunchShape.Ceiling(count, 8192), 256);
        foreach ((string code, CudaKernel quantize, CudaKernel single, CudaKernel doubled) in ((string, CudaKernel, CudaKernel, CudaKernel)[])
            [("nf4", CudaKernels.Nf4Quantize, CudaKernels.Nf4Dequantize, CudaKernels.Nf4DequantizeDouble), ("fp4", CudaKernels.Fp4Quantize, CudaKernels.Fp4Dequantize, CudaKernels.Fp4DequantizeDouble)])
        {
            yield return Row(code + "_quantize", size, (double)count * F32 + packedBytes + scales, bench =>
            {
                Tensor[] values = bench.Sets((double)count * F32, () => bench.F32(count));
                Tensor packed = bench.Bytes((count + 1) / 2), absmax = bench.F32(blocks);
                return i => bench.Device.Launch(quantize, LaunchShape.EightEach(count), packed, absmax, values[i % values.Length], count);
            });
            yield return Row(code + "_dequantize", size, (double)count * BF16 + packedBytes + scales, bench =>
            {
                var sets = bench.Sets((double)count * BF16 + packedBytes, () => (Out: bench.BF16(count), Packed: bench.Bytes((count + 1) / 2), Absmax: bench.Positive(blocks)));
                return i => bench.Device.Launch(single, expansion, sets[i % sets.Length].Out, sets[i % sets.Length].Packed, sets[i % sets.Length].Absmax, count);
            });
            yield return Row(code + "_dequantize_double", size, (double)count * BF16 + packedBytes + blocks, bench =>
            {
                var sets = bench.Sets((double)count * BF16 + packedBytes, () => (Out: bench.BF16(count), Packed: bench.Bytes((count + 1) / 2), Codes: bench.Bytes(blocks)));
                Tensor nestedAbsmax = bench.Positive(nested), map = bench.Positive(FourBitBlocks.NestedBlocksize);
                return i =>
                {
                    var (output, packed, codes) = sets[i % sets.Length];
                    bench.Device.Launch(doubled, expansion, output, packed, codes, nestedAbsmax, map, 0.5f, count);
                };
            });
        }

        (int rows, int width) = (s.Intermediate, s.Hidden);
        yield return Row("int8_quantize", size, (double)count * (F32 + 1) + rows * F32, bench =>
        {
            Tensor[] values = bench.Sets((double)count * F32, () => bench.F32(rows, width));
            Tensor codes = bench.Bytes(count), rowScales = bench.F32(rows);
            return i => bench.Device.Launch(CudaKernels.Int8Quantize, LaunchShape.PerRow(rows, width), codes, rowScales, values[i % values.Length], rows, width);
        });
        yield return Row("int8_dequantize", size, (double)count * (BF16 + 1), bench =>
        {
            var sets = bench.Sets((double)count * (BF16 + 1), () => (Out: bench.BF16(count), Codes: bench.Bytes(count)));
            Tensor rowScales = bench.Positive(rows);
            return i => bench.Device.Launch(CudaKernels.Int8Dequantize, LaunchShape.PerRow(rows, width), sets[i % sets.Length].Out, sets[i % sets.Length].Codes, rowScales, rows, width);
        });
        yield return Row("sum_values", $"{blocks}", scales, bench =>
        {
            Tensor values = bench.Positive(blocks), total = bench.F64(1);
            return _ => bench.Device.Launch(CudaKernels.SumValues, LaunchShape.OneBlock, total, values, blocks);
        });
        yield return Row("quantize_absmax", $"{blocks}", scales + blocks, bench =>
        {
            Tensor absmax = bench.Positive(blocks), codes = bench.Bytes(blocks), nestedAbsmax = bench.F32(nested);
            Tensor map = bench.Device.Arena.Allocate(MemoryKind.Workspace, DType.F32, new Shape(FourBitBlocks.NestedBlocksize));
            bench.Device.Upload(map, System.Runtime.InteropServices.MemoryMarshal.AsBytes(DynamicMap.Signed.AsSpan()));
            LaunchShape shape = LaunchShape.Blocks(nested, FourBitBlocks.NestedBlocksize);
            return _ => bench.Device.Launch(CudaKernels.QuantizeAbsmax, shape, codes, nestedAbsmax, absmax, map, 0.5f, blocks);
        });
    }

    private static int[] RandomTokens(int count, int vocabulary)
    {
        var random = new Random(3);
        return [.. Enumerable.Range(0, count).Select(_ => random.Next(vocabulary))];
    }
}
