namespace LoraTrainer.Training.Loop;

/// <summary>The run cannot start as it was asked for, and the user can change that: the message says how.</summary>
public sealed class TrainingSetupException : Exception
{
    public TrainingSetupException(string message)
        : base(message) => Problems = [message];

    public TrainingSetupException(string message, Exception cause)
        : base(message, cause) => Problems = [message];

    /// <param name="problems">At least one; told at once, because who mends the first would only come to the next.</param>
    public TrainingSetupException(IReadOnlyList<string> problems)
        : base(string.Join('\n', problems)) => Problems = problems;

    /// <summary>All that is wrong, each by itself.</summary>
    public IReadOnlyList<string> Problems { get; }
}

/// <summary>A loss or gradient is no longer a finite number. Nothing of the step was applied.</summary>
/// <param name="finding">Which step, what was found, where first, and in which rows: without a full stop.</param>
/// <param name="consequence">What became of it and what to do, in sentences.</param>
public sealed class NonFiniteException(string finding, string consequence) : Exception($"{finding}. {consequence}")
{
    public string Finding => finding;
}
