using LoraTrainer.Costs.Estimates;
using Xunit;

namespace LoraTrainer.Costs.Tests.Estimates;

public sealed class XiaMeasurementsTests
{
    [Fact]
    public void Published_RefitToTheCoefficientsOfTheTests()
    {
        Assert.Equal(7, XiaMeasurements.Published.Count);
        Assert.Equal(96, XiaMeasurements.Published.Sum(panel => panel.Rows.Count));
        (string _, double c3, IReadOnlyList<ThroughputRow> rows) = Assert.Single(XiaMeasurements.Published, panel => panel.Panel == "H100-80 Mixtral");
        ThroughputFit fit = XiaModel.Fit(rows, c3);
        Assert.Equal((0.616373, 0.562605, 19), (Math.Round(fit.C2, 6), Math.Round(fit.C4, 6), fit.Rows));
    }

    [Fact]
    public void Parse_OfBothKinds_FindsTheCoefficientsTheyWereMadeWith()
    {
        string text = "batch,queries_per_second,sparsity,max_batch,gpu_gb,model_gb,seq_len\n";
        foreach (int batch in new[] { 1, 2, 4, 8 })
        {
            text += FormattableString.Invariant($"{batch},{XiaModel.Throughput(0.4, 1.8, 0.3, batch, 0.25):0.######},0.25,,,,\n");
        }

        foreach ((int gpu, double sparsity) in new[] { (40, 0.25), (48, 0.25), (80, 0.25), (40, 1.0), (80, 1.0) })
        {
            text += FormattableString.Invariant($",,{sparsity},{XiaModel.MaxBatch(500, 0.9, gpu, 20, 512, sparsity)},{gpu},20,512\n");
        }

        XiaMeasurements rows = XiaMeasurements.Parse("mine.csv", text);
        ThroughputFit speed = XiaModel.Fit(rows.Throughput, 1.8);
        CapacityFit capacity = XiaModel.FitCapacity(rows.Capacity, 0.5);

        Assert.Equal(0.4, speed.C2, 4);
        Assert.Equal(0.3, speed.C4, 4);
        Assert.InRange(capacity.C0, 490, 510);
        Assert.InRange(capacity.C1, 0.88, 0.92);
        Assert.False(capacity.IsC1Given);
    }

    [Fact]
    public void FitCapacity_OfOneSparsity_KeepsC1AsGiven()
    {
        CapacityFit fit = XiaModel.FitCapacity([new CapacityRow(48, 23.35, 512, 0.25, 8), new CapacityRow(40, 23.35, 512, 0.25, 6)], 0.89);

        Assert.True(fit.IsC1Given);

        // c0 = (1 - c1 + c1 s) over the mean of (gpu - model) / (sequence (batch + 1/2)).
        double mean = ((24.65 / 512 / 8.5) + (16.65 / 512 / 6.5)) / 2;
        Assert.Equal((0.89, 2, 1), (fit.C1, fit.Rows, fit.Exact));
        Assert.Equal((1 - 0.89 + (0.89 * 0.25)) / mean, fit.C0, 9);
    }

    [Fact]
    public void FitCapacity_OfRowsThatContradictIt_IsRefused() =>
        Assert.Throws<ArgumentException>(() => XiaModel.FitCapacity([new CapacityRow(48, 20, 512, 0.25, 4), new CapacityRow(48, 20, 512, 1, 16)], 0.9));

    [Theory]
    [InlineData("0,1.5,,,,,", "mine.csv, line 2, batch: got '0', expected a whole number from 1 to 1000000.")]
    [InlineData("2,,,,,,", "mine.csv, line 2, queries_per_second: got '', expected a number from 0.000001 to 1000000.")]
    [InlineData("2,1.5,1.5,,,,", "mine.csv, line 2, sparsity: got '1.5', expected a number from 0.0001 to 1.")]
    [InlineData(",,,4,48,50,512", "mine.csv, line 2, model_gb: got '50', expected less than gpu_gb: a batch fitted.")]
    [InlineData(",,0.25,,,,", "mine.csv, line 2: the row has neither batch and queries_per_second nor max_batch with gpu_gb, model_gb and seq_len.")]
    [InlineData("1,2", "mine.csv, line 2: 2 fields, expected 7 as in the header. A comma within a field needs the field in double quotes.")]
    public void Parse_OfABadRow_NamesTheLine(string row, string expected) => Assert.Equal(
        expected, Assert.Throws<CsvFormatException>(() => XiaMeasurements.Parse("mine.csv", $"batch,queries_per_second,sparsity,max_batch,gpu_gb,model_gb,seq_len\n{row}\n")).Message);
}
