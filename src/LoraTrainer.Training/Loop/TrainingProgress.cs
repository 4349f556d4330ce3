using System.Diagnostics.CodeAnalysis;
using LoraTrainer.Training.Evaluation;

[assembly: SuppressMessage("Naming", "CA1716", Scope = "namespace", Target = "~N:LoraTrainer.Training.Loop", Justification = "The training loop is called that; no other language reads this assembly.")]

namespace LoraTrainer.Training.Loop;

/// <summary>What a run is doing.</summary>
public enum TrainingPhase
{
    Starting,
    Loading,
    Quantizing,
    Tokenizing,
    Evaluating,
    Training,
    Saving,
    Done,
}

/// <summary>The state of a run at one moment. What is not known yet is null. A struct, so that telling it each step allocates nothing.</summary>
public readonly record struct TrainingProgress
{
    public TrainingPhase Phase { get; init; }

    /// <summary>Optimizer steps done.</summary>
    public int Step { get; init; }

    public int TotalSteps { get; init; }

    /// <summary>Of the last step: mean over supervised tokens.</summary>
    public double? Loss { get; init; }

    public double? LearningRate { get; init; }

    /// <summary>Before clipping.</summary>
    public double? GradientNorm { get; init; }

    public double? TokensPerSecond { get; init; }

    public double? SupervisedTokensPerSecond { get; init; }

    /// <summary>The process's memory, or the GPU's.</summary>
    public long? MemoryBytes { get; init; }

    public TimeSpan Elapsed { get; init; }

    public TimeSpan? Remaining { get; init; }

    public decimal? MoneySpent { get; init; }

    /// <summary>What the run will have cost at its end, if it goes on as it does.</summary>
    public decimal? MoneyForecast { get; init; }

    public string? Currency { get; init; }

    /// <summary>A few words about the moment, such as the file that is being read.</summary>
    public string? Message { get; init; }

    /// <summary>How much of the phase is done, 0..1; in training that of the steps.</summary>
    public double? Fraction { get; init; }
}

/// <summary>Is told how a run goes. Progress and samples come from the training thread, notices and warnings from any: an observer returns at once and never throws.</summary>
public interface ITrainingObserver
{
    /// <summary>After each step, and when a phase starts or gets on.</summary>
    void OnProgress(in TrainingProgress progress);

    /// <summary>Something the user should know and need not act on, as a whole sentence.</summary>
    void OnNotice(string sentence);

    /// <summary>Something that is probably not meant, as a whole sentence.</summary>
    void OnWarning(string sentence);

    /// <summary>The held-out loss was measured during the training.</summary>
    /// <param name="point">After which step, and what it was.</param>
    /// <param name="isBest">It is lower than all before it.</param>
    void OnEvaluation(EvaluationPoint point, bool isBest);

    /// <summary>One held-out row that was answered during evaluation.</summary>
    void OnSample(string prompt, string expected, string generated);
}
