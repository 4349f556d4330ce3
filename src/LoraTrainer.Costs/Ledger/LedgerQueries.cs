using System.Text.Json;
using Microsoft.Data.Sqlite;

namespace LoraTrainer.Costs.Ledger;

/// <summary>Rows as records.</summary>
internal static class LedgerQueries
{
    private const string RunMatches =
        """
        (?1 IS NULL OR run_id = ?1) AND (?2 IS NULL OR name = ?2) AND (?3 IS NULL OR project = ?3)
        AND (?4 IS NULL OR EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?4)) AND (?5 IS NULL OR created >= ?5) AND (?6 IS NULL OR created < ?6)
        """;

    public static List<RunFacts> Runs(this LedgerDatabase database, RunFilter filter)
    {
        var runs = new List<RunFacts>();
        database.Read(
            $"SELECT run_id, name, project, tags, model, config, created FROM runs WHERE {RunMatches} ORDER BY created, run_id",
            row => runs.Add(new RunFacts
            {
                RunId = row.GetString(0),
                Name = row.GetString(1),
                Project = row.GetString(2),
                Tags = JsonSerializer.Deserialize(row.GetString(3), LedgerJson.Default.IReadOnlyListString)!,
                Model = row.GetString(4),
                Config = JsonSerializer.Deserialize(row.GetString(5), LedgerJson.Default.IReadOnlyDictionaryStringString)!,
                Created = LedgerText.Time(row.GetString(6)),
            }),
            Values(filter));
        return runs;
    }

    /// <summary>Attempts of the run, by epoch.</summary>
    public static List<AttemptCost> Attempts(this LedgerDatabase database, RunFacts run)
    {
        var phases = new Dictionary<long, Dictionary<LedgerPhase, TimeSpan>>();
        database.Read(
            "SELECT attempt_id, phase, ticks FROM phases JOIN attempts USING (attempt_id) WHERE run_id = ?",
            row =>
            {
                if (!phases.TryGetValue(row.GetInt64(0), out Dictionary<LedgerPhase, TimeSpan>? times))
                {
                    phases.Add(row.GetInt64(0), times = []);
                }

                times.Add(LedgerText.Parse<LedgerPhase>(row.GetString(1)), TimeSpan.FromTicks(row.GetInt64(2)));
            },
            run.RunId);
        var attempts = new List<AttemptSnapshot>();
        database.Read(
            """
            SELECT attempt_id, epoch, host, boot_id, process_id, process_start, provider, instance_type, region, gpu_kind, gpu_count, pricing,
                rate, rate_per, currency, price_source, price_as_of, billing_granularity, billing_minimum, started, last_seen, elapsed_ticks, ended, estimated,
                first_step, last_step, saved_step, tokens, samples
            FROM attempts JOIN progress USING (attempt_id) WHERE run_id = ? ORDER BY epoch
            """,
            row => attempts.Add(Attempt(row, run, phases.GetValueOrDefault(row.GetInt64(0)) ?? [])),
            run.RunId);

        var costs = new AttemptCost[attempts.Count];
        int? restart = null, next = null;
        for (int index = attempts.Count - 1; index >= 0; index--)
        {
            // All of the attempts in between must be known: else what is missing here may be theirs.
            AttemptSnapshot attempt = next is { } follower && attempts[follower].Start.Epoch - attempts[index].Start.Epoch == follower - index
                ? attempts[index].UpTo(attempts[follower].Progress, isFirst: index == 0)
                : attempts[index];
            costs[index] = AttemptCost.Of(attempt, restart);
            if (attempt.Progress.LastStep > attempt.Progress.FirstStep)
            {
                restart = Math.Min(restart ?? int.MaxValue, attempt.Progress.FirstStep);
                next = index;
            }
        }

        return [.. costs];
    }

