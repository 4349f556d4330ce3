using System.Diagnostics;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>How this process gets on, for those who look at the run from elsewhere. The training thread leaves its numbers here; another one takes them.</summary>
internal sealed class RunPulse(RunLease lease, BilledMachine machine, PhaseClock phases, TimeProvider time)
{
    private readonly Lock gate = new();
    private readonly TimeSpan before = time.GetUtcNow() - machine.Since;
    private readonly long since = Stopwatch.GetTimestamp();
    private string device = string.Empty;
    private StepResult last;
    private int firstStep;
    private int totalSteps;
    private int? savedStep;
    private long tokens;
    private long samples;
    private double? expectedHours;
    private TimeSpan stalled;

    /// <summary>What the machine is billed for so far: since the process started, or the machine did, by a clock that nobody sets.</summary>
    public double ProcessSeconds => (before + Stopwatch.GetElapsedTime(since)).TotalSeconds;

    public void Opened(string description, int total)
    {
        lock (gate)
        {
            device = description;
            totalSteps = total;
        }
    }

    /// <summary>The run ends here, earlier than was planned.</summary>
    public void EndsAt(int step)
    {
        lock (gate)
        {
            totalSteps = step;
        }
    }

    /// <param name="hours">That the whole run is expected to take; null: not known.</param>
    public void Expects(double? hours)
    {
        lock (gate)
        {
            expectedHours = hours;
        }
    }

    public void StartsAfter(int step)
    {
        lock (gate)
        {
            (firstStep, last) = (step, last with { Step = step });
        }
    }

    public void Did(in StepResult step)
    {
        lock (gate)
        {
            last = step;
            tokens += step.Tokens;
            samples += step.Samples;
        }
    }

    /// <summary>A save kept the steps waiting for so long.</summary>
    public void Stalled(TimeSpan time)
    {
        lock (gate)
        {
            stalled += time;
        }
    }

    public void Saved(int step)
    {
        lock (gate)
        {
            savedStep = step;
        }
    }

    /// <param name="ended">How the process ends; null while it runs.</param>
    public AttemptRecord Take(string? ended = null)
    {
        lock (gate)
        {
            return new AttemptRecord
            {
                RunId = lease.RunId,
                Epoch = lease.Epoch,
                Holder = LeaseHolder.Current,
                Started = machine.Since,
                LastSeen = time.GetUtcNow(),
                Seconds = ProcessSeconds,
                PhaseSeconds = phases.Seconds,
                Phase = phases.Current,
                Device = device,
                FirstStep = firstStep,
                Step = last.Step,
                TotalSteps = totalSteps,
                SavedStep = savedStep,
                Tokens = tokens,
                Samples = samples,
                ExpectedHours = expectedHours,
                Loss = last.Seconds > 0 ? last.Loss : null,
                TokensPerSecond = last.Seconds > 0 ? last.Tokens / last.Seconds : null,
                StallSeconds = stalled.TotalSeconds,
                Machine = machine.Identity,
                Gpu = machine.Gpu,
                Rate = machine.Rate,
                Ended = ended,
            };
        }
    }
}
