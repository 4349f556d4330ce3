using System.CommandLine;
using System.Globalization;
using System.Text;
using System.Text.Json;
using LoraTrainer.Costs;
using LoraTrainer.Costs.Ledger;
using LoraTrainer.Costs.Reports;
using LoraTrainer.Training;
using LoraTrainer.Training.Loop;
using RunSummary = LoraTrainer.Costs.Ledger.RunSummary;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Reads what runs cost.</summary>
internal static class ReportVerb
{
    private const string TagPrefix = "tag:";

    private const string Examples = """
        Examples:
          lora-trainer report                            every run in the ledger, the newest first
          lora-trainer report invoices-3                 one run, with its attempts and phases
          lora-trainer report --project search --since 2026-11-01 --json
          lora-trainer report --since 7d --by day        what the last seven days cost, day by day
          lora-trainer report --by tag:team              by the values of a tag (cost.tags)
          lora-trainer report --csv > costs.csv          a row for each attempt and phase, with the column names of FOCUS 1.2
          lora-trainer report invoices-3 --html invoices-3.html

        Hours are elapsed machine hours, unrounded; the cost is what they are billed as. Lost is what was computed and had to be computed again after an
        interruption. An attempt that was killed counts up to its last sign of life. Amounts in different currencies are never added.
        --since and --until cut: of a run that went on over the border, what lies within counts. They take a day (2026-11-01), a time (2026-11-01T15:30), both
        in UTC, or how long ago (24h, 7d, 2w).
        The ledger is --ledger, else LT_LEDGER, else the one in your data folder.
        """;

    private static readonly (string Word, GroupBy By)[] Groupings =
        [("run", GroupBy.Run), ("provider", GroupBy.Provider), ("project", GroupBy.Project), ("model", GroupBy.Model), ("day", GroupBy.Day)];

    public static Verb Create()
    {
        Argument<string?> run = new("RUN") { Description = "The name of a run, or the beginning of its id.", Arity = ArgumentArity.ZeroOrOne };
        Option<string> project = new("--project") { Description = "Only runs and costs of this project (cost.project)." };
        Option<string> since = new("--since") { Description = "Only what happened from then on: a day, a time, or 24h, 7d, 2w.", HelpName = "WHEN" };
        Option<string> until = new("--until") { Description = "Only what happened before.", HelpName = "WHEN" };
        Option<string> by = new("--by") { Description = "Add up by run, provider, project, model, day (UTC) or tag:KEY.", HelpName = "WHAT" };
        Option<bool> csv = new("--csv") { Description = "Write comma-separated values: a row for each attempt and phase, and for each cost line." };
        Option<string> html = new("--html") { Description = "Write one self-contained page, to read, print or send.", HelpName = "FILE" };
        Option<bool> force = new("--force") { Description = "Replace the file of --html where it exists." };
        return new Verb("report", "Tell what runs cost.", Examples) { run, project, since, until, by, csv, html, force, CommandLine.Ledger }.WithWork(context =>
        {
            DateTimeOffset now = TimeProvider.System.GetUtcNow();
            var period = new ReportPeriod(Moment("--since", context.Arguments.GetValue(since), now), Moment("--until", context.Arguments.GetValue(until), now));
            if (period.Since >= period.Until)
            {
                throw new TrainingSetupException($"--since must be before --until, got {ReportText.Moment(period.Since!.Value)} and {ReportText.Moment(period.Until!.Value)} UTC.");
            }

            (GroupBy By, string? Tag)? grouping = Grouping(context.Arguments.GetValue(by));
            string? page = context.Arguments.GetValue(html);
            bool isCsv = context.Arguments.GetValue(csv);
            if (isCsv && (context.Terminal.IsJson || page is not null || grouping is not null))
            {
                throw new TrainingSetupException("--csv has a row for each charge and goes to standard output alone: it does not go together with --json, --html or --by.");
            }

            if (page is not null && grouping is not null)
            {
                throw new TrainingSetupException("The page of --html holds the groups already: it does not go together with --by.");
            }

            RefuseToOverwrite(page, context.Arguments.GetValue(force));
            using RunLedger ledger = LedgerRecorder.OpenExisting(context.Arguments.GetValue(CommandLine.Ledger), context.Terminal.Warn);
            ledger.CloseDead(LedgerRecorder.IsGone);
            string? named = context.Arguments.GetValue(run), ofProject = context.Arguments.GetValue(project);
            CostReport report = CostReport.Of(Read(ledger, named, ofProject), period);
            if (isCsv)
            {
                var text = new StringWriter(new StringBuilder(), CultureInfo.InvariantCulture);
                CsvReport.Write(text, report.Charges);
                context.Terminal.Document(text.ToString());
                NoteUnpriced(context.Terminal, report);
                return Task.FromResult(ExitCode.Done);
            }

            if (page is not null)
            {
                WritePage(page, report, named ?? ofProject, now);
                context.Terminal.Say($"Written: {Path.GetFullPath(page)}");
            }
            else if (grouping is { } groups)
            {
                context.Terminal.Result(Table(report, groups.By, groups.Tag, context.Terminal.Width));
            }
            else
            {
                context.Terminal.Result(Words(report, ledger.Path, named, isFiltered: ofProject is not null || !period.IsAlways, context.Terminal.Width));
            }

            context.Terminal.Json(json => Write(json, report, grouping, withAttempts: named is not null));
            return Task.FromResult(ExitCode.Done);
        });
    }

