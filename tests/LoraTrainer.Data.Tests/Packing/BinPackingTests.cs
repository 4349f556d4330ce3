using LoraTrainer.Data.Packing;
using Xunit;

namespace LoraTrainer.Data.Tests.Packing;

public class BinPackingTests
{
    [Theory]
    [InlineData("5 5 3 2", 10, "0 1|2 3")]
    [InlineData("6 3 5 4 1", 10, "0 3|2 1 4")]
    [InlineData("2 8 8 2", 10, "1 0|2 3")]
    [InlineData("7 6 3", 10, "0 2|1")]
    [InlineData("10 0 10", 10, "0|2")]
    [InlineData("1 1 1", 2, "0 1|2")]
    [InlineData("", 4, "")]
    public void BestFitDecreasing_Example_GivesTheBins(string lengths, int sequenceLength, string expected)
        => Assert.Equal(expected, Show(BinPacking.BestFitDecreasing(Parse(lengths), sequenceLength)));

    /// <summary>Bins that reached the same space are taken in the order in which they reached it, not in the order of their numbers.</summary>
    [Fact]
    public void BestFitDecreasing_EqualSpaces_FirstToReachItIsFirst()
    {
        // Bins 0 (9), 1 (8), 2 (6+2 -> 2 left at the third row's turn); bin 1 had 2 left before bin 2 did.
        Assert.Equal("0|1 3|2 4", Show(BinPacking.BestFitDecreasing([10, 8, 8, 2, 2], 10)));
        // 7 7 5 | 3 -> bin 0 full; 2: bin 1 has 3, bin 2 has 5; 1s: spaces 1 (bin 1), 5 (bin 2).
        Assert.Equal("0 3|1 4 5|2 6", Show(BinPacking.BestFitDecreasing([7, 7, 5, 3, 2, 1, 1], 10)));
    }

    [Fact]
    public void BestFitDecreasing_Random_EqualsTheDirectRule()
    {
        var random = new Random(5);
        for (int round = 0; round < 300; round++)
        {
            int sequenceLength = random.Next(1, 200);
            int[] lengths = [.. Enumerable.Range(0, random.Next(0, 200)).Select(_ => random.Next(0, sequenceLength + 1))];
            int[][] bins = BinPacking.BestFitDecreasing(lengths, sequenceLength);
            Assert.Equal(Show(Direct(lengths, sequenceLength)), Show(bins));
            Assert.Equal(Enumerable.Range(0, lengths.Length).Where(row => lengths[row] > 0), bins.SelectMany(bin => bin).Order());
            Assert.All(bins, bin => Assert.True(bin.Sum(row => lengths[row]) <= sequenceLength));
        }

        // The rule as it is written: every bin looked at, with the time at which it came to its space.
        static int[][] Direct(int[] lengths, int sequenceLength)
        {
            var bins = new List<(List<int> Rows, int Space, int Since)>();
            int time = 0;
            foreach (int row in Enumerable.Range(0, lengths.Length).Where(row => lengths[row] > 0).OrderByDescending(row => lengths[row]))
            {
                int best = -1;
                for (int bin = 0; bin < bins.Count; bin++)
                {
                    if (bins[bin].Space >= lengths[row] && (best < 0 || (bins[bin].Space, bins[bin].Since).CompareTo((bins[best].Space, bins[best].Since)) < 0))
                    {
                        best = bin;
                    }
                }

                if (best < 0)
                {
                    best = bins.Count;
                    bins.Add(([], sequenceLength, 0));
                }

                bins[best].Rows.Add(row);
                bins[best] = (bins[best].Rows, bins[best].Space - lengths[row], ++time);
            }

            return [.. bins.Select(bin => bin.Rows.ToArray())];
        }
    }

    [Fact]
    public void BestFitDecreasing_RowThatDoesNotFit_IsRefused()
        => Assert.Throws<ArgumentOutOfRangeException>(() => BinPacking.BestFitDecreasing([3, 11], 10));

    [Fact]
    public void OnePerBin_Rows_KeepTheirOrder() => Assert.Equal("0|1|2", Show(BinPacking.OnePerBin(3)));

    private static int[] Parse(string text) => [.. text.Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(int.Parse)];

    private static string Show(int[][] bins) => string.Join('|', bins.Select(bin => string.Join(' ', bin)));
}
