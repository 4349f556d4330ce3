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

    /// <summary>Whatever is packed comes out again: every document whole, once, with its own targets.</summary>
    [Fact]
    public void Pack_RandomDocuments_LosesDuplicatesAndSplitsNothing()
    {
        var random = new Random(3);
        for (int round = 0; round < 50; round++)
        {
            int length = random.Next(2, 40);
            (int[] Tokens, bool[] Flags)[] documents = [.. Enumerable.Range(0, random.Next(1, 60)).Select(number =>
            {
                int[] tokens = [.. Enumerable.Range(0, random.Next(1, length + 1)).Select(place => number * 100 + place)];
                return (tokens, Array.ConvertAll(tokens, _ => random.Next(2) == 0));
            })];
            var seen = new HashSet<int>();
            var batch = new MicroBatch(length, documents.Length);
            foreach (int[] bin in BinPacking.BestFitDecreasing([.. documents.Select(document => document.Tokens.Length)], length))
            {
                batch.Clear();
                foreach (int row in bin)
                {
                    batch.Add(documents[row].Tokens, documents[row].Flags);
                }

                ReadOnlySpan<int> offsets = batch.DocumentOffsets.Span;
                for (int place = 0; place < bin.Length; place++)
                {
                    (int[] tokens, bool[] flags) = documents[bin[place]];
                    Assert.True(seen.Add(bin[place]));
                    Assert.Equal(tokens, batch.Tokens[offsets[place]..offsets[place + 1]]);
                    Assert.Equal([.. tokens[1..].Select((token, next) => flags[next + 1] ? token : No), No], batch.Targets[offsets[place]..offsets[place + 1]]);
                    Assert.Equal(Enumerable.Range(0, tokens.Length), batch.Positions[offsets[place]..offsets[place + 1]].ToArray());
                }
            }

            Assert.Equal(documents.Length, seen.Count);
        }
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