    /// <summary>The runs that were asked for; costs of projects as a whole where no run was.</summary>
    private static LedgerTotals Read(RunLedger ledger, string? named, string? project)
    {
        LedgerTotals totals = ledger.Totals(new RunFilter { Project = project });
        if (named is null)
        {
            return totals;
        }

        HashSet<string> ids = [.. ledger.Named(named).Select(run => run.RunId)];
        RunSummary[] runs = [.. totals.Runs.Where(run => ids.Contains(run.Run.RunId))];
        return runs.Length > 0
            ? totals with { Runs = runs, ProjectLines = [] }
            : throw new TrainingSetupException($"The ledger {ledger.Path} knows no run {named}{(project is null ? "" : $" of the project {project}")}. lora-trainer report lists those that it knows.");
    }

    private static DateTimeOffset? Moment(string option, string? text, DateTimeOffset now) => text is null ? null
        : ReportPeriod.TryParse(text, now, out DateTimeOffset? moment) ? moment
        : throw new TrainingSetupException($"{option} takes a day such as 2026-11-01, a time such as 2026-11-01T15:30, or how long ago, such as 24h, 7d or 2w; got '{text}'.");

    private static (GroupBy By, string? Tag)? Grouping(string? text)
    {
        if (text is null)
        {
            return null;
        }

        if (text.StartsWith(TagPrefix, StringComparison.Ordinal) && text.Length > TagPrefix.Length)
        {
            return (GroupBy.Tag, text[TagPrefix.Length..]);
        }

        foreach ((string word, GroupBy grouping) in Groupings)
        {
            if (word == text)
            {
                return (grouping, null);
            }
        }

        throw new TrainingSetupException($"--by takes {string.Join(", ", Groupings.Select(item => item.Word))} or tag:KEY, got '{text}'.");
    }

    private static void RefuseToOverwrite(string? page, bool force)
    {
        if (page is null)
        {
            if (force)
            {
                throw new TrainingSetupException("--force replaces the file of --html, and there is no --html.");
            }

            return;
        }

        if (Directory.Exists(page))
        {
            throw new TrainingSetupException($"{page} is a folder; --html takes the name of a file.");
        }

        if (File.Exists(page) && !force)
        {
            throw new TrainingSetupException($"{page} exists already. Name another file, or replace it with --force.");
        }
    }

    /// <summary>Beside the file first, and then in its place: nobody reads half a page, and a failure leaves the old one.</summary>
    private static void WritePage(string path, CostReport report, string? about, DateTimeOffset now)
    {
        string draft = $"{path}.{Guid.NewGuid():N}.tmp";
        FileStream begun = PathTrouble.Write("--html", path, () => new FileStream(draft, FileMode.CreateNew, FileAccess.Write));
        try
        {
            using (var writer = new StreamWriter(begun, new UTF8Encoding(encoderShouldEmitUTF8Identifier: false)))
            {
                HtmlReport.Write(writer, report, about is null ? "What runs cost" : $"What {about} cost", Measurements, now);
            }

            File.Move(draft, path, overwrite: true);
        }
        finally
        {
            File.Delete(draft);
        }
    }

