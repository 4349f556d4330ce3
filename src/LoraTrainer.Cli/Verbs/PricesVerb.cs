using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using LoraTrainer.Costs.Prices;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Lists the prices that plans and reports compute with.</summary>
internal static class PricesVerb
{
    private const string Examples = """
        Examples:
          lora-trainer prices
          lora-trainer prices --gpu H100 --pricing spot
          lora-trainer prices --file my-prices.csv --json

        The cheapest GPU-hour first. Each price has the day on which it was read and where; prices go stale fast, so ask the provider before you rely on one.
        Your own file comes before the prices that are shipped: --file, else LT_PRICES, else ~/.config/lora-trainer/prices.csv where it is. It is CSV with the
        columns provider, instance_type, gpu, gpu_count, region, pricing, price, currency, per, granularity_seconds, minimum_seconds, source, as_of.
        """;

    public static Verb Create()
    {
        Option<string> gpu = new("--gpu") { Description = "Only GPUs whose name contains this." };
        Option<string> provider = new("--provider") { Description = "Only this provider." };
        Option<string> pricing = new("--pricing") { Description = "Only on_demand, spot, reserved or owned." };
        pricing.OneOf("on_demand", "spot", "reserved", "owned");
        Option<string> file = new("--file") { Description = "Your own prices, a CSV file." };
        return new Verb("prices", "List GPU prices with their sources and dates.", Examples) { gpu, provider, pricing, file }.WithWork(context =>
        {
            PriceTable table = PriceTable.Load(UserFiles.Prices(context.Arguments.GetValue(file)));
            Price[] rows =
            [
                .. table.Prices
                    .Where(price => context.Arguments.GetValue(gpu) is not { } part || price.Gpu.Contains(part, StringComparison.OrdinalIgnoreCase))
                    .Where(price => context.Arguments.GetValue(provider) is not { } name || string.Equals(price.Provider, name, StringComparison.OrdinalIgnoreCase))
                    .Where(price => context.Arguments.GetValue(pricing) is not { } word || Word(price.Pricing) == word)
                    .OrderBy(price => price.Amount.Currency, StringComparer.Ordinal).ThenBy(price => price.PerGpuHour.Amount).ThenBy(price => price.Provider, StringComparer.Ordinal),
            ];
            DateOnly today = DateOnly.FromDateTime(TimeProvider.System.GetUtcNow().UtcDateTime);
            context.Terminal.Result(rows.Length > 0 ? Words(rows, today) : $"No price fits. Providers are: {string.Join(", ", table.Prices.Select(price => price.Provider).Distinct().Order(StringComparer.Ordinal))}.");
            context.Terminal.Json(json => Write(json, rows, today));
            return Task.FromResult(ExitCode.Done);
        });
    }

    private static string Words(IReadOnlyList<Price> rows, DateOnly today)
    {
        string[][] cells =
        [
            ["provider", "GPU", "machine", "a GPU-hour", "a machine-hour", "pricing", "read on", "source"],
            .. rows.Select(price => new[]
            {
                price.Provider,
                price.Gpu,
                price.InstanceType.Length > 0 ? $"{price.InstanceType} ({price.GpuCount.ToString(CultureInfo.InvariantCulture)})" : "",
                Amount(price.PerGpuHour),
                price.GpuCount > 1 ? Amount(price.PerInstanceHour) : "",
                Word(price.Pricing),
                price.AsOf.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture) + (price.AgeInDays(today) > PriceTable.StaleAfterDays ? "*" : ""),
                price.Source,
            }),
        ];
        bool hasOld = rows.Any(price => price.AgeInDays(today) > PriceTable.StaleAfterDays);
        return Columns.Align(cells, column => column is 3 or 4) + (hasOld ? $"{Environment.NewLine}* older than {PriceTable.StaleAfterDays} days" : "");
    }

    private static string Amount(Costs.Money money) => Quantities.Money(money.Amount, money.Currency);

    /// <summary>As price files write it.</summary>
    internal static string Word(PricingModel pricing) => pricing switch
    {
        PricingModel.OnDemand => "on_demand",
        PricingModel.Spot => "spot",
        PricingModel.Reserved => "reserved",
        _ => "owned",
    };

    private static void Write(Utf8JsonWriter json, IReadOnlyList<Price> rows, DateOnly today)
    {
        json.WriteStartObject();
        json.WriteStartArray("prices");
        foreach (Price price in rows)
        {
            json.WriteStartObject();
            json.WriteString("provider", price.Provider);
            json.WriteString("instance_type", price.InstanceType);
            json.WriteString("gpu", price.Gpu);
            json.WriteNumber("gpu_count", price.GpuCount);
            json.WriteString("region", price.Region);
            json.WriteString("pricing", Word(price.Pricing));

            // Numbers of money are strings: no reader may turn them into binary fractions.
            json.WriteString("per_gpu_hour", price.PerGpuHour.Amount.ToString(CultureInfo.InvariantCulture));
            json.WriteString("per_machine_hour", price.PerInstanceHour.Amount.ToString(CultureInfo.InvariantCulture));
            json.WriteString("currency", price.Amount.Currency);
            json.WriteString("as_of", price.AsOf.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture));
            json.WriteNumber("age_days", price.AgeInDays(today));
            json.WriteString("source", price.Source);
            json.WriteEndObject();
        }

        json.WriteEndArray();
        json.WriteEndObject();
    }
}
