using System.Globalization;
using LoraTrainer.Costs.Ledger;

namespace LoraTrainer.Costs.Reports;

/// <summary>The part of a page that is about one run.</summary>
internal sealed class RunSection(HtmlPage page, ReportedRun reported, RunMeasurements measurements, string id)
{
    private static readonly LedgerPhase[] Beginning = [LedgerPhase.Start, LedgerPhase.Load, LedgerPhase.Quantize, LedgerPhase.Tokenize];

    private readonly RunSummary run = reported.Summary;
    private readonly int digits = ReportText.Digits(reported.Summary.Total.Cost);

    public static string NameOf(RunSummary run) => run.Run.Name.Length > 0 ? run.Run.Name : run.Run.RunId;

    public void Write()
    {
        RunFacts facts = run.Run;
        string[] what =
        [
            .. new[] { facts.Model.Length > 0 ? $"model {facts.Model}" : "", facts.Project.Length > 0 ? $"project {facts.Project}" : "", $"begun {ReportText.Moment(facts.Created)} UTC", $"id {facts.RunId[..Math.Min(8, facts.RunId.Length)]}" }.Where(part => part.Length > 0),
            .. facts.Tags,
        ];
        page.Text("p", string.Join(" · ", what), "soft");
        if (!reported.IsWhole)
        {
            page.Text("p", $"The period of this report holds {ReportText.Amounts(reported.Within.Cost, reported.Within.UnpricedHours, digits)} and {ReportText.Duration(reported.Within.Hours)} hours of this run. What follows is the whole run.");
        }

        Headline();
        page.Open("div", "pair");
        if (run.Total.ByCategory.Count > 0)
        {
            page.Open("div");
            page.Text("h3", "Cost by category");
            page.Bars([.. run.Total.ByCategory.Select(item => ((string?)item.Cost.Currency, new Bar(LedgerText.Of(item.Category), item.Cost.Amount, item.Cost.ToString(digits), null)))]);
            page.Close();
        }

        Phases();
        page.Close();
        TimeLine();
        Charts();
        Plan();
        Attempts();
        Lines();
    }

    private void Headline()
    {
        CostSummary total = run.Total;
        int interruptions = run.Attempts.Count(attempt => attempt.Attempt.Ended is AttemptEnd.Interrupted or AttemptEnd.Killed or AttemptEnd.Failed);
        decimal train = total.ByPhase.Where(phase => phase.Phase == LedgerPhase.Train).Sum(phase => phase.Hours);
        page.Open("dl", "tiles");
        page.CostTile(total.Cost, total.UnpricedHours, digits);
        page.Tile("Machine hours", ReportText.Duration(total.Hours), $"{ReportText.Duration(total.BilledHours)} billed, {ReportText.Duration(total.GpuHours)} of GPUs");
        page.Tile("Lost", ReportText.Duration(total.LostHours), total.LostCost.Count > 0 ? ReportText.Amounts(total.LostCost, 0, digits) : "nothing was computed twice");
        page.Tile("Attempts", ReportText.Whole(total.Attempts), interruptions == 0 ? "none was interrupted" : $"{ReportText.Whole(interruptions)} interrupted");
        if (total.BilledHours > 0)
        {
            page.Tile("Training", ReportText.Percent(train / total.BilledHours), "of the billed time went into steps that are in the result");
        }

        page.Tile("Steps", ReportText.Whole(total.Steps), Each(total.CostPerThousandSteps, "1,000"));
        page.Tile("Tokens", ReportText.Whole(total.Tokens), Each(total.CostPerMillionTokens, "million"));
        if (total.Samples > 0)
        {
            page.Tile("Samples", ReportText.Whole(total.Samples), Each(total.CostPerSample, "sample"));
        }

        if (total.GpuHours > 0 && train > 0 && total.UnpricedHours == 0 && total.GpuCost.Count > 0)
        {
            // Of those GPU-hours that made the result.
            decimal gpuHours = run.Attempts.Sum(attempt => attempt.Phases.Where(phase => phase.Phase == LedgerPhase.Train).Sum(phase => phase.Hours) * attempt.Attempt.Start.GpuCount);
            page.Tile("Effective rate", string.Join(", ", total.GpuCost.Select(cost => ReportText.UnitPrice(new Money(cost.Amount / gpuHours, cost.Currency)))), "per GPU-hour of training that is in the result");
        }

        if (measurements.PeakBytes is { } peak)
        {
            page.Tile("Peak memory", Bytes(peak), measurements.PlannedBytes is { } planned ? $"{Bytes(planned)} of it planned for model and steps" : null);
        }

        page.Close();

        static string? Each(IReadOnlyList<Money> prices, string unit) => prices.Count == 0 ? null : $"{string.Join(", ", prices.Select(ReportText.UnitPrice))} per {unit}";
    }

