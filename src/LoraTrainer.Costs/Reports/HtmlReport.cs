using System.Globalization;
using System.Xml;
using LoraTrainer.Costs.Ledger;

namespace LoraTrainer.Costs.Reports;

/// <summary>
/// A report as one page of HTML that needs nothing else: no script, no network, no file beside it. It is well-formed XML too, and whatever is in a ledger
/// arrives in it as text.
/// </summary>
public sealed class HtmlReport
{
    private const string Policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

    /// <summary>More bars than days of a month say less than a table.</summary>
    private const int MostDays = 31;

    private static readonly Lazy<string> Style = new(() =>
    {
        using var reader = new StreamReader(typeof(HtmlReport).Assembly.GetManifestResourceStream("LoraTrainer.Costs.Reports.report.css")!);
        return reader.ReadToEnd();
    });

    private readonly CostReport _report;
    private readonly Func<RunSummary, RunMeasurements> _measurements;
    private readonly DateTimeOffset _now;
    private readonly HtmlPage _page;
    private readonly int _digits;

    private HtmlReport(XmlWriter writer, CostReport report, Func<RunSummary, RunMeasurements> measurements, DateTimeOffset now)
    {
        _page = new HtmlPage(writer);
        _report = report;
        _digits = ReportText.Digits(report.Total.Cost);
        _measurements = measurements;
        _now = now;
    }

    /// <summary>Writes the page.</summary>
    /// <param name="output">UTF-8.</param>
    /// <param name="report">Of one run or of many.</param>
    /// <param name="title">What the report is about.</param>
    /// <param name="measurements">What a run's folder knows of it.</param>
    /// <param name="now">When the page is made.</param>
    public static void Write(TextWriter output, CostReport report, string title, Func<RunSummary, RunMeasurements> measurements, DateTimeOffset now)
    {
        ArgumentNullException.ThrowIfNull(output);
        ArgumentNullException.ThrowIfNull(report);
        ArgumentNullException.ThrowIfNull(title);
        output.Write("<!DOCTYPE html>\n");
        using XmlWriter writer = XmlWriter.Create(output, new XmlWriterSettings { OmitXmlDeclaration = true, NewLineChars = "\n", ConformanceLevel = ConformanceLevel.Document });
        new HtmlReport(writer, report, measurements, now).Whole(ReportText.Plain(title));
    }

    private void Whole(string title)
    {
        _page.Open("html", null, ("lang", "en"));
        _page.Open("head");
        _page.Void("meta", ("charset", "utf-8"));
        _page.Void("meta", ("name", "viewport"), ("content", "width=device-width, initial-scale=1"));
        _page.Void("meta", ("http-equiv", "Content-Security-Policy"), ("content", Policy));
        _page.Void("meta", ("name", "color-scheme"), ("content", "light dark"));
        _page.Text("title", title);
        _page.Text("style", Style.Value);
        _page.Close();
        _page.Open("body");
        _page.Open("header");
        _page.Text("h1", title);
        _page.Text("p", Period(), "soft");
        _page.Close();
        _page.Open("main");
        if (_report.Runs.Count == 1 && _report.OfProjects.Count == 0)
        {
            new RunSection(_page, _report.Runs[0], _measurements(_report.Runs[0].Summary), "r1").Write();
        }
        else
        {
            Overview();
            foreach ((ReportedRun run, int index) in _report.Runs.Select((run, index) => (run, index + 1)))
            {
                string id = Id(index);
                _page.Open("section");
                _page.Open("h2", null, ("id", id));
                _page.Text(RunSection.NameOf(run.Summary));
                _page.Close();
                new RunSection(_page, run, _measurements(run.Summary), id).Write();
                _page.Close();
            }
        }

        _page.Close();
        _page.Text("footer", "Hours are elapsed machine hours; the cost is what they are billed as, by the rates that were recorded. Lost is what was computed and had to be computed again after an "
            + "interruption. An attempt that was killed counts up to its last sign of life. Amounts in different currencies stand beside each other and are never added. Amounts are printed rounded; sums are formed before that. This is a record of the "
            + "user's own, not an invoice.", "soft");
        _page.Close();
        _page.Close();
    }

    private static string Id(int index) => string.Create(CultureInfo.InvariantCulture, $"r{index}");

    private string Period()
    {
        string made = $"Made on {ReportText.Moment(_now)} UTC.";
        return _report.Period switch
        {
            { IsAlways: true } => made,
            { Since: { } since, Until: null } => $"From {ReportText.Moment(since)} UTC on. {made}",
            { Since: null, Until: { } until } => $"Before {ReportText.Moment(until)} UTC. {made}",
            { Since: var since, Until: var until } => $"From {ReportText.Moment(since!.Value)} to {ReportText.Moment(until!.Value)} UTC. {made}",
        };
    }

    private void Overview()
    {
        ChargeGroup total = _report.Total;
        _page.Open("dl", "tiles");
        _page.CostTile(total.Cost, total.UnpricedHours, _digits);
        _page.Tile("Runs", ReportText.Whole(total.Runs), ReportText.Count(total.Attempts, "attempt"));
        _page.Tile("Machine hours", ReportText.Duration(total.Hours), $"{ReportText.Duration(total.GpuHours)} of GPUs");
        _page.Tile("Lost", ReportText.Duration(total.LostHours), total.LostCost.Count > 0 ? ReportText.Amounts(total.LostCost, 0, _digits) : null);
        _page.Close();
        _page.Open("div", "pair");
        Groups("Cost by project", GroupBy.Project, "no project");
        Groups("Cost by provider", GroupBy.Provider, "not of a machine, or not known");
        Groups("Cost by model", GroupBy.Model, "no model");
        Groups("Cost by day (UTC)", GroupBy.Day, "");
        _page.Close();
        _page.Text("h3", "Runs");
        _page.Table(["run", "project", "begun (UTC)", "attempts", "hours", "lost", "cost"], column => column >= 3, rows =>
        {
            foreach ((ReportedRun run, int index) in _report.Runs.Select((run, index) => (run, index + 1)))
            {
                rows.Row(
                    null, new Cell(null, () => _page.Link("#" + Id(index), RunSection.NameOf(run.Summary))), run.Summary.Run.Project, Cell.When(ReportText.Moment(run.Summary.Run.Created)), ReportText.Whole(run.Within.Attempts),
                    ReportText.Duration(run.Within.Hours), ReportText.Duration(run.Within.LostHours), ReportText.Amounts(run.Within.Cost, run.Within.UnpricedHours, _digits));
            }

            foreach (Charge charge in _report.OfProjects)
            {
                rows.Row(null, (charge.Line!.Description.Length > 0 ? charge.Line.Description : LedgerText.Of(charge.Category)), charge.Project, Cell.When(LedgerText.Of(charge.Line.Date)), "", "", "", charge.Line.Money.ToString(_digits));
            }

            rows.Row("sum", "all", "", "", ReportText.Whole(total.Attempts), ReportText.Duration(total.Hours), ReportText.Duration(total.LostHours), ReportText.Amounts(total.Cost, total.UnpricedHours, _digits));
        });
    }

    private void Groups(string title, GroupBy by, string unknown)
    {
        IReadOnlyList<ChargeGroup> groups = _report.Groups(by);
        if (groups.Count < 2 || (by == GroupBy.Day && groups.Count > MostDays))
        {
            return;
        }

        _page.Open("div");
        _page.Text("h3", title);
        _page.Bars([.. groups.SelectMany(group => HtmlPage.BarsOf(group.Key ?? unknown, group.Cost, group.UnpricedHours, _digits, null))]);
        _page.Close();
    }
}
