using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Evaluation;

/// <summary>After which steps of a run the held-out loss is measured. It follows from the config and the data alone, so that a resumed run evaluates where it would have.</summary>
public sealed class EvaluationSchedule
{
    private readonly SortedSet<int> steps = [];

    private EvaluationSchedule()
    {
    }

    /// <summary>Evaluations of the whole run.</summary>
    public int Count => steps.Count;

    /// <summary>The schedule that a config describes; empty where nothing is held out.</summary>
    /// <param name="options">Of the run.</param>
    /// <param name="data">Its rows and steps.</param>
    public static EvaluationSchedule From(EvaluationOptions options, TrainingData data)
    {
        var schedule = new EvaluationSchedule();
        int total = data.Order.TotalSteps;
        if (options.Strategy == EvaluationStrategy.No || data.HeldOut.Count == 0 || total == 0)
        {
            return schedule;
        }

        if (options.Steps > 0)
        {
            int every = options.Steps < 1 ? (int)Math.Ceiling(total * options.Steps) : (int)options.Steps;
            for (long step = every; step <= total; step += every)
            {
                schedule.steps.Add((int)step);
            }
        }
        else
        {
            int times = options.Strategy == EvaluationStrategy.Epoch ? 1 : options.PerEpoch;
            foreach ((int first, int count) in data.Order.Epochs())
            {
                for (int part = 1; part <= times; part++)
                {
                    // The part-th of its evaluations comes when that share of the epoch's steps is done.
                    int step = first + (int)(((long)count * part + times - 1) / times);
                    if (step <= total)
                    {
                        schedule.steps.Add(step);
                    }
                }
            }
        }

        // What the run ends with can be the best only if it is measured.
        schedule.steps.Add(total);
        return schedule;
    }

    /// <param name="step">Optimizer steps that are done.</param>
    public bool IsDue(int step) => steps.Contains(step);

    /// <summary>Evaluations that come after so many steps.</summary>
    public int After(int step) => steps.Count - steps.Count(at => at <= step);
}
