using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Numerics;
using System.Runtime.CompilerServices;
using LoraTrainer.Engine.Native.Cuda;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Devices;

/// <summary>C = alpha op(A) op(B) + beta C, all row-major; op(A) is (M, K), op(B) is (K, N). Sums in fp32. Some of the library's algorithms round the product to
/// the type of C before they add beta C; for F32 that is no rounding, for BF16 it is what op-by-op bf16 training does.</summary>
internal readonly struct GemmCall
{
    public required long M { get; init; }

    public required long N { get; init; }

    public required long K { get; init; }

    /// <summary>bf16, stored (M, K), or (K, M) where it is transposed.</summary>
    public required nint A { get; init; }

    /// <summary>Elements from one stored row of A to the next.</summary>
    public required long LeadingA { get; init; }

    /// <summary>op(A) is the transpose of what is stored.</summary>
    public bool TransposeA { get; init; }

    /// <summary>bf16, stored (K, N), or (N, K) where it is transposed.</summary>
    public required nint B { get; init; }

    /// <summary>Elements from one stored row of B to the next.</summary>
    public required long LeadingB { get; init; }

    public bool TransposeB { get; init; }

    /// <summary>(M, N); not read where beta is 0. May not overlap A or B.</summary>
    public required nint C { get; init; }

    /// <summary>Elements from one row of C to the next.</summary>
    public required long LeadingC { get; init; }

    /// <summary>F32 or BF16.</summary>
    public required DType OutputType { get; init; }

    public float Alpha { get; init; } = 1;

    public float Beta { get; init; }

    /// <summary>Scratch, aligned to 256 bytes; null where there is none. One call at a time may use it, which a single stream guarantees.</summary>
    public nint Workspace { get; init; }

    public long WorkspaceBytes { get; init; }

    public GemmCall()
    {
    }
}

/// <summary>
/// Matrix products through cuBLASLt, which thinks in columns: a row-major matrix is the transpose of the same memory read by columns, so the
/// library is asked for C^T = op(B)^T op(A)^T. Descriptors and the chosen algorithm are kept for each kind of product; a product that was
/// seen before allocates nothing. The device's context must be current; one call at a time.
/// </summary>
internal sealed unsafe class CudaGemm : IDisposable
{
    /// <summary>Scratch that lets the library use every algorithm that it likes.</summary>
    public const long WorkspaceBytes = 32L << 20;

    private readonly nint stream;
    private readonly Dictionary<GemmKey, Plan> plans = [];
    private nint handle;
    private nint preference;