    private void Phases()
    {
        if (run.Total.ByPhase.Count == 0)
        {
            return;
        }

        page.Open("div");
        bool isPriced = run.Total.UnpricedHours == 0;
        page.Text("h3", isPriced ? "Cost by phase" : "Hours by phase");
        var bars = new List<(string? Unit, Bar Bar)>();
        foreach (IGrouping<LedgerPhase, PhaseCost> phase in run.Total.ByPhase.GroupBy(phase => phase.Phase))
        {
            string? kind = phase.Key == LedgerPhase.Lost ? "lost" : phase.Key == LedgerPhase.Train ? null : "begin";
            decimal hours = phase.Sum(part => part.Hours);
            bars.AddRange(isPriced
                ? Money.Totals(phase.Select(part => part.Cost!.Value)).Select(cost => ((string?)cost.Currency, new Bar($"{LedgerText.Of(phase.Key)}, {ReportText.Duration(hours)}", cost.Amount, cost.ToString(digits), kind)))
                : [(null, new Bar(LedgerText.Of(phase.Key), hours, ReportText.Duration(hours), kind))]);
        }

        bars.AddRange(run.Total.BillingRounding.Where(money => isPriced && decimal.Round(money.Amount, digits) != 0).Select(money => ((string?)money.Currency, new Bar("rounding to billed units", money.Amount, money.ToString(digits), "begin"))));
        page.Bars(bars);
        page.Close();
    }

    private void TimeLine()
    {
        AttemptCost[] attempts = [.. run.Attempts.Where(attempt => attempt.Hours > 0)];
        if (attempts.Length == 0)
        {
            return;
        }

        DateTimeOffset first = attempts.Min(Start), last = attempts.Max(End);
        decimal whole = Math.Max(1, (last - first).Ticks);
        page.Text("h3", "Attempts over time (UTC)");
        page.Open("div", "time", ("role", "img"), ("aria-label", $"{ReportText.Count(attempts.Length, "attempt")} from {ReportText.Moment(first)} to {ReportText.Moment(last)}; the table below has each of them."));
        foreach (AttemptCost attempt in attempts)
        {
            page.Open("div", "lane");
            long begin = attempt.Phases.Where(phase => Beginning.Contains(phase.Phase)).Sum(phase => phase.Ticks), lost = attempt.Phases.Where(phase => phase.Phase == LedgerPhase.Lost).Sum(phase => phase.Ticks);
            long elapsed = attempt.Attempt.Progress.Elapsed.Ticks, at = (Start(attempt) - first).Ticks;
            string name = $"Attempt {attempt.Attempt.Start.Epoch.ToString(CultureInfo.InvariantCulture)}";
            Segment("begin", at, begin, $"{name}: start and loading");
            Segment("work", at + begin, elapsed - begin - lost, $"{name}: at work");
            Segment("lost", at + elapsed - lost, lost, $"{name}: lost work, {ReportText.Count(attempt.LostSteps, "step")}");
            if (attempt.Attempt.Ended is AttemptEnd.Interrupted or AttemptEnd.Killed or AttemptEnd.Failed)
            {
                page.Open("span", "seg end", ("style", $"left:calc({Percent((at + elapsed) / whole)} - 3px)"), ("title", $"{name}: {LedgerText.Of(attempt.Attempt.Ended.Value)}"));
                page.Close();
            }

            page.Close();
        }

        page.Close();
        page.Open("div", "ticks");
        page.Open("span", null, ("style", "left:0"));
        page.Text(ReportText.Moment(first));
        page.Close();
        page.Open("span", null, ("style", "left:50%;transform:translateX(-50%)"));
        page.Text(ReportText.Duration((last - first).Ticks / (decimal)TimeSpan.TicksPerHour) + " in all");
        page.Close();
        page.Open("span", null, ("style", "right:0"));
        page.Text(ReportText.Moment(last));
        page.Close();
        page.Close();
        page.Open("p", "soft");
        foreach ((string kind, string text) in (ReadOnlySpan<(string, string)>)[("begin", "start and loading"), ("work", "at work"), ("lost", "lost work"), ("end", "interrupted, killed or failed")])
        {
            page.Text("span", "", "key " + kind);
            page.Text(text);
        }

        page.Close();

        void Segment(string kind, long at, long ticks, string title)
        {
            if (ticks > 0)
            {
                page.Open("span", "seg " + kind, ("style", $"left:{Percent(at / whole)};width:{Percent(ticks / whole)}"), ("title", title));
                page.Close();
            }
        }

        static string Percent(decimal share) => string.Create(CultureInfo.InvariantCulture, $"{share * 100:0.###}%");
    }

