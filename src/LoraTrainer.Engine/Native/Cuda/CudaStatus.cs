namespace LoraTrainer.Engine.Native.Cuda;

/// <summary>What a function of the driver returns (CUresult): the values that the program tells apart.</summary>
internal enum CudaStatus
{
    Success = 0,
    InvalidValue = 1,
    OutOfMemory = 2,
    NotInitialized = 3,
    StubLibrary = 34,
    NoDevice = 100,
    InvalidDevice = 101,
    InvalidImage = 200,
    InvalidContext = 201,
    NoBinaryForGpu = 209,
    EccUncorrectable = 214,
    InvalidPtx = 218,
    UnsupportedPtxVersion = 222,
    FileNotFound = 301,
    NotFound = 500,
    NotReady = 600,
    IllegalAddress = 700,
    LaunchTimeout = 702,
    ContextIsDestroyed = 709,
    Assert = 710,
    LaunchFailed = 719,
    SystemDriverMismatch = 803,
    CompatNotSupportedOnDevice = 804,
    Unknown = 999,
}

internal static class CudaStatuses
{
    /// <summary>
    /// True for errors of work that runs on the GPU. They show up at whatever call comes next, and at every call after it: the context does not
    /// recover from them.
    /// </summary>
    public static bool IsLate(this CudaStatus status) => (int)status is 214 or 220 or 700 or 702 or 709 or 710 or (>= 714 and <= 719);
}
