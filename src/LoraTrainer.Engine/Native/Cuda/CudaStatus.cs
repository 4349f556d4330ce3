using LoraTrainer.Engine.Devices;

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
    Contained = 226,
    NotReady = 600,
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
    /// What is at fault, for errors of work that runs on the GPU. They show up at whatever call comes next, and at every call after it: the context does not
    /// recover from them. A card that falls off its bus has no status of its own: the driver says LaunchFailed then, or Unknown, as it does of some kernels' faults.
    /// </summary>
    public static GpuFault Fault(this CudaStatus status) => status switch
    {
        CudaStatus.IllegalAddress or CudaStatus.LaunchTimeout or CudaStatus.Assert or CudaStatus.HardwareStackError or CudaStatus.IllegalInstruction or CudaStatus.MisalignedAddress
            or CudaStatus.InvalidAddressSpace or CudaStatus.InvalidPc => GpuFault.Kernel,
        CudaStatus.EccUncorrectable or CudaStatus.NvlinkUncorrectable or CudaStatus.Contained => GpuFault.Hardware,
        CudaStatus.DeviceUnavailable or CudaStatus.ContextIsDestroyed or CudaStatus.LaunchFailed or CudaStatus.Unknown => GpuFault.Unclear,
        _ => GpuFault.None,
    };
}