    private void Charts()
    {
        page.Text("h3", "Training");
        if (measurements.Missing is { } missing)
        {
            page.Text("p", missing, "soft");
            return;
        }

        // Attempts in one currency make a scale of money; anything else is a scale of hours.
        string[] currencies = [.. run.Attempts.Select(attempt => attempt.Cost?.Currency ?? "").Distinct()];
        string? currency = currencies is [{ Length: > 0 } only] ? only : null;
        (double X, int Step)[] spent = [.. measurements.Steps.Select(step => (Spent(step.Step, currency is not null), step.Step))];
        decimal longest = run.Total.Hours;
        (double factor, string unit) = currency is not null ? (1, $"spent, {currency}") : longest < 0.05m ? (3600, "seconds") : longest < 3 ? (60, "minutes") : (1.0, "hours");
        AttemptCost[] later = [.. run.Attempts.Where(attempt => attempt.Attempt.Progress.LastStep > attempt.Attempt.Progress.FirstStep).Skip(1)];
        page.Open("div", "pair");
        new LineChart
        {
            Title = currency is not null ? "Loss against money" : "Loss against time",
            XTitle = unit, YTitle = "training loss", Points = [.. spent.Zip(measurements.Steps, (at, step) => (at.X * factor, step.Loss))], Marks = [.. later.Select(attempt => factor * Before(attempt, currency is not null))], MarkTitle = "another attempt goes on",
        }.Write(page.Writer, id + "-loss");
        new LineChart
        {
            Title = "Tokens a second",
            XTitle = "step", YTitle = "tokens/s", FromZero = true, Points = [.. measurements.Steps.Where(step => step.Seconds > 0).Select(step => ((double)step.Step, step.Tokens / step.Seconds))],
            Marks = [.. later.Select(attempt => (double)attempt.Attempt.Progress.FirstStep)], MarkTitle = "another attempt goes on",
        }.Write(page.Writer, id + "-speed");
        page.Close();
        if (measurements.Steps.Any(step => step.MemoryBytes > 0))
        {
            double bytes = measurements.Steps.Max(step => step.MemoryBytes) < 1L << 30 ? 1 << 20 : 1 << 30;
            new LineChart
            {
                Title = "Memory",
                XTitle = "step", YTitle = bytes < 1 << 30 ? "MiB of the process" : "GiB of the process", FromZero = true,
                Points = [.. measurements.Steps.Where(step => step.MemoryBytes > 0).Select(step => ((double)step.Step, step.MemoryBytes / bytes))],
                Marks = [.. later.Select(attempt => (double)attempt.Attempt.Progress.FirstStep)], MarkTitle = "another attempt goes on",
            }.Write(page.Writer, id + "-memory");
        }

        page.Text("p", "Within an attempt the steps are taken as equally long.", "soft");
    }

    /// <summary>Money or hours up to a step: all of the attempts before it, and of its own what start and loading took and its share of the rest.</summary>
    private double Spent(int step, bool inMoney)
    {
        AttemptCost attempt = run.Attempts.LastOrDefault(attempt => attempt.Attempt.Progress is { } progress && progress.LastStep > progress.FirstStep && progress.FirstStep < step) ?? run.Attempts[^1];
        AttemptProgress progress = attempt.Attempt.Progress;
        double begin = (double)attempt.Phases.Where(phase => Beginning.Contains(phase.Phase)).Sum(phase => phase.Hours), hours = (double)attempt.Hours;
        double share = progress.LastStep > progress.FirstStep ? Math.Clamp((double)(step - progress.FirstStep) / (progress.LastStep - progress.FirstStep), 0, 1) : 1;
        double spent = begin + (share * (hours - begin));
        return Before(attempt, inMoney) + (inMoney ? hours == 0 ? 0 : spent / hours * (double)attempt.Cost!.Value.Amount : spent);
    }

    private double Before(AttemptCost attempt, bool inMoney) =>
        (double)run.Attempts.TakeWhile(other => other != attempt).Sum(other => inMoney ? other.Cost!.Value.Amount : other.Hours);

    private void Plan()
    {
        decimal? hours = Planned(RunFacts.PlannedHours), cost = Planned(RunFacts.PlannedCost);
        if (hours is null && cost is null)
        {
            return;
        }

        page.Text("h3", "Plan against actual");
        page.Table(["", "planned", "actual", "difference"], column => column >= 1, rows =>
        {
            if (hours is { } plannedHours)
            {
                rows.Row(null, "hours", ReportText.Duration(plannedHours), ReportText.Duration(run.Total.Hours), Difference(plannedHours, run.Total.Hours));
            }

            if (cost is { } plannedCost)
            {
                bool isOne = run.Total is { UnpricedHours: 0, GpuCost.Count: 1 };
                rows.Row(
                    null, "cost of machines", isOne ? new Money(plannedCost, run.Total.GpuCost[0].Currency).ToString(digits) : plannedCost.ToString(CultureInfo.InvariantCulture), ReportText.Amounts(run.Total.GpuCost, run.Total.UnpricedHours, digits),
                    isOne ? Difference(plannedCost, run.Total.GpuCost[0].Amount) : "");
            }
        });

        static string Difference(decimal planned, decimal actual) => planned == 0 ? "" : (actual >= planned ? "+" : "−") + ReportText.Percent(Math.Abs(actual - planned) / planned);
    }

