using System.Globalization;
using System.Security.Cryptography;
using LoraTrainer.Storage;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Checkpoints;

/// <summary>The lease is another machine's now: this process writes nothing more to the run.</summary>
public sealed class LeaseLostException(string message) : IOException(message);

/// <summary>
/// Keeps all but one process away from a run, wherever they are: <c>RUN/lease.json</c>, changed by compare-and-swap only. No clocks need to agree:
/// a holder changes the lease every third of its time, and a waiter takes over when it has seen no change for all of that time on a clock of its own,
/// or at once if the lease was given back or its holder is provably dead. A holder that could not renew for as long, counted from the sending of
/// what was last confirmed, writes nothing until it has renewed.
/// </summary>
public sealed class RunLease : IAsyncDisposable
{
    /// <summary>The lease's name in the run's prefix.</summary>
    public const string FileName = "lease.json";

    private static readonly TimeSpan LongestPoll = TimeSpan.FromSeconds(2);

    private readonly IObjectStore store;
    private readonly string key;
    private readonly bool isSwapped;
    private readonly TimeProvider time;
    private readonly Action<string> onWarning;
    private readonly SemaphoreSlim writing = new(1, 1);
    private readonly CancellationTokenSource lost = new();
    private readonly CancellationTokenSource ending = new();

    // What was sent since the last confirmation: an answer that was lost may still have been written.
    private readonly Dictionary<string, long> sent = new(StringComparer.Ordinal);

    private LeaseRecord record;
    private string version;
    private long confirmed;
    private Task renewing = Task.CompletedTask;

    private RunLease(IObjectStore store, string key, bool isSwapped, TimeProvider time, Action<string> onWarning, LeaseRecord record, string version, long confirmed)
    {
        this.store = store;
        this.key = key;
        this.isSwapped = isSwapped;
        this.time = time;
        this.onWarning = onWarning;
        this.record = record;
        this.version = version;
        this.confirmed = confirmed;
    }

    public int Epoch => record.Epoch;

    public string RunId => record.RunId;

    /// <summary>Cancelled when another machine has taken the run over.</summary>
    public CancellationToken Lost => lost.Token;

    /// <summary>False while nothing may be written: the lease is another's, or may be by now.</summary>
    public bool IsHeld => !lost.IsCancellationRequested && time.GetElapsedTime(Volatile.Read(ref confirmed)).TotalSeconds < record.Seconds;

    /// <summary>The lease of a run as it is now; null where it has none.</summary>
    public static async Task<LeaseRecord?> ReadAsync(IObjectStore store, string runName, CancellationToken cancellation = default) =>
        await ReadVersionAsync(store, $"{runName}/{FileName}", cancellation).ConfigureAwait(false) is ({ } found, _) ? found : null;

