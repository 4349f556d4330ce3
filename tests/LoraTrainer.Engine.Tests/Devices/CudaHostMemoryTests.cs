using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Engine.Tests.Devices.CudaTestKernels;

namespace LoraTrainer.Engine.Tests.Devices;

/// <summary>Page-locked and managed memory of the CUDA device, and copies beside its work, on the stand-in driver.</summary>
[Collection(CudaStandin.Collection)]
[Trait("Category", "Emulator")]
public sealed class CudaHostMemoryTests
{
    private const int Count = 64;

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void HostArena_IsReadByKernelsAndByTransfers(bool lazy)
    {
        using CudaDevice device = Open(hostBytes: 4096);
        CudaStandin.Configure(lazy: lazy);
        Tensor host = device.HostArena.Allocate(MemoryKind.Weights, DType.F32, new Shape(Count)), doubled = Numbers(device);
        device.Upload(host, MemoryMarshal.AsBytes<float>([.. Enumerable.Range(0, Count)]));
        device.Launch(Scale, (1, 1, 1), Count, 0, doubled, host, Count, 2f, 0f);

        // Work that was asked for before reads what was there before.
        device.Upload(host, MemoryMarshal.AsBytes<float>([5]), 3);

        Assert.Equal([.. Enumerable.Range(0, Count).Select(i => 2f * i)], Read(device, doubled));
        Assert.Equal([0f, 1, 2, 5, 4], Read(device, host)[..5]);

        // Beside it what transfers, micro-batches and the report of a step go through.
        Assert.Equal(1 + 3, CudaStandin.Count("live_host_allocations"));
    }

    /// <summary>A tensor goes to the host while its place is used again, and comes back: in the lazy stand-in each order that is not asked for shows.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void StartedCopies_KeepTheOrderThatIsAskedFor(bool lazy)
    {
        using CudaDevice device = Open(hostBytes: 4096);
        CudaStandin.Configure(lazy: lazy);
        Tensor host = device.HostArena.Allocate(MemoryKind.Activations, DType.F32, new Shape(Count)), place = Numbers(device), other = Numbers(device);
        device.Launch(Scale, (1, 1, 1), Count, 0, place, place, Count, 0f, 7f);
        CudaStandin.Reset();
        device.StartCopy(host, place);
        device.Launch(Scale, (1, 1, 1), Count, 0, other, place, Count, 3f, 0f);
        device.AwaitCopies();
        device.Launch(Scale, (1, 1, 1), Count, 0, place, place, Count, 0f, 1f);
        device.StartCopy(place, host);
        device.AwaitCopies();
        device.Launch(Scale, (1, 1, 1), Count, 0, place, place, Count, 1f, 1f);

        Assert.Equal(0, CudaStandin.Count("synchronizations"));
        // Of the streams one is the work's, one these copies', one that of micro-batches.
        Assert.Equal((1, 1, 3), (CudaStandin.Count("copies_to_host"), CudaStandin.Count("copies_to_device"), CudaStandin.Count("live_streams")));
        Assert.All(Read(device, other), value => Assert.Equal(21, value));
        Assert.All(Read(device, place), value => Assert.Equal(8, value));
        Assert.All(Read(device, host), value => Assert.Equal(7, value));
    }

    [Fact]
    public void PagedArena_IsManagedMemoryOfZeros_BroughtToTheCardWhenAsked()
    {
        using (CudaDevice device = Open())
        {
            Arena paged = device.PagedArena("", 1000);
            Tensor moments = paged.Allocate(MemoryKind.Moments, DType.F32, new Shape(Count));
            Assert.All(Read(device, moments), value => Assert.Equal(0, value));
            device.Launch(Scale, (1, 1, 1), Count, 0, moments, moments, Count, 1f, 2f);
            device.Prefetch(paged);

            Assert.All(Read(device, moments), value => Assert.Equal(2, value));
            Assert.Equal((1024, 1, 1, 256), (paged.CapacityBytes, CudaStandin.Count("managed_allocations"), CudaStandin.Count("prefetches"), CudaStandin.Count("prefetched_bytes")));
            Assert.Equal(0, device.Arena.UsedBytes);
        }

        Assert.Equal((0, 0, 0), (CudaStandin.Count("live_allocations"), CudaStandin.Count("live_streams"), CudaStandin.Count("context_references")));
    }

    /// <summary>Before a weight is loaded, and with the numbers.</summary>
    [Fact]
    public void PagedMemory_MoreThanIsFree_IsRefused()
    {
        CudaStandin.Require();
        long total = CudaDevice.Describe().Device!.TotalMemoryBytes, arena = 1 << 20, paged = total - arena + 256;
        Assert.False(CudaDevice.TryOpen(new DeviceMemory(arena, 0, paged), out _, out string reason, out MemoryShortage shortage));

        Assert.Equal(MemoryShortage.Device, shortage);
        Assert.Equal(
            string.Create(
                System.Globalization.CultureInfo.InvariantCulture,
                $"The plan pages {paged:N0} bytes beside the 1,048,576 that it keeps on Emulated device (CPU), and {paged - 256:N0} of {total:N0} are free for them: they have to be on the card as a whole when they are used."),
            reason);
        using CudaDevice device = Open();
        Assert.Throws<InsufficientMemoryException>(() => device.PagedArena("", total));
    }

    private static Tensor Numbers(CudaDevice device) => device.AllocateZeroed(MemoryKind.Activations, DType.F32, new Shape(Count));

    private static float[] Read(CudaDevice device, Tensor tensor)
    {
        float[] values = new float[tensor.ElementCount];
        device.Download(tensor, MemoryMarshal.AsBytes(values.AsSpan()));
        return values;
    }
}