    private void Attempts()
    {
        page.Text("h3", "Attempts");
        page.Table(["attempt", "machine", "begun (UTC)", "hours", "steps", "lost", "ended", "rate", "cost"], column => column is 3 or 4 or 5 or 7 or 8, rows =>
        {
            foreach (AttemptCost attempt in run.Attempts)
            {
                AttemptStart start = attempt.Attempt.Start;
                AttemptProgress progress = attempt.Attempt.Progress;
                string machine = string.Join(", ", new[] { start.Holder.Host, start.Provider, start.InstanceType, start.Region, start.GpuKind.Length > 0 ? $"{start.GpuCount.ToString(CultureInfo.InvariantCulture)} × {start.GpuKind}" : "" }.Where(part => part.Length > 0));
                rows.Row(
                    null, start.Epoch.ToString(CultureInfo.InvariantCulture), machine, Cell.When(ReportText.Moment(start.Started)), ReportText.Duration(attempt.Hours), $"{ReportText.Whole(progress.FirstStep)}–{ReportText.Whole(progress.LastStep)}",
                    attempt.LostSteps == 0 ? "" : ReportText.Count(attempt.LostSteps, "step"),
                    (attempt.Attempt.Ended is { } end ? LedgerText.Of(end) : "at work") + (attempt.Attempt.Estimated ? " (last sign of life)" : ""), start.Rate is { } rate ? ReportText.UnitPrice(new Money(rate.Amount, rate.Currency)) : "", attempt.Cost?.ToString(digits) ?? "no rate");
            }

            CostSummary total = run.Total;
            rows.Row("sum", "all", "", "", ReportText.Duration(total.Hours), ReportText.Whole(total.Steps), total.LostHours == 0 ? "" : ReportText.Count(run.Attempts.Sum(attempt => (long)attempt.LostSteps), "step"), "", "",
                ReportText.Amounts(Money.Totals(run.Attempts.Select(attempt => attempt.Cost).OfType<Money>()), total.UnpricedHours, digits));
        });
        foreach (IGrouping<string, AttemptCost> rate in run.Attempts.GroupBy(attempt => RateOf(attempt.Attempt.Start)))
        {
            page.Text("p", $"{rate.Key} (attempts {string.Join(", ", rate.Select(attempt => attempt.Attempt.Start.Epoch.ToString(CultureInfo.InvariantCulture)))}).", "soft");
        }
    }

    private void Lines()
    {
        if (run.Lines.Count == 0)
        {
            return;
        }

        page.Text("h3", "Other costs");
        page.Table(["category", "date", "what", "from", "cost"], column => column == 4, rows =>
        {
            foreach (CostLine line in run.Lines)
            {
                rows.Row(null, LedgerText.Of(line.Category), Cell.When(LedgerText.Of(line.Date)), line.Description, line.ByHand ? "entered by hand" : "worked out from size and price", line.Money.ToString(digits));
            }
        });
    }

    private static string RateOf(AttemptStart start) => start.Rate is not { } rate ? "The rate is not known"
        : $"Rate: {ReportText.UnitPrice(new Money(rate.Amount, rate.Currency))} per {(rate.Per == RatePer.Machine ? "machine" : "GPU")}-hour" + (rate.Source.Length > 0 ? $", from {rate.Source}" : "") + (rate.AsOf is { } day ? $" of {LedgerText.Of(day)}" : "");

    private decimal? Planned(string key) =>
        run.Run.Config.TryGetValue(key, out string? text) && decimal.TryParse(text, NumberStyles.AllowDecimalPoint | NumberStyles.AllowExponent, CultureInfo.InvariantCulture, out decimal number) && number < 1e12m ? number : null;

    private static DateTimeOffset Start(AttemptCost attempt) => attempt.Attempt.Start.Started;

    private static DateTimeOffset End(AttemptCost attempt) => attempt.Attempt.Start.Started + attempt.Attempt.Progress.Elapsed;

    private static string Bytes(long bytes) => bytes < 1L << 30
        ? string.Create(CultureInfo.InvariantCulture, $"{bytes / 1048576.0:0} MiB")
        : string.Create(CultureInfo.InvariantCulture, $"{bytes / 1073741824.0:0.0} GiB");
}
