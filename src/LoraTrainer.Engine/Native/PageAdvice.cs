using System.Runtime.InteropServices;

namespace LoraTrainer.Engine.Native;

/// <summary>Advice to the kernel about pages; refusing it changes speed only.</summary>
internal static unsafe partial class PageAdvice
{
    // MADV_HUGEPAGE of <sys/mman.h> on Linux.
    private const int AdviceHugePage = 14;

    /// <summary>What memory is aligned to that is to have large pages.</summary>
    public const int HugePageBytes = 2 << 20;

    /// <summary>Asks for 2 MiB pages, which spare the packing loops most of their TLB misses. Does nothing where the system has no such call.</summary>
    public static void PreferHugePages(void* start, long bytes)
    {
        if (OperatingSystem.IsLinux())
        {
            // The result is of no interest: a kernel without huge pages says no, and the memory works all the same.
            _ = Advise(start, (nuint)bytes, AdviceHugePage);
        }
    }

    /// <summary>madvise(2): 0, or -1 with errno; <paramref name="start"/> must be page-aligned and not null.</summary>
    [LibraryImport("libc", EntryPoint = "madvise", SetLastError = false)]
    private static partial int Advise(void* start, nuint bytes, int advice);
}
