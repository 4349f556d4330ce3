using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Runtime.CompilerServices;
using LoraTrainer.Engine.Native.Cuda;

namespace LoraTrainer.Engine.Devices;

public sealed unsafe partial class CudaDevice
{
    private const uint MaxThreadsPerBlock = 1024;
    private const uint MaxGridX = int.MaxValue;
    private const uint MaxGridYZ = 65535;
    private const uint WarpSize = 32;

    /// <summary>
    /// Queues a kernel. The arguments are read before this returns. Nothing is launched where the grid is empty; the arguments are checked all the
    /// same. Allocates no managed memory after the kernel's first launch.
    /// </summary>
    /// <param name="kernel">One of <see cref="CudaKernels"/>; where it comes in variants, one of those.</param>
    /// <param name="grid">Blocks.</param>
    /// <param name="block">Threads in a block; a multiple of 32.</param>
    /// <param name="sharedBytes">Dynamic shared memory of a block.</param>
    /// <param name="arguments">In the order of the declaration, of exactly the declared types.</param>
    internal void Launch(CudaKernel kernel, (uint X, uint Y, uint Z) grid, uint block, uint sharedBytes, params ReadOnlySpan<KernelArgument> arguments)
    {
        CheckLaunch(kernel, grid, block, arguments);
        if (grid.X == 0 || grid.Y == 0 || grid.Z == 0)
        {
            return;
        }

        MakeCurrent();
        nint function = modules.Function(kernel, sharedBytes);
        void** locations = stackalloc void*[arguments.Length];
        fixed (KernelArgument* first = arguments)
        {
            for (int i = 0; i < arguments.Length; i++)
            {
                locations[i] = KernelArgument.Location(first + i);
            }

            CudaStatus status = CudaDriver.cuLaunchKernel(function, grid.X, grid.Y, grid.Z, block, 1, 1, sharedBytes, stream, locations, null);
            if (status == CudaStatus.Success && synchronizeLaunches)
            {
                status = CudaDriver.cuStreamSynchronize(stream);
                if (status.Fault() is GpuFault.Kernel or GpuFault.Unclear)
                {
                    ThrowFault(status, kernel, grid, block, sharedBytes);
                }
            }

            if (status != CudaStatus.Success)
            {
                ThrowLaunch(status, kernel, grid, block, sharedBytes);
            }
        }

        lastLaunch = kernel.Title;
    }

    /// <inheritdoc cref="Launch(CudaKernel, ValueTuple{uint, uint, uint}, uint, uint, ReadOnlySpan{KernelArgument})"/>
    /// <param name="kernel">One of <see cref="CudaKernels"/>; where it comes in variants, one of those.</param>
    /// <param name="shape">Grid, block and shared memory.</param>
    /// <param name="arguments">In the order of the declaration, of exactly the declared types.</param>
    internal void Launch(CudaKernel kernel, in LaunchShape shape, params ReadOnlySpan<KernelArgument> arguments) =>
        Launch(kernel, (shape.X, shape.Y, shape.Z), shape.Threads, shape.SharedBytes, arguments);

    /// <summary>Queues a matrix product; see <see cref="GemmCall"/>.</summary>
    internal void Multiply(in GemmCall call)
    {
        MakeCurrent();
        CublasStatus status = gemm.Multiply(call);
        if (status == CublasStatus.Success && synchronizeLaunches)
        {
            CudaStatus late = CudaDriver.cuStreamSynchronize(stream);
            if (late != CudaStatus.Success)
            {
                CudaCheck.Throw(late, "cublasLtMatmul", null, ShapeOf(call));
            }
        }

        if (status != CublasStatus.Success)
        {
            ThrowMultiply(status, call);
        }

        lastLaunch = "a matrix product (cublasLtMatmul)";
    }

