using System.Globalization;
using System.Text;
using System.Text.Json;
using LoraTrainer.Costs.Ledger;
using LoraTrainer.Costs.Reports;
using LoraTrainer.Costs.Tests.Ledger;
using Xunit;

namespace LoraTrainer.Costs.Tests.Reports;

public sealed class CsvReportTests
{
    [Fact]
    public void Rows_ReadBack_AddUpToTheCost()
    {
        using var test = new TestLedger();
        LedgerTotals totals = TestReport.Mixed(test);
        Dictionary<string, string>[] rows = Read(CostReport.Of(totals, ReportPeriod.Always));

        foreach (RunSummary run in totals.Runs.Where(run => run.Total.Cost.Count > 0))
        {
            Dictionary<string, string>[] own = [.. rows.Where(row => row["x_RunId"] == run.Run.RunId)];
            Assert.Equal(run.Total.Cost, Money.Totals(own.Select(row => new Money(decimal.Parse(row["BilledCost"], CultureInfo.InvariantCulture), row["BillingCurrency"]))));
            Assert.Equal(run.Total.GpuHours, own.Where(row => row["x_GpuHours"].Length > 0).Sum(row => decimal.Parse(row["x_GpuHours"], CultureInfo.InvariantCulture)), 20);
            Assert.Equal(run.Total.Tokens, own.Where(row => row["x_LostWork"] == "false" && row["x_Tokens"].Length > 0).Sum(row => long.Parse(row["x_Tokens"], CultureInfo.InvariantCulture)));
        }

        Assert.Equal(["load", "train", "lost", "train", "billing_rounding", "", ""], rows.Where(row => row["x_RunId"] == "r1").Select(row => row["x_Phase"]));
        Dictionary<string, string> lost = rows.Single(row => row["x_LostWork"] == "true");
        Assert.Equal(("1.500000", "2030-01-02T23:00:00Z", "2030-01-03T01:00:00Z", "1", "1000", "true", "Usage", "vast", "3.600000"),
            (lost["BilledCost"], lost["ChargePeriodStart"], lost["ChargePeriodEnd"], lost["x_AttemptId"], lost["x_Tokens"], lost["x_Estimated"], lost["ChargeCategory"], lost["ProviderName"], lost["ContractedUnitPrice"]));
        Assert.Equal("nlp", JsonDocument.Parse(lost["Tags"]).RootElement.GetProperty("team").GetString());
        Assert.Equal("-0.500000", rows.Single(row => row["ChargeCategory"] == "Credit")["BilledCost"]);
        Assert.Equal(("Purchase", "internal", "400.000000", "p"), Of(rows.Single(row => row["ChargeDescription"] == "labels")));
        Assert.Equal(("", ""), (rows.Single(row => row["x_RunId"] == "r3")["BilledCost"], rows.Single(row => row["x_RunId"] == "r3")["BillingCurrency"]));

        static (string, string, string, string) Of(Dictionary<string, string> row) => (row["ChargeCategory"], row["ProviderName"], row["BilledCost"], row["SubAccountId"]);
    }

    /// <summary>Every digit of an amount is there, and no text can become a formula or another cell.</summary>
    [Fact]
    public void Cells_KeepTheirDigits_AndAreText()
    {
        using var test = new TestLedger();
        string[] hostile = ["=1+1", "+cmd|' /C calc'!A0", "-2", "@SUM(A1)", "\t=1", "\r\n=1", "a,\"b\"\r\nc", "＝1"];
        using (RunLedger ledger = test.Open())
        {
            foreach ((string text, int index) in hostile.Select((text, index) => (text, index)))
            {
                ledger.AddCostLine(new CostLine(CostCategory.Other, 0.1234567890123456789012345678m, "USD", new DateOnly(2030, 1, 1).AddDays(index)) { Project = "p", Description = text });
            }
        }

        using RunLedger read = test.Open();
        Dictionary<string, string>[] rows = Read(CostReport.Of(read.Totals(), ReportPeriod.Always));

        Assert.Equal(hostile.Select(text => text[0] == 'a' ? text : "'" + text), rows.Select(row => row["ChargeDescription"]));
        Assert.All(rows, row => Assert.Equal("0.1234567890123456789012345678", row["BilledCost"]));
    }

    private static Dictionary<string, string>[] Read(CostReport report)
    {
        var text = new StringWriter();
        CsvReport.Write(text, report.Charges);
        List<List<string>> records = Records(text.ToString());
        Assert.All(records, record => Assert.Equal(records[0].Count, record.Count));
        Assert.Equal(records[0].Count, records[0].Distinct().Count());
        return [.. records.Skip(1).Select(record => records[0].Zip(record).ToDictionary(cell => cell.First, cell => cell.Second))];
    }

    /// <summary>RFC 4180: records end with CR LF; a field in quotes holds anything, a quote twice.</summary>
    private static List<List<string>> Records(string text)
    {
        var records = new List<List<string>>();
        var record = new List<string>();
        var field = new StringBuilder();
        bool isQuoted = false;
        for (int index = 0; index < text.Length; index++)
        {
            char letter = text[index];
            if (isQuoted)
            {
                if (letter != '"')
                {
                    field.Append(letter);
                }
                else if (index + 1 < text.Length && text[index + 1] == '"')
                {
                    field.Append('"');
                    index++;
                }
                else
                {
                    isQuoted = false;
                }

                continue;
            }

            Assert.NotEqual('\n', letter);
            switch (letter)
            {
                case '"':
                    Assert.Equal(0, field.Length);
                    isQuoted = true;
                    break;
                case ',':
                    record.Add(field.ToString());
                    field.Clear();
                    break;
                case '\r':
                    Assert.Equal('\n', text[++index]);
                    record.Add(field.ToString());
                    field.Clear();
                    records.Add(record);
                    record = [];
                    break;
                default:
                    field.Append(letter);
                    break;
            }
        }

        Assert.Equal((false, 0, 0), (isQuoted, record.Count, field.Length));
        return records;
    }
}
