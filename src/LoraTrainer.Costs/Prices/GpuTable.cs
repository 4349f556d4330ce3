namespace LoraTrainer.Costs.Prices;

/// <summary>One model of GPU, as its maker describes it.</summary>
public sealed record Gpu
{
    private const decimal DriverGibibytes = 0.8m;

    /// <summary>As price lists call it.</summary>
    public required string Name { get; init; }

    /// <summary>As it is sold: an "80 GB" card.</summary>
    public required decimal MemoryGigabytes { get; init; }

    /// <summary>10^9 bytes a second; null where no source says.</summary>
    public decimal? GigabytesPerSecond { get; init; }

    /// <summary>Dense matrices in bf16 with sums in fp32, 10^12 operations a second; null where no source says.</summary>
    public decimal? Bf16Teraflops { get; init; }

    /// <summary>How the driver calls it; may be empty.</summary>
    public IReadOnlyList<string> DriverNames { get; init; } = [];

    public required string Source { get; init; }

    public required DateOnly AsOf { get; init; }

    /// <summary>Bytes of a GPU that the driver's context and its libraries take, at most.</summary>
    public static long DriverBytes => (long)(DriverGibibytes * (1L << 30));

    /// <summary>
    /// Bytes that a run can have. Cards show 97.9 % of what is printed on them, counted in GiB, or more (a 24 GB card shows at least 23.5 GiB);
    /// <see cref="DriverBytes"/> are not the run's.
    /// </summary>
    public long UsableBytes => (long)(((MemoryGigabytes * 0.979m) - DriverGibibytes) * (1L << 30));
}

/// <summary>GPUs with their sources: those that the program ships, and before them those of the user's file.</summary>
public sealed class GpuTable
{
    private const string Shipped = "gpus.csv";

    private static readonly string[] Columns = ["gpu", "memory_gb", "memory_gb_per_s", "bf16_tflops", "driver_names", "source", "as_of"];

    private GpuTable(IReadOnlyList<Gpu> gpus) => Gpus = gpus;

    public IReadOnlyList<Gpu> Gpus { get; }

    /// <summary>The shipped GPUs; a row of <paramref name="userFile"/> replaces the shipped one of the same name.</summary>
    /// <param name="userFile">Null: none. Must exist.</param>
    /// <exception cref="CsvFormatException">The file is not as it should be.</exception>
    public static GpuTable Load(string? userFile)
    {
        IReadOnlyList<Gpu> shipped = Parse(Shipped, CsvTable.Shipped(typeof(GpuTable), Shipped));
        IReadOnlyList<Gpu> own = userFile is null ? [] : Parse(userFile, File.ReadAllText(userFile));
        return new GpuTable([.. own, .. shipped.Where(gpu => !own.Any(mine => mine.Name == gpu.Name))]);
    }

    /// <summary>The rows of one file.</summary>
    /// <param name="file">Names it in messages.</param>
    /// <param name="text">Its content.</param>
    /// <exception cref="CsvFormatException">It is not as it should be.</exception>
    public static IReadOnlyList<Gpu> Parse(string file, string text)
    {
        var gpus = new Dictionary<string, (Gpu Gpu, int Line)>(StringComparer.Ordinal);
        foreach (CsvRow row in CsvTable.Parse(file, text, Columns, "memory_gb_per_s", "bf16_tflops", "driver_names"))
        {
            Gpu gpu = new()
            {
                Name = row.Text("gpu"),
                MemoryGigabytes = row.Number("memory_gb", 1, 100_000),
                GigabytesPerSecond = row.NumberOrNull("memory_gb_per_s", 1, 10_000_000),
                Bf16Teraflops = row.NumberOrNull("bf16_tflops", 0.1m, 10_000_000),
                DriverNames = row.Field("driver_names").Split('|', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries),
                Source = row.Text("source"),
                AsOf = row.Day("as_of"),
            };
            if (!gpus.TryAdd(gpu.Name, (gpu, row.Line)))
            {
                throw new CsvFormatException($"{row.Place}: the same GPU as line {gpus[gpu.Name].Line}. Remove one of them.");
            }
        }

        return [.. gpus.Values.OrderBy(item => item.Line).Select(item => item.Gpu)];
    }

    /// <summary>By the name in price lists; null where it is not known.</summary>
    public Gpu? Named(string name) => Gpus.FirstOrDefault(gpu => string.Equals(gpu.Name, name, StringComparison.OrdinalIgnoreCase));

    /// <summary>By the driver's name; null where it is not known.</summary>
    public Gpu? OfDriver(string name) => Gpus.FirstOrDefault(gpu => gpu.DriverNames.Contains(name, StringComparer.OrdinalIgnoreCase));
}
