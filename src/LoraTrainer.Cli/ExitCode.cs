namespace LoraTrainer.Cli;

/// <summary>What the program tells the shell. Scripts rely on these numbers.</summary>
internal enum ExitCode
{
    Done = 0,

    /// <summary>Failed while running, a full disk included.</summary>
    Failed = 1,

    /// <summary>The configuration, the data or the command line is wrong.</summary>
    WrongInput = 2,

    /// <summary>The budget is reached; stopped in good order.</summary>
    BudgetReached = 3,

    /// <summary>Interrupted by a notice or a signal; can be resumed.</summary>
    Interrupted = 75,

    /// <summary>Aborted by a second signal.</summary>
    Aborted = 130,
}
