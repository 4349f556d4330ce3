using System.Globalization;
using System.Text;

namespace LoraTrainer.Costs.Prices;

/// <summary>A price file that is not as it should be: the line, the field, what was got, what was expected.</summary>
public sealed class PriceFormatException(string message) : FormatException(message);

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
    /// <exception cref="PriceFormatException">The file is not as it should be.</exception>
    public static PriceTable Load(string? userFile)
    {
        using Stream stream = typeof(PriceTable).Assembly.GetManifestResourceStream($"{typeof(PriceTable).Namespace}.{Shipped}")
            ?? throw new InvalidOperationException("the shipped prices are missing from the program");
        using var reader = new StreamReader(stream, Encoding.UTF8);
        IReadOnlyList<Price> shipped = Parse(Shipped, reader.ReadToEnd());
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
    /// <exception cref="PriceFormatException">It is not as it should be.</exception>
    public static IReadOnlyList<Price> Parse(string file, string text)
    {
        var prices = new List<Price>();
        var seen = new Dictionary<string, int>(StringComparer.Ordinal);
        Dictionary<string, int>? header = null;
        foreach ((int line, string[] fields) in Rows(file, text))
        {
            if (header is null)
            {
                header = Header(file, line, fields);
                continue;
            }

            if (fields.Length != header.Count)
            {
                throw new PriceFormatException($"{file}, line {line}: {fields.Length} fields, expected {header.Count} as in the header. A comma within a field needs the field in double quotes.");
            }

            var row = new Row(file, line, fields, header);
            Price price = row.ToPrice();
            if (seen.TryGetValue(Identity(price), out int first))
            {
                throw new PriceFormatException($"{file}, line {line}: the same provider, machine, GPU, region and pricing as line {first}. Remove one of them.");
            }

            seen.Add(Identity(price), line);
            prices.Add(price);
        }

        return header is null ? throw new PriceFormatException($"{file}: there is no header line. Expected: {string.Join(',', Columns)}") : prices;
    }

    private static string Identity(Price price) => string.Join('\n', price.Provider, price.InstanceType, price.Gpu, price.GpuCount.ToString(CultureInfo.InvariantCulture), price.Region, price.Pricing.ToString());

    private static Dictionary<string, int> Header(string file, int line, string[] fields)
    {
        var header = new Dictionary<string, int>(StringComparer.Ordinal);
        for (int i = 0; i < fields.Length; i++)
        {
            if (!Columns.Contains(fields[i], StringComparer.Ordinal) || !header.TryAdd(fields[i], i))
            {
                throw new PriceFormatException($"{file}, line {line}: the header names '{fields[i]}'{(header.ContainsKey(fields[i]) ? " twice" : ", which is no column")}. Columns are: {string.Join(", ", Columns)}.");
            }
        }

        string[] missing = [.. Columns.Except(fields, StringComparer.Ordinal)];
        return missing.Length == 0 ? header : throw new PriceFormatException($"{file}, line {line}: the header lacks {string.Join(", ", missing)}.");
    }

    /// <summary>Records with the line that each starts in.</summary>
    private static IEnumerable<(int Line, string[] Fields)> Rows(string file, string text)
    {
        var fields = new List<string>();
        var field = new StringBuilder();
        int line = 1, start = 1, position = 0;
        while (position < text.Length)
        {
            if (fields.Count == 0 && field.Length == 0 && (text[position] is '#' or '\r' or '\n'))
            {
                int end = text.IndexOf('\n', position);
                position = end < 0 ? text.Length : end + 1;
                start = ++line;
                continue;
            }

            bool isQuoted = text[position] == '"';
            if (isQuoted)
            {
                position = Quoted(file, text, position, field, ref line);
            }

            while (position < text.Length && text[position] is not (',' or '\n'))
            {
                if (isQuoted && text[position] != '\r')
                {
                    throw new PriceFormatException($"{file}, line {line}: '{text[position]}' after the closing quote of a field; expected a comma or the end of the line.");
                }

                field.Append(text[position] == '\r' ? "" : text[position]);
                position++;
            }

            fields.Add(field.ToString().Trim());
            field.Clear();
            bool isEnd = position >= text.Length || text[position] == '\n';
            position++;
            if (isEnd)
            {
                yield return (start, [.. fields]);
                fields.Clear();
                start = ++line;
            }
        }
    }

    private static int Quoted(string file, string text, int position, StringBuilder field, ref int line)
    {
        int opened = line;
        for (position++; position < text.Length; position++)
        {
            if (text[position] == '"')
            {
                if (position + 1 < text.Length && text[position + 1] == '"')
                {
                    position++;
                }
                else
                {
                    return position + 1;
                }
            }

            line += text[position] == '\n' ? 1 : 0;
            field.Append(text[position]);
        }

        throw new PriceFormatException($"{file}, line {opened}: a field starts with a double quote that is never closed.");
    }

    /// <summary>One record, field by field, with an error that says where.</summary>
    private readonly record struct Row(string File, int Line, string[] Fields, Dictionary<string, int> Header)
    {
        public Price ToPrice()
        {
            int count = (int)Number("gpu_count", 1, 1024) is > 0 and int gpus && gpus == Number("gpu_count", 1, 1024) ? gpus : throw Wrong("gpu_count", "a whole number from 1 to 1024");
            return new Price
            {
                Provider = Text("provider"),
                InstanceType = Field("instance_type"),
                Gpu = Text("gpu"),
                GpuCount = count,
                Region = Field("region"),
                Pricing = Word("pricing", PricingWords),
                Amount = new Money(Number("price", 0, HighestPerHour), Currency()),
                Per = Word("per", UnitWords),
                Billing = new BillingTerms(Field("granularity_seconds").Length > 0 ? Number("granularity_seconds", 1, 86_400) : 1, Field("minimum_seconds").Length > 0 ? Number("minimum_seconds", 0, 86_400) : 0),
                Source = Text("source"),
                AsOf = DateOnly.TryParseExact(Field("as_of"), "yyyy-MM-dd", CultureInfo.InvariantCulture, DateTimeStyles.None, out DateOnly day) ? day : throw Wrong("as_of", "a day such as 2026-05-07"),
                Place = string.Create(CultureInfo.InvariantCulture, $"{File}, line {Line}"),
            };
        }

        private string Field(string name) => Fields[Header[name]];

        private string Text(string name) => Field(name) is { Length: > 0 } text ? text : throw Wrong(name, "a text");

        private string Currency() => Field("currency") is { Length: 3 } text && text.All(char.IsAsciiLetterUpper) ? text : throw Wrong("currency", "three capital letters such as USD");

        private decimal Number(string name, decimal least, decimal most) =>
            decimal.TryParse(Field(name), NumberStyles.AllowDecimalPoint | NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out decimal number) && number >= least && number <= most
                ? number
                : throw Wrong(name, string.Create(CultureInfo.InvariantCulture, $"a number from {least} to {most}"));

        private T Word<T>(string name, (string Word, T Value)[] words)
        {
            string given = Field(name);
            foreach ((string word, T value) in words)
            {
                if (word == given)
                {
                    return value;
                }
            }

            throw Wrong(name, "one of " + string.Join(", ", words.Select(pair => pair.Word)));
        }

        private PriceFormatException Wrong(string name, string expected) => new($"{File}, line {Line}, {name}: got '{Field(name)}', expected {expected}.");
    }
}
