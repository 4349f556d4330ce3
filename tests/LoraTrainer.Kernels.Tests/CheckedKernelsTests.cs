using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>The tests of the kernels find what they are there to find: undefined behaviour, and writes outside a tensor.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed class CheckedKernelsTests
{
    private const string Source = """
        #include "port.cuh"

        // Sixteen bytes at an address that is no multiple of sixteen.
        extern "C" __global__ void __launch_bounds__(32) misaligned(unsigned char* bytes) {
            if (threadIdx.x == 0) store_16_bytes(bytes + 4, u32x4{1, 2, 3, 4});
        }

        extern "C" __global__ void __launch_bounds__(32) past_the_end(unsigned char* bytes, int count) {
            if (threadIdx.x == 0) bytes[count] = 1;
        }
        """;

    private static readonly CudaKernel Misaligned = new("checked.cu", "misaligned", KernelParameter.Pointer("bytes"));

    private static readonly CudaKernel PastTheEnd = new("checked.cu", "past_the_end", KernelParameter.Pointer("bytes"), KernelParameter.Int32("count"));

    private static CudaDeviceOptions Options => new()
    {
        Sources = new KernelSources([KeyValuePair.Create("checked.cu", Source), KeyValuePair.Create("port.cuh", KernelSources.Embedded.Read("port.cuh"))]),
        SynchronizeLaunches = true,
    };

    [Fact]
    public void Launch_MisalignedVector_IsAFault()
    {
        Assert.SkipWhen(CudaTestDevice.IsRealGpuRequired, "a fault ends the context of a real GPU for the whole process");
        using var bench = new KernelBench("forward late", options: Options);
        Tensor bytes = bench.Bytes(new byte[64]);
        CudaException exception = Assert.Throws<CudaException>(() => bench.Device.Launch(Misaligned, LaunchShape.Blocks(1, 32), bytes));
        Assert.Contains("misaligned", exception.Message, StringComparison.Ordinal);
        Assert.Contains("port.cuh", exception.Message, StringComparison.Ordinal);
    }

    [Theory]
    [MemberData(nameof(KernelModes.All), MemberType = typeof(KernelModes))]
    public void Margins_WrittenTo_AreFound(string mode)
    {
        using var bench = new KernelBench(mode, options: Options);
        Tensor bytes = bench.Bytes(new byte[40]);
        bench.Device.Launch(PastTheEnd, LaunchShape.Blocks(1, 32), bytes, 39);
        bench.CheckMargins();
        bench.Device.Launch(PastTheEnd, LaunchShape.Blocks(1, 32), bytes, 40);
        Assert.Contains("byte 0 after the end", Assert.ThrowsAny<Exception>(bench.CheckMargins).Message, StringComparison.Ordinal);
    }
}
