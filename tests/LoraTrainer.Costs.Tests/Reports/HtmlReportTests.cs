using System.Xml.Linq;
using LoraTrainer.Costs.Ledger;
using LoraTrainer.Costs.Reports;
using LoraTrainer.Costs.Tests.Ledger;
using Xunit;
using static LoraTrainer.Costs.Tests.Ledger.TestLedger;

namespace LoraTrainer.Costs.Tests.Reports;

public sealed class HtmlReportTests
{
    private const string Hostile = "</title><script>alert('x')</script>\"'&<img src=x onerror=\"alert(1)\">\u202E\u0007\uD800 https://evil.example ";

    private static readonly RunMeasurements Measured = new()
    {
        Steps = [.. Enumerable.Range(1, 600).Select(step => new StepMeasurement(step, 7.0 / step, 100, step == 3 ? 0 : 0.5, 2_000_000_000 + step))],
        PeakBytes = 3L << 30,
        PlannedBytes = 2L << 30,
    };

    [Fact]
    public void SeveralRuns_AreAnOverviewAndASectionEach()
    {
        using var test = new TestLedger();
        (string text, XElement page) = Page(TestReport.Whole(test), run => run.Run.RunId == "r1" ? Measured : new RunMeasurements { Missing = "The folder is gone." });

        Assert.Equal(3, page.Descendants("section").Count());
        Assert.All(page.Descendants("a"), link => Assert.Single(page.Descendants(), element => "#" + element.Attribute("id")?.Value == link.Attribute("href")!.Value));
        Assert.Equal(3, page.Descendants("a").Count());
        XElement first = Section(page, "name of r1");
        Assert.Equal(3, first.Descendants("svg").Count());
        Assert.Equal(["Loss against money", "Tokens a second", "Memory"], first.Descendants("svg").Select(chart => chart.Element("title")!.Value));
        Assert.All(first.Descendants("svg"), chart => Assert.Equal(chart.Attribute("aria-labelledby")!.Value.Split(' '), chart.Elements().Take(2).Select(element => element.Attribute("id")!.Value)));
        Assert.All(first.Descendants("polyline"), curve => Assert.InRange(curve.Attribute("points")!.Value.Split(' ').Length, 60, 240));
        Assert.Contains("mean of up to 3 logged steps", first.Value, StringComparison.Ordinal);
        Assert.Contains("The folder is gone.", Section(page, "name of r2").Value, StringComparison.Ordinal);

        // The numbers that the ledger gives, in words.
        Assert.Contains("8.5710 USD", first.Value, StringComparison.Ordinal);
        Assert.Contains("0:25:00", first.Value, StringComparison.Ordinal);
        Assert.Contains("without a rate", page.Element("body")!.Element("main")!.Element("dl")!.Value, StringComparison.Ordinal);
        Assert.Equal(1, first.Descendants("span").Count(segment => segment.Attribute("class")?.Value == "seg lost"));
        Assert.Equal(1, first.Descendants("span").Count(segment => segment.Attribute("class")?.Value == "seg end"));
        Assert.StartsWith("<!DOCTYPE html>", text, StringComparison.Ordinal);
    }

    /// <summary>Nothing is fetched, nothing is run, and nobody's text is more than text.</summary>
    [Fact]
    public void AnyText_IsText()
    {
        using var test = new TestLedger();
        using (RunLedger ledger = test.Open())
        {
            AttemptStart start = Start("r1", rate: Dollars(1) with { Source = Hostile });
            ledger.Merge(Snapshot(
                start with { Provider = Hostile, InstanceType = Hostile, Region = Hostile, GpuKind = Hostile, Holder = start.Holder with { Host = Hostile }, Run = start.Run with { Name = Hostile, Project = Hostile, Model = Hostile, Tags = [Hostile] } },
                Progress(60, 0, 5, 5, 10, (LedgerPhase.Train, 60)), AttemptEnd.Finished));
            ledger.AddCostLine(new CostLine(CostCategory.Data, 3, "USD", new DateOnly(2030, 1, 1)) { RunId = "r1", Description = Hostile });
            ledger.AddCostLine(new CostLine(CostCategory.Data, 3, "USD", new DateOnly(2030, 1, 1)) { Project = Hostile, Description = Hostile });
        }

        using RunLedger read = test.Open();
        (string text, XElement page) = Page(CostReport.Of(read.Totals(), ReportPeriod.Always), _ => new RunMeasurements { Missing = Hostile }, title: Hostile);

        Assert.DoesNotContain(page.Descendants(), element => element.Name.LocalName is "script" or "img" or "link" or "iframe" or "object" or "base" or "form");
        Assert.DoesNotContain("<script", text, StringComparison.OrdinalIgnoreCase);
        Assert.DoesNotContain("<img", text, StringComparison.OrdinalIgnoreCase);
        Assert.All(page.Descendants().Attributes(), attribute => Assert.False(
            attribute.Name.LocalName.StartsWith("on", StringComparison.Ordinal) || attribute.Name.LocalName is "src" or "srcset" || (attribute.Name.LocalName == "href" && !attribute.Value.StartsWith('#')), attribute.ToString()));
        Assert.DoesNotContain("url(", page.Descendants("style").Single().Value, StringComparison.OrdinalIgnoreCase);
        Assert.DoesNotContain("@import", page.Descendants("style").Single().Value, StringComparison.OrdinalIgnoreCase);
        Assert.Contains("default-src 'none'", page.Descendants("meta").Single(meta => meta.Attribute("http-equiv") is not null).Attribute("content")!.Value, StringComparison.Ordinal);
        Assert.Contains("<script>alert('x')</script>", page.Descendants("h2").Single().Value, StringComparison.Ordinal);
        Assert.DoesNotContain(text, letter => letter is '\u202E' or '\u0007' || char.IsSurrogate(letter));
    }

