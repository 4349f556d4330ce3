using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Benchmarks;

/// <summary>
/// cuda_gemm_*: the products of an 8B step, in TFLOP/s against the fastest product, those of an adapter in GB/s against a copy. cuda_linear_nf4_*:
/// the same with a 4-bit weight that is expanded first. cuda_attention_*: causal documents, one of the length in the name or as many as it says, in a window where it names one; the backward
/// pass counts 2.5 times the forward's operations, whatever it computes again.
/// </summary>
internal static class CudaProductBenchmarks
{
    private const int Rank = 8;

    public static IEnumerable<CudaRow> Rows(CudaSizes s) => [.. Products(s), .. AdapterProducts(s), .. QuantizedProducts(s), .. s.HeadDims.SelectMany(dim => Attentions(s, dim, 1, s.Tokens)),
        .. Attentions(s, s.HeadDims[0], 1, s.GemmTokens), .. Attentions(s, s.HeadDims[0], 4, s.GemmTokens / 4),
        .. Attentions(s, s.HeadDims[0], 1, s.Tokens, s.Tokens / 4), .. Attentions(s, s.HeadDims[0], 1, s.Tokens, 0, 50), .. Attentions(s, 256, 1, s.Tokens, 0, 50)];

    private static IEnumerable<CudaRow> Products(CudaSizes s)
    {
        (long n, long d, long f, long kv) = (s.GemmTokens, s.Hidden, s.Intermediate, s.KeyHeads * s.HeadDims[0]);
        yield return Product("nt", s.Square, s.Square, s.Square);
        yield return Product("nt", n, d, d);
        yield return Product("nt", n, kv, d);
        yield return Product("nt", n, f, d);
        yield return Product("nt", n, d, f);
        yield return Product("nn", n, d, d);
        yield return Product("nn", n, d, kv);
        yield return Product("nn", n, d, f);
        yield return Product("nn", n, f, d);
        yield return Product("tn", f, d, n, DType.F32, accumulate: true);
        yield return Product("nt", LinearCrossEntropy.ChunkRows(DevicePlatform.Cuda, n, s.Vocabulary), s.Vocabulary, d, DType.F32);
    }

    private static CudaRow Product(string kind, long m, long n, long k, DType output = DType.BF16, bool accumulate = false) => new(
        $"cuda_gemm_bf16_{kind}_{m}x{n}x{k}", 2.0 * m * n * k, CudaBaseline.Product, bench => new CudaProduct(bench, kind, m, n, k, output, accumulate).Call);

    /// <summary>
    /// u = X A^T, Y += u B^T, du = dY B, dX += du A, dA += du^T X, dB += dY^T u: each moves a whole activation and computes next to nothing. Those with A are shared by the
    /// adapters of q, k and v.
    /// </summary>
    private static IEnumerable<CudaRow> AdapterProducts(CudaSizes s)
    {
        (long n, long d) = (s.GemmTokens, s.Hidden);
        double activation = 2.0 * n * d, small = 2.0 * Rank * (n + d);
        foreach (long shared in (long[])[Rank, 3 * Rank])
        {
            double smaller = 2.0 * shared * (n + d);
            yield return Adapter("nt", n, shared, d, activation + smaller, DType.BF16, false);
            yield return Adapter("nn", n, d, shared, 2 * activation + smaller, DType.BF16, true);
            yield return Adapter("tn", shared, d, n, activation + smaller + 8.0 * shared * d, DType.F32, true);
        }

        yield return Adapter("nt", n, d, Rank, 2 * activation + small, DType.BF16, true);
        yield return Adapter("nn", n, Rank, d, activation + small, DType.BF16, false);
        yield return Adapter("tn", d, Rank, n, activation + small + 8.0 * Rank * d, DType.F32, true);

        static CudaRow Adapter(string kind, long m, long n, long k, double bytes, DType output, bool accumulate) => new(
            $"cuda_gemm_adapter_{kind}_{m}x{n}x{k}", bytes, CudaBaseline.Copy, bench =>
            {
                CudaProduct[] sets = bench.Sets(bytes, () => new CudaProduct(bench, kind, m, n, k, output, accumulate));
                return i => sets[i % sets.Length].Call(i);
            });
    }