    /// <param name="stream">The stream that products are queued on.</param>
    /// <param name="deviceName">The name of the card, for <see cref="Algorithms"/>.</param>
    public CudaGemm(nint stream, string deviceName)
    {
        this.stream = stream;
        Algorithms = new GemmAlgorithms(CublasLt.cublasLtGetVersion().ToString(CultureInfo.InvariantCulture), deviceName);
        CudaCheck.ThrowIfFailed(CublasLt.cublasLtCreate(out handle));
        try
        {
            CudaCheck.ThrowIfFailed(CublasLt.cublasLtMatmulPreferenceCreate(out preference));
            SetPreference(CublasLt.PreferenceReductionSchemeMask, CublasLt.ReductionInComputeType);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>The algorithms in use; a checkpoint's are imported before the first product.</summary>
    public GemmAlgorithms Algorithms { get; }

    /// <summary>Queues the product.</summary>
    /// <returns>Success, or the status of the library's call that failed. What the library cannot do at all is an exception.</returns>
    public CublasStatus Multiply(in GemmCall call)
    {
        Check(call);
        if (call.M == 0 || call.N == 0)
        {
            return CublasStatus.Success;
        }

        var key = new GemmKey(
            call.M, call.N, call.K, call.TransposeA, call.TransposeB, call.OutputType == DType.BF16, call.LeadingA, call.LeadingB, call.LeadingC,
            AlignmentOf(call.A), AlignmentOf(call.B), AlignmentOf(call.C), call.Beta == 0, call.WorkspaceBytes);
        if (!plans.TryGetValue(key, out Plan? plan))
        {
            plan = Prepare(key);
            plans.Add(key, plan);
        }

        float alpha = call.Alpha, beta = call.Beta;
        fixed (MatmulAlgorithm* algorithm = &plan.Algorithm)
        {
            return CublasLt.cublasLtMatmul(
                handle, plan.Descriptor, &alpha, call.B, plan.LayoutB, call.A, plan.LayoutA, &beta, call.C, plan.LayoutC, call.C, plan.LayoutC,
                algorithm, call.Workspace, (nuint)call.WorkspaceBytes, stream);
        }
    }

    /// <summary>The stream must have been waited for.</summary>
    public void Dispose()
    {
        foreach (Plan plan in plans.Values)
        {
            plan.Dispose();
        }

        plans.Clear();
        if (preference != 0)
        {
            _ = CublasLt.cublasLtMatmulPreferenceDestroy(preference);
            preference = 0;
        }

        if (handle != 0)
        {
            _ = CublasLt.cublasLtDestroy(handle);
            handle = 0;
        }
    }

    /// <summary>The largest of 16, 8, 4 and 2 that divides the address: what the library's loads care about.</summary>
    internal static byte AlignmentOf(nint address) => (byte)(1 << Math.Clamp(BitOperations.TrailingZeroCount(address), 1, 4));

    private static void Check(in GemmCall call)
    {
        if (call.M < 0 || call.N < 0 || call.K < 1
            || call.LeadingA < (call.TransposeA ? call.M : call.K) || call.LeadingB < (call.TransposeB ? call.K : call.N) || call.LeadingC < call.N
            || call.OutputType is not (DType.F32 or DType.BF16))
        {
            ThrowShape(call);
        }
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void ThrowShape(in GemmCall call) => throw new ShapeMismatchException(string.Create(CultureInfo.InvariantCulture,
        $"A matrix product of ({call.M}, {call.K}){(call.TransposeA ? "^T" : "")} and ({call.K}, {call.N}){(call.TransposeB ? "^T" : "")} into {call.OutputType} with leading dimensions {call.LeadingA}, {call.LeadingB}, {call.LeadingC} does not exist: each must cover a stored row, K is at least 1 and the result is F32 or BF16."));

    private Plan Prepare(in GemmKey key)
    {
        var plan = new Plan(key);
        try
        {
            if (!Algorithms.TryGet(key, out plan.Algorithm))
            {
                Choose(key, plan);
                Algorithms.Add(key, plan.Algorithm);
            }
        }
        catch
        {
            plan.Dispose();
            throw;
        }

        return plan;
    }

    private void Choose(in GemmKey key, Plan plan)
    {
        // In the library's eyes B is the first matrix and A the second.
        SetPreference(CublasLt.PreferenceMaxWorkspaceBytes, (ulong)key.WorkspaceBytes);
        SetPreference(CublasLt.PreferenceMinAlignmentA, (uint)key.AlignmentB);
        SetPreference(CublasLt.PreferenceMinAlignmentB, (uint)key.AlignmentA);
        SetPreference(CublasLt.PreferenceMinAlignmentC, (uint)key.AlignmentC);
        SetPreference(CublasLt.PreferenceMinAlignmentD, (uint)key.AlignmentC);
        MatmulHeuristicResult result = default;
        CublasStatus status = CublasLt.cublasLtMatmulAlgoGetHeuristic(
            handle, plan.Descriptor, plan.LayoutB, plan.LayoutA, plan.LayoutC, plan.LayoutC, preference, 1, &result, out int returned);
        if (status == CublasStatus.Success)
        {
            status = returned < 1 ? CublasStatus.NotSupported : result.State;
        }

        if (status != CublasStatus.Success)
        {
            CudaCheck.Throw(status, nameof(CublasLt.cublasLtMatmulAlgoGetHeuristic), $"There is no algorithm for the matrix product {key}.");
        }

        plan.Algorithm = result.Algorithm;
    }

    private void SetPreference<T>(int attribute, T value)
        where T : unmanaged
        => CudaCheck.ThrowIfFailed(CublasLt.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, (nuint)sizeof(T)));

    /// <summary>Descriptors and algorithm of one kind of product.</summary>
    private sealed class Plan : IDisposable
    {
        public readonly nint Descriptor;
        public readonly nint LayoutA;
        public readonly nint LayoutB;
        public readonly nint LayoutC;
        public MatmulAlgorithm Algorithm;

        public Plan(in GemmKey key)
        {
            try
            {
                CudaCheck.ThrowIfFailed(CublasLt.cublasLtMatmulDescCreate(out Descriptor, CublasLt.ComputeF32, CublasLt.TypeF32));
                SetOperation(CublasLt.DescriptorTransposeA, key.TransposeB);
                SetOperation(CublasLt.DescriptorTransposeB, key.TransposeA);

                // What is stored as (rows, columns) by rows is (columns, rows) by columns.
                LayoutA = Layout(CublasLt.TypeBF16, key.TransposeA ? key.M : key.K, key.TransposeA ? key.K : key.M, key.LeadingA);
                LayoutB = Layout(CublasLt.TypeBF16, key.TransposeB ? key.K : key.N, key.TransposeB ? key.N : key.K, key.LeadingB);
                LayoutC = Layout(key.OutputIsBf16 ? CublasLt.TypeBF16 : CublasLt.TypeF32, key.N, key.M, key.LeadingC);
            }
            catch
            {
                Dispose();
                throw;
            }
        }

        public void Dispose()
        {
            _ = CublasLt.cublasLtMatrixLayoutDestroy(LayoutA);
            _ = CublasLt.cublasLtMatrixLayoutDestroy(LayoutB);
            _ = CublasLt.cublasLtMatrixLayoutDestroy(LayoutC);
            _ = CublasLt.cublasLtMatmulDescDestroy(Descriptor);
        }

        private static nint Layout(int type, long rows, long columns, long leadingDimension)
        {
            CudaCheck.ThrowIfFailed(CublasLt.cublasLtMatrixLayoutCreate(out nint layout, type, (ulong)rows, (ulong)columns, leadingDimension));
            return layout;
        }

        private void SetOperation(int attribute, bool transpose)
        {
            int operation = transpose ? CublasLt.OperationTranspose : CublasLt.OperationNone;
            CudaCheck.ThrowIfFailed(CublasLt.cublasLtMatmulDescSetAttribute(Descriptor, attribute, &operation, sizeof(int)));
        }
    }
}
