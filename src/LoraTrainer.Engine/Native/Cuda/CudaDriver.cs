using System.Runtime.InteropServices;

namespace LoraTrainer.Engine.Native.Cuda;

/// <summary>
/// The functions of the NVIDIA driver (libcuda) under their own names; where the driver has a second version of one, that is bound (the first
/// are of the time of 32-bit device addresses). Each returns <see cref="CudaStatus"/>: Success, what its line lists in cuda.h's words, and any late error
/// (<see cref="CudaStatuses.Fault"/>) of work that was given to the GPU before. No argument may be null unless its line says so.
/// <see cref="CudaLibraries"/> finds the library; ask it first whether there is one.
/// </summary>
internal static unsafe partial class CudaDriver
{
    private const string Library = CudaLibraries.DriverName;

    // Numbers of cuda.h.
    public const int AttributeMultiprocessorCount = 16;
    public const int AttributeComputeCapabilityMajor = 75;
    public const int AttributeComputeCapabilityMinor = 76;
    public const int AttributeSharedBytesPerBlockOptIn = 97;
    public const int FunctionStaticSharedBytes = 1;
    public const int FunctionMaxDynamicSharedBytes = 8;
    public const int AttributeConcurrentManagedAccess = 89;
    public const uint AttachGlobal = 1;
    public const uint HostMapped = 2;
    public const uint StreamNonBlocking = 1;
    public const uint EventWithoutTiming = 2;
    public const int CaptureThreadLocal = 1;

    // Start and errors.

    /// <summary>NoDevice, InvalidDevice, StubLibrary, SystemDriverMismatch, CompatNotSupportedOnDevice, Unknown (no device files, or no rights to them). <paramref name="flags"/> is 0.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuInit(uint flags);

    /// <summary>InvalidValue. 1000 * major + 10 * minor of the newest CUDA that the driver serves; works before cuInit.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuDriverGetVersion(out int version);

    /// <summary>InvalidValue for a status that the driver does not know. <paramref name="text"/>: a constant of the driver, null on failure.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuGetErrorName(CudaStatus status, out nint text);

    /// <summary>As cuGetErrorName; a short sentence.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuGetErrorString(CudaStatus status, out nint text);

    // Devices.

    /// <summary>NotInitialized.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuDeviceGetCount(out int count);

    /// <summary>InvalidDevice, NotInitialized.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuDeviceGet(out int device, int ordinal);

    /// <summary>InvalidDevice. Writes at most <paramref name="capacity"/> bytes, the closing zero included.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuDeviceGetName(byte* name, int capacity, int device);

    /// <summary>InvalidDevice, InvalidValue for an attribute that the driver does not know.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuDeviceGetAttribute(out int value, int attribute, int device);

    /// <summary>InvalidDevice.</summary>
    [LibraryImport(Library, EntryPoint = "cuDeviceTotalMem_v2")]
    internal static partial CudaStatus cuDeviceTotalMem(out nuint bytes, int device);

    // Contexts.

    /// <summary>OutOfMemory, InvalidDevice, Unknown (the card is in exclusive mode and taken). Each success wants one cuDevicePrimaryCtxRelease.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuDevicePrimaryCtxRetain(out nint context, int device);

    /// <summary>InvalidContext if it was not retained. The last release destroys the context with all that lies in it.</summary>
    [LibraryImport(Library, EntryPoint = "cuDevicePrimaryCtxRelease_v2")]
    internal static partial CudaStatus cuDevicePrimaryCtxRelease(int device);

    /// <summary>InvalidContext. Of the calling thread; <paramref name="context"/> may be null (none).</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuCtxSetCurrent(nint context);

    // Memory. All of these want a current context (InvalidContext).

    /// <summary>Of the current context's device.</summary>
    [LibraryImport(Library, EntryPoint = "cuMemGetInfo_v2")]
    internal static partial CudaStatus cuMemGetInfo(out nuint free, out nuint total);

    /// <summary>OutOfMemory; InvalidValue for 0 bytes. Aligned to 256 bytes at least; content undefined.</summary>
    [LibraryImport(Library, EntryPoint = "cuMemAlloc_v2")]
    internal static partial CudaStatus cuMemAlloc(out nint address, nuint bytes);

    /// <summary>InvalidValue if it is not the start of an allocation. Waits for the device.</summary>
    [LibraryImport(Library, EntryPoint = "cuMemFree_v2")]
    internal static partial CudaStatus cuMemFree(nint address);

    /// <summary>OutOfMemory; NotSupported. Memory that the host and the GPU reach under one address; the driver moves its pages. <paramref name="flags"/>: <see cref="AttachGlobal"/>. Freed by cuMemFree.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuMemAllocManaged(out nint address, nuint bytes, uint flags);

    /// <summary>
    /// InvalidValue for a range outside managed memory. Moves its pages to a device when the stream comes to it; <paramref name="device"/>: its number. The first form of this function,
    /// whatever the headers of a toolkit call by this name; ask <see cref="CudaLibraries.Exports"/>.
    /// </summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuMemPrefetchAsync(nint address, nuint bytes, int device, nint stream);

    /// <summary>OutOfMemory. Page-locked memory of the host that the GPU reads by itself; <paramref name="flags"/> 0, or <see cref="HostMapped"/> for memory that kernels are given, under the same address.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuMemHostAlloc(out nint memory, nuint bytes, uint flags);

    /// <summary>InvalidValue if it does not come from cuMemHostAlloc.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuMemFreeHost(nint memory);

    /// <summary>InvalidValue for a range outside one allocation. From page-locked memory it returns at once, and the source must stay as it is until the copy is done.</summary>
    [LibraryImport(Library, EntryPoint = "cuMemcpyHtoDAsync_v2")]
    internal static partial CudaStatus cuMemcpyHtoDAsync(nint destination, void* source, nuint bytes, nint stream);

