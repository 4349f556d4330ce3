using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using Microsoft.Data.Sqlite;
using static SQLitePCL.raw;

namespace LoraTrainer.Costs.Ledger;

/// <summary>
/// The SQLite file: write-ahead log, so that readers and one writer go on beside each other, and short transactions that take the write lock at their
/// start, so that none fails half way for a lock. Throws <see cref="SqliteException"/> and, for what a person must hear, <see cref="LedgerException"/>.
/// </summary>
internal sealed partial class LedgerDatabase : IDisposable
{
    private readonly SqliteConnection _connection;
    private readonly Dictionary<string, SqliteCommand> _commands = new(StringComparer.Ordinal);

    private LedgerDatabase(SqliteConnection connection) => _connection = connection;

    /// <summary>Whether the file could be opened for reading only.</summary>
    public bool IsReadOnly { get; private init; }

    /// <summary>Opens or creates the file, checks it, and brings an older one to this version.</summary>
    /// <param name="path">Its folder exists, or the file cannot be opened.</param>
    /// <param name="busyTimeout">How long to wait for another process.</param>
    public static LedgerDatabase Open(string path, TimeSpan busyTimeout)
    {
        SqliteException? denied = null;
        foreach ((string source, SqliteOpenMode mode) in (ReadOnlySpan<(string, SqliteOpenMode)>)
        [
            (path, SqliteOpenMode.ReadWriteCreate),
            (path, SqliteOpenMode.ReadOnly),

            // A write-ahead log needs files beside it. Where none can be made, nobody writes the ledger either.
            (new Uri(path).AbsoluteUri + "?immutable=1", SqliteOpenMode.ReadOnly),
        ])
        {
            // Pooled connections would keep the file open, and its lock on the log with it.
            var connection = new SqliteConnection(new SqliteConnectionStringBuilder { DataSource = source, Mode = mode, Pooling = false, DefaultTimeout = 1 }.ToString());
            try
            {
                connection.Open();
                var database = new LedgerDatabase(connection) { IsReadOnly = sqlite3_db_readonly(connection.Handle, "main") == 1 };
                database.SetBusyTimeout(busyTimeout);
                database.Prepare(path);
                return database;
            }
            catch (SqliteException exception) when (exception.SqliteErrorCode is SQLITE_READONLY or SQLITE_CANTOPEN && File.Exists(path))
            {
                denied = exception;
                connection.Dispose();
            }
            catch
            {
                connection.Dispose();
                throw;
            }
        }

        throw denied!;
    }

    /// <summary>How long statements wait from now on while another process writes.</summary>
    public void SetBusyTimeout(TimeSpan timeout) => Execute(string.Create(CultureInfo.InvariantCulture, $"PRAGMA busy_timeout = {(int)timeout.TotalMilliseconds}"));

    /// <summary>What SQLite finds wrong with the file; empty where it is sound.</summary>
    public IReadOnlyList<string> CheckIntegrity(bool quickly)
    {
        var found = new List<string>();
        Read(quickly ? "PRAGMA quick_check(3)" : "PRAGMA integrity_check(20)", row => found.Add(row.GetString(0)));
        return found is ["ok"] ? [] : found;
    }

