using LoraTrainer.Data.Packing;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests.Loop;

public class DataOrderTests
{
    private static int[] Lengths(int seed, int rows)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, rows).Select(_ => random.Next(1, 60))];
    }

    private static DataOrder Order(int[] lengths, bool packed, int batch, double epochs, int maxSteps = 0, ulong seed = 7) =>
        new(lengths, packed ? ordered => BinPacking.BestFitDecreasing(ordered, 64) : null, seed, batch, epochs, maxSteps);

    private static int[][] Steps(DataOrder order) => [.. Enumerable.Range(0, order.TotalSteps).Select(step => order.BinsOf(step).SelectMany(bin => bin).ToArray())];

    [Theory]
    [InlineData(false, 8)]
    [InlineData(true, 8)]
    [InlineData(false, 1)]
    [InlineData(true, 3)]
    [InlineData(false, 1000)]
    public void Epochs_SeeEveryRowOnce_InAnOrderOfTheirOwn(bool packed, int batch)
    {
        int[] lengths = Lengths(1, 101);
        DataOrder order = Order(lengths, packed, batch, epochs: 3);
        int perRun = 0;
        var epochs = new List<int[]>();
        var current = new List<int>();
        for (int step = 0; step < order.TotalSteps; step++)
        {
            Assert.InRange(order.BinsOf(step).Count, 1, batch);
            Assert.All(order.BinsOf(step), bin => Assert.True(!packed || bin.Sum(row => lengths[row]) <= 64));
            current.AddRange(order.BinsOf(step).SelectMany(bin => bin));
            perRun++;
            if (current.Count == 101)
            {
                epochs.Add([.. current]);
                current.Clear();
            }
        }

        Assert.Equal(3, epochs.Count);
        Assert.Empty(current);
        Assert.All(epochs, rows => Assert.Equal(Enumerable.Range(0, 101), rows.Order()));
        Assert.NotEqual(epochs[0], epochs[1]);
        Assert.NotEqual(epochs[1], epochs[2]);
        Assert.NotEqual(Enumerable.Range(0, 101), epochs[0]);
    }

    [Fact]
    public void Order_DependsOnSeedAndRowsAlone_AndIsTheSameFromAnywhere()
    {
        int[] lengths = Lengths(2, 57);
        int[][] all = Steps(Order(lengths, true, 4, 3));
        Assert.Equal(all, Steps(Order(lengths, true, 4, 3)));
        Assert.NotEqual(all, Steps(Order(lengths, true, 4, 3, seed: 8)));

        // As after a resume: the last step first, without having gone through those before.
        DataOrder resumed = Order(lengths, true, 4, 3);
        for (int step = all.Length - 1; step >= 0; step--)
        {
            Assert.Equal(all[step], resumed.BinsOf(step).SelectMany(bin => bin));
        }
    }

    [Theory]
    [InlineData(1, 0, 5)]
    [InlineData(2.5, 0, 13)]
    [InlineData(0.2, 0, 1)]
    [InlineData(0.5, 0, 3)]
    [InlineData(1, 7, 7)]
    [InlineData(1, 2, 2)]
    public void TotalSteps_FractionalEpochsAndMaxSteps(double epochs, int maxSteps, int expected)
    {
        // 34 rows in windows of 8: five steps an epoch, the last with two rows.
        DataOrder order = Order(Lengths(3, 34), false, 8, epochs, maxSteps);
        Assert.Equal(expected, order.TotalSteps);
        Assert.Equal(expected >= 5 ? 2 : 8, order.BinsOf(expected >= 5 ? 4 : 0).Count);
        Assert.Equal(0, order.EpochsBefore(0));
        Assert.Equal(1, order.EpochsBefore(5), 12);
        Assert.Equal(1 + (8.0 / 34), order.EpochsBefore(6), 12);
    }
}
