using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Tensors;

public sealed class ArenaTests
{
    [Fact]
    public void Allocate_Frames_AlignNestAndCountByKind()
    {
        using var device = new CpuDevice(1, 1 << 16);
        Arena arena = device.Arena;
        Tensor bottom = arena.Allocate(MemoryKind.Weights, DType.U8, new Shape(1));
        nint repeated = 0;
        for (int step = 0; step < 2; step++)
        {
            using (arena.Frame())
            {
                Tensor middle = arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(65));
                Assert.Equal(256, middle.Address - bottom.Address);
                Assert.Equal(0, middle.Address % Arena.AlignmentBytes);
                Assert.True(step == 0 || repeated == middle.Address);
                repeated = middle.Address;
                using (arena.Frame())
                {
                    arena.Allocate(MemoryKind.Workspace, DType.BF16, new Shape(3, 100));
                    Assert.Equal(256 + 512 + 768, arena.UsedBytes);
                }

                Assert.Equal(256 + 512, arena.UsedBytes);
                arena.Allocate(MemoryKind.Gradients, DType.F32, new Shape(1));
            }

            Assert.Equal(256, arena.UsedBytes);
        }

        Assert.Equal(1536, arena.HighWaterBytes);
        Assert.Equal((256, 512, 768, 0), (arena.HighWaterOf(MemoryKind.Weights), arena.HighWaterOf(MemoryKind.Activations), arena.HighWaterOf(MemoryKind.Workspace), arena.HighWaterOf(MemoryKind.Gradients)));
        Assert.Equal(arena.HighWaterBytes, Enum.GetValues<MemoryKind>().Sum(arena.HighWaterOf));
    }

    [Fact]
    public void Allocate_MoreThanThereIs_SaysSoAndTakesNothing()
    {
        using var device = new CpuDevice(1, 1000);
        device.Arena.Allocate(MemoryKind.Weights, DType.F32, new Shape(64));
        var e = Assert.Throws<ArenaExhaustedException>(() => device.Arena.Allocate(MemoryKind.Moments, DType.F32, new Shape(193)));
        Assert.Equal(
            "The memory plan does not cover this step: 1,024 bytes of Moments were asked for, 768 of 1,024 are left. The plan and the run disagree, which is a defect of the program.",
            e.Message);
        Assert.Equal(256, device.Arena.UsedBytes);
    }

    [Fact]
    public void Tensor_Views_ShareMemoryWithinBounds()
    {
        using var device = new CpuDevice(1, 1 << 16);
        Tensor x = device.Upload([1, 2, 3, 4, 5, 6], new Shape(3, 2));
        Assert.Equal([3, 4], x.Rows(1, 1).Download());
        Assert.Equal([2, 3, 4], x.Slice(1, new Shape(3)).Download());
        Assert.Equal(new Shape(2, 3), x.Reshape(new Shape(2, 3)).Shape);
        device.Zero(x.Rows(2, 1));
        Assert.Equal([1, 2, 3, 4, 0, 0], x.Download());
        Assert.Equal("Slice: elements 5 to 7 lie outside a tensor of 6.", Assert.Throws<ShapeMismatchException>(() => x.Slice(5, new Shape(2))).Message);
        Assert.Equal("Slice: elements -1 to 1 lie outside a tensor of 6.", Assert.Throws<ShapeMismatchException>(() => x.Slice(-1, new Shape(2))).Message);
        Assert.Equal("Reshape: (3, 2) has 6 elements and (5) has 5.", Assert.Throws<ShapeMismatchException>(() => x.Reshape(new Shape(5))).Message);
        Assert.Equal(
            "There is no tensor here: an operation used an optional tensor that was not given.",
            Assert.Throws<InvalidOperationException>(() => Tensor.None.Device).Message);
        Assert.Equal(
            "A transfer of 8 bytes at element 5 does not fit into a tensor of 24 bytes.",
            Assert.Throws<ShapeMismatchException>(() => device.Upload(x, new byte[8], 5)).Message);
    }
}
