namespace LoraTrainer.Costs.Ledger;

/// <summary>
/// The tables, as the steps that made them. A step that was released is never edited: a ledger of any age goes through those that it lacks. Amounts and
/// rates are decimal numbers as text: SQLite's own numbers are binary. Times are UTC, ISO 8601; durations are ticks of 100 ns, exact.
/// </summary>
internal static class LedgerSchema
{
    /// <summary>Marks the file as ours (PRAGMA application_id): "LTld".</summary>
    public const int ApplicationId = 0x4C546C64;

    public static IReadOnlyList<string> Steps { get; } =
    [
        """
        CREATE TABLE runs(
            run_id TEXT PRIMARY KEY NOT NULL,
            name TEXT NOT NULL,
            project TEXT NOT NULL,
            tags TEXT NOT NULL,         -- JSON list
            model TEXT NOT NULL,
            config TEXT NOT NULL,       -- JSON object
            created TEXT NOT NULL
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX runs_by_project ON runs(project);

        CREATE TABLE attempts(
            attempt_id INTEGER PRIMARY KEY,
            run_id TEXT NOT NULL REFERENCES runs(run_id),
            epoch INTEGER NOT NULL,
            host TEXT NOT NULL,
            boot_id TEXT NOT NULL,
            process_id INTEGER NOT NULL,
            process_start INTEGER NOT NULL,
            provider TEXT NOT NULL,
            instance_type TEXT NOT NULL,
            region TEXT NOT NULL,
            gpu_kind TEXT NOT NULL,
            gpu_count INTEGER NOT NULL CHECK (gpu_count >= 1),
            pricing TEXT NOT NULL CHECK (pricing IN ('unknown', 'spot', 'on_demand', 'owned')),
            rate TEXT,                  -- null: unknown
            rate_per TEXT CHECK (rate_per IN ('gpu', 'machine')),
            currency TEXT,
            price_source TEXT,
            price_as_of TEXT,
            billing_granularity TEXT,   -- seconds
            billing_minimum TEXT,       -- seconds
            started TEXT NOT NULL,
            last_seen TEXT NOT NULL,
            elapsed_ticks INTEGER NOT NULL CHECK (elapsed_ticks >= 0),
            ended TEXT CHECK (ended IN ('finished', 'interrupted', 'stopped', 'failed', 'killed')),
            estimated INTEGER NOT NULL CHECK (estimated IN (0, 1)),
            UNIQUE (run_id, epoch)
        ) STRICT;
        CREATE INDEX attempts_open ON attempts(run_id) WHERE ended IS NULL;

        CREATE TABLE phases(
            attempt_id INTEGER NOT NULL REFERENCES attempts(attempt_id),
            phase TEXT NOT NULL,
            ticks INTEGER NOT NULL,
            PRIMARY KEY (attempt_id, phase)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE progress(
            attempt_id INTEGER PRIMARY KEY REFERENCES attempts(attempt_id),
            first_step INTEGER NOT NULL,
            last_step INTEGER NOT NULL,
            saved_step INTEGER,
            tokens INTEGER NOT NULL
        ) STRICT;
        """,
        """
        CREATE TABLE cost_lines(
            line_id TEXT PRIMARY KEY NOT NULL,
            run_id TEXT,
            project TEXT,
            category TEXT NOT NULL CHECK (category IN ('gpu', 'storage', 'egress', 'labor', 'data', 'inference', 'other')),
            amount TEXT NOT NULL,
            currency TEXT NOT NULL,
            description TEXT NOT NULL,
            date TEXT NOT NULL,
            by_hand INTEGER NOT NULL CHECK (by_hand IN (0, 1)),
            CHECK ((run_id IS NULL) <> (project IS NULL))
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX cost_lines_by_run ON cost_lines(run_id);
        CREATE INDEX cost_lines_by_project ON cost_lines(project);
        """,
        "ALTER TABLE progress ADD COLUMN samples INTEGER NOT NULL DEFAULT 0;",
    ];
}
