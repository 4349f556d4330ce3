using System.Globalization;
using System.Text.Json;
using System.Xml.Linq;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>One run without a rate, and all that can be asked of a ledger.</summary>
public sealed class LedgerVerbTests(LedgerVerbTests.OneRun one) : IClassFixture<LedgerVerbTests.OneRun>, IDisposable
{
    private readonly string ledger = one.Copy();

    public void Dispose() => File.Delete(ledger);

    [Fact]
    public async Task SetRate_PricesTheRun_AndOnlyOnceWithoutReplace()
    {
        Assert.Null((await JsonAsync("report")).GetProperty("totals").GetProperty("cost").GetString());

        Assert.Equal(1, (await JsonAsync("ledger", "set-rate", "--run", "tiny", "--rate", "3600", "--currency", "EUR")).GetProperty("attempts_changed").GetInt32());
        Assert.Equal(0, (await JsonAsync("ledger", "set-rate", "--project", "search", "--rate", "7200", "--currency", "EUR")).GetProperty("attempts_changed").GetInt32());
        JsonElement run = (await JsonAsync("report", "tiny")).GetProperty("runs")[0];
        decimal cost = decimal.Parse(run.GetProperty("cost").GetString()!, CultureInfo.InvariantCulture);
        Assert.Equal(run.GetProperty("billed_hours").GetDecimal() * 3600, cost, 9);
        Assert.Equal("ledger set-rate", run.GetProperty("attempt_list")[0].GetProperty("rate_source").GetString());

        Assert.Equal(1, (await JsonAsync("ledger", "set-rate", "--run", "tiny", "--rate", "7200", "--currency", "EUR", "--per", "machine", "--replace")).GetProperty("attempts_changed").GetInt32());
        Assert.Equal(2 * cost, decimal.Parse((await JsonAsync("report")).GetProperty("totals").GetProperty("cost").GetString()!, CultureInfo.InvariantCulture));
    }

    [Fact]
    public async Task Add_EntersCosts_AndNeverAddsCurrencies()
    {
        Assert.True((await JsonAsync("ledger", "add", "--run", "tiny", "--category", "labor", "--amount", "400 EUR", "--date", "2026-01-02")).GetProperty("by_hand").GetBoolean());
        Assert.Equal("-0.50", (await JsonAsync("ledger", "add", "--run", "tiny", "--category", "gpu", "--amount", "-0.50 EUR")).GetProperty("amount").GetString());
        JsonElement stored = await JsonAsync("ledger", "add", "--project", "search", "--category", "storage", "--gigabytes", "12", "--months", "2", "--price", "0.023 USD");
        Assert.Equal(("0.552", false), (stored.GetProperty("amount").GetString()!.TrimEnd('0'), stored.GetProperty("by_hand").GetBoolean()));
        Ending egress = await RunAsync("ledger", "add", "--run", "tiny", "--category", "egress", "--gigabytes", "40", "--price", "0.09 USD");
        Assert.Contains("There are costs in EUR and USD now. They stand beside each other in reports and are never added.", egress.Error, StringComparison.Ordinal);

        JsonElement report = await JsonAsync("report");
        JsonElement costs = report.GetProperty("totals").GetProperty("costs");
        Assert.Equal((399.5m, 4.152m), (decimal.Parse(costs.GetProperty("EUR").GetString()!, CultureInfo.InvariantCulture), decimal.Parse(costs.GetProperty("USD").GetString()!, CultureInfo.InvariantCulture)));
        Assert.Equal(JsonValueKind.Null, report.GetProperty("totals").GetProperty("cost").ValueKind);
        Assert.Equal("search", report.GetProperty("project_costs")[0].GetProperty("project").GetString());

        // Of before the run, by its date; and by day.
        Assert.Equal("400", (await JsonAsync("report", "--until", "2026-01-03")).GetProperty("totals").GetProperty("cost").GetString());
        JsonElement day = (await JsonAsync("report", "--by", "day")).GetProperty("groups")[0];
        Assert.Equal(("2026-01-02", "400"), (day.GetProperty("key").GetString(), day.GetProperty("cost").GetString()));
    }

