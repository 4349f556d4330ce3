using LoraTrainer.Data.Packing;
using Xunit;

namespace LoraTrainer.Data.Tests.Packing;

public class MicroBatchTests
{
    private const int No = MicroBatch.IgnoreIndex;

    [Fact]
    public void Add_TwoDocuments_NeverPredictsAcrossTheBorder()
    {
        var batch = new MicroBatch(10, 3);
        batch.Add([1, 2, 3, 4], [false, false, true, true]);
        batch.Add([5, 6, 7], [true, true, true]);
        batch.Add([8], [true]);
        Assert.Equal([1, 2, 3, 4, 5, 6, 7, 8], batch.Tokens.ToArray());
        Assert.Equal([0, 1, 2, 3, 0, 1, 2, 0], batch.Positions.ToArray());
        Assert.Equal([No, 3, 4, No, 6, 7, No, No], batch.Targets.ToArray());
        Assert.Equal([0, 4, 7, 8], batch.DocumentOffsets.ToArray());
        Assert.Equal(4, batch.TargetCount);
        Assert.Equal(batch.TargetCount, batch.Targets.ToArray().Count(target => target != No));
        batch.Clear();
        Assert.Equal((0, 0, 0), (batch.TokenCount, batch.DocumentCount, batch.TargetCount));
        Assert.Equal([0], batch.DocumentOffsets.ToArray());
    }

    [Fact]
    public void Add_MoreThanThereIsRoomFor_SaysSoAndChangesNothing()
    {
        var batch = new MicroBatch(4, 1);
        Assert.Throws<InvalidOperationException>(() => batch.Add(new int[5], new bool[5]));
        batch.Add([1, 2], [true, true]);
        InvalidOperationException exception = Assert.Throws<InvalidOperationException>(() => batch.Add([3], [true]));
        Assert.Equal("A micro-batch with room for 4 tokens and 1 documents holds 2 and 1; a document of 1 tokens does not fit.", exception.Message);
        Assert.Equal([1, 2], batch.Tokens.ToArray());
    }

    [Fact]
    public void Fill_Again_AllocatesNothing()
    {
        var batch = new MicroBatch(1000, 10);
        int[] document = new int[100];
        bool[] flags = new bool[100];
        FillOnce();
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 100; i++)
        {
            FillOnce();
        }

        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);

        void FillOnce()
        {
            batch.Clear();
            for (int i = 0; i < 10; i++)
            {
                batch.Add(document, flags);
            }
        }
    }
}
