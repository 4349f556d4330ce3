using System.Globalization;

namespace LoraTrainer.Costs.Prices;

/// <summary>
/// Prices with their sources: those that the program ships, and before them those of the user's file. CSV (RFC 4180) with a header line; lines that start
/// with '#' and empty lines are passed over.
/// </summary>
public sealed class PriceTable
{
    /// <summary>A price older than this is worth a look.</summary>
    public const int StaleAfterDays = 90;

    private const string Shipped = "prices.csv";
    private const decimal HighestPerHour = 100_000;

    private static readonly string[] Columns =
        ["provider", "instance_type", "gpu", "gpu_count", "region", "pricing", "price", "currency", "per", "granularity_seconds", "minimum_seconds", "source", "as_of"];

    private static readonly (string Word, PricingModel Model)[] PricingWords = [("on_demand", PricingModel.OnDemand), ("spot", PricingModel.Spot), ("reserved", PricingModel.Reserved), ("owned", PricingModel.Owned)];

    private static readonly (string Word, PriceUnit Unit)[] UnitWords = [("gpu", PriceUnit.Gpu), ("instance", PriceUnit.Instance)];

    private PriceTable(IReadOnlyList<Price> prices) => Prices = prices;

    /// <summary>The user's rows first, then those that are shipped and not replaced.</summary>
    public IReadOnlyList<Price> Prices { get; }

    /// <summary>The shipped prices, and before them those of <paramref name="userFile"/>: a row of it replaces the shipped one of the same provider, machine, GPU, region and pricing.</summary>
    /// <param name="userFile">Null: none. Must exist.</param>
    /// <exception cref="CsvFormatException">The file is not as it should be.</exception>
    public static PriceTable Load(string? userFile)
    {
        IReadOnlyList<Price> shipped = Parse(Shipped, CsvTable.Shipped(typeof(PriceTable), Shipped));
        if (userFile is null)
        {
            return new PriceTable(shipped);
        }

        IReadOnlyList<Price> own = Parse(userFile, File.ReadAllText(userFile));
        HashSet<string> replaced = [.. own.Select(Identity)];
        return new PriceTable([.. own, .. shipped.Where(price => !replaced.Contains(Identity(price)))]);
    }

    /// <summary>
    /// What a provider asks for a machine: of its type where that is known, else of a single GPU. Only of its region, or where the price is one for all. A machine
    /// of which is not known whether it is a spot one counts at the on-demand price, which is the higher one.
    /// </summary>
    /// <param name="provider">As the table names it.</param>
    /// <param name="instanceType">The provider's name of the machine; empty: not known.</param>
    /// <param name="gpu">As the table names it; empty: not known.</param>
    /// <param name="region">The provider's name of it.</param>
    /// <param name="isSpot">Null: not known.</param>
    /// <returns>Null: there is no such price.</returns>
    public Price? Find(string provider, string instanceType, string gpu, string region, bool? isSpot)
    {
        PricingModel pricing = isSpot == true ? PricingModel.Spot : PricingModel.OnDemand;
        return Prices
            .Where(price => string.Equals(price.Provider, provider, StringComparison.OrdinalIgnoreCase) && price.Pricing == pricing && (price.Region.Length == 0 || price.Region == region))
            .Where(price => instanceType.Length > 0 ? price.InstanceType == instanceType : price.InstanceType.Length == 0 && gpu.Length > 0 && price.Gpu == gpu)

            // The user's rows come first, and of two for the same the one of the region is the closer one.
            .OrderByDescending(price => price.Region.Length > 0)
            .FirstOrDefault();
    }

    /// <summary>The rows of one file.</summary>
    /// <param name="file">Names it in messages.</param>
    /// <param name="text">Its content.</param>
    /// <exception cref="CsvFormatException">It is not as it should be.</exception>
    public static IReadOnlyList<Price> Parse(string file, string text)
    {
        var prices = new List<Price>();
        var seen = new Dictionary<string, int>(StringComparer.Ordinal);
        foreach (CsvRow row in CsvTable.Parse(file, text, Columns))
        {
            Price price = ToPrice(row);
            if (seen.TryGetValue(Identity(price), out int first))
            {
                throw new CsvFormatException($"{row.Place}: the same provider, machine, GPU, region and pricing as line {first}. Remove one of them.");
            }

            seen.Add(Identity(price), row.Line);
            prices.Add(price);
        }

        return prices;
    }

    private static string Identity(Price price) => string.Join('\n', price.Provider, price.InstanceType, price.Gpu, price.GpuCount.ToString(CultureInfo.InvariantCulture), price.Region, price.Pricing.ToString());

    private static Price ToPrice(CsvRow row) => new()
    {
        Provider = row.Text("provider"),
        InstanceType = row.Field("instance_type"),
        Gpu = row.Text("gpu"),
        GpuCount = row.Whole("gpu_count", 1, 1024),
        Region = row.Field("region"),
        Pricing = row.Word("pricing", PricingWords),
        Amount = new Money(row.Number("price", 0, HighestPerHour), row.Currency("currency")),
        Per = row.Word("per", UnitWords),
        Billing = new BillingTerms(row.NumberOrNull("granularity_seconds", 1, 86_400) ?? 1, row.NumberOrNull("minimum_seconds", 0, 86_400) ?? 0),
        Source = row.Text("source"),
        AsOf = row.Day("as_of"),
        Place = row.Place,
    };
}
