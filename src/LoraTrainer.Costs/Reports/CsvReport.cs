using System.Globalization;
using System.Text.Encodings.Web;
using System.Text.Json;
using LoraTrainer.Costs.Ledger;

namespace LoraTrainer.Costs.Reports;

/// <summary>
/// The charges as comma-separated values (RFC 4180, UTF-8) with the column names of FOCUS 1.2, the common format of cloud bills, and own columns that begin
/// with x_. It is no invoice. Amounts are exact, and the billed costs of a run's rows add up to its cost.
/// </summary>
public static class CsvReport
{
    // Six digits at least, and as many as there are.
    private const string Number = "0.000000######################";

    private static readonly (string Name, Func<Charge, string> Value)[] Columns =
    [
        ("BillingPeriodStart", charge => Time(Month(charge))),
        ("BillingPeriodEnd", charge => Time(Month(charge).AddMonths(1))),
        ("BillingCurrency", charge => charge.Cost?.Currency ?? ""),
        ("BilledCost", charge => Amount(charge.Cost?.Amount)),
        ("EffectiveCost", charge => Amount(charge.Cost?.Amount)),
        ("ListCost", charge => Amount(charge.Cost?.Amount)),
        ("ContractedCost", charge => Amount(charge.Cost?.Amount)),
        ("ChargeCategory", charge => charge.Line switch { null => "Usage", { Amount: < 0 } => "Credit", { Category: CostCategory.Gpu or CostCategory.Storage or CostCategory.Egress or CostCategory.Inference } => "Usage", _ => "Purchase" }),
        ("ChargeClass", _ => ""),
        ("ChargeDescription", charge => Text(Description(charge))),
        ("ChargeFrequency", charge => charge.Line is null ? "Usage-Based" : "One-Time"),
        ("ChargePeriodStart", charge => Time(Period(charge).Start)),
        ("ChargePeriodEnd", charge => Time(Period(charge).End)),
        ("ConsumedQuantity", charge => charge.Phase is null ? "" : Amount(Hours(charge))),
        ("ConsumedUnit", charge => charge.Phase is null ? "" : "Hours"),
        ("PricingQuantity", charge => charge.Phase is null ? "" : Amount(Hours(charge))),
        ("PricingUnit", charge => charge.Phase is null ? "" : "Hours"),
        ("PricingCategory", charge => charge.Attempt?.Attempt.Start.Pricing switch { null => "", Pricing.Spot => "Dynamic", Pricing.OnDemand => "Standard", _ => "Other" }),
        ("ListUnitPrice", charge => Amount(HourlyPrice(charge))),
        ("ContractedUnitPrice", charge => Amount(HourlyPrice(charge))),
        ("ProviderName", charge => Text(Provider(charge))),
        ("PublisherName", charge => Text(Provider(charge))),
        ("InvoiceIssuerName", charge => Text(Provider(charge))),
        ("RegionId", charge => Text(charge.Attempt?.Attempt.Start.Region)),
        ("RegionName", charge => Text(charge.Attempt?.Attempt.Start.Region)),
        ("ResourceId", charge => Text(charge.Attempt?.Attempt.Start.Holder.Host)),
        ("ResourceName", charge => Text(charge.Attempt?.Attempt.Start.Holder.Host)),
        ("ResourceType", charge => Text(charge.Attempt?.Attempt.Start.InstanceType)),
        ("ServiceCategory", charge => charge.Category switch { CostCategory.Gpu => "Compute", CostCategory.Storage => "Storage", CostCategory.Egress => "Networking", CostCategory.Inference => "AI and Machine Learning", _ => "Other" }),
        ("ServiceName", charge => LedgerText.Of(charge.Category)),
        ("SkuId", charge => Text(charge.Attempt?.Attempt.Start.GpuKind)),
        ("SubAccountId", charge => Text(charge.Project)),
        ("Tags", Tags),
        ("x_RunId", charge => Text(charge.Run?.RunId)),
        ("x_RunName", charge => Text(charge.Run?.Name)),
        ("x_AttemptId", charge => charge.Attempt is { } attempt ? Whole(attempt.Attempt.Start.Epoch) : ""),
        ("x_Phase", charge => charge.Phase is { } phase ? LedgerText.Of(phase) : charge.IsRounding ? "billing_rounding" : ""),
        ("x_Model", charge => Text(charge.Run?.Model)),
        ("x_Tokens", Tokens),
        ("x_GpuHours", charge => charge.Phase is null ? "" : Amount(Hours(charge) * charge.Attempt!.Attempt.Start.GpuCount)),
        ("x_Estimated", charge => charge.Attempt is { Attempt: { Estimated: true } or { Ended: null } } || charge.Line is { ByHand: false } ? "true" : "false"),
        ("x_LostWork", charge => charge.Phase == LedgerPhase.Lost ? "true" : "false"),
        ("x_PriceSource", charge => Text(charge.Attempt?.Attempt.Start.Rate?.Source)),
        ("x_PriceAsOf", charge => charge.Attempt?.Attempt.Start.Rate?.AsOf is { } day ? LedgerText.Of(day) : ""),
    ];

