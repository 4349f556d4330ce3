using System.Globalization;
using System.Text.Json;
using LoraTrainer.Cli.Verbs;
using LoraTrainer.Costs;
using LoraTrainer.Costs.Estimates;
using LoraTrainer.Costs.Prices;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Planning;
using Spectre.Console;

namespace LoraTrainer.Cli;

/// <summary>Time and money of a plan, as people and as programs read them.</summary>
internal static class PlanPage
{
    private const int RowsShown = 12;
    private const int BarsShown = 15;
    private const int BarWidth = 50;

    /// <summary>What the hours are made of, and what not.</summary>
    private const string Contains = "Hours contain start, tokenizing, loading, evaluating and all steps; not the machine's own start, downloads and uploads. Where nothing was measured, models are taken to load at 500 MB/s.";

    /// <summary>The run where it is planned for: name and words of each line.</summary>
    /// <param name="here">Its time.</param>
    /// <param name="cost">What that costs at cost.rate; null where no rate is given.</param>
    /// <param name="limits">Of the config.</param>
    public static IEnumerable<(string Name, string Value)> Lines(LocalTime here, Money? cost, CostOptions limits)
    {
        CultureInfo culture = CultureInfo.InvariantCulture;
        if (here.TokensPerSecond is not { } rate)
        {
            yield return ("time", $"not known: {here.WhyNot}");
            yield break;
        }

        yield return ("speed", string.Create(culture, $"{rate:#,0} tokens/s on {here.Device}"));
        yield return ("", Basis(here.Speed!));
        if (here.Time is { } time)
        {
            yield return ("time", $"{Clock(time.Hours)} ({Clock(time.HoursLow)} to {Clock(time.HoursHigh)}): start {Clock(time.Start / 3600)}, load {Clock(time.Load / 3600)}, evaluate {Clock(time.Evaluation / 3600)}, steps {Clock(time.Steps / 3600)}");
        }
        else
        {
            yield return ("time", $"not known: {here.WhyNot}");
        }

        if (cost is { } money)
        {
            yield return ("cost", $"{money} at cost.rate");
            if (limits.Budget is { } budget && money.Amount > budget)
            {
                yield return ("", $"more than cost.budget, {new Money(budget, limits.Currency)}: the run would stop before its end");
            }
        }

        if (limits.MaxHours is { } most && here.Time?.Hours > most)
        {
            yield return ("", string.Create(culture, $"more than cost.max_hours, {most}: the run would stop before its end"));
        }
    }

    /// <summary>What an estimate rests on, and how well that was checked.</summary>
    public static string Basis(DeviceSpeed speed)
    {
        CultureInfo culture = CultureInfo.InvariantCulture;
        ModelCheck check = speed.Check;
        return check switch
        {
            { Worst: { } worst, Median: { } median } => string.Create(culture, $"fitted to {Quantities.Count(check.Rows, "measured run")} of {check.Configurations} configurations on this device; fitted without each of these, it missed it by {worst * 100:0} % at worst and {median * 100:0} % in the middle"),
            { Rows: > 0 } => string.Create(culture, $"scaled to {Quantities.Count(check.Rows, "measured run")} of one configuration on this device; not checked on another one (taken to be off by up to {speed.Error * 100:0} %)"),
            _ => string.Create(culture, $"from what other devices of its kind showed; nothing was measured on this one (taken to be off by up to {speed.Error * 100:0} %). Each finished train measures it"),
        };
    }