    private static void CheckLaunch(CudaKernel kernel, (uint X, uint Y, uint Z) grid, uint block, ReadOnlySpan<KernelArgument> arguments)
    {
        if (kernel.NeedsVariant)
        {
            throw new ArgumentException($"{kernel.Name} is compiled for a value of {kernel.VariantName}, and none was chosen.", nameof(kernel));
        }

        if (arguments.Length != kernel.Parameters.Count)
        {
            throw new ArgumentException($"{kernel.Title} takes {kernel.Parameters.Count} arguments, got {arguments.Length}: {kernel}.", nameof(arguments));
        }

        for (int i = 0; i < arguments.Length; i++)
        {
            if (arguments[i].Kind != kernel.Parameters[i].Kind || arguments[i].SizeBytes != kernel.Parameters[i].SizeBytes)
            {
                ThrowArgument(kernel, i, arguments[i]);
            }
        }

        if (block == 0 || block > MaxThreadsPerBlock || block % WarpSize != 0)
        {
            throw new ArgumentOutOfRangeException(nameof(block), block, $"{kernel.Title}: a block has a multiple of {WarpSize} threads, at most {MaxThreadsPerBlock}");
        }

        if (grid.X > MaxGridX || grid.Y > MaxGridYZ || grid.Z > MaxGridYZ)
        {
            throw new ArgumentOutOfRangeException(nameof(grid), grid, $"{kernel.Title}: a grid has at most {MaxGridX} x {MaxGridYZ} x {MaxGridYZ} blocks");
        }
    }

    private static string LaunchedWith(in (uint X, uint Y, uint Z) grid, uint block, uint sharedBytes) => string.Create(CultureInfo.InvariantCulture,
        $"Launched with a grid of {grid.X} x {grid.Y} x {grid.Z} blocks of {block} threads and {sharedBytes} bytes of shared memory.");

    private static string ShapeOf(in GemmCall call) => string.Create(CultureInfo.InvariantCulture,
        $"The product was ({call.M}, {call.K}){(call.TransposeA ? "^T" : "")} by ({call.K}, {call.N}){(call.TransposeB ? "^T" : "")} into {call.OutputType}.");

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void ThrowArgument(CudaKernel kernel, int index, KernelArgument argument) => throw new ArgumentException(
        $"{kernel.Title}: argument {index} is {kernel.Parameters[index]}, got {argument.Kind} of {argument.SizeBytes} bytes.", nameof(argument));

    /// <summary>The stream was waited for right after this launch, and before it everything else was well.</summary>
    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void ThrowFault(CudaStatus status, CudaKernel kernel, in (uint X, uint Y, uint Z) grid, uint block, uint sharedBytes)
    {
        string name = CudaDriver.NameOf(status), sentence = CudaDriver.SentenceOf(status).TrimEnd('.', '\n'), which = $"the kernel {kernel.Title} of {kernel.File}";
        string message = status.Fault() == GpuFault.Kernel ? $"{char.ToUpperInvariant(which[0])}{which[1..]} failed with {name} ({sentence})." : $"The GPU reported {name} ({sentence}) while {which} ran.";
        throw new CudaException($"{message} {LaunchedWith(grid, block, sharedBytes)}", name, kernel.Name) { Fault = status.Fault() };
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ThrowLaunch(CudaStatus status, CudaKernel kernel, in (uint X, uint Y, uint Z) grid, uint block, uint sharedBytes)
        => CudaCheck.Throw(status, $"the launch of {kernel.Title}", LastLaunch is { } before ? $"{before}, then {kernel.Title}" : null, LaunchedWith(grid, block, sharedBytes));

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ThrowMultiply(CublasStatus status, in GemmCall call)
    {
        // The library has one status for whatever the driver said; the driver says it again. Work that is recorded cannot be waited for.
        CudaStatus late = isRecording ? CudaStatus.Success : CudaDriver.cuStreamSynchronize(stream);
        if (late != CudaStatus.Success)
        {
            CudaCheck.Throw(late, "cublasLtMatmul", LastLaunch, ShapeOf(call));
        }

        CudaCheck.Throw(status, "cublasLtMatmul", ShapeOf(call));
    }
}