    [Fact]
    public void OneRun_WithoutAnyOtherPersonsText_NamesNoAddress()
    {
        using var test = new TestLedger();
        LedgerTotals totals = TestReport.Mixed(test);
        (string text, XElement page) = Page(CostReport.Of(totals with { Runs = [totals.Runs.Single(run => run.Run.RunId == "r1")], ProjectLines = [] }, ReportPeriod.Always), _ => Measured);

        Assert.DoesNotContain("http://", text, StringComparison.OrdinalIgnoreCase);
        Assert.DoesNotContain("https://", text, StringComparison.OrdinalIgnoreCase);
        Assert.Empty(page.Descendants("section"));

        // HTML takes the short form of XML for an element that goes on.
        Assert.DoesNotMatch("<(?!meta)[a-z0-9]+[^>]*/>", text.Split("<main>")[0]);
        Assert.DoesNotMatch("<(span|div|p|td|th|dl|dd|dt|section|figure)( [^>]*)?/>", text);
    }

    [Fact]
    public void Plan_StandsBesideWhatItCame()
    {
        using var test = new TestLedger();
        LedgerTotals totals = TestReport.Mixed(test);
        RunSummary run = totals.Runs.Single(item => item.Run.RunId == "r1");
        RunSummary planned = run with { Run = run.Run with { Config = new Dictionary<string, string> { ["planned_hours"] = "2", ["planned_cost"] = "17.142" } }, Total = run.Total with { Samples = 100 } };

        XElement page = Page(CostReport.Of(totals with { Runs = [planned], ProjectLines = [] }, ReportPeriod.Always), _ => Measured).Page;
        string[][] rows = [.. page.Descendants("h3").Single(head => head.Value == "Plan against actual").ElementsAfterSelf("table").First().Descendants("tr").Select(row => row.Elements().Select(cell => cell.Value).ToArray())];

        Assert.Equal([["", "planned", "actual", "difference"], ["hours", "2:00:00", "2:30:00", "+25.0 %"], ["cost of machines", "17.1420 USD", "8.5010 USD", "−50.4 %"]], rows);
        Assert.Contains("0.085 USD per sample", page.Value, StringComparison.Ordinal);
        Assert.DoesNotContain("Plan against actual", Page(CostReport.Of(totals with { Runs = [run], ProjectLines = [] }, ReportPeriod.Always), _ => Measured).Page.Value, StringComparison.Ordinal);
    }

    /// <summary>Where attempts have no rate there is no scale of money.</summary>
    [Fact]
    public void Loss_WithoutARate_IsAgainstTime()
    {
        using var test = new TestLedger();
        LedgerTotals totals = TestReport.Mixed(test);
        XElement page = Page(CostReport.Of(totals with { Runs = [totals.Runs.Single(run => run.Run.RunId == "r3")], ProjectLines = [] }, ReportPeriod.Always), _ => Measured).Page;

        Assert.Equal("Loss against time", page.Descendants("svg").First().Element("title")!.Value);
        Assert.Contains("minutes", page.Descendants("svg").First().Value, StringComparison.Ordinal);
        Assert.Contains("no rate", page.Value, StringComparison.Ordinal);
        Assert.Contains("Hours by phase", page.Value, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0, 10, "0,2,4,6,8,10")]
    [InlineData(0, 83, "0,20,40,60,80,100")]
    [InlineData(0.13, 0.27, "0.10,0.15,0.20,0.25,0.30")]
    [InlineData(-3, 12, "-5,0,5,10,15")]
    [InlineData(0, 1234567, "0,500,000,1,000,000,1,500,000")]
    [InlineData(0, 0.00002, "0.000000,0.000005,0.000010,0.000015,0.000020")]
    public void Axis_HasRoundNumbersAroundAllValues(double least, double greatest, string labels)
    {
        AxisTicks ticks = AxisTicks.Between(least, greatest, 4);

        Assert.Equal(labels, string.Join(',', ticks.Values.Select(ticks.Label)));
    }

    [Theory]
    [InlineData(0, 0)]
    [InlineData(5, 5)]
    [InlineData(-1e9, -1e9)]
    [InlineData(1e-300, 2e-300)]
    [InlineData(0, 1e300)]
    [InlineData(3, 3.0000001)]
    public void Axis_OfAnything_HasAFewTicksAroundIt(double least, double greatest)
    {
        AxisTicks ticks = AxisTicks.Between(least, greatest, 4);

        Assert.InRange(ticks.Values.Count, 2, 12);
        Assert.True(ticks.Least <= least && ticks.Greatest >= greatest && ticks.Greatest > ticks.Least);
    }

    private static (string Text, XElement Page) Page(CostReport report, Func<RunSummary, RunMeasurements> measurements, string title = "What runs cost")
    {
        var text = new StringWriter();
        HtmlReport.Write(text, report, title, measurements, TestReport.Noon);
        return (text.ToString(), XDocument.Parse(text.ToString()).Root!);
    }

    private static XElement Section(XElement page, string name) => page.Descendants("section").Single(section => section.Element("h2")!.Value == name);
}