    private static RunMeasurements Measurements(RunSummary run)
    {
        if (!run.Run.Config.TryGetValue(RunFacts.OutputDir, out string? folder))
        {
            return new RunMeasurements { Missing = "The ledger does not know where this run's folder is, so there are no curves." };
        }

        IReadOnlyList<LoggedStep> steps = RunLog.Read(folder);
        (long Peak, long Planned)? memory = Training.RunSummary.ReadMemory(folder);
        return new RunMeasurements
        {
            Missing = steps.Count > 0 ? null : $"The run's folder {folder} is not on this machine, or has no log of steps, so there are no curves.",
            Steps = [.. steps.Select(step => new StepMeasurement(step.Step, step.Loss, step.Tokens, step.Seconds, step.MemoryBytes))],
            PeakBytes = memory?.Peak,
            PlannedBytes = memory?.Planned,
        };
    }

    private static void NoteUnpriced(Terminal terminal, CostReport report)
    {
        if (report.Total.UnpricedHours > 0)
        {
            terminal.Note($"{ReportText.Duration(report.Total.UnpricedHours)} hours have no rate; their BilledCost is empty. lora-trainer ledger set-rate gives them one.");
        }
    }

    private static string Words(CostReport report, string ledger, string? named, bool isFiltered, int? width)
    {
        if (report.Runs.Count == 0 && report.OfProjects.Count == 0)
        {
            return $"The ledger {ledger} holds no run{(isFiltered || named is not null ? " that fits" : " yet")}.";
        }

        return named is null ? Table(report, width) : string.Join(Environment.NewLine + Environment.NewLine, report.Runs.Select(run => Details(run, width)));
    }

    private static string Table(CostReport report, int? width)
    {
        int digits = ReportText.Digits(report.Total.Cost);
        List<string[]> cells = [["run", "project", "begun", "attempts", "hours", "lost", "steps", "cost"]];
        foreach (ReportedRun run in report.Runs)
        {
            RunFacts facts = run.Summary.Run;
            cells.AddRange(Lines(run.Within, digits, [
                ReportText.Plain(NameOf(facts)), ReportText.Plain(facts.Project), ReportText.Moment(facts.Created),
                Whole(run.Within.Attempts) + (run.Summary.Total.OpenAttempts > 0 ? "+" : ""), ReportText.Duration(run.Within.Hours), ReportText.Duration(run.Within.LostHours),
                run.IsWhole ? Whole(run.Summary.Total.Steps) : ""]));
        }

        foreach (Charge charge in report.OfProjects)
        {
            cells.Add([ReportText.Plain(charge.Line!.Description.Length > 0 ? charge.Line.Description : Word(charge.Category)), ReportText.Plain(charge.Project), ReportText.Moment(charge.Start)[..10], "", "", "", "", charge.Line.Money.ToString(digits)]);
        }

        if (cells.Count > 2)
        {
            ChargeGroup total = report.Total;
            cells.AddRange(Lines(total, digits, [
                "all", "", "", Whole(total.Attempts), ReportText.Duration(total.Hours), ReportText.Duration(total.LostHours),
                report.Runs.All(run => run.IsWhole) ? Whole(report.Runs.Sum(run => run.Summary.Total.Steps)) : ""]));
        }

        return Columns.Align(cells, column => column >= 3, width, [new(2, 10, ""), new(6), new(1, 8), new(0, 18), new(1), new(0, 10), new(2), new(3), new(5)]);
    }

