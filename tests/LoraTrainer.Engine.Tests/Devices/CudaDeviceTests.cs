using System.Globalization;
using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.Engine.Tests.Devices.CudaTestKernels;

namespace LoraTrainer.Engine.Tests.Devices;

/// <summary>Memory and transfers of the CUDA device, on the stand-in driver.</summary>
[Collection(CudaStandin.Collection)]
[Trait("Category", "Emulator")]
public sealed class CudaDeviceTests
{
    [Fact]
    public void Describe_HasEverything()
    {
        CudaStandin.Require();
        CudaReport report = CudaDevice.Describe();

        Assert.True(report.Available, report.Reason);
        Assert.Equal(["libcuda", "libnvrtc", "libcublasLt"], report.Libraries.Select(library => library.Name));
        Assert.All(report.Libraries, library => Assert.Equal(CudaStandin.Folder, Path.GetDirectoryName(library.Path)));
        Assert.All(report.Libraries, library => Assert.NotNull(library.Version));
        Assert.Equal(1, report.DeviceCount);
        Assert.True(report.Device!.FreeMemoryBytes > 0 && report.Device.FreeMemoryBytes <= report.Device.TotalMemoryBytes);
        Assert.True(CudaDevice.TryDescribe(out CudaDeviceInfo? info, out string reason));
        Assert.Equal((report.Device with { FreeMemoryBytes = null }, ""), (info, reason));
        Assert.Equal(0, CudaStandin.Count("context_references"));
        Assert.Equal(0, CudaStandin.Count("live_allocations"));
    }

    [Fact]
    public void Open_IsACudaDevice()
    {
        using CudaDevice device = Open(capacityBytes: 1000);

        Assert.Equal((DevicePlatform.Cuda, DType.BF16, 1), (device.Platform, device.ActivationType, device.ThreadCount));
        Assert.Equal(1024, device.Arena.CapacityBytes);
        Assert.Equal(1024, CudaStandin.Count("allocated_bytes"));
        Assert.StartsWith(device.Info.Name + ", ", device.Description, StringComparison.Ordinal);
    }

    [Fact]
    public void Open_MoreMemoryThanThereIs_IsAReasonWithNumbers()
    {
        CudaStandin.Require();
        CudaDeviceInfo? info = CudaDevice.Describe().Device;

        Assert.False(CudaDevice.TryOpen(new DeviceMemory(1L << 45), out CudaDevice? device, out string reason, out MemoryShortage shortage));
        Assert.Equal(MemoryShortage.Device, shortage);
        Assert.Null(device);
        Assert.StartsWith(
            string.Create(CultureInfo.InvariantCulture, $"The plan needs 35,184,372,088,832 bytes on {info!.Name} and {info.FreeMemoryBytes:N0} of {info.TotalMemoryBytes:N0} are free; other programs"), reason, StringComparison.Ordinal);
        AssertNothingIsLeft();
    }

    [Fact]
    public void Dispose_GivesEverythingBack()
    {
        using (CudaDevice device = Open())
        {
            device.Upload(device.Arena.Allocate(MemoryKind.Activations, DType.U8, new Shape(100)), new byte[100]);
            Tensor numbers = device.AllocateZeroed(MemoryKind.Activations, DType.F32, new Shape(64));
            device.Launch(Scale, (1, 1, 1), 64, 0, numbers, numbers, 64, 2f, 1f);
            device.Dispose();
        }

        AssertNothingIsLeft();
    }

    [Fact]
    public void Dispose_ThenUse_Throws()
    {
        CudaDevice device = Open();
        Tensor tensor = device.AllocateZeroed(MemoryKind.Activations, DType.U8, new Shape(4));
        device.Dispose();

        Assert.Throws<ObjectDisposedException>(() => device.Upload(tensor, new byte[4]));
        Assert.Throws<ObjectDisposedException>(() => device.Download(tensor, new byte[4]));
        Assert.Throws<ObjectDisposedException>(() => device.Zero(tensor));
    }

