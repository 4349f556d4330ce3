using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli;

/// <summary>Shows how an evaluation goes and keeps its samples.</summary>
internal sealed class EvaluationDisplay(Terminal terminal, string what) : ITrainingObserver
{
    private readonly ProgressLine line = new(terminal, what);
    private readonly List<(string Prompt, string Expected, string Generated)> samples = [];

    /// <summary>The first rows with what was generated for them.</summary>
    public IReadOnlyList<(string Prompt, string Expected, string Generated)> Samples => samples;

    public void OnProgress(in TrainingProgress progress) => line.Tell(progress.Message ?? "", progress.Fraction ?? 0);

    public void OnNotice(string sentence) => terminal.Note(sentence);

    public void OnWarning(string sentence) => terminal.Warn(sentence);

    public void OnEvaluation(EvaluationPoint point, bool isBest)
    {
        // Of a training; there is none.
    }

    public void OnSample(string prompt, string expected, string generated) => samples.Add((prompt, expected, generated));
}
