using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using LoraTrainer.Costs;
using LoraTrainer.Costs.Ledger;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Reads what runs cost.</summary>
internal static class ReportVerb
{
    private const string Examples = """
        Examples:
          lora-trainer report                            every run in the ledger, the newest first
          lora-trainer report invoices-3                 one run, with its attempts and phases
          lora-trainer report --project search --since 2026-11-01 --json

        Hours are elapsed machine hours, unrounded; the cost is what they are billed as. Lost is what was computed and had to be computed again after an
        interruption. An attempt that was killed counts up to its last sign of life. Amounts in different currencies are never added.
        The ledger is --ledger, else LT_LEDGER, else the one in your data folder.
        """;

    public static Verb Create()
    {
        Argument<string?> run = new("RUN") { Description = "The name of a run, or the beginning of its id.", Arity = ArgumentArity.ZeroOrOne };
        Option<string> project = new("--project") { Description = "Only runs of this project (cost.project)." };
        Option<string> since = new("--since") { Description = "Only runs begun on this day or later, as 2026-11-01." };
        return new Verb("report", "Tell what runs cost.", Examples) { run, project, since, CommandLine.Ledger }.WithWork(context =>
        {
            using RunLedger ledger = LedgerRecorder.Open(context.Arguments.GetValue(CommandLine.Ledger), context.Terminal.Warn);
            ledger.CloseDead(LedgerRecorder.IsGone);
            var filter = new RunFilter { Project = context.Arguments.GetValue(project), Since = Day(context.Arguments.GetValue(since)) };
            string? named = context.Arguments.GetValue(run);
            RunSummary[] runs =
            [
                .. ledger.Runs(filter).Where(facts => named is null || facts.Name == named || (named.Length >= 4 && facts.RunId.StartsWith(named, StringComparison.Ordinal)))
                    .Select(facts => ledger.Summary(facts.RunId)).OfType<RunSummary>().OrderByDescending(summary => summary.Run.Created),
            ];
            if (named is not null && runs.Length == 0)
            {
                throw new Training.Loop.TrainingSetupException($"The ledger {ledger.Path} knows no run {named}. lora-trainer report lists those that it knows.");
            }

            context.Terminal.Result(runs.Length == 0 ? $"The ledger {ledger.Path} holds no run{(filter.Project is null && filter.Since is null ? " yet" : " that fits")}." : named is null ? Table(runs) : string.Join("\n\n", runs.Select(Details)));
            context.Terminal.Json(json => Write(json, runs));
            return Task.FromResult(ExitCode.Done);
        });
    }

    private static DateTimeOffset? Day(string? text) => text is null ? null
        : DateTimeOffset.TryParseExact(text, "yyyy-MM-dd", CultureInfo.InvariantCulture, DateTimeStyles.AssumeUniversal, out DateTimeOffset day) ? day
        : throw new Training.Loop.TrainingSetupException($"--since is a day such as 2026-11-01, got '{text}'.");

    private static string Table(RunSummary[] runs)
    {
        List<string[]> cells = [["run", "project", "begun", "attempts", "hours", "lost", "steps", "cost"]];
        foreach (RunSummary run in runs)
        {
            cells.Add([run.Run.Name, run.Run.Project, run.Run.Created.ToString("yyyy-MM-dd HH:mm", CultureInfo.InvariantCulture), .. Numbers(run.Total)]);
        }

        if (runs.Length > 1)
        {
            cells.Add([
                "all", "", "", Whole(runs.Sum(run => run.Total.Attempts)), Hours(runs.Sum(run => run.Total.Hours)), Hours(runs.Sum(run => run.Total.LostHours)),
                Whole(runs.Sum(run => run.Total.Steps)), Amounts(Money.Totals(runs.SelectMany(run => run.Total.Cost)), runs.Sum(run => run.Total.UnpricedHours))]);
        }

        return Columns.Align(cells, column => column >= 3);
    }

    private static string[] Numbers(CostSummary total) =>
        [Whole(total.Attempts) + (total.OpenAttempts > 0 ? "+" : ""), Hours(total.Hours), Hours(total.LostHours), Whole(total.Steps), Amounts(total.Cost, total.UnpricedHours)];