    /// <summary>Takes the lease, waiting for its holder where there is one.</summary>
    /// <param name="store">Holds the run.</param>
    /// <param name="runName">The run's prefix.</param>
    /// <param name="request">How.</param>
    /// <param name="cancellation">Gives up.</param>
    /// <exception cref="TrainingSetupException">Another process has it, and waiting is not wanted.</exception>
    public static async Task<RunLease> AcquireAsync(IObjectStore store, string runName, LeaseRequest request, CancellationToken cancellation)
    {
        string key = $"{runName}/{FileName}";
        TimeProvider time = request.Time;
        (string Nonce, long Since) seen = request.Seen;
        bool toldWaiting = false;
        while (true)
        {
            (LeaseRecord? found, string foundVersion) = await ReadVersionAsync(store, key, cancellation).ConfigureAwait(false);
            bool isFree = found is null || found.State != LeaseState.Held || found.Holder.IsProvablyDead;
            if (found is { State: LeaseState.Held } && !isFree)
            {
                if (found.Nonce != seen.Nonce)
                {
                    seen = (found.Nonce, time.GetTimestamp());
                }

                TimeSpan unchanged = time.GetElapsedTime(seen.Since);
                isFree = unchanged.TotalSeconds >= found.Seconds;
                if (isFree)
                {
                    request.OnNotice(string.Create(CultureInfo.InvariantCulture, $"The run's lease, of {found.Holder}, has not been renewed for {unchanged.TotalSeconds:0} s: this process takes the run over."));
                }
                else if (!request.Waits)
                {
                    throw new TrainingSetupException(
                        $"Another process works on the run {runName} in {store.Location}: {found.Holder}. Stop it first, or use resume: auto, which waits until it has ended or died.");
                }
                else if (!toldWaiting)
                {
                    toldWaiting = true;
                    request.OnNotice(string.Create(CultureInfo.InvariantCulture,
                        $"{found.Holder} works on the run {runName}. This process waits; it goes on when that one ends, or has given no sign of life for {found.Seconds:0} s."));
                }

                if (!isFree)
                {
                    TimeSpan pause = TimeSpan.FromSeconds(found.Seconds / 10);
                    await Task.Delay(pause < LongestPoll ? pause : LongestPoll, time, cancellation).ConfigureAwait(false);
                    continue;
                }
            }

            string nonce = NewNonce();
            var next = new LeaseRecord(
                found?.RunId ?? request.RunId ?? Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(16)), Math.Max(found?.Epoch ?? 0, request.EpochFloor) + 1,
                LeaseState.Held, nonce, request.Seconds, LeaseHolder.Current, time.GetUtcNow());
            long sending = time.GetTimestamp();
            PutCondition condition = !request.IsSwapped ? default : found is null ? PutCondition.IfAbsent : PutCondition.IfVersion(foundVersion);
            if (await PutAsync(store, key, next, condition, cancellation).ConfigureAwait(false) is { } version)
            {
                return new RunLease(store, key, request.IsSwapped, time, request.OnWarning, next, version, sending) { Previous = found };
            }

            // Somebody else was faster, or the answer to this very put was lost: the next look tells.
            (LeaseRecord? after, string afterVersion) = await ReadVersionAsync(store, key, cancellation).ConfigureAwait(false);
            if (after?.Nonce == nonce)
            {
                return new RunLease(store, key, request.IsSwapped, time, request.OnWarning, next, afterVersion, sending) { Previous = found };
            }
        }
    }

    /// <summary>The lease that was there before, of the process that this one takes over from; null for a new run.</summary>
    public LeaseRecord? Previous { get; private init; }

    /// <summary>Renews in the background, every third of the lease's time, until it is given back or lost.</summary>
    /// <param name="onRenewed">Done after each renewal; what it throws is told as a warning.</param>
    public void StartRenewing(Func<CancellationToken, Task> onRenewed) => renewing = Task.Run(() => RenewAsync(onRenewed));

    /// <summary>
    /// Renews at once where the last renewal is too old: after a machine slept, or the store was away, what is to be written need not wait for the next round,
    /// and whether another machine has the run by now is known before it is refused.
    /// </summary>
    /// <exception cref="LeaseLostException">Nothing may be written now.</exception>
    /// <exception cref="IOException">The store does not answer.</exception>
    public async Task RequireHeldAsync()
    {
        // For as long as the store itself has patience. What took so long may be too old again when it arrives; the next one does not.
        for (int i = 0; i < 2 && !lost.IsCancellationRequested && !IsHeld; i++)
        {
            await WriteAsync(LeaseState.Held, Timeout.InfiniteTimeSpan).ConfigureAwait(false);
        }

        RequireHeld();
    }

    /// <exception cref="LeaseLostException">Nothing may be written now.</exception>
    public void RequireHeld()
    {
        if (lost.IsCancellationRequested)
        {
            throw new LeaseLostException("Another machine has taken this run over: nothing more is written to it from here.");
        }

        if (!IsHeld)
        {
            throw new LeaseLostException("The run's lease could not be renewed in time, so another machine may work on the run by now: nothing is written until it is renewed.");
        }
    }

    /// <summary>Gives the lease back, so that whoever comes next need not wait. A lease that is lost stays as it is.</summary>
    public async Task ReleaseAsync(LeaseState state)
    {
        await StopRenewingAsync().ConfigureAwait(false);
        if (!lost.IsCancellationRequested)
        {
            try
            {
                await WriteAsync(state, TimeSpan.FromSeconds(record.Seconds)).ConfigureAwait(false);
            }
            catch (IOException exception)
            {
                onWarning($"The run's lease could not be given back ({exception.Message}); another machine has to wait until it runs out.");
            }
        }
    }

    /// <summary>The lease stays as it is until it runs out.</summary>
    public async Task StopRenewingAsync()
    {
        await ending.CancelAsync().ConfigureAwait(false);
        await renewing.ConfigureAwait(false);
    }

    public async ValueTask DisposeAsync()
    {
        await StopRenewingAsync().ConfigureAwait(false);
        ending.Dispose();
        lost.Dispose();
        writing.Dispose();
    }

    private async Task RenewAsync(Func<CancellationToken, Task> onRenewed)
    {
        var third = TimeSpan.FromSeconds(record.Seconds / 3);
        bool failed = false;
        while (!ending.IsCancellationRequested && !lost.IsCancellationRequested)
        {
            try
            {
                await Task.Delay(failed ? third / 4 : third, time, ending.Token).ConfigureAwait(false);
                await WriteAsync(LeaseState.Held, third * 1.5).ConfigureAwait(false);
                if (failed && IsHeld)
                {
                    onWarning("The run's lease is renewed again.");
                }

                failed = false;
                if (IsHeld)
                {
                    // Whatever it waits for, the next renewal does not.
                    using var limit = new CancellationTokenSource(third, time);
                    using var either = CancellationTokenSource.CreateLinkedTokenSource(limit.Token, ending.Token);
                    try
                    {
                        await onRenewed(either.Token).ConfigureAwait(false);
                    }
                    catch (OperationCanceledException) when (limit.IsCancellationRequested && !ending.IsCancellationRequested)
                    {
                        // It is said again after the next renewal.
                    }
                }
            }
            catch (OperationCanceledException) when (ending.IsCancellationRequested)
            {
                return;
            }
            catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
            {
                if (!failed)
                {
                    onWarning($"The run's lease could not be renewed: {exception.Message} Training goes on; it is tried again.");
                }

                failed = true;
            }
        }
    }

    /// <summary>One swap, with the comparison of nonces that a lost answer needs. Does not throw where the lease turns out to be another's: <see cref="Lost"/> tells.</summary>
    private async Task WriteAsync(LeaseState state, TimeSpan patience)
    {
        await writing.WaitAsync().ConfigureAwait(false);
        try
        {
            LeaseRecord next = record with { State = state, Nonce = NewNonce(), Written = time.GetUtcNow() };
            long sending = time.GetTimestamp();
            sent.Add(next.Nonce, sending);
            using var limit = new CancellationTokenSource(patience, time);
            try
            {
                if (await PutAsync(store, key, next, isSwapped ? PutCondition.IfVersion(version) : default, limit.Token).ConfigureAwait(false) is { } stored)
                {
                    Confirm(next, stored, sending);
                    return;
                }

                (LeaseRecord? found, string foundVersion) = await ReadVersionAsync(store, key, limit.Token).ConfigureAwait(false);
                if (found is not null && (sent.ContainsKey(found.Nonce) || found.Nonce == record.Nonce))
                {
                    // An earlier swap of this process, whose answer was lost. Its content may be older than what was to be said: say it again.
                    Confirm(found, foundVersion, sent.GetValueOrDefault(found.Nonce, confirmed));
                    if (state != found.State && await PutAsync(store, key, next, PutCondition.IfVersion(version), limit.Token).ConfigureAwait(false) is { } again)
                    {
                        Confirm(next, again, sending);
                    }

                    return;
                }
            }
            catch (OperationCanceledException) when (limit.IsCancellationRequested)
            {
                throw new StoreException(StoreProblem.Unreachable, $"{store.Location} did not answer within {patience.TotalSeconds.ToString("0.#", CultureInfo.InvariantCulture)} s.");
            }

            await lost.CancelAsync().ConfigureAwait(false);
        }
        finally
        {
            writing.Release();
        }
    }

    private void Confirm(LeaseRecord written, string writtenVersion, long sending)
    {
        record = written;
        version = writtenVersion;
        Volatile.Write(ref confirmed, sending);
        sent.Clear();
    }

    private static string NewNonce() => Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(8));

    private static async Task<string?> PutAsync(IObjectStore store, string key, LeaseRecord record, PutCondition condition, CancellationToken cancellation)
    {
        using var content = new MemoryStream(record.ToJson());
        return await store.PutAsync(key, content, condition, cancellation: cancellation).ConfigureAwait(false);
    }

    private static async Task<(LeaseRecord? Record, string Version)> ReadVersionAsync(IObjectStore store, string key, CancellationToken cancellation)
    {
        StoredContent? stored = await store.GetAsync(key, cancellation).ConfigureAwait(false);
        if (stored is null)
        {
            return (null, string.Empty);
        }

        await using (stored.ConfigureAwait(false))
        {
            if (stored.SizeBytes > LeaseRecord.LargestBytes)
            {
                throw LeaseRecord.Refused(ObjectStore.Append(store.Location, key), $"it has {stored.SizeBytes} bytes");
            }

            using var content = new MemoryStream();
            await stored.Content.CopyToAsync(content, cancellation).ConfigureAwait(false);
            return (LeaseRecord.Parse(ObjectStore.Append(store.Location, key), content.ToArray()), stored.Version);
        }
    }
}

/// <summary>How a lease is to be taken.</summary>
public sealed record LeaseRequest
{
    /// <summary>After so many seconds without a renewal another machine may take the run over.</summary>
    public required double Seconds { get; init; }

    /// <summary>Wait for a holder; otherwise a holder is an error.</summary>
    public required bool Waits { get; init; }

    /// <summary>A lease that has been looked at before: its nonce, and since when it has been so, by <see cref="Time"/>.</summary>
    public (string Nonce, long Since) Seen { get; init; } = (string.Empty, 0);

    /// <summary>The store has compare-and-swap; without it nothing keeps two machines apart.</summary>
    public required bool IsSwapped { get; init; }

    /// <summary>The highest epoch that any checkpoint of the run names; the lease gets a higher one even where lease.json was deleted.</summary>
    public int EpochFloor { get; init; }

    /// <summary>The run's identity where checkpoints know it and no lease does.</summary>
    public string? RunId { get; init; }

    public required TimeProvider Time { get; init; }

    public required Action<string> OnNotice { get; init; }

    public required Action<string> OnWarning { get; init; }
}
