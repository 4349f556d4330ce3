using LoraTrainer.Training.Config;
using LoraTrainer.Training.Interruptions;
using Xunit;

namespace LoraTrainer.Training.Tests.Interruptions;

/// <summary>What needs no server: intervals, deadlines, providers.</summary>
public sealed class InterruptionPolicyTests
{
    // The table of the protocol these formulas were taken from: C in seconds, M in hours, Young, Daly, overhead in percent at Young's interval.
    [Theory]
    [InlineData(10, 4, 536.7, 530.0, 3.7)]
    [InlineData(60, 1, 657.3, 617.9, 18.3)]
    [InlineData(5, 2, 268.3, 265.0, 3.7)]
    [InlineData(30, 6, 1138.4, 1118.5, 5.3)]
    public void Intervals_AreThoseOfTheTable(double cost, double hours, double young, double daly, double percent)
    {
        (TimeSpan c, TimeSpan m) = (TimeSpan.FromSeconds(cost), TimeSpan.FromHours(hours));

        Assert.Equal(young, SaveIntervals.Young(c, m).TotalSeconds, 0.05);
        Assert.Equal(daly, SaveIntervals.Daly(c, m).TotalSeconds, 0.05);
        Assert.Equal(percent, 100 * SaveIntervals.Overhead(SaveIntervals.Young(c, m), c, m), 0.05);
        Assert.True(SaveIntervals.Overhead(SaveIntervals.Young(c, m), c, m) <= SaveIntervals.Overhead(1.1 * SaveIntervals.Young(c, m), c, m));
        Assert.True(SaveIntervals.Overhead(SaveIntervals.Young(c, m), c, m) <= SaveIntervals.Overhead(0.9 * SaveIntervals.Young(c, m), c, m));
    }

    [Fact]
    public void Daly_SavesLongerThanInterruptionsAreApart_IsTheirDistance() =>
        Assert.Equal(TimeSpan.FromSeconds(10), SaveIntervals.Daly(TimeSpan.FromSeconds(20), TimeSpan.FromSeconds(10)));

    [Theory]
    [InlineData(0, 0, 5)]
    [InlineData(7, 0, 12)]
    [InlineData(7, 3, 3)]
    public void MeanBetweenInterruptions_StartsAtThePrior(double exposed, int interruptions, double hours) =>
        Assert.Equal(TimeSpan.FromHours(hours), SaveIntervals.MeanBetweenInterruptions(exposed, interruptions));

    [Theory]
    [InlineData(120.0, 79.9, true)]
    [InlineData(120.0, 80.0, false)]
    [InlineData(5.0, 10.0, false)]
    [InlineData(0.0, 0.0, false)]
    [InlineData(0.0, null, false)]
    [InlineData(1.0, null, true)]
    [InlineData(null, 1000.0, true)]
    [InlineData(null, null, true)]
    public void CanCommit_LeavesHalfACommitToSpare(double? left, double? commit, bool can)
    {
        static TimeSpan? Span(double? seconds) => seconds is { } value ? TimeSpan.FromSeconds(value) : null;
        Assert.Equal(can, DeadlinePolicy.CanCommit(Span(left), Span(commit)));
    }

    [Theory]
    [InlineData(0, null)]
    [InlineData(1, 1.0)]
    [InlineData(19, 19.0)]
    [InlineData(20, 19.0)]
    [InlineData(100, 95.0)]
    public void Percentile95_IsAMeasuredTime(int count, double? seconds) =>
        Assert.Equal(seconds, DeadlinePolicy.Percentile95([.. Enumerable.Range(1, count).Reverse().Select(i => TimeSpan.FromSeconds(i))])?.TotalSeconds);

    [Fact]
    public void TimeLeft_CountsByTheMonotonicClock()
    {
        Clock clock = new();
        InterruptionNotice notice = new(clock) { Source = "test", Kind = NoticeKind.Stop, Event = "It ends", TimeLeftAtReceipt = TimeSpan.FromSeconds(30) };
        clock.Seconds = 12;
        Assert.Equal(TimeSpan.FromSeconds(18), notice.TimeLeft);
        clock.Seconds = 40;
        Assert.Equal(TimeSpan.Zero, notice.TimeLeft);
        Assert.Equal("It ends within 30 s: a checkpoint is saved, then the program ends.", notice.Sentence);
    }