    /// <summary>Writes all of it or nothing.</summary>
    /// <param name="durably">Whether it must be on disk when this returns; otherwise a power loss may take the last seconds, and nothing else.</param>
    /// <param name="write">The statements.</param>
    public void Write(bool durably, Action write)
    {
        // Set outside of a transaction, or it has no effect.
        Execute(durably ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL");
        Transact("BEGIN IMMEDIATE", write);
    }

    /// <summary>Reads one state of the ledger, whatever others write meanwhile.</summary>
    public void ReadTogether(Action read) => Transact("BEGIN", read);

    public int Execute(string sql, params ReadOnlySpan<object?> values) => Command(sql, values).ExecuteNonQuery();

    public void Read(string sql, Action<SqliteDataReader> row, params ReadOnlySpan<object?> values)
    {
        using SqliteDataReader reader = Command(sql, values).ExecuteReader();
        while (reader.Read())
        {
            row(reader);
        }
    }

    public void Put(LedgerEvent item)
    {
        if (item.Attempt is { } attempt)
        {
            Put(attempt);
            PutFacts(attempt.Start);
        }

        if (item.Line is { } line)
        {
            if (line.RunId is { } run)
            {
                // A run of which nothing else is known yet has a cost all the same.
                Execute("INSERT INTO runs(run_id, name, project, tags, model, config, created) VALUES (?, '', '', '[]', '', '{}', ?) ON CONFLICT DO NOTHING", run, LedgerText.Of(new DateTimeOffset(line.Date, default, TimeSpan.Zero)));
            }

            Execute(
                "INSERT INTO cost_lines(line_id, run_id, project, category, amount, currency, description, date, by_hand) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                line.Id, line.RunId, line.Project, LedgerText.Of(line.Category), Check.Number(line.Amount), line.Currency, line.Description, LedgerText.Of(line.Date), line.ByHand ? 1 : 0);
        }
    }

    /// <summary>
    /// Joins a snapshot to what is known of its attempt: the longer time wins with all that belongs to it, facts fill what is unknown, an end stays. So the
    /// order in which snapshots arrive does not matter, and one that arrives twice changes nothing.
    /// </summary>
    private void Put(AttemptSnapshot attempt)
    {
        (long Id, long Ticks, AttemptEnd? Ended)? known = null;
        Read(
            "SELECT attempt_id, elapsed_ticks, ended FROM attempts WHERE run_id = ? AND epoch = ?",
            row => known = (row.GetInt64(0), row.GetInt64(1), row.IsDBNull(2) ? null : LedgerText.Parse<AttemptEnd>(row.GetString(2))),
            attempt.RunId, attempt.Start.Epoch);
        long ticks = attempt.Progress.Elapsed.Ticks;
        long id;
        if (known is null)
        {
            PutRun(attempt.Start);
            id = InsertAttempt(attempt);
            PutProgress(id, attempt.Progress);
            return;
        }

        id = known.Value.Id;
        if (ticks >= known.Value.Ticks)
        {
            Execute("UPDATE attempts SET elapsed_ticks = ?, last_seen = max(last_seen, ?) WHERE attempt_id = ?", ticks, LedgerText.Of(attempt.LastSeen), id);
            PutProgress(id, attempt.Progress);
        }

        AttemptEnd? ended = known.Value.Ended switch
        {
            null => attempt.Ended,

            // Given up too early: it has been seen alive since.
            AttemptEnd.Killed when attempt.Ended is not null || ticks > known.Value.Ticks => attempt.Ended,
            _ when attempt.Ended is not (null or AttemptEnd.Killed) && ticks > known.Value.Ticks => attempt.Ended,
            _ => known.Value.Ended,
        };
        if (ended != known.Value.Ended)
        {
            Execute("UPDATE attempts SET ended = ?, estimated = ? WHERE attempt_id = ?", ended is { } end ? LedgerText.Of(end) : null, ended is not null && attempt.Estimated ? 1 : 0, id);
        }
    }

    /// <summary>Facts of the run and the attempt that a later snapshot knows and the ledger does not.</summary>
    private void PutFacts(AttemptStart start)
    {
        PutRun(start);
        Execute(
            """
            UPDATE attempts SET
                provider = iif(provider = '', ?, provider), instance_type = iif(instance_type = '', ?, instance_type), region = iif(region = '', ?, region),
                gpu_kind = iif(gpu_kind = '', ?, gpu_kind), gpu_count = max(gpu_count, ?), pricing = iif(pricing = 'unknown', ?, pricing)
            WHERE run_id = ? AND epoch = ?
            """,
            start.Provider, start.InstanceType, start.Region, start.GpuKind, start.GpuCount, LedgerText.Of(start.Pricing), start.Run.RunId, start.Epoch);
        if (start.Rate is { } rate)
        {
            SetRate(rate, "run_id = ? AND epoch = ? AND rate IS NULL", start.Run.RunId, start.Epoch);
        }
    }

    /// <param name="rate">The rate.</param>
    /// <param name="where">Which attempts.</param>
    /// <param name="values">The parameters of <paramref name="where"/>.</param>
    public int SetRate(AttemptRate rate, string where, params ReadOnlySpan<object?> values) => Execute(
        $"UPDATE attempts SET rate = ?, rate_per = ?, currency = ?, price_source = ?, price_as_of = ?, billing_granularity = ?, billing_minimum = ? WHERE {where}",
        [.. RateValues(rate), .. values]);

    public void Dispose()
    {
        foreach (SqliteCommand command in _commands.Values)
        {
            command.Dispose();
        }

        _connection.Dispose();
    }

    private static object?[] RateValues(AttemptRate? rate) => rate is null
        ? [null, null, null, null, null, null, null]
        :
        [
            Check.Number(rate.Amount), LedgerText.Of(rate.Per), rate.Currency, rate.Source, rate.AsOf is { } day ? LedgerText.Of(day) : null,
            Check.Number(rate.Billing.GranularitySeconds), Check.Number(rate.Billing.MinimumSeconds),
        ];

    /// <summary>The newest attempt knows best what the run is called; an older one fills what is empty.</summary>
    private void PutRun(AttemptStart start)
    {
        bool newest = true;
        Read("SELECT max(epoch) FROM attempts WHERE run_id = ?", row => newest = row.IsDBNull(0) || start.Epoch >= row.GetInt64(0), start.Run.RunId);
        RunFacts run = start.Run;
        string tags = JsonSerializer.Serialize(run.Tags, LedgerJson.Default.IReadOnlyListString);
        string config = JsonSerializer.Serialize(run.Config, LedgerJson.Default.IReadOnlyDictionaryStringString);
        Execute(
            """
            INSERT INTO runs(run_id, name, project, tags, model, config, created) VALUES (?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT(run_id) DO UPDATE SET
                name = iif(excluded.name <> '' AND (?8 OR name = ''), excluded.name, name),
                project = iif(excluded.project <> '' AND (?8 OR project = ''), excluded.project, project),
                tags = iif(excluded.tags <> '[]' AND (?8 OR tags = '[]'), excluded.tags, tags),
                model = iif(excluded.model <> '' AND (?8 OR model = ''), excluded.model, model),
                config = iif(excluded.config <> '{}' AND (?8 OR config = '{}'), excluded.config, config),
                created = min(created, excluded.created)
            """,
            run.RunId, run.Name, run.Project, tags, run.Model, config, LedgerText.Of(run.Created), newest ? 1 : 0);
    }

    private long InsertAttempt(AttemptSnapshot attempt)
    {
        AttemptStart start = attempt.Start;
        long id = 0;
        Read(
            """
            INSERT INTO attempts(run_id, epoch, host, boot_id, process_id, process_start, provider, instance_type, region, gpu_kind, gpu_count, pricing,
                rate, rate_per, currency, price_source, price_as_of, billing_granularity, billing_minimum, started, last_seen, elapsed_ticks, ended, estimated)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING attempt_id
            """,
            row => id = row.GetInt64(0),
            [
                start.Run.RunId, start.Epoch, start.Holder.Host, start.Holder.BootId, start.Holder.ProcessId, start.Holder.ProcessStart,
                start.Provider, start.InstanceType, start.Region, start.GpuKind, start.GpuCount, LedgerText.Of(start.Pricing), .. RateValues(start.Rate),
                LedgerText.Of(start.Started), LedgerText.Of(attempt.LastSeen), attempt.Progress.Elapsed.Ticks,
                attempt.Ended is { } end ? LedgerText.Of(end) : null, attempt.Estimated ? 1 : 0,
            ]);
        return id;
    }

    private void PutProgress(long id, AttemptProgress progress)
    {
        Execute(
            """
            INSERT INTO progress(attempt_id, first_step, last_step, saved_step, tokens, samples) VALUES (?, ?, ?, ?, ?, ?)
            ON CONFLICT(attempt_id) DO UPDATE SET first_step = excluded.first_step, last_step = excluded.last_step, saved_step = excluded.saved_step, tokens = excluded.tokens, samples = excluded.samples
            """,
            id, progress.FirstStep, progress.LastStep, progress.SavedStep, progress.Tokens, progress.Samples);
        foreach ((LedgerPhase phase, TimeSpan time) in progress.Phases)
        {
            Execute(
                "INSERT INTO phases(attempt_id, phase, ticks) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET ticks = excluded.ticks WHERE ticks <> excluded.ticks",
                id, LedgerText.Of(phase), time.Ticks);
        }
    }

    private void Prepare(string path)
    {
        long tables = Number("SELECT count(*) FROM sqlite_master");
        long application = Number("PRAGMA application_id");
        if (tables > 0 && application != LedgerSchema.ApplicationId)
        {
            throw new LedgerException($"{path} is a database of another program, not a ledger of lora-trainer.");
        }

        if (!IsReadOnly && Text("PRAGMA journal_mode") != "wal")
        {
            Execute("PRAGMA journal_mode = WAL");
        }

        long version = Number("PRAGMA user_version");
        if (version < LedgerSchema.Steps.Count && !IsReadOnly)
        {
            Write(durably: true, () =>
            {
                // Another process may have been faster.
                version = Number("PRAGMA user_version");
                for (int step = (int)version; step < LedgerSchema.Steps.Count; step++)
                {
                    foreach (string statement in LedgerSchema.Steps[step].Split(";\n", StringSplitOptions.RemoveEmptyEntries))
                    {
                        Execute(statement);
                    }
                }

                if (version < LedgerSchema.Steps.Count)
                {
                    Execute(string.Create(CultureInfo.InvariantCulture, $"PRAGMA application_id = {LedgerSchema.ApplicationId}"));
                    Execute(string.Create(CultureInfo.InvariantCulture, $"PRAGMA user_version = {version = LedgerSchema.Steps.Count}"));
                }
            });
        }

        if (version != LedgerSchema.Steps.Count)
        {
            throw new LedgerException(version > LedgerSchema.Steps.Count
                ? $"The ledger {path} was written by a newer lora-trainer (its version is {version}, this program knows {LedgerSchema.Steps.Count}). Use that one, or name another ledger."
                : $"The ledger {path} is of version {version} and cannot be brought to {LedgerSchema.Steps.Count}, because it cannot be written.");
        }

        if (CheckIntegrity(quickly: true) is [var first, ..])
        {
            throw new LedgerException($"The ledger {path} is damaged ({first.ReplaceLineEndings("; ")}). Move it away and a new one is begun; what the sqlite3 program's .recover saves of it can be put in its place.");
        }
    }

    private void Transact(string begin, Action work)
    {
        Execute(begin);
        try
        {
            work();
            Execute("COMMIT");
        }
        catch
        {
            try
            {
                // Some failures, a full disk among them, have rolled it back already.
                if (sqlite3_get_autocommit(_connection.Handle) == 0)
                {
                    Execute("ROLLBACK");
                }
            }
            catch (SqliteException)
            {
                // The first failure says more.
            }

            throw;
        }
    }

    private long Number(string sql)
    {
        long value = 0;
        Read(sql, row => value = row.GetInt64(0));
        return value;
    }

    private string Text(string sql)
    {
        string value = string.Empty;
        Read(sql, row => value = row.GetString(0));
        return value;
    }

    /// <summary>The statement, compiled once: a heartbeat is a handful of them.</summary>
    private SqliteCommand Command(string sql, ReadOnlySpan<object?> values)
    {
        if (!_commands.TryGetValue(sql, out SqliteCommand? command))
        {
            command = _connection.CreateCommand();

            // The provider binds by name; "?1" is the name of the first.
            string[] parts = Unnumbered().Split(sql);
            command.CommandText = parts[0] + string.Concat(parts.Skip(1).Select((part, index) => string.Create(CultureInfo.InvariantCulture, $"?{index + 1}{part}")));
            for (int index = 0; index < values.Length; index++)
            {
                command.Parameters.Add(new SqliteParameter { ParameterName = string.Create(CultureInfo.InvariantCulture, $"?{index + 1}") });
            }

            _commands.Add(sql, command);
        }

        for (int index = 0; index < values.Length; index++)
        {
            command.Parameters[index].Value = values[index] ?? DBNull.Value;
        }

        return command;
    }

    [GeneratedRegex(@"\?(?!\d)")]
    private static partial Regex Unnumbered();
}
