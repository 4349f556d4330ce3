using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// Causal attention over a packed stream of documents, flash-style: scores never exist as a whole and memory is linear in the length. Query i
/// sees key j iff both lie in one document and j &lt;= i, and with a window W iff also j > i - W. Query head h reads key/value head h / (H/Hkv).
/// S = scale * q k^T, with a softcap c then c * tanh(S/c); P = softmax(S), o = P v; kept for backward besides the inputs: o and lse = logsumexp(S)
/// per row.
/// </summary>
public static unsafe partial class Attention
{
    /// <param name="output">(N, H*Dh) activations; overwritten.</param>
    /// <param name="lse">(H, N) f32; overwritten.</param>
    /// <param name="q">(N, H*Dh) activations, after the rotary embedding.</param>
    /// <param name="k">(N, Hkv*Dh) activations, after the rotary embedding.</param>
    /// <param name="v">(N, Hkv*Dh) activations</param>
    /// <param name="documents">How the N tokens are made up.</param>
    /// <param name="heads">Head counts and width, scale, window, softcap.</param>
    public static void Forward(Tensor output, Tensor lse, Tensor q, Tensor k, Tensor v, in PackedDocuments documents, in AttentionHeads heads)
    {
        const string op = "Attention.Forward";
        long n = Check(op, q, k, v, documents, heads);
        Contract.Expect(op, output, q.DType, n, heads.QueryWidth);
        Contract.Expect(op, lse, DType.F32, heads.Query, n);
        Contract.ExpectSameDevice(op, q, k, v, output, lse, documents.Positions);
        Device device = q.Device;
        using ArenaFrame frame = device.Arena.Frame();
        Tensor workspace = device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(ForwardWorkspace(device, heads, n)));
        switch (device)
        {
            case CpuDevice cpu:
                CpuAttention.Forward(cpu.Pool, workspace.U8, output.F32, lse.F32, q.F32, k.F32, v.F32, documents.Offsets.Span, heads.CpuShape, heads.CpuOptions);
                cpu.RoundActivations(output);
                break;
            case CudaDevice cuda:
                ForwardCuda(cuda, output, lse, q, k, v, documents.Positions, heads);
                break;
            case MeasureDevice measure:
                measure.Count(WorkKind.Attention, ForwardFlops(documents.Offsets.Span, heads), q, k, v, output, lse);
                break;
            default:
                Contract.ThrowNoKernel(op, device);
                break;
        }
    }

    /// <summary>
    /// dQ, dK, dV are OVERWRITTEN. With P recomputed from lse and D_i = dO_i . O_i: dV += P^T dO; dS = P * (dO v^T - D), with a softcap c times
    /// 1 - (S/c)^2; dQ = scale * dS k; dK = scale * dS^T q; the gradients of a key/value head sum over its query heads.
    /// </summary>
    /// <param name="dQ">(N, H*Dh) activations</param>
    /// <param name="dK">(N, Hkv*Dh) activations</param>
    /// <param name="dV">(N, Hkv*Dh) activations</param>
    /// <param name="dOutput">(N, H*Dh) activations</param>
    /// <param name="output">(N, H*Dh) activations, from the forward pass.</param>
    /// <param name="lse">(H, N) f32, from the forward pass.</param>
    /// <param name="q">(N, H*Dh) activations</param>
    /// <param name="k">(N, Hkv*Dh) activations</param>
    /// <param name="v">(N, Hkv*Dh) activations</param>
    /// <param name="documents">As in the forward pass.</param>
    /// <param name="heads">Head counts and width, scale, window, softcap.</param>
    public static void Backward(
        Tensor dQ, Tensor dK, Tensor dV, Tensor dOutput, Tensor output, Tensor lse, Tensor q, Tensor k, Tensor v, in PackedDocuments documents, in AttentionHeads heads)
    {
        const string op = "Attention.Backward";
        long n = Check(op, q, k, v, documents, heads);
        Contract.Expect(op, dQ, q.DType, n, heads.QueryWidth);
        Contract.Expect(op, dK, q.DType, n, heads.KeyValueWidth);
        Contract.Expect(op, dV, q.DType, n, heads.KeyValueWidth);
        Contract.Expect(op, dOutput, q.DType, n, heads.QueryWidth);
        Contract.Expect(op, output, q.DType, n, heads.QueryWidth);
        Contract.Expect(op, lse, DType.F32, heads.Query, n);
        Contract.ExpectSameDevice(op, q, k, v, output, lse, dOutput, dQ, dK, dV, documents.Positions);
        Device device = q.Device;
        using ArenaFrame frame = device.Arena.Frame();
        Tensor workspace = device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(BackwardWorkspace(device, heads, n)));
        switch (device)
        {
            case CpuDevice cpu:
                CpuAttention.Backward(
                    cpu.Pool, workspace.U8, dQ.F32, dK.F32, dV.F32, dOutput.F32, output.F32, lse.F32, q.F32, k.F32, v.F32,
                    documents.Offsets.Span, heads.CpuShape, heads.CpuOptions);
                cpu.RoundActivations(dQ, dK, dV);
                break;
            case CudaDevice cuda:
                BackwardCuda(cuda, workspace, dQ, dK, dV, dOutput, output, lse, q, k, v, documents.Positions, heads);
                break;
            case MeasureDevice measure:
                measure.Count(WorkKind.Attention, 2 * ForwardFlops(documents.Offsets.Span, heads), q, k, v, output, lse, dOutput, dQ, dK, dV);
                break;
            default:
                Contract.ThrowNoKernel(op, device);
                break;
        }
    }

    /// <summary>
    /// The last M tokens of one document attend to all T of it: generation with a cache. The bits are those that <see cref="Forward"/> gives
    /// these rows for the whole document; but a single one on the CPU has sums of its own order, which let all threads read the cache at once.
    /// </summary>
    /// <param name="output">(M, H*Dh) activations; overwritten.</param>
    /// <param name="q">(M, H*Dh) activations, after the rotary embedding.</param>
    /// <param name="k">(T, Hkv*Dh) activations, the new tokens' included.</param>
    /// <param name="v">(T, Hkv*Dh) activations</param>
    /// <param name="heads">Head counts and width, scale, window, softcap.</param>
    public static void ForwardCached(Tensor output, Tensor q, Tensor k, Tensor v, in AttentionHeads heads)
    {
        const string op = "Attention.ForwardCached";
        (long m, long _) = Contract.ExpectActivations(op, q);
        (long t, long _) = Contract.ExpectActivations(op, k);
        Contract.Expect(op, q, q.DType, m, heads.QueryWidth);
        Contract.Expect(op, output, q.DType, m, heads.QueryWidth);
        Contract.Expect(op, k, q.DType, t, heads.KeyValueWidth);
        Contract.Expect(op, v, q.DType, t, heads.KeyValueWidth);
        Contract.ExpectSameDevice(op, q, k, v, output);
        Device device = q.Device;
        using ArenaFrame frame = device.Arena.Frame();
        Tensor workspace = device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(DecodeWorkspace(device, heads, m)));
        switch (device)
        {
            case CpuDevice cpu:
                if (m == 1)
                {
                    CpuAttention.ForwardOne(cpu.Pool, workspace.U8, output.F32, q.F32, k.F32, v.F32, (int)t, heads.CpuShape, heads.CpuOptions);
                }
                else
                {
                    CpuAttention.ForwardDecode(cpu.Pool, workspace.U8, output.F32, q.F32, k.F32, v.F32, (int)m, (int)t, heads.CpuShape, heads.CpuOptions);
                }

                cpu.RoundActivations(output);
                break;
            case CudaDevice cuda:
                ForwardCuda(cuda, output, Tensor.None, q, k, v, Tensor.None, heads);
                break;
            case MeasureDevice measure:
                measure.Count(WorkKind.Attention, 4.0 * m * Visible(t, heads) * heads.QueryWidth, q, k, v, output);
                break;
            default:
                Contract.ThrowNoKernel(op, device);
                break;
        }
    }

    // Sized for as many documents as there are tokens: the plan must not depend on how a batch is made up.
    private static long ForwardWorkspace(Device device, in AttentionHeads heads, long n) =>
        device.Platform == DevicePlatform.Cuda ? 0 : CpuAttention.ForwardWorkspaceBytes(device.ThreadCount, (int)n, (int)n, heads.Dim);

    private static long DecodeWorkspace(Device device, in AttentionHeads heads, long queries) => device.Platform == DevicePlatform.Cuda ? 0
        : queries == 1 ? CpuAttention.OneQueryWorkspaceBytes(device.ThreadCount, heads.Query, heads.Dim)
        : CpuAttention.DecodeWorkspaceBytes(device.ThreadCount, heads.Dim);

    // On a GPU: D, the row sums of dO . O, (H, N) f32.
    private static long BackwardWorkspace(Device device, in AttentionHeads heads, long n) => device.Platform == DevicePlatform.Cuda
        ? heads.Query * n * sizeof(float)
        : CpuAttention.BackwardWorkspaceBytes(device.ThreadCount, (int)n, (int)n, heads.Query, heads.KeyValue, heads.Dim);

    /// <summary>
    /// Two products over the part of each document's square that is visible: 2 * T^2 * H * Dh for a document of T tokens and no window, which is the
    /// causal half. Backward counts twice that.
    /// </summary>
    private static double ForwardFlops(ReadOnlySpan<int> documentOffsets, in AttentionHeads heads)
    {
        double flops = 0;
        for (int i = 1; i < documentOffsets.Length; i++)
        {
            double length = documentOffsets[i] - documentOffsets[i - 1];
            double visible = Visible(length, heads);
            flops += 2 * visible * (2 * length - visible) * heads.QueryWidth;
        }

        return flops;
    }

    /// <summary>Keys that the last of so many tokens sees.</summary>
    private static double Visible(double tokens, in AttentionHeads heads) => heads.Window > 0 ? Math.Min(tokens, heads.Window) : tokens;

    private static long Check(string op, Tensor q, Tensor k, Tensor v, in PackedDocuments documents, in AttentionHeads heads)
    {
        (long n, long _) = Contract.ExpectActivations(op, q);
        Contract.Expect(op, q, q.DType, n, heads.QueryWidth);
        Contract.Expect(op, k, q.DType, n, heads.KeyValueWidth);
        Contract.Expect(op, v, q.DType, n, heads.KeyValueWidth);
        Contract.Expect(op, documents.Positions, DType.I32, n, "positions");
        ReadOnlySpan<int> offsets = documents.Offsets.Span;
        if (offsets.Length < 2 || offsets[0] != 0 || offsets[^1] != n)
        {
            throw new ShapeMismatchException($"{op}: document offsets must run from 0 to {n}.");
        }

        if (q.Device.Platform == DevicePlatform.Cuda && heads.Dim is var dim && (dim % 8 != 0 || dim > 256))
        {
            throw new ShapeMismatchException($"{op}: a GPU takes head dims that are multiples of 8 up to 256, got {dim}.");
        }

        return n;
    }
}