    /// <summary>The offers as a table, with everything that must be known to read it.</summary>
    public static string Words(OfferTable table, OfferFilter filter, bool all, DateOnly today)
    {
        CultureInfo culture = CultureInfo.InvariantCulture;
        Offer[] fitting = [.. table.Offers.Where(offer => offer.Fits)];
        Offer[] shown = all ? fitting : [.. fitting.Take(RowsShown)];
        var parts = new List<string>();
        bool hasHours = fitting.Any(offer => offer.Hours is not null);

        // As many for all, so that they can be compared by eye.
        int digits = shown.Any(offer => offer.CostLow is { } least && least.Amount < 0.1m) ? 4 : 2;
        string Digits(Money amount) => amount.ToString(digits).Split(' ')[0];
        if (shown.Length > 0)
        {
            string[][] cells =
            [
                ["GPU", "provider", "pricing", "micro-batch", "tokens/s", hasHours ? "hours (low-high)" : "", hasHours ? "cost (low-high)" : "a million tokens", "read on"],
                .. shown.Select(offer => new[]
                {
                    offer.Gpu.Name + (offer.Price.GpuCount > 1 ? $" (1 of {offer.Price.GpuCount.ToString(culture)})" : ""),
                    offer.Price.Provider,
                    PricesVerb.Word(offer.Price.Pricing),
                    offer.MicroBatchSize?.ToString(culture) ?? "",
                    offer.TokensPerSecond?.ToString("#,0", culture) ?? "not known",
                    offer is { Hours: { } hours, HoursLow: { } shortest, HoursHigh: { } longest } ? $"{Clock(hours)} ({Clock(shortest)}-{Clock(longest)})" : "",
                    hasHours
                        ? offer is { Cost: { } cost, CostLow: { } low, CostHigh: { } high } ? $"{cost.ToString(digits)} ({Digits(low)}-{Digits(high)})" : ""
                        : offer.CostPerMillionTokens?.ToString() ?? "",
                    offer.Price.AsOf.ToString("yyyy-MM-dd", culture) + (offer.Price.AgeInDays(today) > PriceTable.StaleAfterDays ? "*" : ""),
                }),
            ];
            parts.Add($"Offers, the {(filter.FastestFirst ? "fastest" : "cheapest")} first:{Environment.NewLine}{Columns.Align(cells, column => column is 3 or 4)}");
        }
        else
        {
            parts.Add("No offer is within what was asked for, or the run fits on none of them.");
        }

        var lines = new List<string>();
        if (fitting.Length > shown.Length)
        {
            lines.Add($"{fitting.Length - shown.Length} more fit: --all shows them; --gpu, --provider, --budget and --max-hours narrow them down.");
        }

        foreach (IGrouping<string, Offer> group in table.Offers.Where(offer => !offer.Fits).GroupBy(offer => offer.FitsWith.Count > 0 ? Ways(offer.FitsWith, offer.MicroBatchSize, offer.FitsExactlyWith, offer.ExactMicroBatchSize) : ""))
        {
            string names = string.Join(", ", group.Select(offer => offer.Gpu.Name).Distinct());
            lines.Add(group.Key.Length > 0 ? $"Too small as it is: {names}. {group.Key}." : $"Too small: {names}.");
        }

        lines.AddRange(table.Notes);
        if (shown.Any(offer => offer.Price.GpuCount > 1))
        {
            lines.Add("A run uses one GPU; a machine with several is paid as a whole.");
        }

        if (shown.FirstOrDefault(offer => offer.Spot is not null) is { Spot: { } spot } interrupted)
        {
            string met = interrupted.Hours is not null ? string.Create(culture, $", so {(spot.Interruptions(interrupted.Time!.Value.Hours) is >= 0.005 and var times ? string.Create(culture, $"{times:0.##} are") : "none is")} expected on {interrupted.Gpu.Name} of {interrupted.Price.Provider}") : "";
            lines.Add(string.Create(culture, $"Spot: assumed are {spot.MeanHours:0.#} hours between interruptions{met}; saves and lost work take {spot.SaveShare * 100:0.0} % more time, and each new machine {spot.RestartSeconds:0} s until it goes on ({PlanOffers.ReplacementSeconds:0} s of them assumed)."));
        }

        lines.Add(Contains);
        lines.Add("Times of GPUs rest on the rates that single kernels reached on an H200, where ten whole steps took 1 % more to 11 % less than they say. On other GPUs that was not checked: low and high are 35 % away from the middle, until a train on such a GPU has measured it.");
        if (shown.Any(offer => offer.Price.AgeInDays(today) > PriceTable.StaleAfterDays))
        {
            lines.Add($"* older than {PriceTable.StaleAfterDays} days: ask the provider before you rely on it. lora-trainer prices shows the sources.");
        }

        parts.Add(string.Join(Environment.NewLine, lines));
        return string.Join(Environment.NewLine, parts);
    }

    /// <summary>What makes a run fit, a sentence without its end.</summary>
    /// <param name="fit">At the least cost of speed.</param>
    /// <param name="exact">Without a change of the result; null: not told.</param>
    public static string Ways(MemoryFit fit, MemoryFit? exact) => Ways(fit.Switches, fit.Config.Batch.MicroBatchSize, exact?.Switches ?? [], exact?.Config.Batch.MicroBatchSize);

    private static string Ways(IReadOnlyList<string> switches, int? microBatchSize, IReadOnlyList<string> exactSwitches, int? exactMicroBatchSize) =>
        $"It fits with {Listed(switches, microBatchSize)}{(exactSwitches.Count > 0 ? $"; without a change of the result with {Listed(exactSwitches, exactMicroBatchSize)}" : "")}";

    private static string Listed(IReadOnlyList<string> switches, int? microBatchSize) =>
        string.Create(CultureInfo.InvariantCulture, $"{string.Join(", ", switches)}{(switches.Count > 0 ? " and " : "")}micro_batch_size {microBatchSize}");

    /// <summary>Services and full training, to compare the offers with.</summary>
    /// <param name="tokens">That are trained on; null: not known.</param>
    /// <param name="services">That train models of their own.</param>
    /// <param name="full">Null where the offers are of full training themselves.</param>
    public static string Beside(long? tokens, IReadOnlyList<TuningService> services, FullTraining? full)
    {
        CultureInfo culture = CultureInfo.InvariantCulture;
        var lines = new List<string> { $"Beside it{(tokens is { } count ? string.Create(culture, $", for {count:#,0} training tokens") : "")}:" };
        string[][] cells =
        [
            .. services.Select(service => new[]
            {
                "  " + service.Name, service.Model, $"{service.PerMillionTokens} a million tokens", tokens is { } known ? service.Cost(known).ToString() : "",
                string.Create(culture, $"{service.AsOf:yyyy-MM-dd}, {service.Source}"),
            }),
        ];
        lines.Add(Columns.Align(cells, column => column == 3));
        lines.Add("  (these train models of their own, with tokens counted by their own tokenizers)");
        if (full is not null)
        {
            lines.Add(Words(full));
        }

        lines.Add("  As published, not derived: all of LLaMA-2 7B in fp32 with Adam takes 112 GB; ten hours on a p4d at $32 were $320.");
        return string.Join(Environment.NewLine, lines);
    }

    private static string Words(FullTraining full)
    {
        string? best = full.Best is { } offer
            ? $"{offer.Gpu.Name} of {offer.Price.Provider}, {PricesVerb.Word(offer.Price.Pricing)}{(offer is { Cost: { } cost, Hours: { } hours } ? $": {Clock(hours)}, {cost}" : "")}"
            : null;
        return $"  Training all parameters instead (adapter: none) takes {Quantities.Bytes(full.Bytes)} at least; {(best is null ? "none of the offers that were asked for has so much" : $"the first offer with so much is {best}")}.";
    }

    /// <summary>The offers' costs as bars; hours where no cost is known or the fastest were asked for.</summary>
    public static void Draw(Terminal terminal, OfferTable table, IReadOnlyList<TuningService> services, long? tokens, OfferFilter filter, IAnsiConsole? console = null)
    {
        bool byHours = filter.FastestFirst;
        var bars = new List<(string Label, double Value, string Words, bool IsService)>();
        foreach (Offer offer in table.Offers.Where(offer => offer.Fits).Take(BarsShown))
        {
            string label = $"{offer.Gpu.Name} {offer.Price.Provider} {PricesVerb.Word(offer.Price.Pricing)}";
            if (byHours && offer.Hours is { } hours)
            {
                bars.Add((label, hours, Clock(hours), false));
            }
            else if (!byHours && (offer.Cost ?? offer.CostPerMillionTokens) is { } cost)
            {
                bars.Add((label, (double)cost.Amount, cost.ToString(), false));
            }
        }

        // Only beside offers in the same currency.
        foreach (TuningService service in services.Where(service => !byHours && tokens is not null && table.Offers.All(offer => offer.Price.Amount.Currency == service.PerMillionTokens.Currency)))
        {
            Money cost = service.Cost(tokens!.Value);
            bars.Add(($"{service.Name} {service.Model}", (double)cost.Amount, cost.ToString(), true));
        }

        if (bars.Count == 0)
        {
            terminal.Result("There is nothing to draw: no offer fits, or its time is not known.");
            return;
        }

        if (terminal is { IsInteractive: true, IsJson: false })
        {
            var chart = new BarChart { Label = byHours ? "hours" : "cost", Width = 100 };
            foreach ((string label, double value, string words, bool isService) in bars)
            {
                chart.AddItem(new BarChartItem($"{Markup.Escape(label)} ({Markup.Escape(words)})", Math.Round(value, 2), isService ? Color.Grey : Color.Green));
            }

            (console ?? AnsiConsole.Console).Write(chart);
            return;
        }

        double most = bars.Max(bar => bar.Value);
        int width = bars.Max(bar => bar.Label.Length), numbers = bars.Max(bar => bar.Words.Length);
        terminal.Result(string.Join(Environment.NewLine, bars.Select(bar =>
            $"{bar.Label.PadRight(width)}  {bar.Words.PadLeft(numbers)}  {new string('#', most > 0 ? Math.Max(1, (int)Math.Round(bar.Value / most * BarWidth)) : 0)}")));
    }

    /// <summary>The members <c>time</c>, <c>offers</c>, <c>services</c>, <c>full_training</c> and <c>notes</c>.</summary>
    public static void Write(Utf8JsonWriter json, LocalTime here, Money? cost, OfferTable table, long? tokens, IReadOnlyList<TuningService> services, FullTraining full)
    {
        json.WriteStartObject("time");
        json.WriteString("device", here.Device);
        json.WriteNumberOrNull("tokens_per_second", here.TokensPerSecond);
        json.WriteNumberOrNull("hours", here.Time?.Hours);
        json.WriteNumberOrNull("hours_low", here.Time?.HoursLow);
        json.WriteNumberOrNull("hours_high", here.Time?.HoursHigh);
        json.WriteStartObject("seconds");
        json.WriteNumberOrNull("start", here.Time?.Start);
        json.WriteNumberOrNull("load", here.Time?.Load);
        json.WriteNumberOrNull("evaluate", here.Time?.Evaluation);
        json.WriteNumberOrNull("steps", here.Time?.Steps);
        json.WriteEndObject();
        json.WriteMoney("cost", cost?.Amount);
        json.WriteString("currency", cost?.Currency);
        json.WriteString("basis", here.Speed is { } speed ? Basis(speed) : here.WhyNot);
        json.WriteStartObject("check");
        json.WriteNumber("rows", here.Speed?.Check.Rows ?? 0);
        json.WriteNumber("configurations", here.Speed?.Check.Configurations ?? 0);
        json.WriteNumberOrNull("worst_error", here.Speed?.Check.Worst);
        json.WriteNumberOrNull("median_error", here.Speed?.Check.Median);
        json.WriteEndObject();
        json.WriteEndObject();
        json.WriteStartArray("offers");
        foreach (Offer offer in table.Offers)
        {
            Write(json, offer);
        }

        json.WriteEndArray();
        json.WriteStartArray("services");
        foreach (TuningService service in services)
        {
            json.WriteStartObject();
            json.WriteString("service", service.Name);
            json.WriteString("model", service.Model);
            json.WriteMoney("per_million_tokens", service.PerMillionTokens.Amount);
            json.WriteMoney("cost", tokens is { } count ? service.Cost(count).Amount : null);
            json.WriteString("currency", service.PerMillionTokens.Currency);
            json.WriteString("price_as_of", service.AsOf.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture));
            json.WriteString("source", service.Source);
            json.WriteEndObject();
        }

        json.WriteEndArray();
        json.WritePropertyName("full_training");
        json.WriteStartObject();
        json.WriteNumber("device_bytes", full.Bytes);
        json.WritePropertyName("offer");
        if (full.Best is { } best)
        {
            Write(json, best);
        }
        else
        {
            json.WriteNullValue();
        }

        json.WriteEndObject();
        json.WriteStartArray("notes");
        foreach (string note in table.Notes)
        {
            json.WriteStringValue(note);
        }

        json.WriteEndArray();
    }

    private static void Write(Utf8JsonWriter json, Offer offer)
    {
        json.WriteStartObject();
        json.WriteString("gpu", offer.Gpu.Name);
        json.WriteNumber("gpu_count", offer.Price.GpuCount);
        json.WriteString("provider", offer.Price.Provider);
        json.WriteString("instance_type", offer.Price.InstanceType);
        json.WriteString("pricing", PricesVerb.Word(offer.Price.Pricing));
        json.WriteString("region", offer.Price.Region);
        json.WriteBoolean("fits", offer.Fits);
        WriteWays(json, offer.FitsWith, offer.MicroBatchSize, offer.FitsExactlyWith, offer.ExactMicroBatchSize);
        json.WriteNumberOrNull("tokens_per_second", offer.TokensPerSecond);
        json.WriteNumberOrNull("hours", offer.Hours);
        json.WriteNumberOrNull("hours_low", offer.HoursLow);
        json.WriteNumberOrNull("hours_high", offer.HoursHigh);
        json.WriteNumberOrNull("interruptions", offer is { Spot: { } spot, Time: { } time } ? spot.Interruptions(time.Hours) : null);
        json.WriteMoney("cost", offer.Cost?.Amount);
        json.WriteMoney("cost_low", offer.CostLow?.Amount);
        json.WriteMoney("cost_high", offer.CostHigh?.Amount);
        json.WriteMoney("cost_per_million_tokens", offer.CostPerMillionTokens?.Amount);
        json.WriteString("currency", offer.Price.Amount.Currency);
        json.WriteString("price_as_of", offer.Price.AsOf.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture));
        json.WriteString("source", offer.Price.Source);
        json.WriteEndObject();
    }

    /// <summary>The members <c>fits_with</c>, <c>fits_exactly_with</c>, <c>micro_batch_size</c> and <c>exact_micro_batch_size</c>.</summary>
    public static void WriteWays(Utf8JsonWriter json, MemoryFit? fit, MemoryFit? exact) =>
        WriteWays(json, fit?.Switches ?? [], fit?.Config.Batch.MicroBatchSize, exact?.Switches ?? [], exact?.Config.Batch.MicroBatchSize);

    private static void WriteWays(Utf8JsonWriter json, IReadOnlyList<string> switches, int? microBatchSize, IReadOnlyList<string> exactSwitches, int? exactMicroBatchSize)
    {
        foreach ((string name, IReadOnlyList<string> list) in new[] { ("fits_with", switches), ("fits_exactly_with", exactSwitches) })
        {
            json.WriteStartArray(name);
            foreach (string change in list)
            {
                json.WriteStringValue(change);
            }

            json.WriteEndArray();
        }

        json.WriteNumberOrNull("micro_batch_size", microBatchSize);
        json.WriteNumberOrNull("exact_micro_batch_size", exactMicroBatchSize);
    }

    private static string Clock(double hours) => hours < 1e6 ? Quantities.Time(TimeSpan.FromHours(hours)) : string.Create(CultureInfo.InvariantCulture, $"{hours:0} hours");
}
