namespace LoraTrainer.Storage;

/// <summary>Shares a bandwidth between all transfers of a store: each takes its bytes before it moves them, and waits until they are due.</summary>
internal sealed class TransferLimit(double? mibPerSecond, TimeProvider time)
{
    // Unused bandwidth of this long may be used up at once.
    private static readonly TimeSpan Burst = TimeSpan.FromMilliseconds(100);

    private readonly Lock gate = new();
    private readonly long origin = time.GetTimestamp();
    private TimeSpan free;

    /// <summary>How many bytes to move at once, so that waits stay short; <paramref name="wanted"/> where there is no limit.</summary>
    public int Portion(int wanted) => mibPerSecond is { } rate ? Math.Min(wanted, (int)Math.Clamp(rate * (1 << 20) / 20, 1024, 1 << 20)) : wanted;

    public ValueTask TakeAsync(int bytes, CancellationToken cancellation)
    {
        TimeSpan wait = Reserve(bytes);
        return wait > TimeSpan.Zero ? new ValueTask(Task.Delay(wait, time, cancellation)) : ValueTask.CompletedTask;
    }

    private TimeSpan Reserve(int bytes)
    {
        if (mibPerSecond is not { } rate)
        {
            return TimeSpan.Zero;
        }

        lock (gate)
        {
            TimeSpan now = time.GetElapsedTime(origin);
            TimeSpan due = free > now - Burst ? free : now - Burst;
            free = due + TimeSpan.FromSeconds(bytes / (rate * (1 << 20)));
            return free - now;
        }
    }
}