/// <summary>How a packed stream of N tokens is made up of documents: once for the host, once for the device.</summary>
/// <param name="Positions">(N) i32, restarting at 0 with each document; a token's document starts at its index minus its position.</param>
/// <param name="Offsets">B+1 cumulative starts; the first is 0, the last N.</param>
public readonly record struct PackedDocuments(Tensor Positions, ReadOnlyMemory<int> Offsets);

/// <summary>Head counts and width of an attention, and what happens to its scores.</summary>
/// <param name="Query">H</param>
/// <param name="KeyValue">Hkv; divides H.</param>
/// <param name="Dim">Dh</param>
/// <param name="Scale">Multiplies the scores.</param>
/// <param name="Window">W: a query sees W keys at most, its own included; 0 for all of its document before it.</param>
/// <param name="Softcap">c: scaled scores s become c * tanh(s/c) before they are masked; 0 for none.</param>
public readonly record struct AttentionHeads(int Query, int KeyValue, int Dim, float Scale, int Window = 0, float Softcap = 0)
{
    public int QueryWidth => Query * Dim;

    public int KeyValueWidth => KeyValue * Dim;

    internal AttentionOptions CpuOptions => new(Scale, Window, Softcap);

    internal AttentionShape CpuShape => new(Query, KeyValue, Dim, QueryWidth, KeyValueWidth, QueryWidth);
}
