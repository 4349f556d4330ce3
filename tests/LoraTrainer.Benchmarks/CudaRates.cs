using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Benchmarks;

/// <summary>The two rates that everything on a GPU is held against, measured beside each row, and the rows themselves.</summary>
internal sealed class CudaRates
{
    private readonly CudaBench bench;
    private readonly Tensor source;
    private readonly Tensor destination;
    private CudaProduct? fastest;

    public CudaRates(CudaBench bench)
    {
        this.bench = bench;
        source = bench.Bytes(bench.Sizes.CopyBytes);
        destination = bench.Bytes(bench.Sizes.CopyBytes);
    }

    public void Run(CudaRow row)
    {
        if (row.Baseline == CudaBaseline.Product)
        {
            // Its operands stay below the row's frame.
            fastest ??= CudaProduct.Fastest(bench);
        }

        using ArenaFrame frame = bench.Device.Arena.Frame();
        Action<int> call = row.Prepare(bench);
        if (row.Baseline == CudaBaseline.Product)
        {
            bench.Compare(row.Name, "TFLOP/s", row.Work / 1e12, call, "fastest own bf16 GEMM", fastest!.Flops / 1e12, fastest.Call);
        }
        else
        {
            bench.Compare(row.Name, "GB/s", row.Work / 1e9, call, "copy on the device", 2e-9 * source.SizeBytes, _ => bench.Device.Copy(destination, source));
        }
    }
}

/// <summary>A bf16 matrix product with its operands. nt: Y = X W^T; nn: dX = dY W; tn: dW += dY^T X, into f32.</summary>
internal sealed class CudaProduct
{
    private readonly CudaDevice device;
    private readonly GemmCall call;

    /// <param name="bench">Makes the operands.</param>
    /// <param name="kind">nt, nn or tn.</param>
    /// <param name="m">Rows of the result.</param>
    /// <param name="n">Columns of the result.</param>
    /// <param name="k">The inner dimension.</param>
    /// <param name="output">Type of the result; f32 for logits and gradients.</param>
    /// <param name="accumulate">Adds to the result.</param>
    public CudaProduct(CudaBench bench, string kind, long m, long n, long k, DType output = DType.BF16, bool accumulate = false)
    {
        device = bench.Device;
        bool transposeA = kind[0] == 't', transposeB = kind[1] == 't';
        Tensor a = transposeA ? bench.BF16(k, m) : bench.BF16(m, k), b = transposeB ? bench.BF16(n, k) : bench.BF16(k, n);
        Tensor c = output == DType.BF16 ? bench.BF16(m, n) : bench.F32(m, n);
        Flops = 2.0 * m * n * k;
        call = new GemmCall
        {
            M = m,
            N = n,
            K = k,
            A = a.Address,
            LeadingA = transposeA ? m : k,
            TransposeA = transposeA,
            B = b.Address,
            LeadingB = transposeB ? k : n,
            TransposeB = transposeB,
            C = c.Address,
            LeadingC = n,
            OutputType = output,
            Beta = accumulate ? 1 : 0,
            Workspace = bench.Workspace.Address,
            WorkspaceBytes = bench.Workspace.SizeBytes,
        };
    }

    /// <summary>Floating-point operations of a call.</summary>
    public double Flops { get; }

    public Action<int> Call => _ => device.Multiply(call);

    /// <summary>The fastest of a few large products; its operands stay where they are.</summary>
    public static CudaProduct Fastest(CudaBench bench)
    {
        CudaSizes s = bench.Sizes;
        CudaProduct[] candidates =
        [
            new(bench, "nt", s.Square, s.Square, s.Square),
            new(bench, "nt", s.Tokens, s.Intermediate, s.Hidden),
            new(bench, "nn", s.Tokens, s.Hidden, s.Intermediate),
        ];

        // A GPU that was idle takes a moment to reach its clock.
        bench.Rate(candidates[0].Flops, candidates[0].Call);
        return candidates.MaxBy(candidate => bench.Rate(candidate.Flops, candidate.Call))!;
    }
}