    [Theory]
    [InlineData("--run or --project, and not both", "add", "--category", "data", "--amount", "1 USD")]
    [InlineData("--run or --project, and not both", "add", "--run", "tiny", "--project", "p", "--category", "data", "--amount", "1 USD")]
    [InlineData("\"12,50 USD\"", "add", "--run", "tiny", "--category", "data", "--amount", "12,50 USD")]
    [InlineData("\"12 usd\"", "add", "--run", "tiny", "--category", "data", "--amount", "12 usd")]
    [InlineData("A cost line is at most 1000000000", "add", "--run", "tiny", "--category", "data", "--amount", "2000000000 USD")]
    [InlineData("--date is a day", "add", "--run", "tiny", "--category", "data", "--amount", "1 USD", "--date", "tomorrow")]
    [InlineData("knows no run nope", "add", "--run", "nope", "--category", "data", "--amount", "1 USD")]
    [InlineData("--months or --hours, and not both", "add", "--run", "tiny", "--category", "storage", "--gigabytes", "1", "--price", "1 USD")]
    [InlineData("--months and --hours are for --category storage", "add", "--run", "tiny", "--category", "egress", "--gigabytes", "1", "--price", "1 USD", "--hours", "2")]
    [InlineData("--gigabytes must be from 0", "add", "--run", "tiny", "--category", "egress", "--gigabytes", "-1", "--price", "1 USD")]
    [InlineData("--price cannot be negative", "add", "--run", "tiny", "--category", "egress", "--gigabytes", "1", "--price", "-1 USD")]
    [InlineData("Give the cost as --amount", "add", "--run", "tiny", "--category", "egress", "--gigabytes", "1")]
    [InlineData("does not go together with --gigabytes", "add", "--run", "tiny", "--category", "egress", "--gigabytes", "1", "--amount", "1 USD")]
    [InlineData("'food'", "add", "--run", "tiny", "--category", "food", "--amount", "1 USD")]
    [InlineData("A rate cannot be negative, got -2 an hour", "set-rate", "--run", "tiny", "--rate", "-2", "--currency", "USD")]
    [InlineData("at most 100000, got 250000", "set-rate", "--run", "tiny", "--rate", "250000", "--currency", "USD")]
    [InlineData("A currency is three capital letters", "set-rate", "--run", "tiny", "--rate", "2", "--currency", "dollars")]
    [InlineData("--rate is a number with a point", "set-rate", "--run", "tiny", "--rate", "2,5", "--currency", "USD")]
    [InlineData("Say which attempts", "set-rate", "--rate", "2", "--currency", "USD")]
    [InlineData("--rate", "set-rate", "--run", "tiny", "--currency", "USD")]
    public async Task WrongInput_IsToldInASentence_AndChangesNothing(string part, params string[] arguments)
    {
        byte[] before = File.ReadAllBytes(ledger);
        Ending run = await RunAsync(["ledger", .. arguments]);

        Assert.True(run.ExitCode == 2, run.ToString());
        Assert.StartsWith("error: ", run.Error, StringComparison.Ordinal);
        Assert.Contains(part, run.Error, StringComparison.Ordinal);
        Assert.Equal(before, File.ReadAllBytes(ledger));
    }