    private static string Table(CostReport report, GroupBy by, string? tag, int? width)
    {
        int digits = ReportText.Digits(report.Total.Cost);
        string head = by switch { GroupBy.Tag => tag!, GroupBy.Day => "day (UTC)", _ => Groupings.First(item => item.By == by).Word };
        Dictionary<string, string> names = report.Runs.ToDictionary(run => run.Summary.Run.RunId, run => NameOf(run.Summary.Run));
        List<string[]> cells = [[head, "runs", "attempts", "hours", "gpu-hours", "lost", "cost"]];
        foreach (ChargeGroup group in report.Groups(by, tag).Append(report.Total))
        {
            string name = ReferenceEquals(group, report.Total) ? "all" : group.Key is not { } key ? "(none)" : by == GroupBy.Run ? names[key] : key;
            cells.AddRange(Lines(group, digits, [
                ReportText.Plain(name), Whole(group.Runs), Whole(group.Attempts), ReportText.Duration(group.Hours), ReportText.Duration(group.GpuHours), ReportText.Duration(group.LostHours)]));
        }

        return Columns.Align(cells, column => column >= 1, width, [new(0, 24), new(4), new(2), new(0, 12), new(1), new(5)]);
    }

    /// <summary>A row with its cost as the last cell; each further currency stands on a line of its own below.</summary>
    private static IEnumerable<string[]> Lines(ChargeGroup group, int digits, string[] cells) =>
        ReportText.Parts(group.Cost, group.UnpricedHours, digits).Select((part, line) => (string[])[.. line == 0 ? cells : Enumerable.Repeat("", cells.Length), part]);

    private static string Details(ReportedRun reported, int? width)
    {
        RunSummary run = reported.Summary;
        CostSummary total = run.Total;
        int digits = ReportText.Digits(total.Cost);
        List<string> lines =
        [
            $"{ReportText.Plain(NameOf(run.Run))}  ({run.Run.RunId[..Math.Min(8, run.Run.RunId.Length)]}, {ReportText.Plain(run.Run.Model)})",
            $"cost      {ReportText.Amounts(total.Cost, total.UnpricedHours, digits)} for {ReportText.Duration(total.Hours)}, {ReportText.Duration(total.BilledHours)} billed",
            $"lost      {(total.LostHours > 0 ? $"{ReportText.Duration(total.LostHours)}{(total.LostCost.Count > 0 ? ", " + ReportText.Amounts(total.LostCost, 0, digits) : "")}, computed again after interruptions" : "nothing")}",
            $"done      {Quantities.Count(total.Steps, "step")}, {Quantities.Count(total.Tokens, "token")}",
        ];
        if (total.CostPerThousandSteps.Count > 0)
        {
            lines.Add($"prices    {string.Join(", ", total.CostPerThousandSteps.Select(ReportText.UnitPrice))} per 1,000 steps{(total.Tokens > 0 ? $", {string.Join(", ", total.CostPerMillionTokens.Select(ReportText.UnitPrice))} per million tokens" : "")}");
        }

        if (!reported.IsWhole)
        {
            lines.Add($"period    {ReportText.Amounts(reported.Within.Cost, reported.Within.UnpricedHours, digits)} and {ReportText.Duration(reported.Within.Hours)} of it lie in the time asked for; this is the whole run");
        }

        lines.Add("");
        List<string[]> attempts = [["attempt", "host", "begun", "hours", "steps", "lost steps", "ended", "cost"]];
        attempts.AddRange(run.Attempts.Select(attempt => new[]
        {
            Whole(attempt.Attempt.Start.Epoch), ReportText.Plain(attempt.Attempt.Start.Holder.Host), attempt.Attempt.Start.Started.UtcDateTime.ToString("yyyy-MM-dd HH:mm:ss", CultureInfo.InvariantCulture), ReportText.Duration(attempt.Hours),
            $"{Whole(attempt.Attempt.Progress.FirstStep)}-{Whole(attempt.Attempt.Progress.LastStep)}", Whole(attempt.LostSteps),
            (attempt.Attempt.Ended?.ToString().ToLowerInvariant() ?? "works") + (attempt.Attempt.Estimated ? "*" : ""), attempt.Cost?.ToString(digits) ?? "no rate",
        }));
        lines.Add(Columns.Align(attempts, column => column is 0 or (>= 3 and not 6), width, [new(1, 12), new(2, 10, ""), new(1), new(5), new(2)]));
        if (total.EstimatedAttempts > 0)
        {
            lines.Add("* counted up to its last sign of life");
        }

        lines.Add("");
        List<string[]> phases = [["phase", "hours", "cost"]];
        phases.AddRange(total.ByPhase.Where(phase => phase.Hours > 0).Select(phase => new[] { Word(phase.Phase), ReportText.Duration(phase.Hours), phase.Cost?.ToString(digits) ?? "" }));
        phases.AddRange(total.BillingRounding.Where(money => money.Amount != 0).Select(money => new[] { "rounding", "", money.ToString(digits) }));
        lines.Add(Columns.Align(phases, column => column >= 1));
        if (run.Lines.Count > 0)
        {
            lines.Add("");
            List<string[]> others = [["other costs", "date", "what", "cost"]];
            others.AddRange(run.Lines.Select(line => new[] { Word(line.Category), line.Date.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture), ReportText.Plain(line.Description), line.Money.ToString(digits) }));
            lines.Add(Columns.Align(others, column => column == 3, width, [new(2, 10)]));
        }

