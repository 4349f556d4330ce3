namespace LoraTrainer.Engine.Native.Cuda;

/// <summary>What a function of the driver returns (CUresult): the values that the program tells apart.</summary>
internal enum CudaStatus
{
    Success = 0,
    OutOfMemory = 2,
    StubLibrary = 34,
    DeviceUnavailable = 46,
    NoDevice = 100,
    EccUncorrectable = 214,
    NvlinkUncorrectable = 220,
    IllegalAddress = 700,
    LaunchTimeout = 702,
    ContextIsDestroyed = 709,
    Assert = 710,
    HardwareStackError = 714,
    IllegalInstruction = 715,
    MisalignedAddress = 716,
    InvalidAddressSpace = 717,
    InvalidPc = 718,
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
    public static bool IsLate(this CudaStatus status) => status is CudaStatus.EccUncorrectable or CudaStatus.NvlinkUncorrectable or CudaStatus.IllegalAddress
        or CudaStatus.LaunchTimeout or CudaStatus.ContextIsDestroyed or CudaStatus.Assert or CudaStatus.HardwareStackError or CudaStatus.IllegalInstruction
        or CudaStatus.MisalignedAddress or CudaStatus.InvalidAddressSpace or CudaStatus.InvalidPc or CudaStatus.LaunchFailed || status.IsLoss();

    /// <summary>True where no kernel is at fault: the card has failed, fell off its bus or was taken away. The driver has no one status for that.</summary>
    public static bool IsLoss(this CudaStatus status) => status is CudaStatus.DeviceUnavailable or CudaStatus.EccUncorrectable or CudaStatus.NvlinkUncorrectable or CudaStatus.Unknown;
}
