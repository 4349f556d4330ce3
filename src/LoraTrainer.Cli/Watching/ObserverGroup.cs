using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli.Watching;

/// <summary>Tells each observer what one is told.</summary>
internal sealed class ObserverGroup(params ITrainingObserver?[] observers) : ITrainingObserver
{
    private readonly ITrainingObserver[] observers = [.. observers.OfType<ITrainingObserver>()];

    public void OnProgress(in TrainingProgress progress)
    {
        foreach (ITrainingObserver observer in observers)
        {
            observer.OnProgress(progress);
        }
    }

    public void OnNotice(string sentence) => Array.ForEach(observers, observer => observer.OnNotice(sentence));

    public void OnWarning(string sentence) => Array.ForEach(observers, observer => observer.OnWarning(sentence));

    public void OnEvaluation(EvaluationPoint point, bool isBest) => Array.ForEach(observers, observer => observer.OnEvaluation(point, isBest));

    public void OnSample(string prompt, string expected, string generated) => Array.ForEach(observers, observer => observer.OnSample(prompt, expected, generated));
}
