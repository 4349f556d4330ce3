using Microsoft.Data.Sqlite;

namespace LoraTrainer.Costs.Ledger;

/// <summary>
/// What every run on this machine took and cost: attempts with heartbeats, so that a killed one still counts, and cost lines. A SQLite file that several
/// processes write at once. What a training records never throws: where the file is locked, read-only, full, damaged or of a newer program, events go to a
/// journal, <see cref="Warnings"/> says so once, and the next ledger that opens merges them. What a person asks for (queries, <see cref="SetRate"/>) throws
/// <see cref="LedgerException"/>.
/// </summary>
public sealed class RunLedger : IDisposable
{
    private readonly Lock _lock = new();
    private readonly LedgerOptions _options;
    private readonly LedgerJournal _journal;
    private readonly List<string> _warnings = [];
    private readonly HashSet<(string RunId, int Epoch)> _told = [];
    private LedgerDatabase? _database;
    private long _failedAt;
    private bool _isFailing;
    private bool _isDisposed;

    private RunLedger(string path, LedgerOptions options)
    {
        Path = path;
        _options = options;
        _journal = new LedgerJournal(path, options.FallbackFolder ?? LedgerPath.DefaultFallbackFolder);
    }

    /// <summary>The file that is used, which is another one than was asked for where that is on a network mount.</summary>
    public string Path { get; }

    /// <summary>Why the ledger cannot be used, as a sentence; null where it can. Events go to the journal meanwhile.</summary>
    public string? Problem { get; private set; }

    /// <summary>Everything that went wrong, each once.</summary>
    public IReadOnlyList<string> Warnings
    {
        get
        {
            lock (_lock)
            {
                return [.. _warnings];
            }
        }
    }

    /// <summary>Opens the ledger, creating it where there is none, and merges what journals hold. Does not throw for the state of the file: see <see cref="Problem"/>.</summary>
    /// <param name="path">Null: <c>LT_LEDGER</c>, then <see cref="LedgerPath.Default"/>.</param>
    /// <param name="options">Everything else.</param>
    public static RunLedger Open(string? path, LedgerOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        string resolved = LedgerPath.Resolve(path, options.RemoteFileSystemOf, out string? warning);
        var ledger = new RunLedger(resolved, options);
        lock (ledger._lock)
        {
            if (warning is not null)
            {
                ledger.Warn(warning);
            }

            ledger.Try(options.BusyTimeout, database =>
            {
                if (!database.IsReadOnly)
                {
                    ledger.MergeJournals(database);
                }
            });
        }

        return ledger;
    }

    /// <summary>
    /// Records what is known of an attempt: of this process, at its start, every few seconds and at its end; or of another machine, as it is told beside the
    /// checkpoints. Twice is once, and the longer time of two counts, so the same attempt may be known from several places and in any order. Never throws.
    /// </summary>
    /// <param name="attempt">All that is known now. What is told again without an end is a heartbeat: a power loss may take the last of them, and it waits for others
    /// only as long as <see cref="LedgerOptions.HeartbeatTimeout"/> says.</param>
    public void Merge(AttemptSnapshot attempt)
    {
        ArgumentNullException.ThrowIfNull(attempt);
        lock (_lock)
        {
            bool isFirst = _told.Add((attempt.RunId, attempt.Start.Epoch));
            Record(new LedgerEvent { Attempt = attempt }, isHeartbeat: !isFirst && attempt.Ended is null);
        }
    }

    /// <summary>Records a cost. The same <see cref="CostLine.Id"/> twice is once.</summary>
    /// <exception cref="ArgumentException">It belongs to neither a run nor a project, or to both.</exception>
    public void AddCostLine(CostLine line)
    {
        ArgumentNullException.ThrowIfNull(line);
        if (string.IsNullOrEmpty(line.RunId) == string.IsNullOrEmpty(line.Project))
        {
            throw new ArgumentException("A cost line belongs to a run or to a project, and not to both.");
        }

        Record(new LedgerEvent { Line = line with { RunId = line.RunId is "" ? null : line.RunId, Project = line.Project is "" ? null : line.Project } }, isHeartbeat: false);
    }

