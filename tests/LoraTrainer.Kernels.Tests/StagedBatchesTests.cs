using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native.Cuda;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Layers;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>Micro-batches on their way to the device: each pass finds its own, whatever the streams do first; and a wait that is missing shows in these tests' modes.</summary>
[Trait("Category", "Emulator")]
[Collection(CudaStandin.Collection)]
public sealed unsafe class StagedBatchesTests
{
    private const int Tokens = 70;

    public static TheoryData<string> StreamModes => [.. CudaTestDevice.StreamModes];

    [Theory]
    [MemberData(nameof(StreamModes))]
    public void Take_WithTheNextOneOnItsWay_HasItsOwn(string mode)
    {
        using CudaDevice device = CudaTestDevice.Open(mode, 1 << 20);
        var staged = new StagedBatches(device, Tokens);
        Tensor seen = device.Arena.Allocate(MemoryKind.Activations, DType.I32, new Shape(8, PackedBatch.BlockElements(Tokens)));
        Start(staged, 0);
        nint? place = null;
        for (int i = 0; i < 8; i++)
        {
            PackedBatch batch = staged.Take();
            Assert.Equal(place ??= batch.Tokens.Address, batch.Tokens.Address);
            Start(staged, i + 1);
            Keep(device, seen, i, batch);
        }

        for (int i = 0; i < 8; i++)
        {
            AssertIs(seen, i, i);
        }
    }

    /// <summary>A step that was left out and another that is taken instead of it.</summary>
    [Theory]
    [MemberData(nameof(StreamModes))]
    public void Take_AfterTwoStarts_HasTheSecond(string mode)
    {
        using CudaDevice device = CudaTestDevice.Open(mode, 1 << 20);
        var staged = new StagedBatches(device, Tokens);
        Tensor seen = device.Arena.Allocate(MemoryKind.Activations, DType.I32, new Shape(1, PackedBatch.BlockElements(Tokens)));
        Start(staged, 3);
        Start(staged, 4);
        Keep(device, seen, 0, staged.Take());
        AssertIs(seen, 0, 4);
        Assert.Throws<InvalidOperationException>(() => staged.Take());
    }

    /// <summary>The orders that would be wrong, made by hand: each shows in one of the modes, so the tests above would not pass without the waits.</summary>
    [Theory]
    [InlineData("lazy")]
    [InlineData("uploads first")]
    public void WithoutTheWait_TheStandinShowsIt(string mode)
    {
        Assert.SkipWhen(CudaTestDevice.IsRealGpuRequired, "on a card a missing wait may go unnoticed");
        using CudaDevice device = CudaTestDevice.Open(mode, 1 << 20);
        var shape = new Shape(Tokens);
        Tensor arrival = device.Arena.Allocate(MemoryKind.Activations, DType.I32, shape), place = device.Arena.Allocate(MemoryKind.Activations, DType.I32, shape);
        byte[] first = Bytes(1), second = Bytes(2);
        device.Upload(arrival, first);
        device.Upload(place, first);
        device.Synchronize();
        if (mode == "lazy")
        {
            // The copy to where it is read does not wait for the upload.
            device.StartUpload(arrival, second);
            device.Copy(place, arrival);
            Assert.Equal(first, place.DownloadBytes());

            device.AwaitUploads();
            device.Copy(place, arrival);
            Assert.Equal(second, place.DownloadBytes());
            return;
        }

        // An upload that does not wait until the batch before it was taken.
        Assert.Equal(CudaStatus.Success, CudaDriver.cuStreamCreate(out nint beside, CudaDriver.StreamNonBlocking));
        Assert.Equal(CudaStatus.Success, CudaDriver.cuMemHostAlloc(out nint pinned, (nuint)second.Length, 0));
        second.CopyTo(new Span<byte>((void*)pinned, second.Length));
        device.Copy(place, arrival);
        Assert.Equal(CudaStatus.Success, CudaDriver.cuMemcpyHtoDAsync(arrival.Address, (void*)pinned, (nuint)second.Length, beside));
        Assert.Equal(second, place.DownloadBytes());

        device.Upload(arrival, first);
        device.Copy(place, arrival);
        device.StartUpload(arrival, second);
        Assert.Equal(first, place.DownloadBytes());
        Assert.Equal(CudaStatus.Success, CudaDriver.cuStreamDestroy(beside));
        Assert.Equal(CudaStatus.Success, CudaDriver.cuMemFreeHost(pinned));
    }

    /// <summary>The batch number i has i + 1 tokens fewer than there is room for, two of them scored.</summary>
    private static void Start(StagedBatches staged, int i)
    {
        int count = Tokens - i;
        int[] Values(int salt) => [.. Enumerable.Range(0, count).Select(index => 1000 * i + 100 * salt + index)];
        staged.Start(new PassNumbers(i, (uint)i + 1, 1f / (i + 2)), Values(1), Values(2), new[] { 0, count }, Values(3), [i, i + 1]);
    }

    private static void Keep(CudaDevice device, Tensor seen, int row, in PackedBatch batch)
    {
        long first = 0;
        foreach (Tensor part in (Tensor[])[batch.Numbers, batch.Tokens, batch.Positions, batch.Targets, batch.ScoredRows])
        {
            device.Copy(seen.Rows(row, 1).Slice(first, part.Shape), part);
            first += part.ElementCount;
        }
    }

    private static void AssertIs(Tensor seen, int row, int i)
    {
        int count = Tokens - i;
        ReadOnlySpan<int> all = MemoryMarshal.Cast<byte, int>(seen.Rows(row, 1).DownloadBytes());
        Assert.Equal(new PassNumbers(i, (uint)i + 1, 1f / (i + 2)), MemoryMarshal.Cast<int, PassNumbers>(all[..PassNumbers.Elements])[0]);
        for (int salt = 1; salt <= 3; salt++)
        {
            ReadOnlySpan<int> values = all.Slice(PassNumbers.Elements + (salt - 1) * count, count);
            Assert.Equal((1000 * i + 100 * salt, 1000 * i + 100 * salt + count - 1), (values[0], values[^1]));
        }

        Assert.Equal([i, i + 1], all.Slice(PassNumbers.Elements + 3 * count, 2).ToArray());
    }

    private static byte[] Bytes(byte value) => [.. Enumerable.Repeat(value, Tokens * sizeof(int))];
}