    [Theory]
    [InlineData("", "", "an unknown provider", null)]
    [InlineData("RUNPOD_POD_ID", "", "RunPod", 5.0)]
    [InlineData("VAST_CONTAINERLABEL", "", "Vast", 0.0)]
    [InlineData("KUBERNETES_SERVICE_HOST", "", "Kubernetes", 30.0)]
    [InlineData("SLURM_JOB_ID", "", "Slurm", null)]
    [InlineData("", "Amazon EC2", "AWS", 120.0)]
    [InlineData("", "Google", "Google Cloud", 30.0)]
    [InlineData("", "Microsoft Corporation", "Azure", 30.0)]
    [InlineData("KUBERNETES_SERVICE_HOST", "Amazon EC2", "Kubernetes on AWS", 30.0)]
    [InlineData("SLURM_JOB_ID", "Amazon EC2", "Slurm on AWS", 120.0)]
    [InlineData("RUNPOD_POD_ID", "Google", "RunPod on Google Cloud", 5.0)]
    public void Provider_IsToldByEnvironmentAndFirmware(string variable, string vendor, string name, double? grace)
    {
        MachineTraits traits = new(asked => asked == variable ? "x" : "", asked => asked switch
        {
            "sys_vendor" => vendor,
            "product_name" => "Virtual Machine",
            "chassis_asset_tag" => "7783-7084-3265-9085-8269-3286-77",
            _ => null,
        });
        ProviderInfo provider = ProviderInfo.Detect(new InterruptionOptions(), traits);

        Assert.Equal((name, grace), (provider.Name, provider.GraceSeconds));
        Assert.Equal(7.5, ProviderInfo.Detect(new InterruptionOptions { GraceSeconds = 7.5 }, traits).GraceSeconds);
    }

    [Theory]
    [InlineData(InterruptionSources.Gcp | InterruptionSources.Signals, "Google Cloud")]
    [InlineData(InterruptionSources.Gcp | InterruptionSources.Aws, "an unknown provider")]
    public void Provider_WithoutFirmware_IsTheOneThatIsNamed(InterruptionSources sources, string name) =>
        Assert.Equal(name, ProviderInfo.Detect(new InterruptionOptions { Sources = sources }, new MachineTraits(_ => null, _ => null)).Name);

    [Fact]
    public void Cloud_OfAnyOtherHyperV_IsNotAzure()
    {
        MachineTraits traits = new(_ => null, asked => asked switch
        {
            "sys_vendor" => "Microsoft Corporation",
            "product_name" => "Virtual Machine",
            "chassis_asset_tag" => "1234",
            _ => null,
        });
        Assert.Equal(InterruptionSources.None, traits.Cloud);
    }

    [Fact]
    public void Cloud_OfAnOlderAwsMachine_IsToldByItsBios() =>
        Assert.Equal(InterruptionSources.Aws, new MachineTraits(_ => null, asked => asked switch { "sys_vendor" => "Xen", "bios_version" => "4.11.amazon", _ => null }).Cloud);

    [Theory]
    [InlineData(120.0, 4.26, "On X a notice comes by letter: a save takes 4.3 s and fits into 120 s.")]
    [InlineData(5.0, 4.0, "On X a notice comes by letter: a save takes 4 s and does not safely fit into 5 s, so what was computed since the last checkpoint may be lost.")]
    [InlineData(30.0, null, "On X a notice comes by letter: a save may take 20 s to be safe within 30 s.")]
    [InlineData(0.0, 4.0, "On X a machine may go away without notice (by letter): what was computed since the last checkpoint is then lost.")]
    [InlineData(null, 4.0, null)]
    public void Judge_SaysWhetherASaveFits(double? grace, double? save, string? sentence) =>
        Assert.Equal(sentence, new ProviderInfo("X", grace, "by letter").Judge(save is { } seconds ? TimeSpan.FromSeconds(seconds) : null));

    private sealed class Clock : TimeProvider
    {
        public double Seconds { get; set; }

        public override long TimestampFrequency => 1000;

        public override long GetTimestamp() => (long)(Seconds * 1000);
    }
}
