using System.Diagnostics;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>Adds up the wall time of each phase of this process; one phase runs at a time. Any thread may read.</summary>
internal sealed class PhaseClock
{
    private readonly Lock gate = new();
    private readonly Dictionary<TrainingPhase, double> seconds = [];
    private TrainingPhase current = TrainingPhase.Starting;
    private long since = Stopwatch.GetTimestamp();

    public TrainingPhase Current
    {
        get
        {
            lock (gate)
            {
                return current;
            }
        }
    }

    /// <summary>Up to now, the phase that runs included.</summary>
    public IReadOnlyDictionary<TrainingPhase, double> Seconds
    {
        get
        {
            lock (gate)
            {
                return new Dictionary<TrainingPhase, double>(seconds) { [current] = seconds.GetValueOrDefault(current) + Stopwatch.GetElapsedTime(since).TotalSeconds };
            }
        }
    }

    public void Enter(TrainingPhase phase)
    {
        lock (gate)
        {
            seconds[current] = seconds.GetValueOrDefault(current) + Stopwatch.GetElapsedTime(since).TotalSeconds;
            current = phase;
            since = Stopwatch.GetTimestamp();
        }
    }
}
