using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.TestSupport;

/// <summary>Keeps what it is told and shows nothing.</summary>
public sealed class SilentObserver : ITrainingObserver
{
    public static SilentObserver Instance { get; } = new();

    public void OnProgress(in TrainingProgress progress)
    {
    }

    public void OnNotice(string sentence)
    {
    }

    public void OnWarning(string sentence)
    {
    }

    public void OnEvaluation(EvaluationPoint point, bool isBest)
    {
    }

    public void OnSample(string prompt, string expected, string generated)
    {
    }
}