    [Fact]
    public async Task Check_SaysWhetherItIsSound()
    {
        JsonElement sound = await JsonAsync("ledger", "check");
        Assert.Equal((true, 1, 1, 0), (sound.GetProperty("sound").GetBoolean(), sound.GetProperty("runs").GetInt32(), sound.GetProperty("attempts").GetInt32(), sound.GetProperty("open_attempts").GetArrayLength()));

        File.WriteAllText(ledger, "not a database, but a file of some length that is none");
        Ending broken = await RunAsync("ledger", "check", "--json");
        Assert.Equal(1, broken.ExitCode);
        Assert.False(JsonDocument.Parse(broken.Output).RootElement.GetProperty("sound").GetBoolean());

        // A person who enters something hears that it was not entered.
        Ending add = await RunAsync("ledger", "add", "--project", "p", "--category", "data", "--amount", "1 USD");
        Assert.Equal(1, add.ExitCode);
        Assert.Contains("is not a ledger", add.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("defect", add.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Report_WritesCsvAndAPage_AndReplacesNothingUnasked()
    {
        await JsonAsync("ledger", "set-rate", "--run", "tiny", "--rate", "3600", "--currency", "EUR");
        Ending csv = await RunAsync("report", "--csv");
        string[] lines = csv.Output.Split("\r\n");
        Assert.StartsWith("BillingPeriodStart,", lines[0], StringComparison.Ordinal);
        Assert.Contains(lines, line => line.Contains(",train,", StringComparison.Ordinal));

        string page = one.PathOf("page.html");
        Ending written = await RunAsync("report", "tiny", "--html", page), again = await RunAsync("report", "tiny", "--html", page);
        Assert.True(written.ExitCode == 0, written.ToString());
        XElement root = XDocument.Load(page).Root!;

        // The folder of the run is found by what the ledger knows.
        Assert.Equal(3, root.Descendants("svg").Count());
        Assert.Contains("Peak memory", root.Value, StringComparison.Ordinal);
        Assert.Equal(2, again.ExitCode);
        Assert.Contains("exists already. Name another file, or replace it with --force.", again.Error, StringComparison.Ordinal);
        Assert.Equal(0, (await RunAsync("report", "tiny", "--html", page, "--force", "--json")).ExitCode);
        Assert.Equal([page], Directory.GetFiles(one.Folder, "page.html*"));
    }

    [Theory]
    [InlineData(80)]
    [InlineData(100)]
    [InlineData(160)]
    public async Task Tables_FitTheTerminal(int width)
    {
        await JsonAsync("ledger", "add", "--run", "tiny", "--category", "labor", "--amount", "400 EUR", "--description", new string('x', 120));
        foreach (string[] arguments in (string[][])[["report"], ["report", "tiny"], ["report", "--by", "project"]])
        {
            Ending report = await one.RunAsync(ledger, arguments, width);
            Assert.True(report.ExitCode == 0, report.ToString());
            Assert.All(report.Output.Split('\n'), line => Assert.InRange(line.Length, 0, width));
            Assert.Contains("400.00", report.Output, StringComparison.Ordinal);
        }
    }

    [Theory]
    [InlineData("--since takes a day", "--since", "3x")]
    [InlineData("--since must be before --until", "--since", "1d", "--until", "2d")]
    [InlineData("--by takes run, provider, project, model, day or tag:KEY", "--by", "colour")]
    [InlineData("does not go together with --json, --html or --by", "--csv", "--by", "day")]
    [InlineData("there is no --html", "--force")]
    [InlineData("knows no run nope", "nope")]
    public async Task Report_OfWrongInput_IsASentence(string part, params string[] arguments)
    {
        Ending run = await RunAsync(["report", .. arguments]);

        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.Contains(part, run.Error, StringComparison.Ordinal);
    }

    private async Task<JsonElement> JsonAsync(params string[] arguments)
    {
        Ending run = await RunAsync([.. arguments, "--json"]);
        Assert.True(run.ExitCode == 0, run.ToString());
        return JsonDocument.Parse(run.Output).RootElement;
    }

    private Task<Ending> RunAsync(params string[] arguments) => one.RunAsync(ledger, arguments, width: null);

    /// <summary>A run of which every test gets a ledger of its own.</summary>
    public sealed class OneRun : IAsyncLifetime
    {
        private readonly TinyFolder folder = new(changes: ("cost", "{project: search}"));
        private int copies;

        public string Folder => folder.Path;

        public async ValueTask InitializeAsync()
        {
            Ending train = await folder.RunAsync("train", "tiny.yaml", "--ledger", "first.db");
            Assert.True(train.ExitCode == 0, train.ToString());
        }

        public ValueTask DisposeAsync()
        {
            folder.Dispose();
            return ValueTask.CompletedTask;
        }

        public string PathOf(string name) => folder.PathOf(name);

        public string Copy()
        {
            string copy = folder.PathOf($"ledger-{Interlocked.Increment(ref copies)}.db");
            File.Copy(folder.PathOf("first.db"), copy);
            return copy;
        }

        internal Task<Ending> RunAsync(string ledger, string[] arguments, int? width) => folder.RunAsync([.. arguments, "--ledger", ledger], environment: width is { } columns
            ? new Dictionary<string, string> { ["COLUMNS"] = columns.ToString(CultureInfo.InvariantCulture) }
            : null);
    }
}