    [Fact]
    public void Open_TwoAtOnce_DoNotDisturbEachOther()
    {
        using CudaDevice first = Open();
        Tensor a = first.Arena.Allocate(MemoryKind.Weights, DType.U8, new Shape(8));
        first.Upload(a, [1, 2, 3, 4, 5, 6, 7, 8]);
        using (CudaDevice second = Open())
        {
            second.Zero(second.Arena.Allocate(MemoryKind.Weights, DType.U8, new Shape(8)));
        }

        Assert.Equal([1, 2, 3, 4, 5, 6, 7, 8], Bytes(first, a));
    }

    [Theory]
    [InlineData(false, 1, 0)]
    [InlineData(false, 1000, 3)]
    [InlineData(true, 1, 0)]
    [InlineData(true, 1000, 3)]
    [InlineData(true, 100_003, 501)]
    public void Upload_ThenDownload_IsTheSame(bool lazy, int length, int offset)
    {
        using CudaDevice device = Open();
        CudaStandin.Configure(lazy: lazy);
        Tensor tensor = device.Arena.Allocate(MemoryKind.Activations, DType.U8, new Shape(length + offset + 7));
        byte[] expected = Pattern(length, 1), around = Pattern(length + offset + 7, 2);
        device.Upload(tensor, around);
        device.Upload(tensor, expected, offset);
        byte[] part = new byte[length];
        device.Download(tensor, part, offset);

        Assert.Equal(expected, part);
        Assert.Equal([.. around.AsSpan(0, offset), .. expected, .. around.AsSpan(offset + length)], Bytes(device, tensor));
    }

    [Fact]
    public void Upload_OffsetIsInElements()
    {
        using CudaDevice device = Open();
        Tensor tensor = device.AllocateZeroed(MemoryKind.Activations, DType.F32, new Shape(4));
        device.Upload(tensor, MemoryMarshal.AsBytes<float>([5, 6]), 1);
        float[] read = new float[3];
        device.Download(tensor, MemoryMarshal.AsBytes(read.AsSpan()), 1);

        Assert.Equal([5, 6, 0], read);
    }

    [Fact]
    public void Upload_CallerMayChangeItsBufferAtOnce()
    {
        using CudaDevice device = Open();
        CudaStandin.Configure(lazy: true);
        Tensor tensor = device.Arena.Allocate(MemoryKind.Activations, DType.U8, new Shape(50_000));
        byte[] source = Pattern(50_000, 3), expected = [.. source];
        device.Upload(tensor, source);
        Array.Clear(source);

        Assert.Equal(expected, Bytes(device, tensor));
    }

