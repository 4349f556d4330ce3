using System.Diagnostics;
using LoraTrainer.Training.Interruptions;

namespace LoraTrainer.Training.Checkpoints;

/// <summary>
/// Saves checkpoints behind the training: it takes a folder that the training has written and puts it into the store while the steps go on. One is
/// under way at a time; one waits, and a newer one takes its place. One that later ones need is not replaced by them: they are saved after it, or not at all.
/// </summary>
internal sealed class CheckpointWriter(CheckpointStore store, int keep, Action<string> onWarning, Action<int, TimeSpan> onSafe) : IProgress<long>
{
    private readonly Lock gate = new();
    private readonly List<TimeSpan> commitTimes = [];
    private readonly List<Item> queued = [];
    private Task worker = Task.CompletedTask;
    private bool isDraining;
    private long arrivedBytes;
    private long totalBytes;

    /// <summary>The newest that is safe; null before the first.</summary>
    public Checkpoint? Committed { get; private set; }

    /// <summary>Why the last one that was tried is not safe; null where it is.</summary>
    public Exception? Failure { get; private set; }

    /// <summary>Why the first one that was not safe is not, whatever came after it; null where all were.</summary>
    public Exception? FirstFailure { get; private set; }

    /// <summary>Bytes of the checkpoint under way that have arrived, and all of them; zeros between two.</summary>
    public (long Arrived, long Total) Progress => (Interlocked.Read(ref arrivedBytes), Interlocked.Read(ref totalBytes));

    /// <summary>How long a checkpoint takes from the first byte to the manifest, in 95 of 100 cases so far; null before the first.</summary>
    public TimeSpan? CommitTime
    {
        get
        {
            lock (gate)
            {
                return DeadlinePolicy.Percentile95(commitTimes);
            }
        }
    }

    /// <summary>Hands a checkpoint over. The folder is the writer's from now on.</summary>
    /// <param name="step">That it holds.</param>
    /// <param name="folder">With its files.</param>
    /// <param name="needs">Steps of the checkpoints that it refers to.</param>
    /// <param name="isNeeded">Later ones may refer to it: where it cannot be saved it is tried again before the next one.</param>
    public void Enqueue(int step, StagingFolder folder, IReadOnlyList<int> needs, bool isNeeded)
    {
        lock (gate)
        {
            foreach (Item waiting in queued.Where(item => !needs.Contains(item.Step)).ToArray())
            {
                waiting.Folder.Dispose();
                queued.Remove(waiting);
            }

            queued.Add(new Item(step, folder, needs, isNeeded));
            if (!isDraining)
            {
                isDraining = true;
                worker = Task.Run(DrainAsync);
            }
        }
    }

    /// <summary>Completes when nothing is under way or waiting.</summary>
    public async Task FlushAsync()
    {
        while (true)
        {
            Task current;
            lock (gate)
            {
                if (!isDraining)
                {
                    return;
                }

                current = worker;
            }

            await current.ConfigureAwait(false);
        }
    }

    /// <summary>A checkpoint that could not even be written down here.</summary>
    public void Fail(int step, Exception exception)
    {
        Failure = exception;
        FirstFailure ??= exception;
        onWarning($"The checkpoint of step {step} could not be saved: {exception.Message} {(Committed is { } last ? $"The last one that is safe is of step {last.Step}." : "None of this process is safe yet.")}");
    }

    void IProgress<long>.Report(long value) => Interlocked.Exchange(ref arrivedBytes, value);

    private async Task DrainAsync()
    {
        while (true)
        {
            Item item;
            lock (gate)
            {
                if (queued.Count == 0)
                {
                    // Under the lock, so that what is handed over next starts another round.
                    isDraining = false;
                    return;
                }

                item = queued[0];
                queued.RemoveAt(0);
            }

            if (await SaveAsync(item).ConfigureAwait(false) || !item.IsNeeded)
            {
                item.Folder.Dispose();
                continue;
            }

            lock (gate)
            {
                if (queued.Count > 0 && !queued[^1].Needs.Contains(item.Step))
                {
                    // A newer one has taken its place.
                    item.Folder.Dispose();
                    continue;
                }

                // It waits for the next one that is handed over, and what needs it cannot be saved without it.
                foreach (Item later in queued)
                {
                    later.Folder.Dispose();
                    Fail(later.Step, Failure!);
                }

                queued.Clear();
                queued.Add(item);
                isDraining = false;
                return;
            }
        }
    }

    private async Task<bool> SaveAsync(Item item)
    {
        (int step, StagingFolder folder, IReadOnlyList<int> needs, bool _) = item;
        long start = Stopwatch.GetTimestamp();
        try
        {
            Interlocked.Exchange(ref totalBytes, Directory.EnumerateFiles(folder.Path).Sum(file => new FileInfo(file).Length));
            Checkpoint saved = await store.SaveAsync(step, folder.Path, needs, this).ConfigureAwait(false);
            TimeSpan took = Stopwatch.GetElapsedTime(start);
            lock (gate)
            {
                commitTimes.Add(took);
            }

            Committed = saved;
            Failure = null;
            onSafe(step, took);
            await store.ApplyRetentionAsync(keep, saved).ConfigureAwait(false);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            if (Committed?.Step == step)
            {
                onWarning($"The checkpoint of step {step} is safe, but older ones could not be removed: {exception.Message}");
            }
            else
            {
                Fail(step, exception);
                return false;
            }
        }
        finally
        {
            Interlocked.Exchange(ref arrivedBytes, 0);
            Interlocked.Exchange(ref totalBytes, 0);
        }

        return true;
    }

    private sealed record Item(int Step, StagingFolder Folder, IReadOnlyList<int> Needs, bool IsNeeded);
}