    /// <summary>Writes a header and a row for each charge. Where no rate is known the columns of money are empty, which is not the same as nothing.</summary>
    public static void Write(TextWriter writer, IEnumerable<Charge> charges)
    {
        ArgumentNullException.ThrowIfNull(writer);
        ArgumentNullException.ThrowIfNull(charges);
        Row(writer, Columns.Select(column => column.Name));
        foreach (Charge charge in charges)
        {
            Row(writer, Columns.Select(column => column.Value(charge)));
        }
    }

    private static void Row(TextWriter writer, IEnumerable<string> cells)
    {
        writer.Write(string.Join(',', cells.Select(cell => cell.AsSpan().IndexOfAny(",\"\r\n") >= 0 ? $"\"{cell.Replace("\"", "\"\"", StringComparison.Ordinal)}\"" : cell)));

        // Of RFC 4180, whatever the system.
        writer.Write("\r\n");
    }

    /// <summary>Spreadsheets take a cell that begins so for a formula, and it could be anybody's; an apostrophe in front makes it text.</summary>
    private static string Text(string? text) => text is { Length: > 0 } && text[0] is '=' or '+' or '-' or '@' or '\t' or '\r' or '\n' or '＝' or '＋' or '－' or '＠' ? "'" + text : text ?? "";

    private static string Amount(decimal? amount) => amount?.ToString(Number, CultureInfo.InvariantCulture) ?? "";

    private static string Whole(long number) => number.ToString(CultureInfo.InvariantCulture);

    private static string Time(DateTimeOffset time) => time.UtcDateTime.ToString("yyyy-MM-ddTHH:mm:ss.FFFFFFF'Z'", CultureInfo.InvariantCulture);

    private static decimal Hours(Charge charge) => (decimal)charge.Ticks / TimeSpan.TicksPerHour;

    private static DateTimeOffset Month(Charge charge) => new(charge.Start.UtcDateTime.Year, charge.Start.UtcDateTime.Month, 1, 0, 0, 0, TimeSpan.Zero);

    /// <summary>The time of the attempt, or of its piece: where within it a phase lay is not recorded. The day of a cost line.</summary>
    private static (DateTimeOffset Start, DateTimeOffset End) Period(Charge charge)
    {
        if (charge.Line is not null)
        {
            return (charge.Start, charge.Start.AddDays(1));
        }

        AttemptSnapshot attempt = charge.Attempt!.Attempt;
        return charge.IsPart ? (charge.Start, charge.End) : (attempt.Start.Started, attempt.Start.Started + attempt.Progress.Elapsed);
    }

    private static string Description(Charge charge) => charge.Line?.Description ?? (charge.IsRounding
        ? "begun units and the minimum of the provider's billing"
        : $"{LedgerText.Of(charge.Phase!.Value)} of {charge.Run!.Name}");

    private static string? Provider(Charge charge) => charge.Line is null ? charge.Attempt!.Attempt.Start.Provider
        : charge.Category is CostCategory.Labor or CostCategory.Data ? "internal" : "";

    /// <summary>Of the whole machine, as ConsumedQuantity counts machine hours.</summary>
    private static decimal? HourlyPrice(Charge charge) => charge.Phase is not null && charge.Attempt!.Attempt.Start is { Rate: { } rate } start
        ? rate.Amount * (rate.Per == RatePer.Machine ? 1 : start.GpuCount)
        : null;

    /// <summary>Those that are in the result stand with the training, the others with the lost work. Not known of a piece.</summary>
    private static string Tokens(Charge charge) => charge is { Attempt: { } attempt, IsPart: false } ? charge.Phase switch
    {
        LedgerPhase.Train => Whole(attempt.KeptTokens),
        LedgerPhase.Lost => Whole(attempt.Attempt.Progress.Tokens - attempt.KeptTokens),
        _ => "",
    } : "";

    private static string Tags(Charge charge)
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer, new JsonWriterOptions { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping }))
        {
            json.WriteStartObject();
            foreach (IGrouping<string, string> tag in (charge.Run?.Tags ?? []).GroupBy(tag => tag.Split('=')[0]))
            {
                string last = tag.Last();
                json.WriteString(tag.Key, last.Length > tag.Key.Length ? last[(tag.Key.Length + 1)..] : "true");
            }

            json.WriteEndObject();
        }

        return System.Text.Encoding.UTF8.GetString(buffer.ToArray());
    }
}