    /// <summary>InvalidValue for a range outside one allocation. The destination is valid after the stream was waited for.</summary>
    [LibraryImport(Library, EntryPoint = "cuMemcpyDtoHAsync_v2")]
    internal static partial CudaStatus cuMemcpyDtoHAsync(void* destination, nint source, nuint bytes, nint stream);

    /// <summary>InvalidValue for a range outside one allocation.</summary>
    [LibraryImport(Library, EntryPoint = "cuMemcpyDtoDAsync_v2")]
    internal static partial CudaStatus cuMemcpyDtoDAsync(nint destination, nint source, nuint bytes, nint stream);

    /// <summary>InvalidValue for a range outside one allocation.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuMemsetD8Async(nint destination, byte value, nuint bytes, nint stream);

    // Streams and events.

    /// <summary>OutOfMemory, InvalidContext.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuStreamCreate(out nint stream, uint flags);

    /// <summary>InvalidValue. Work that was queued is still carried out.</summary>
    [LibraryImport(Library, EntryPoint = "cuStreamDestroy_v2")]
    internal static partial CudaStatus cuStreamDestroy(nint stream);

    /// <summary>InvalidValue. What is queued on the stream from now on waits for what the event stands for now; <paramref name="flags"/> 0.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuStreamWaitEvent(nint stream, nint cudaEvent, uint flags);

    /// <summary>Late errors of everything queued on the stream.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuStreamSynchronize(nint stream);

    /// <summary>OutOfMemory, InvalidContext.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuEventCreate(out nint cudaEvent, uint flags);

    /// <summary>InvalidValue.</summary>
    [LibraryImport(Library, EntryPoint = "cuEventDestroy_v2")]
    internal static partial CudaStatus cuEventDestroy(nint cudaEvent);

    /// <summary>InvalidValue. The event then stands for all that was queued on the stream until now.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuEventRecord(nint cudaEvent, nint stream);

    /// <summary>Success at once for an event that was never recorded.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuEventSynchronize(nint cudaEvent);

    /// <summary>NotReady where what the event stands for is not done yet. Success at once for an event that was never recorded.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuEventQuery(nint cudaEvent);

    // Graphs. While a stream is captured its thread may not wait, allocate or load (StreamCaptureUnsupported; the capture is spoilt).

    /// <summary>
    /// IllegalState where it is captured already. What is queued on the stream from now on is kept instead of done, and what other streams are given behind an event of it;
    /// <paramref name="mode"/>: <see cref="CaptureThreadLocal"/>.
    /// </summary>
    [LibraryImport(Library, EntryPoint = "cuStreamBeginCapture_v2")]
    internal static partial CudaStatus cuStreamBeginCapture(nint stream, int mode);

    /// <summary>StreamCaptureInvalidated after a call that a capture does not bear; StreamCaptureUnjoined where the stream has not waited for all others. The capture has ended in any case; <paramref name="graph"/> is null then.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuStreamEndCapture(nint stream, out nint graph);

    /// <summary>OutOfMemory, InvalidValue. <paramref name="flags"/> 0. The graph may be destroyed after it.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuGraphInstantiateWithFlags(out nint executable, nint graph, ulong flags);

    /// <summary>InvalidValue.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuGraphLaunch(nint executable, nint stream);

    /// <summary>InvalidValue. One that is under way is given back when it is done.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuGraphExecDestroy(nint executable);

    /// <summary>InvalidValue.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuGraphDestroy(nint graph);

    // Modules and launches.

    /// <summary>InvalidImage, InvalidPtx, UnsupportedPtxVersion, NoBinaryForGpu, FileNotFound, OutOfMemory. <paramref name="image"/>: a cubin, or PTX text that ends with a zero byte.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuModuleLoadData(out nint module, void* image);

    /// <summary>InvalidValue.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuModuleUnload(nint module);

    /// <summary>NotFound. Lives as long as its module.</summary>
    [LibraryImport(Library, StringMarshalling = StringMarshalling.Utf8)]
    internal static partial CudaStatus cuModuleGetFunction(out nint function, nint module, string name);

    /// <summary>InvalidValue.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuFuncGetAttribute(out int value, int attribute, nint function);

    /// <summary>InvalidValue for more shared memory than a block may have.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuFuncSetAttribute(nint function, int attribute, int value);

    /// <summary>InvalidValue behind the last parameter. Drivers have it since CUDA 12.4: ask <see cref="CudaLibraries.Exports"/>.</summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuFuncGetParamInfo(nint function, nuint index, out nuint offset, out nuint bytes);

    /// <summary>
    /// InvalidValue (grid, block or shared memory), InvalidImage, OutOfMemory. <paramref name="parameters"/> holds the address of each argument and is
    /// read before the call returns; <paramref name="extra"/> is null.
    /// </summary>
    [LibraryImport(Library)]
    internal static partial CudaStatus cuLaunchKernel(
        nint function, uint gridX, uint gridY, uint gridZ, uint blockX, uint blockY, uint blockZ, uint sharedBytes, nint stream, void** parameters, void** extra);

    /// <summary>The name of a status in cuda.h.</summary>
    internal static string NameOf(CudaStatus status) => cuGetErrorName(status, out nint name) == CudaStatus.Success && name != 0
        ? Marshal.PtrToStringUTF8(name)!
        : $"CUDA error {(int)status}";

    /// <summary>What the driver says about a status.</summary>
    internal static string SentenceOf(CudaStatus status) => cuGetErrorString(status, out nint text) == CudaStatus.Success && text != 0
        ? Marshal.PtrToStringUTF8(text)!
        : "the driver has no text for it";
}