    private static string Details(RunSummary run)
    {
        List<string> lines =
        [
            $"{run.Run.Name}  ({run.Run.RunId[..8]}, {run.Run.Model})",
            $"cost      {Amounts(run.Total.Cost, run.Total.UnpricedHours)} for {Hours(run.Total.Hours)} hours, {Hours(run.Total.BilledHours)} of them billed",
            $"lost      {Hours(run.Total.LostHours)} hours{(run.Total.LostCost.Count > 0 ? ", " + Amounts(run.Total.LostCost, 0) : "")}, computed again after interruptions",
            $"done      {Whole(run.Total.Steps)} steps, {Whole(run.Total.Tokens)} tokens",
            "",
        ];
        List<string[]> attempts = [["attempt", "host", "begun", "hours", "steps", "lost steps", "ended", "cost"]];
        attempts.AddRange(run.Attempts.Select(attempt => new[]
        {
            Whole(attempt.Attempt.Start.Epoch), attempt.Attempt.Start.Holder.Host, attempt.Attempt.Start.Started.ToString("yyyy-MM-dd HH:mm:ss", CultureInfo.InvariantCulture), Hours(attempt.Hours),
            $"{Whole(attempt.Attempt.Progress.FirstStep)}-{Whole(attempt.Attempt.Progress.LastStep)}", Whole(attempt.LostSteps),
            (attempt.Attempt.Ended?.ToString().ToLowerInvariant() ?? "works") + (attempt.Attempt.Estimated ? " (last sign of life)" : ""), attempt.Cost?.ToString() ?? "no rate",
        }));
        lines.Add(Columns.Align(attempts, column => column >= 3));
        lines.Add("");
        List<string[]> phases = [["phase", "hours", "cost"]];
        phases.AddRange(run.Total.ByPhase.Where(phase => phase.Hours > 0).Select(phase => new[] { phase.Phase.ToString().ToLowerInvariant(), Hours(phase.Hours), phase.Cost?.ToString() ?? "" }));
        lines.Add(Columns.Align(phases, column => column >= 1));
        return string.Join(Environment.NewLine, lines);
    }

    private static string Amounts(IReadOnlyList<Money> amounts, decimal unpriced) =>
        string.Join(" + ", amounts.Select(amount => amount.ToString()).Concat(unpriced > 0 || amounts.Count == 0 ? [unpriced > 0 && amounts.Count > 0 ? $"{Hours(unpriced)} h without a rate" : "no rate"] : []));

    private static string Hours(decimal hours) => hours.ToString("0.0000", CultureInfo.InvariantCulture);

    private static string Whole(long number) => number.ToString(CultureInfo.InvariantCulture);

    private static void Write(Utf8JsonWriter json, RunSummary[] runs)
    {
        json.WriteStartObject();
        json.WriteStartArray("runs");
        foreach (RunSummary run in runs)
        {
            json.WriteStartObject();
            json.WriteString("run_name", run.Run.Name);
            json.WriteString("run_id", run.Run.RunId);
            json.WriteString("project", run.Run.Project);
            WriteCost(json, run.Total);
            json.WriteEndObject();
        }

        json.WriteEndArray();
        json.WriteStartObject("totals");
        json.WriteNumber("runs", runs.Length);
        json.WriteNumber("attempts", runs.Sum(run => run.Total.Attempts));
        json.WriteNumber("hours", runs.Sum(run => run.Total.Hours));
        json.WriteNumber("lost_hours", runs.Sum(run => run.Total.LostHours));
        WriteAmounts(json, Money.Totals(runs.SelectMany(run => run.Total.Cost)));
        json.WriteEndObject();
        json.WriteEndObject();
    }

    private static void WriteCost(Utf8JsonWriter json, CostSummary total)
    {
        json.WriteNumber("attempts", total.Attempts);
        json.WriteNumber("hours", total.Hours);
        json.WriteNumber("billed_hours", total.BilledHours);
        json.WriteNumber("lost_hours", total.LostHours);
        json.WriteNumber("unpriced_hours", total.UnpricedHours);
        json.WriteNumber("steps", total.Steps);
        json.WriteNumber("tokens", total.Tokens);
        WriteAmounts(json, total.Cost);
    }

    /// <summary>cost and currency where there is one currency, null where no rate is known; all of them under costs. Money is text, so that no reader makes binary fractions of it.</summary>
    private static void WriteAmounts(Utf8JsonWriter json, IReadOnlyList<Money> amounts)
    {
        json.WriteString("cost", amounts.Count == 1 ? amounts[0].Amount.ToString(CultureInfo.InvariantCulture) : null);
        json.WriteString("currency", amounts.Count == 1 ? amounts[0].Currency : null);
        json.WriteStartObject("costs");
        foreach (Money amount in amounts)
        {
            json.WriteString(amount.Currency, amount.Amount.ToString(CultureInfo.InvariantCulture));
        }

        json.WriteEndObject();
    }
}
