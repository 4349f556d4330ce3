namespace LoraTrainer.Training.Tests.Checkpoints;

/// <summary>A clock that stands still until a test moves it. Its wall clock may be any hours off; timers follow the other one.</summary>
internal sealed class ManualTime(TimeSpan wallOffset = default) : TimeProvider
{
    private static readonly DateTimeOffset Start = new(2030, 1, 1, 0, 0, 0, TimeSpan.Zero);

    private readonly Lock gate = new();
    private readonly List<Timer> timers = [];
    private TimeSpan now;

    public override long TimestampFrequency => TimeSpan.TicksPerSecond;

    /// <summary>What is left of each timer that runs, the shortest first.</summary>
    public TimeSpan[] Pending
    {
        get
        {
            lock (gate)
            {
                return [.. timers.Select(timer => timer.Due - now).Order()];
            }
        }
    }

    public override long GetTimestamp()
    {
        lock (gate)
        {
            return now.Ticks;
        }
    }

    public override DateTimeOffset GetUtcNow() => Start + wallOffset + TimeSpan.FromTicks(GetTimestamp());

    public void Advance(TimeSpan by)
    {
        lock (gate)
        {
            now += by;
        }

        while (NextDue() is { } timer)
        {
            timer.Fire();
        }
    }

    public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
    {
        var timer = new Timer(this, () => callback(state));
        timer.Change(dueTime, period);
        return timer;
    }

    private Timer? NextDue()
    {
        lock (gate)
        {
            Timer? due = timers.Where(timer => timer.Due <= now).MinBy(timer => timer.Due);
            if (due is not null)
            {
                timers.Remove(due);
            }

            return due;
        }
    }

    private sealed class Timer(ManualTime time, Action fire) : ITimer
    {
        public TimeSpan Due { get; private set; }

        public void Fire() => fire();

        public bool Change(TimeSpan dueTime, TimeSpan period)
        {
            lock (time.gate)
            {
                time.timers.Remove(this);
                if (dueTime != Timeout.InfiniteTimeSpan)
                {
                    Due = time.now + dueTime;
                    time.timers.Add(this);
                }
            }

            return true;
        }

        public void Dispose() => Change(Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);

        public ValueTask DisposeAsync()
        {
            Dispose();
            return ValueTask.CompletedTask;
        }
    }
}
