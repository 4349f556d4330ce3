namespace LoraTrainer.Training.Loop;

/// <summary>The run cannot start as it was asked for, and the user can change that: the message says how.</summary>
public sealed class TrainingSetupException : Exception
{
    public TrainingSetupException(string message)
        : base(message)
    {
    }

    public TrainingSetupException(string message, Exception cause)
        : base(message, cause)
    {
    }
}

/// <summary>A loss or gradient is no longer a finite number.</summary>
public sealed class NonFiniteException(string message) : Exception(message);
