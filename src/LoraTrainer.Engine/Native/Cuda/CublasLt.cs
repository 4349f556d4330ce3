using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace LoraTrainer.Engine.Native.Cuda;

/// <summary>What a function of cuBLASLt returns (cublasStatus_t).</summary>
internal enum CublasStatus
{
    Success = 0,
    NotInitialized = 1,
    AllocFailed = 3,
    InvalidValue = 7,
    ArchMismatch = 8,
    MappingError = 11,
    ExecutionFailed = 13,
    InternalError = 14,
    NotSupported = 15,
    LicenseError = 16,
}

/// <summary>An algorithm with its settings (cublasLtMatmulAlgo_t): 64 bytes that only the library reads. They can be stored and used again with the same version of it.</summary>
[InlineArray(SizeBytes)]
internal struct MatmulAlgorithm
{
    public const int SizeBytes = 64;

    private byte first;
}

/// <summary>One answer of the heuristic (cublasLtMatmulHeuristicResult_t).</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct MatmulHeuristicResult
{
    public MatmulAlgorithm Algorithm;
    public nuint WorkspaceBytes;
    public CublasStatus State;
    public float WavesCount;
    public Reserved4 Reserved;

    [InlineArray(4)]
    internal struct Reserved4
    {
        private int first;
    }
}

/// <summary>
/// The functions of cuBLASLt under their own names. Each returns <see cref="CublasStatus"/>; descriptors are pointers that the library allocates
/// and that want their Destroy, which accepts null. Device addresses are nint.
/// </summary>
internal static unsafe partial class CublasLt
{
    private const string Library = CudaLibraries.BlasName;

    // Numbers of cublasLt.h, cublas_api.h and library_types.h.
    public const int DescriptorTransposeA = 3;
    public const int DescriptorTransposeB = 4;
    public const int PreferenceMaxWorkspaceBytes = 1;
    public const int PreferenceReductionSchemeMask = 3;
    public const int PreferenceMinAlignmentA = 5;
    public const int PreferenceMinAlignmentB = 6;
    public const int PreferenceMinAlignmentC = 7;
    public const int PreferenceMinAlignmentD = 8;
    public const int OperationNone = 0;
    public const int OperationTranspose = 1;
    public const int ComputeF32 = 68;
    public const int TypeF32 = 0;
    public const int TypeBF16 = 14;

    /// <summary>Partial sums of a split K are kept in fp32 and added in a step of their own; the other schemes round them to the output's type.</summary>
    public const uint ReductionInComputeType = 2;

    // The library.

    /// <summary>Version as major * 10000 + minor * 100 + patch.</summary>
    [LibraryImport(Library)]
    internal static partial nuint cublasLtGetVersion();

    /// <summary>NotInitialized (no context, or the driver is too old for this library), AllocFailed, ArchMismatch.</summary>
    [LibraryImport(Library)]
    internal static partial CublasStatus cublasLtCreate(out nint handle);

    /// <summary>NotInitialized. Waits for work of the handle.</summary>
    [LibraryImport(Library)]
    internal static partial CublasStatus cublasLtDestroy(nint handle);

    // What is to be computed.

    /// <summary>AllocFailed. <paramref name="computeType"/>: ComputeF32; <paramref name="scaleType"/>: of alpha and beta.</summary>
    [LibraryImport(Library)]
    internal static partial CublasStatus cublasLtMatmulDescCreate(out nint descriptor, int computeType, int scaleType);

    /// <summary>InvalidValue for a wrong size or value.</summary>
    [LibraryImport(Library)]
    internal static partial CublasStatus cublasLtMatmulDescSetAttribute(nint descriptor, int attribute, void* value, nuint bytes);

    [LibraryImport(Library)]
    internal static partial CublasStatus cublasLtMatmulDescDestroy(nint descriptor);

    /// <summary>AllocFailed. Column-major: <paramref name="leadingDimension"/> is the distance of columns, in elements.</summary>
    [LibraryImport(Library)]
    internal static partial CublasStatus cublasLtMatrixLayoutCreate(out nint layout, int type, ulong rows, ulong columns, long leadingDimension);

    [LibraryImport(Library)]
    internal static partial CublasStatus cublasLtMatrixLayoutDestroy(nint layout);

    // How.

    /// <summary>AllocFailed.</summary>
    [LibraryImport(Library)]
    internal static partial CublasStatus cublasLtMatmulPreferenceCreate(out nint preference);

    /// <summary>InvalidValue for a wrong size or value.</summary>
    [LibraryImport(Library)]
    internal static partial CublasStatus cublasLtMatmulPreferenceSetAttribute(nint preference, int attribute, void* value, nuint bytes);

    [LibraryImport(Library)]
    internal static partial CublasStatus cublasLtMatmulPreferenceDestroy(nint preference);

    /// <summary>NotSupported if there is no algorithm for this product, InvalidValue. Fills at most <paramref name="requested"/> results, best first.</summary>
    [LibraryImport(Library)]
    internal static partial CublasStatus cublasLtMatmulAlgoGetHeuristic(
        nint handle, nint descriptor, nint layoutA, nint layoutB, nint layoutC, nint layoutD, nint preference, int requested, MatmulHeuristicResult* results, out int returned);

    /// <summary>
    /// InvalidValue, NotSupported, ArchMismatch, ExecutionFailed (often a late error of an earlier kernel). D = alpha op(A) op(B) + beta C; C may be D;
    /// C is not read where beta is 0. <paramref name="workspace"/> may be null where <paramref name="workspaceBytes"/> is 0.
    /// </summary>
    [LibraryImport(Library)]
    internal static partial CublasStatus cublasLtMatmul(
        nint handle, nint descriptor, float* alpha, nint a, nint layoutA, nint b, nint layoutB, float* beta, nint c, nint layoutC, nint d, nint layoutD,
        MatmulAlgorithm* algorithm, nint workspace, nuint workspaceBytes, nint stream);

    /// <summary>The name of a status in cublas_api.h.</summary>
    internal static string NameOf(CublasStatus status) => status switch
    {
        CublasStatus.NotInitialized => "CUBLAS_STATUS_NOT_INITIALIZED",
        CublasStatus.AllocFailed => "CUBLAS_STATUS_ALLOC_FAILED",
        CublasStatus.InvalidValue => "CUBLAS_STATUS_INVALID_VALUE",
        CublasStatus.ArchMismatch => "CUBLAS_STATUS_ARCH_MISMATCH",
        CublasStatus.MappingError => "CUBLAS_STATUS_MAPPING_ERROR",
        CublasStatus.ExecutionFailed => "CUBLAS_STATUS_EXECUTION_FAILED",
        CublasStatus.InternalError => "CUBLAS_STATUS_INTERNAL_ERROR",
        CublasStatus.NotSupported => "CUBLAS_STATUS_NOT_SUPPORTED",
        CublasStatus.LicenseError => "CUBLAS_STATUS_LICENSE_ERROR",
        _ => $"cuBLAS error {(int)status}",
    };
}
