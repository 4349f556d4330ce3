using System.Diagnostics;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>Adds up the wall time of each phase of this process; one phase runs at a time.</summary>
internal sealed class PhaseClock
{
    private readonly Dictionary<TrainingPhase, double> seconds = [];
    private TrainingPhase current = TrainingPhase.Starting;
    private long since = Stopwatch.GetTimestamp();

    public IReadOnlyDictionary<TrainingPhase, double> Seconds => seconds;

    public void Enter(TrainingPhase phase)
    {
        seconds[current] = seconds.GetValueOrDefault(current) + Stopwatch.GetElapsedTime(since).TotalSeconds;
        current = phase;
        since = Stopwatch.GetTimestamp();
    }
}