    private static IEnumerable<CudaRow> QuantizedProducts(CudaSizes s)
    {
        (long n, long d, long f) = (s.GemmTokens, s.Hidden, s.Intermediate);
        foreach (bool backward in (bool[])[false, true])
        {
            yield return new CudaRow($"cuda_linear_nf4_{(backward ? "backward" : "forward")}_{n}x{f}x{d}", 2.0 * n * f * d, CudaBaseline.Product, bench =>
            {
                FourBitMatrix weight = RandomNf4(bench, f, d);
                Tensor wide = bench.BF16(n, f), narrow = bench.BF16(n, d);
                return backward ? _ => Linear.BackwardInput(narrow, wide, weight) : _ => Linear.Forward(wide, narrow, weight);
            });
        }
    }

    private static FourBitMatrix RandomNf4(CudaBench bench, long rows, long columns)
    {
        long blocks = LaunchShape.Ceiling(rows * columns, BlockwiseFourBit.Blocksize);
        return new FourBitMatrix(
            FourBitCode.Nf4, (int)rows, (int)columns, bench.Bytes((rows * columns + 1) / 2), bench.Bytes(blocks), bench.Positive(LaunchShape.Ceiling(blocks, FourBitBlocks.NestedBlocksize)),
            bench.Positive(FourBitBlocks.NestedBlocksize), 0.5f);
    }

    private static IEnumerable<CudaRow> Attentions(CudaSizes s, int dim, int count, int length, int window = 0, float softcap = 0)
    {
        int n = count * length;
        int[] positions = [.. Enumerable.Range(0, n).Select(i => i % length)], starts = [.. Enumerable.Range(0, count + 1).Select(i => i * length)];
        var heads = new AttentionHeads(s.QueryHeads, s.KeyHeads, dim, 1 / MathF.Sqrt(dim), window, softcap);
        double visible = window > 0 ? window : length, forward = 2.0 * count * visible * (2 * length - visible) * heads.QueryWidth;
        string size = $"{(count == 1 ? "" : $"{count}x")}{length}x{heads.Query}x{dim}{(window > 0 ? $"_window{window}" : "")}{(softcap > 0 ? "_softcap" : "")}";
        yield return new CudaRow($"cuda_attention_forward_{size}", forward, CudaBaseline.Product, bench =>
        {
            Tensor q = bench.BF16(n, heads.QueryWidth), k = bench.BF16(n, heads.KeyValueWidth), v = bench.BF16(n, heads.KeyValueWidth);
            Tensor output = bench.BF16(n, heads.QueryWidth), lse = bench.F32(heads.Query, n);
            var documents = new PackedDocuments(bench.Integers(positions), starts);
            return _ => Attention.Forward(output, lse, q, k, v, documents, heads);
        });
        yield return new CudaRow($"cuda_attention_backward_{size}", 2.5 * forward, CudaBaseline.Product, bench =>
        {
            Tensor q = bench.BF16(n, heads.QueryWidth), k = bench.BF16(n, heads.KeyValueWidth), v = bench.BF16(n, heads.KeyValueWidth);
            Tensor dQ = bench.BF16(n, heads.QueryWidth), dK = bench.BF16(n, heads.KeyValueWidth), dV = bench.BF16(n, heads.KeyValueWidth);
            Tensor output = bench.BF16(n, heads.QueryWidth), dOutput = bench.BF16(n, heads.QueryWidth), lse = bench.F32(heads.Query, n);
            var documents = new PackedDocuments(bench.Integers(positions), starts);
            Attention.Forward(output, lse, q, k, v, documents, heads);
            return _ => Attention.Backward(dQ, dK, dV, dOutput, output, lse, q, k, v, documents, heads);
        });
    }
}
