using LoraTrainer.Costs.Reports;
using Xunit;

namespace LoraTrainer.Costs.Tests.Reports;

public sealed class ReportPeriodTests
{
    private static readonly DateTimeOffset Now = new(2030, 3, 10, 8, 30, 0, TimeSpan.FromHours(2));

    [Theory]
    [InlineData("2030-03-01", "2030-03-01T00:00:00Z")]
    [InlineData("2030-03-01T15:30", "2030-03-01T15:30:00Z")]
    [InlineData("2030-03-01T15:30:10", "2030-03-01T15:30:10Z")]
    [InlineData("2030-03-01T15:30:10+02:00", "2030-03-01T13:30:10Z")]
    [InlineData("90m", "2030-03-10T05:00:00Z")]
    [InlineData("24h", "2030-03-09T06:30:00Z")]
    [InlineData("7d", "2030-03-03T06:30:00Z")]
    [InlineData("2w", "2030-02-24T06:30:00Z")]
    [InlineData("0d", "2030-03-10T06:30:00Z")]
    public void TryParse_OfAMoment_IsInUtc(string text, string expected)
    {
        Assert.True(ReportPeriod.TryParse(text, Now, out DateTimeOffset? moment));
        Assert.Equal(DateTimeOffset.Parse(expected, System.Globalization.CultureInfo.InvariantCulture), moment);
        Assert.Equal(TimeSpan.Zero, moment.Value.Offset);
    }

    [Theory]
    [InlineData("")]
    [InlineData("d")]
    [InlineData("7")]
    [InlineData("7 d")]
    [InlineData("-7d")]
    [InlineData("7.5d")]
    [InlineData("7x")]
    [InlineData("36501d")]
    [InlineData("9999999999999d")]
    [InlineData("2030-02-30")]
    [InlineData("2030-3-1")]
    [InlineData("01.03.2030")]
    [InlineData("yesterday")]
    public void TryParse_OfAnythingElse_IsRefused(string text)
    {
        Assert.False(ReportPeriod.TryParse(text, Now, out DateTimeOffset? moment));
        Assert.Null(moment);
    }
}