    [Fact]
    public void Upload_RingHasRoom_DoesNotWait()
    {
        using CudaDevice device = Open(Options() with { StagingSegmentBytes = 4096, StagingSegmentCount = 3 });
        CudaStandin.Configure(lazy: true);
        Tensor tensor = device.Arena.Allocate(MemoryKind.Activations, DType.U8, new Shape(20_000));
        byte[] expected = Pattern(40 * 300, 4);
        CudaStandin.Reset();
        for (int i = 0; i < 24; i++)
        {
            // Each takes 512 bytes of the ring: 24 fill three segments exactly.
            device.Upload(tensor, expected.AsSpan(i * 300, 300), i * 300);
        }

        Assert.Equal((0, 0), (device.Staging.Waits, CudaStandin.Count("synchronizations")));
        Assert.Equal(expected[..7200], Bytes(device, tensor)[..7200]);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Upload_UnderLoad_WaitsForTheRingAndLosesNothing(bool lazy)
    {
        using CudaDevice device = Open(Options() with { StagingSegmentBytes = 4096, StagingSegmentCount = 2 });
        CudaStandin.Configure(lazy: lazy);
        const int rounds = 200;
        Tensor tensor = device.Arena.Allocate(MemoryKind.Activations, DType.U8, new Shape(rounds * 20_000));
        byte[] expected = new byte[rounds * 20_000];
        byte[] buffer = new byte[20_000];
        int place = 0;
        for (int round = 0; round < rounds; round++)
        {
            Span<byte> piece = buffer.AsSpan(0, 1 + round * 97 % buffer.Length);
            for (int i = 0; i < piece.Length; i++)
            {
                piece[i] = (byte)(round * 31 + i * 7);
            }

            piece.CopyTo(expected.AsSpan(place));
            device.Upload(tensor, piece, place);
            place += piece.Length;
        }

        byte[] read = new byte[place];
        device.Download(tensor, read);

        Assert.Equal(expected[..place], read);

        // Where the copies out of a segment are done already nothing is waited for.
        Assert.True(lazy ? device.Staging.Waits > 100 : device.Staging.Waits == 0, $"{device.Staging.Waits} waits");
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Recorded_Work_IsDoneAtEachLaunchAndNotBefore(bool lazy)
    {
        CudaDevice device = Open();
        CudaStandin.Configure(lazy: lazy);
        Tensor source = device.Arena.Allocate(MemoryKind.Activations, DType.U8, new Shape(100)), middle = device.Arena.Allocate(MemoryKind.Activations, DType.U8, new Shape(100)), target = device.AllocateZeroed(MemoryKind.Activations, DType.U8, new Shape(100));
        device.StartCopy(middle, source);
        device.AwaitCopies();
        device.StartRecording();
        device.StartCopy(middle, source);
        device.AwaitCopies();
        device.Copy(target, middle);
        device.StartCopy(middle, source);
        RecordedWork work = device.FinishRecording("two copies");
        device.Upload(source, Pattern(100, 1));
        Assert.Equal(new byte[100], Bytes(device, target));
        for (byte round = 2; round < 5; round++)
        {
            device.Upload(source, Pattern(100, round));
            device.Launch(work, round);
            Assert.Equal(Pattern(100, round), Bytes(device, target));
        }

        Assert.Equal(1, CudaStandin.Count("live_graphs"));
        work.Dispose();
        Assert.Equal(0, CudaStandin.Count("live_graphs"));
        Assert.Throws<ObjectDisposedException>(() => device.Launch(work, 5));
        device.StartRecording();
        device.Copy(target, source);
        device.FinishRecording("one that goes with its device");
        device.Dispose();
        Assert.Equal((0, 0), (CudaStandin.Count("live_graphs"), CudaStandin.Count("context_references")));
    }

    [Fact]
    public void Recording_WhatCannotBePartOfIt_IsRefusedAndTheDeviceGoesOn()
    {
        using CudaDevice device = Open();
        Tensor tensor = device.AllocateZeroed(MemoryKind.Activations, DType.U8, new Shape(100));
        byte[] bytes = new byte[100];
        (string What, Action Call)[] calls =
        [
            ("An upload", () => device.Upload(tensor, bytes)), ("An upload", () => device.StartUpload(tensor, bytes)), ("A download", () => device.Download(tensor, bytes)),
            ("A wait", device.Synchronize), ("A second recording", device.StartRecording), ("An allocation", () => device.PagedArena("none", 256)),
        ];
        foreach ((string what, Action call) in calls)
        {
            device.StartRecording();
            Assert.Equal($"{what} cannot be part of recorded work.", Assert.Throws<InvalidOperationException>(call).Message);
            device.AbandonRecording();
            device.Upload(tensor, Pattern(100, 9));
            Assert.Equal(Pattern(100, 9), Bytes(device, tensor));
        }

        Assert.Equal(0, CudaStandin.Count("live_graphs"));
        using CudaDevice waiting = Open(Options() with { SynchronizeLaunches = true });
        Assert.False(waiting.RecordsWork);
        Assert.Throws<NotSupportedException>(waiting.StartRecording);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ZeroAndCopy_ReachTheirBytesOnly(bool lazy)
    {
        using CudaDevice device = Open();
        CudaStandin.Configure(lazy: lazy);
        Tensor all = device.Arena.Allocate(MemoryKind.Activations, DType.U8, new Shape(100));
        byte[] expected = Pattern(100, 5);
        device.Upload(all, expected);
        device.Copy(all.Slice(60, new Shape(17)), all.Slice(3, new Shape(17)));
        device.Zero(all.Slice(5, new Shape(11)));
        device.Zero(all.Slice(50, new Shape(0)));
        device.Copy(all.Slice(0, new Shape(0)), all.Slice(9, new Shape(0)));
        expected.AsSpan(3, 17).CopyTo(expected.AsSpan(60));
        expected.AsSpan(5, 11).Clear();

        Assert.Equal(expected, Bytes(device, all));
        Assert.Equal((1, 1), (CudaStandin.Count("memsets"), CudaStandin.Count("copies_on_device")));
    }

    [Fact]
    public void Transfers_FromAnotherThread_Work()
    {
        using CudaDevice device = Open();
        Tensor numbers = device.AllocateZeroed(MemoryKind.Activations, DType.F32, new Shape(64));
        byte[]? read = null;
        var thread = new Thread(() =>
        {
            device.Upload(numbers, MemoryMarshal.AsBytes<float>([3, 4]));
            device.Launch(Scale, (1, 1, 1), 64, 0, numbers, numbers, 64, 2f, 1f);
            read = Bytes(device, numbers);
        });
        thread.Start();
        thread.Join();

        Assert.Equal([7, 9, 1], MemoryMarshal.Cast<byte, float>(read)[..3].ToArray());
    }

    [Fact]
    public void Arguments_Wrong_Throw()
    {
        using CudaDevice device = Open();
        using var other = new CpuDevice(1, 1 << 16);
        Tensor tensor = device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(4)), foreign = other.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(4));

        Assert.StartsWith("A transfer of 17 bytes", Assert.Throws<ShapeMismatchException>(() => device.Upload(tensor, new byte[17])).Message, StringComparison.Ordinal);
        Assert.Throws<ShapeMismatchException>(() => device.Download(tensor, new byte[4], 4));
        Assert.Throws<ShapeMismatchException>(() => device.Download(tensor, new byte[4], -1));
        Assert.Throws<ShapeMismatchException>(() => device.Copy(tensor, tensor.Slice(0, new Shape(3))));
        Assert.StartsWith("A tensor of CPU, 1 thread", Assert.Throws<ShapeMismatchException>(() => device.Zero(foreign)).Message, StringComparison.Ordinal);
        Assert.Throws<ShapeMismatchException>(() => device.Copy(tensor, foreign));
        Assert.Throws<ShapeMismatchException>(() => device.Upload(foreign, new byte[4]));
        Assert.Throws<ShapeMismatchException>(() => device.Download(foreign, new byte[4]));
    }

    [Fact]
    public void Download_IsTheOnlyThingThatWaits()
    {
        using CudaDevice device = Open();
        CudaStandin.Configure(lazy: true);
        Tensor numbers = device.AllocateZeroed(MemoryKind.Activations, DType.F32, new Shape(64));
        CudaStandin.Reset();
        device.Upload(numbers, new byte[256]);
        device.Launch(Scale, (1, 1, 1), 64, 0, numbers, numbers, 64, 2f, 1f);
        device.Copy(numbers.Slice(0, new Shape(8)), numbers.Slice(8, new Shape(8)));
        long before = CudaStandin.Count("synchronizations");
        byte[] read = Bytes(device, numbers);

        Assert.Equal((0, 1), (before, CudaStandin.Count("synchronizations")));
        Assert.All(MemoryMarshal.Cast<byte, float>(read).ToArray(), value => Assert.Equal(1, value));
    }

    private static void AssertNothingIsLeft() => Assert.All(
        ["live_allocations", "live_host_allocations", "live_streams", "live_events", "live_modules", "context_references"],
        counter => Assert.True(CudaStandin.Count(counter) == 0, $"{CudaStandin.Count(counter)} {counter}"));

    private static byte[] Bytes(CudaDevice device, Tensor tensor)
    {
        byte[] bytes = new byte[tensor.SizeBytes];
        device.Download(tensor, bytes);
        return bytes;
    }

    private static byte[] Pattern(int length, int seed) => [.. Enumerable.Range(0, length).Select(i => (byte)((i + seed) * 2654435761u >> 24))];
}
