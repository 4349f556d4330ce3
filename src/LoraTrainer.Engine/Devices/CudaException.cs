using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Runtime.CompilerServices;
using LoraTrainer.Engine.Native.Cuda;

namespace LoraTrainer.Engine.Devices;

/// <summary>Whose fault an error is that a GPU reports of its work.</summary>
public enum GpuFault
{
    /// <summary>It is no such error: a call was refused.</summary>
    None,

    /// <summary>A kernel did what it must not.</summary>
    Kernel,

    /// <summary>The card's memory or its links.</summary>
    Hardware,

    /// <summary>A kernel's, or the card is lost: the status does not tell, and every call of this process gets it from now on. A new process can ask.</summary>
    Unclear,
}

/// <summary>
/// A call of the NVIDIA driver or of cuBLASLt failed. Work on a GPU runs after the call that asked for it has returned, so an error of a kernel
/// shows up at a later call; the message says then "at or before".
/// </summary>
public sealed class CudaException : Exception
{
    internal CudaException(string message, string statusName, string call)
        : base(message)
    {
        StatusName = statusName;
        Call = call;
    }

    /// <summary>Whose fault it is, where work on the GPU failed.</summary>
    public GpuFault Fault { get; internal init; }

    /// <summary>The GPU had no memory for what was asked of it.</summary>
    public bool IsOutOfMemory { get; internal init; }

    /// <summary>The status under its name in NVIDIA's headers, for example CUDA_ERROR_ILLEGAL_ADDRESS.</summary>
    public string StatusName { get; }

    /// <summary>The function that returned it.</summary>
    public string Call { get; }
}

/// <summary>Turns statuses into exceptions. Nothing is put together, and nothing allocated, where there is no error.</summary>
internal static class CudaCheck
{
    public static void ThrowIfFailed(CudaStatus status, [CallerArgumentExpression(nameof(status))] string call = "")
    {
        if (status != CudaStatus.Success)
        {
            Throw(status, Function(call), null, null);
        }
    }

    public static void ThrowIfFailed(CublasStatus status, [CallerArgumentExpression(nameof(status))] string call = "")
    {
        if (status != CublasStatus.Success)
        {
            Throw(status, Function(call), null);
        }
    }

    /// <param name="status">What the call returned; not Success.</param>
    /// <param name="call">The function that was called.</param>
    /// <param name="lastLaunch">The work that was given to the GPU last before the call, or null.</param>
    /// <param name="details">A sentence about what was asked of the function, or null.</param>
    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static void Throw(CudaStatus status, string call, string? lastLaunch, string? details)
    {
        string name = CudaDriver.NameOf(status);
        string sentence = CudaDriver.SentenceOf(status).TrimEnd('.', '\n');
        string message = status == CudaStatus.OutOfMemory
            ? $"{call} got no memory of the GPU: {name}.{FreeMemory()}"
            : status.Fault() switch
            {
                GpuFault.None => $"{call} failed with {name} ({sentence}).",
                GpuFault.Hardware => $"The GPU reported an error of its hardware, {name} ({sentence}), at or before {call}. nvidia-smi and the lines with Xid in the system's log tell more.",
                _ => $"The GPU reported {name} ({sentence}) at or before {call}.{(lastLaunch is null ? "" : $" Launched last: {lastLaunch}. {SynchronizeAdvice}")}",
            };
        throw new CudaException(details is null ? message : $"{message} {details}", name, call) { IsOutOfMemory = status == CudaStatus.OutOfMemory, Fault = status.Fault() };
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static void Throw(CublasStatus status, string call, string? details)
    {
        // The library loads its kernels when they are first used, and has no one status for a GPU that has no memory for them.
        string name = CublasLt.NameOf(status);
        string free = status is CublasStatus.AllocFailed or CublasStatus.InternalError or CublasStatus.ExecutionFailed ? FreeMemory() : "";
        string message = $"{call} failed with {name}.{free}";
        throw new CudaException(details is null ? message : $"{message} {details}", name, call) { IsOutOfMemory = status == CublasStatus.AllocFailed };
    }

    /// <summary>A sentence after a blank; nothing where the driver does not say it.</summary>
    private static string FreeMemory() => CudaDriver.cuMemGetInfo(out nuint free, out nuint total) == CudaStatus.Success
        ? string.Create(CultureInfo.InvariantCulture, $" {free:N0} of its {total:N0} bytes are free.")
        : "";

    internal const string SynchronizeAdvice = "With LT_CUDA_SYNC=1 in the environment each launch is waited for, and the message names the one at fault.";

    /// <summary>"CudaDriver.cuMemFree(memory)" -> "cuMemFree".</summary>
    internal static string Function(string call)
    {
        int arguments = call.IndexOf('(', StringComparison.Ordinal);
        string name = arguments < 0 ? call : call[..arguments];
        return name[(name.LastIndexOf('.') + 1)..];
    }
}

/// <summary>Kernel sources were not accepted by the compiler of this machine, and the message holds the compiler's own, with file:line; or a kernel that did not come compiled needs one, and there is none.</summary>
public sealed class KernelCompilationException(string message) : InvalidOperationException(message);