    public static List<CostLine> Lines(this LedgerDatabase database, string column, string? key)
    {
        var lines = new List<CostLine>();
        database.Read(
            $"SELECT line_id, run_id, project, category, amount, currency, description, date, by_hand FROM cost_lines WHERE {column} IS NOT NULL AND (?1 IS NULL OR {column} = ?1) ORDER BY date, line_id",
            row => lines.Add(new CostLine(LedgerText.Parse<CostCategory>(row.GetString(3)), LedgerText.Number(row.GetString(4)), row.GetString(5), LedgerText.Day(row.GetString(7)))
            {
                Id = row.GetString(0),
                RunId = Text(row, 1),
                Project = Text(row, 2),
                Description = row.GetString(6),
                ByHand = row.GetInt64(8) != 0,
            }),
            key);
        return lines;
    }

    public static DateTimeOffset? LastSeenOn(this LedgerDatabase database, string host, string bootId)
    {
        DateTimeOffset? seen = null;

        // By the time that it stands for, not by the text: fractions of a second have more or fewer digits.
        database.Read("SELECT last_seen FROM attempts WHERE host = ? AND boot_id = ?", row => seen = LedgerText.Time(row.GetString(0)) is { } time && !(time < seen) ? time : seen, host, bootId);
        return seen;
    }

    public static RunSummary Summary(this LedgerDatabase database, RunFacts run)
    {
        List<AttemptCost> attempts = database.Attempts(run);
        List<CostLine> lines = database.Lines("run_id", run.RunId);
        return new RunSummary(run, CostSummary.Of(attempts, lines), attempts, lines);
    }

    public static int SetRate(this LedgerDatabase database, AttemptFilter filter, AttemptRate rate, bool replace)
    {
        int changed = 0;
        foreach (RunFacts run in database.Runs(filter.Runs))
        {
            changed += database.SetRate(
                rate,
                $"run_id = ? AND (?9 IS NULL OR epoch = ?9) AND (?10 IS NULL OR host = ?10) AND (?11 IS NULL OR provider = ?11) AND (?12 IS NULL OR gpu_kind = ?12){(replace ? string.Empty : " AND rate IS NULL")}",
                run.RunId, filter.Epoch, filter.Host, filter.Provider, filter.GpuKind);
        }

        return changed;
    }

    private static object?[] Values(RunFilter filter) =>
    [
        filter.RunId, filter.Name, filter.Project, filter.Tag,
        filter.Since is { } since ? LedgerText.Of(since) : null, filter.Until is { } until ? LedgerText.Of(until) : null,
    ];

    private static AttemptSnapshot Attempt(SqliteDataReader row, RunFacts run, Dictionary<LedgerPhase, TimeSpan> phases) => new()
    {
        Start = new AttemptStart
        {
            Run = run,
            Epoch = row.GetInt32(1),
            Holder = new AttemptHolder(row.GetString(2), row.GetString(3), row.GetInt32(4), row.GetInt64(5)),
            Provider = row.GetString(6),
            InstanceType = row.GetString(7),
            Region = row.GetString(8),
            GpuKind = row.GetString(9),
            GpuCount = row.GetInt32(10),
            Pricing = LedgerText.Parse<Pricing>(row.GetString(11)),
            Rate = row.IsDBNull(12) ? null : new AttemptRate(LedgerText.Number(row.GetString(12)), row.GetString(14), LedgerText.Parse<RatePer>(row.GetString(13)))
            {
                Source = row.GetString(15),
                AsOf = Text(row, 16) is { } day ? LedgerText.Day(day) : null,
                Billing = new BillingTerms(LedgerText.Number(row.GetString(17)), LedgerText.Number(row.GetString(18))),
            },
            Started = LedgerText.Time(row.GetString(19)),
        },
        LastSeen = LedgerText.Time(row.GetString(20)),
        Progress = new AttemptProgress
        {
            Elapsed = TimeSpan.FromTicks(row.GetInt64(21)),
            Phases = phases,
            FirstStep = row.GetInt32(24),
            LastStep = row.GetInt32(25),
            SavedStep = row.IsDBNull(26) ? null : row.GetInt32(26),
            Tokens = row.GetInt64(27),
            Samples = row.GetInt64(28),
        },
        Ended = Text(row, 22) is { } end ? LedgerText.Parse<AttemptEnd>(end) : null,
        Estimated = row.GetInt64(23) != 0,
    };

    private static string? Text(SqliteDataReader row, int column) => row.IsDBNull(column) ? null : row.GetString(column);
}