        return string.Join(Environment.NewLine, lines);
    }

    private static string NameOf(RunFacts run) => run.Name.Length > 0 ? run.Name : run.RunId;

    private static string Word<T>(T value)
        where T : struct, Enum => value.ToString().ToLowerInvariant();

    private static string Whole(long number) => number.ToString(CultureInfo.InvariantCulture);

    private static void Write(Utf8JsonWriter json, CostReport report, (GroupBy By, string? Tag)? grouping, bool withAttempts)
    {
        json.WriteStartObject();
        json.WriteString("since", report.Period.Since?.UtcDateTime.ToString("O", CultureInfo.InvariantCulture));
        json.WriteString("until", report.Period.Until?.UtcDateTime.ToString("O", CultureInfo.InvariantCulture));
        json.WriteStartArray("runs");
        foreach (ReportedRun run in report.Runs)
        {
            json.WriteStartObject();
            Write(json, run);
            if (withAttempts)
            {
                WriteAttempts(json, run.Summary);
            }

            json.WriteEndObject();
        }

        json.WriteEndArray();
        json.WriteStartArray("project_costs");
        foreach (Charge charge in report.OfProjects)
        {
            json.WriteStartObject();
            json.WriteString("project", charge.Project);
            WriteLine(json, charge.Line!);
            json.WriteEndObject();
        }

        json.WriteEndArray();
        if (grouping is { } groups)
        {
            json.WriteString("by", groups.By == GroupBy.Tag ? TagPrefix + groups.Tag : Word(groups.By));
            json.WriteStartArray("groups");
            foreach (ChargeGroup group in report.Groups(groups.By, groups.Tag))
            {
                json.WriteStartObject();
                json.WriteString("key", group.Key);
                json.WriteNumber("runs", group.Runs);
                WriteGroup(json, group);
                json.WriteEndObject();
            }

            json.WriteEndArray();
        }

        json.WriteStartObject("totals");
        json.WriteNumber("runs", report.Runs.Count);
        WriteGroup(json, report.Total);
        json.WriteEndObject();
        json.WriteEndObject();
    }

    /// <summary>What cannot be cut at the border of a period is null where the run lies across it.</summary>
    private static void Write(Utf8JsonWriter json, ReportedRun run)
    {
        CostSummary total = run.Summary.Total;
        json.WriteString("run_name", run.Summary.Run.Name);
        json.WriteString("run_id", run.Summary.Run.RunId);
        json.WriteString("project", run.Summary.Run.Project);
        json.WriteString("model", run.Summary.Run.Model);
        json.WriteString("begun", run.Summary.Run.Created.UtcDateTime.ToString("O", CultureInfo.InvariantCulture));
        json.WriteBoolean("whole", run.IsWhole);
        WriteGroup(json, run.Within);
        WriteIf("billed_hours", total.BilledHours);
        WriteIf("steps", total.Steps);
        WriteIf("tokens", total.Tokens);
        WriteIf("samples", total.Samples);
        json.WriteStartArray("by_category");
        foreach (CategoryCost category in run.IsWhole ? total.ByCategory : [])
        {
            json.WriteStartObject();
            json.WriteString("category", Word(category.Category));
            WriteMoney(json, "cost", category.Cost);
            json.WriteEndObject();
        }

        json.WriteEndArray();
        json.WriteStartArray("by_phase");
        foreach (PhaseCost phase in run.IsWhole ? total.ByPhase : [])
        {
            json.WriteStartObject();
            json.WriteString("phase", Word(phase.Phase));
            json.WriteNumber("hours", phase.Hours);
            WriteMoney(json, "cost", phase.Cost);
            json.WriteEndObject();
        }

        json.WriteEndArray();

        void WriteIf(string name, decimal number)
        {
            if (run.IsWhole)
            {
                json.WriteNumber(name, number);
            }
            else
            {
                json.WriteNull(name);
            }
        }
    }

    private static void WriteAttempts(Utf8JsonWriter json, RunSummary run)
    {
        json.WriteStartArray("attempt_list");
        foreach (AttemptCost attempt in run.Attempts)
        {
            AttemptStart start = attempt.Attempt.Start;
            json.WriteStartObject();
            json.WriteNumber("attempt", start.Epoch);
            json.WriteString("host", start.Holder.Host);
            json.WriteString("provider", start.Provider);
            json.WriteString("instance_type", start.InstanceType);
            json.WriteString("gpu", start.GpuKind);
            json.WriteNumber("gpu_count", start.GpuCount);
            json.WriteString("begun", start.Started.UtcDateTime.ToString("O", CultureInfo.InvariantCulture));
            json.WriteNumber("hours", attempt.Hours);
            json.WriteNumber("billed_hours", attempt.BilledHours);
            json.WriteNumber("first_step", attempt.Attempt.Progress.FirstStep);
            json.WriteNumber("last_step", attempt.Attempt.Progress.LastStep);
            json.WriteNumber("lost_steps", attempt.LostSteps);
            json.WriteNumber("lost_hours", attempt.LostHours);
            json.WriteString("ended", attempt.Attempt.Ended is { } end ? Word(end) : null);
            json.WriteBoolean("estimated", attempt.Attempt.Estimated);
            json.WriteString("rate", start.Rate?.Amount.ToString(CultureInfo.InvariantCulture));
            json.WriteString("rate_per", start.Rate is { } rate ? Word(rate.Per) : null);
            json.WriteString("rate_source", start.Rate?.Source);
            WriteMoney(json, "cost", attempt.Cost);
            json.WriteEndObject();
        }

        json.WriteEndArray();
        json.WriteStartArray("cost_lines");
        foreach (CostLine line in run.Lines)
        {
            json.WriteStartObject();
            WriteLine(json, line);
            json.WriteEndObject();
        }

        json.WriteEndArray();
    }

    private static void WriteLine(Utf8JsonWriter json, CostLine line)
    {
        json.WriteString("id", line.Id);
        json.WriteString("category", Word(line.Category));
        json.WriteString("date", line.Date.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture));
        json.WriteString("description", line.Description);
        json.WriteBoolean("by_hand", line.ByHand);
        WriteMoney(json, "cost", line.Money);
    }

    private static void WriteGroup(Utf8JsonWriter json, ChargeGroup group)
    {
        json.WriteNumber("attempts", group.Attempts);
        json.WriteNumber("hours", group.Hours);
        json.WriteNumber("gpu_hours", group.GpuHours);
        json.WriteNumber("lost_hours", group.LostHours);
        json.WriteNumber("unpriced_hours", group.UnpricedHours);

        // cost and currency where there is one currency, null where no rate is known; all of them under costs.
        WriteMoney(json, "cost", group.Cost.Count == 1 ? group.Cost[0] : null);
        json.WriteStartObject("costs");
        foreach (Money amount in group.Cost)
        {
            json.WriteString(amount.Currency, amount.Amount.ToString(CultureInfo.InvariantCulture));
        }

        json.WriteEndObject();
    }

    /// <summary>Money is text, so that no reader makes binary fractions of it.</summary>
    private static void WriteMoney(Utf8JsonWriter json, string name, Money? money)
    {
        json.WriteString(name, money?.Amount.ToString(CultureInfo.InvariantCulture));
        json.WriteString("currency", money?.Currency);
    }
}