    /// <summary>
    /// Ends attempts that did not end themselves: those whose process is gone, and those that a later attempt of the same run took over from. Their hours are
    /// those of their last heartbeat, and they are marked as estimated. One that turns out to live is opened again by its next heartbeat.
    /// </summary>
    /// <param name="isGone">Whether the process is known not to run any more; false where that cannot be told, as for another machine.</param>
    /// <param name="runId">Of this run only; null for all.</param>
    /// <returns>What was closed, with the work that it lost. Empty where the ledger cannot be written: the next call finds them.</returns>
    public IReadOnlyList<AttemptCost> CloseDead(Func<AttemptHolder, bool> isGone, string? runId = null)
    {
        ArgumentNullException.ThrowIfNull(isGone);
        var closed = new List<AttemptCost>();
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_isDisposed, this);
            Try(_options.BusyTimeout, database => database.Write(durably: true, () =>
            {
                closed.Clear();
                var open = new List<(long Id, string RunId, int Epoch, AttemptHolder Holder, bool IsSuperseded)>();
                database.Read(
                    """
                    SELECT attempt_id, run_id, epoch, host, boot_id, process_id, process_start,
                        EXISTS (SELECT 1 FROM attempts AS later WHERE later.run_id = attempts.run_id AND later.epoch > attempts.epoch)
                    FROM attempts WHERE ended IS NULL AND (?1 IS NULL OR run_id = ?1)
                    """,
                    row => open.Add((row.GetInt64(0), row.GetString(1), row.GetInt32(2), new AttemptHolder(row.GetString(3), row.GetString(4), row.GetInt32(5), row.GetInt64(6)), row.GetInt64(7) != 0)),
                    runId);
                open.RemoveAll(attempt => !attempt.IsSuperseded && !isGone(attempt.Holder));
                foreach ((long id, _, _, _, _) in open)
                {
                    database.Execute("UPDATE attempts SET ended = 'killed', estimated = 1 WHERE attempt_id = ?", id);
                }

                foreach (string run in open.Select(attempt => attempt.RunId).Distinct())
                {
                    closed.AddRange(database.Attempts(database.Runs(new RunFilter { RunId = run })[0])
                        .Where(attempt => open.Exists(item => item.RunId == run && item.Epoch == attempt.Attempt.Start.Epoch)));
                }
            }));
        }

        return closed;
    }

    /// <summary>Gives attempts a rate.</summary>
    /// <param name="filter">Which attempts.</param>
    /// <param name="rate">The rate.</param>
    /// <param name="replace">Also those that have one.</param>
    /// <returns>How many were changed.</returns>
    /// <exception cref="LedgerException">The ledger cannot be written.</exception>
    public int SetRate(AttemptFilter filter, AttemptRate rate, bool replace = false)
    {
        ArgumentNullException.ThrowIfNull(filter);
        ArgumentNullException.ThrowIfNull(rate);
        int changed = 0;
        Ask(database => database.Write(durably: true, () => changed = database.SetRate(filter, rate, replace)));
        return changed;
    }

    /// <summary>Runs by the time that they were created.</summary>
    /// <exception cref="LedgerException">The ledger cannot be read.</exception>
    public IReadOnlyList<RunFacts> Runs(RunFilter? filter = null)
    {
        IReadOnlyList<RunFacts> runs = [];
        Ask(database => runs = database.Runs(filter ?? new RunFilter()));
        return runs;
    }

    /// <summary>The runs of that name, or whose id begins so; four letters at least are taken for an id.</summary>
    /// <exception cref="LedgerException">The ledger cannot be read.</exception>
    public IReadOnlyList<RunFacts> Named(string name) =>
        [.. Runs().Where(run => run.Name == name || (name.Length >= 4 && run.RunId.StartsWith(name, StringComparison.Ordinal)))];

    /// <summary>What the run took and cost; null where the ledger does not know it.</summary>
    /// <exception cref="LedgerException">The ledger cannot be read.</exception>
    public RunSummary? Summary(string runId)
    {
        RunSummary? summary = null;
        Ask(database => database.ReadTogether(() => summary = database.Runs(new RunFilter { RunId = runId }) is [var run] ? database.Summary(run) : null));
        return summary;
    }

    /// <summary>Files with events that are not in the ledger yet, or that could not be read: those of living processes, and those that no ledger takes.</summary>
    public IReadOnlyList<string> PendingFiles() => _journal.Files();

    /// <summary>What the runs took and cost together, with the lines of the filter's project; without a filter, of all projects.</summary>
    /// <exception cref="LedgerException">The ledger cannot be read.</exception>
    public LedgerTotals Totals(RunFilter? filter = null)
    {
        LedgerTotals? totals = null;
        Ask(database => database.ReadTogether(() =>
        {
            RunSummary[] runs = [.. database.Runs(filter ?? new RunFilter()).Select(database.Summary)];

            // A cost of a project is not one of some of its runs.
            IReadOnlyList<CostLine> lines = filter is null || filter == new RunFilter { Project = filter.Project } ? database.Lines("project", filter?.Project) : [];
            totals = new LedgerTotals(runs, lines, CostSummary.Of([.. runs.SelectMany(run => run.Attempts)], [.. runs.SelectMany(run => run.Lines), .. lines]));
        }));
        return totals!;
    }

    /// <summary>The last sign of life of any process on a machine since it booted; null where the ledger knows none, or cannot be read.</summary>
    /// <param name="host">Its name.</param>
    /// <param name="bootId">Another one after each start.</param>
    public DateTimeOffset? LastSeenOn(string host, string bootId)
    {
        DateTimeOffset? seen = null;
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_isDisposed, this);
            Try(_options.BusyTimeout, database => seen = database.LastSeenOn(host, bootId));
        }

        return seen;
    }

    /// <summary>What is wrong with the file, thoroughly; empty where it is sound.</summary>
    /// <exception cref="LedgerException">The ledger cannot be read.</exception>
    public IReadOnlyList<string> CheckIntegrity()
    {
        IReadOnlyList<string> found = [];
        Ask(database => found = database.CheckIntegrity(quickly: false));
        return found;
    }

    public void Dispose()
    {
        lock (_lock)
        {
            _isDisposed = true;
            _database?.Dispose();
            _database = null;
            _journal.Dispose();
        }
    }

    /// <summary>Writes the event to the ledger, or else to the journal. Never throws.</summary>
    private void Record(LedgerEvent item, bool isHeartbeat)
    {
        lock (_lock)
        {
            if (_isDisposed)
            {
                // A heartbeat that was on its way.
                return;
            }

            bool wait = _isFailing && _options.Time.GetElapsedTime(_failedAt) < _options.RetryInterval;
            bool written = !wait && Try(isHeartbeat ? _options.HeartbeatTimeout : _options.BusyTimeout, database =>
            {
                database.Write(durably: !isHeartbeat, () => database.Put(item));
                if (_journal.Path is not null)
                {
                    MergeJournals(database);
                }
            });

            if (!written && !_journal.TryAppend(item, out string? problem))
            {
                Warn($"Nor can the ledger's journal be written, beside it or in {_options.FallbackFolder ?? LedgerPath.DefaultFallbackFolder} ({problem}): hours and costs of this run are kept from the time on that one of them can.");
            }
        }
    }

    private void MergeJournals(LedgerDatabase database) => _journal.Merge(
        events => database.Write(durably: true, () =>
        {
            foreach (LedgerEvent item in events)
            {
                database.Put(item);
            }
        }),
        Warn);

    /// <summary>Works on the ledger; false, with a warning the first time and a pause, where that is not possible.</summary>
    private bool Try(TimeSpan timeout, Action<LedgerDatabase> work)
    {
        string problem;
        try
        {
            work(Connect(timeout));
            _isFailing = false;
            Problem = null;
            return true;
        }
        catch (Exception exception)
        {
            // Of any kind: no fault of a ledger is worth a training.
            problem = Sentence(exception) ?? $"The ledger {Path} cannot be used ({exception.Message}).";
            if (exception is not SqliteException { SqliteErrorCode: SQLitePCL.raw.SQLITE_BUSY or SQLitePCL.raw.SQLITE_LOCKED or SQLitePCL.raw.SQLITE_READONLY })
            {
                // Opened anew, with all its checks, when it is tried again.
                _database?.Dispose();
                _database = null;
            }
        }

        Problem = problem;
        _isFailing = true;
        _failedAt = _options.Time.GetTimestamp();
        if (_options.IsOfRun)
        {
            Warn($"{problem} The run goes on; its hours and costs are written to a journal that is merged once the ledger can be written.");
        }

        return false;
    }

    private void Ask(Action<LedgerDatabase> work)
    {
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_isDisposed, this);
            try
            {
                work(Connect(_options.BusyTimeout));
            }
            catch (LedgerException)
            {
                throw;
            }
            catch (Exception exception) when (Sentence(exception) is not null)
            {
                throw new LedgerException(Sentence(exception)!, exception);
            }
            catch (Exception exception) when (exception is FormatException or ArgumentException or OverflowException or InvalidCastException or InvalidOperationException)
            {
                throw new LedgerException($"The ledger {Path} holds a value that this program never writes: {exception.Message}", exception);
            }
        }
    }

    private LedgerDatabase Connect(TimeSpan timeout)
    {
        if (_database is not null && !File.Exists(Path))
        {
            // It was moved away, and what is written to it goes with it.
            _database.Dispose();
            _database = null;
        }

        if (_database is null)
        {
            string folder = System.IO.Path.GetDirectoryName(Path)!;
            if (OperatingSystem.IsWindows())
            {
                Directory.CreateDirectory(folder);
            }
            else
            {
                // As the XDG specification has it.
                Directory.CreateDirectory(folder, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
            }

            _database = LedgerDatabase.Open(Path, timeout);
        }
        else
        {
            _database.SetBusyTimeout(timeout);
        }

        return _database;
    }

    private string? Sentence(Exception exception) => exception switch
    {
        LedgerException known => known.Message,
        SqliteException { SqliteErrorCode: SQLitePCL.raw.SQLITE_BUSY or SQLitePCL.raw.SQLITE_LOCKED } => $"The ledger {Path} is locked by another process.",
        SqliteException { SqliteErrorCode: SQLitePCL.raw.SQLITE_READONLY } => $"The ledger {Path} is read-only.",
        SqliteException { SqliteErrorCode: SQLitePCL.raw.SQLITE_FULL } => $"The disk of the ledger {Path} is full.",
        SqliteException { SqliteErrorCode: SQLitePCL.raw.SQLITE_NOTADB } => $"{Path} is not a ledger: it is no SQLite file. Move it away or name another ledger.",
        SqliteException { SqliteErrorCode: SQLitePCL.raw.SQLITE_CORRUPT } => $"The ledger {Path} is damaged. Move it away and a new one is begun.",
        SqliteException other => $"The ledger {Path} cannot be used ({other.Message}).",
        IOException or UnauthorizedAccessException => $"The ledger {Path} cannot be opened: {exception.Message}",
        _ => null,
    };

    private void Warn(string warning)
    {
        if (!_warnings.Contains(warning))
        {
            _warnings.Add(warning);
            _options.Warn?.Invoke(warning);
        }
    }
}
