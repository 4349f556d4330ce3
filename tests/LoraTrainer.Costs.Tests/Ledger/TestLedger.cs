using LoraTrainer.Costs.Ledger;
using LoraTrainer.TestSupport;
using Microsoft.Data.Sqlite;

namespace LoraTrainer.Costs.Tests.Ledger;

/// <summary>A ledger of one test, in a folder of its own, with a clock that only the test moves.</summary>
internal sealed class TestLedger : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    public ManualTime Time { get; } = new();

    public string Path => _folder.File("ledger.db");

    public string Fallback => _folder.File("fallback");

    public string[] Journals => [.. System.IO.Directory.GetFiles(_folder.Path, "*.jsonl*").Concat(System.IO.Directory.Exists(Fallback) ? System.IO.Directory.GetFiles(Fallback) : [])];

    public LedgerOptions Options => new()
    {
        RemoteFileSystemOf = _ => null,
        Time = Time,
        BusyTimeout = TimeSpan.FromMilliseconds(200),
        HeartbeatTimeout = TimeSpan.FromMilliseconds(50),
        FallbackFolder = Fallback,
    };

    public static AttemptStart Start(string run = "r1", int epoch = 1, AttemptRate? rate = null, int gpus = 1) => new()
    {
        Run = new RunFacts { RunId = run, Name = "name of " + run, Project = "p", Tags = ["a", "b"], Model = "m", Config = new Dictionary<string, string> { ["rank"] = "16" }, Created = ManualTime.Start },
        Epoch = epoch,
        Holder = new AttemptHolder("host", "boot", 10 + epoch, 99),
        GpuCount = gpus,
        Rate = rate,
        Started = ManualTime.Start,
    };

    public static AttemptProgress Progress(double seconds, int first = 0, int last = 0, int? saved = null, long tokens = 0, params (LedgerPhase Phase, double Seconds)[] phases) => new()
    {
        Elapsed = TimeSpan.FromSeconds(seconds),
        FirstStep = first,
        LastStep = last,
        SavedStep = saved,
        Tokens = tokens,
        Phases = phases.ToDictionary(item => item.Phase, item => TimeSpan.FromSeconds(item.Seconds)),
    };

    public static AttemptSnapshot Snapshot(AttemptStart start, AttemptProgress progress, AttemptEnd? ended = null) =>
        new() { Start = start, Progress = progress, LastSeen = start.Started + progress.Elapsed, Ended = ended, Estimated = ended == AttemptEnd.Killed };

    public static AttemptRate Dollars(decimal rate, RatePer per = RatePer.Gpu) => new(rate, "USD", per);

    public RunLedger Open() => RunLedger.Open(Path, Options);

    /// <summary>The rows of every table as text, so that "nothing changed" can be said of all of it.</summary>
    public string Dump()
    {
        using SqliteConnection connection = Connect();
        var lines = new List<string>();
        foreach (string table in (string[])["runs", "attempts", "phases", "progress", "cost_lines"])
        {
            using SqliteCommand command = connection.CreateCommand();
            command.CommandText = "SELECT * FROM " + table;
            using SqliteDataReader row = command.ExecuteReader();
            while (row.Read())
            {
                var values = new object[row.FieldCount];
                row.GetValues(values);
                lines.Add($"{table}: {string.Join('|', values)}");
            }
        }

        return string.Join('\n', lines);
    }

    public SqliteConnection Connect()
    {
        var connection = new SqliteConnection($"Data Source={Path};Pooling=False;Default Timeout=10");
        connection.Open();
        return connection;
    }

    public void Execute(string sql)
    {
        using SqliteConnection connection = Connect();
        foreach (string statement in sql.Split(";\n", StringSplitOptions.RemoveEmptyEntries))
        {
            using SqliteCommand command = connection.CreateCommand();
            command.CommandText = statement;
            command.ExecuteNonQuery();
        }
    }

    public void Dispose() => _folder.Dispose();
}

internal sealed class ManualTime : TimeProvider
{
    private DateTimeOffset _now = Start;

    public static DateTimeOffset Start { get; } = new(2030, 1, 2, 3, 4, 5, TimeSpan.Zero);

    public override long TimestampFrequency => TimeSpan.TicksPerSecond;

    public override DateTimeOffset GetUtcNow() => _now;

    public override long GetTimestamp() => _now.Ticks;

    public void Advance(double seconds) => _now += TimeSpan.FromSeconds(seconds);
}

/// <summary>An attempt of this process as the program records it: its state at its start, now and then, and at its end.</summary>
internal sealed class TestAttempt
{
    private readonly RunLedger _ledger;
    private readonly AttemptStart _start;
    private AttemptProgress _progress = TestLedger.Progress(0);

    public TestAttempt(RunLedger ledger, AttemptStart start)
    {
        (_ledger, _start) = (ledger, start);
        Heartbeat(_progress);
    }

    public void Heartbeat(AttemptProgress progress) => _ledger.Merge(TestLedger.Snapshot(_start, _progress = progress));

    public void End(AttemptEnd how, AttemptProgress? progress = null) => _ledger.Merge(TestLedger.Snapshot(_start, progress ?? _progress, how));
}
