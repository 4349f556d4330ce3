using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace LoraTrainer.Engine.Native;

/// <summary>Asks for memory before it is needed.</summary>
internal static unsafe class Prefetch
{
    /// <summary>Moves a cache line to the core's first cache. Never fails, whatever lies there, and does nothing where the machine has no such instruction.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Line(void* address)
    {
        if (Sse.IsSupported)
        {
            Sse.Prefetch0(address);
        }
    }

    /// <summary>As <see cref="Line"/>, to the second cache: for blocks that the first one could not hold until they are needed.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void LineOfBlock(void* address)
    {
        if (Sse.IsSupported)
        {
            Sse.Prefetch1(address);
        }
    }
}
