using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace LoraTrainer.Engine.Native;

/// <summary>Asks for memory before it is needed.</summary>
internal static unsafe class Prefetch
{
    /// <summary>Moves a cache line towards the core. Never fails, whatever lies there, and does nothing where the machine has no such instruction.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Line(void* address)
    {
        if (Sse.IsSupported)
        {
            Sse.Prefetch0(address);
        }
    }
}
