using LoraTrainer.Engine.Ops;
using Xunit;

namespace LoraTrainer.Engine.Tests.Ops;

/// <summary>How items are cut into parts.</summary>
public sealed class RowSplitTests
{
    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    [InlineData(16)]
    public void Of_AllParts_HaveEachItemOnce(int mostPartsPerThread)
    {
        foreach (int threads in Enumerable.Range(1, 16))
        {
            foreach (int minimum in new[] { 1, 3, 34 })
            {
                foreach (int items in Enumerable.Range(0, 300))
                {
                    var split = new RowSplit(items, threads, minimum, mostPartsPerThread);
                    (long Start, long End)[] parts = [.. Enumerable.Range(0, split.Parts).Select(split.Of)];
                    string what = $"{items} items, {threads} threads, at least {minimum}: {string.Join(" ", parts)}";
                    Assert.All(parts, part => Assert.True(part.Start < part.End, what));
                    Assert.Equal(Enumerable.Range(0, items).Select(item => (long)item), parts.OrderBy(part => part.Start).SelectMany(part => Enumerable.Range((int)part.Start, (int)(part.End - part.Start))).Select(item => (long)item));
                    Assert.True(split.Parts <= threads * mostPartsPerThread, what);
                    Assert.True(split.Parts <= threads || split.Parts % threads == 0, what);
                }
            }
        }
    }

    [Fact]
    public void Of_PartsInTurn_LieInOnePieceForEachThread()
    {
        var split = new RowSplit(120, 3, 10);
        for (int thread = 0; thread < 3; thread++)
        {
            for (int turn = 1; turn < split.Parts / 3; turn++)
            {
                Assert.Equal(split.Of((turn - 1) * 3 + thread).End, split.Of(turn * 3 + thread).Start);
            }
        }
    }
}
