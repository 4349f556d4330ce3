using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace LoraTrainer.Kernels.Tests;

/// <summary>
/// The stand-in compiles kernels with checks for undefined behaviour when LT_EMULATOR_CHECKED=1. It reads the environment of the C library,
/// which the runtime's own functions do not change after the start of the process.
/// </summary>
internal static partial class CheckedKernels
{
    [ModuleInitializer]
    internal static void Ask()
    {
        if (!CudaTestDevice.IsRealGpuRequired && SetEnvironmentVariable("LT_EMULATOR_CHECKED", "1", 1) != 0)
        {
            throw new InvalidOperationException("The environment of this process cannot be changed.");
        }
    }

    [LibraryImport("libc", EntryPoint = "setenv", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int SetEnvironmentVariable(string name, string value, int overwrite);
}
