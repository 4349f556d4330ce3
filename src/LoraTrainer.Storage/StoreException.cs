namespace LoraTrainer.Storage;

/// <summary>Why a store did not do what was asked.</summary>
public enum StoreProblem
{
    /// <summary>No answer, or only failures, for as long as was tried.</summary>
    Unreachable,

    /// <summary>There are no credentials, they are wrong, or they have expired.</summary>
    Credentials,

    /// <summary>The credentials are right and not allowed to do this.</summary>
    Denied,

    /// <summary>The bucket or folder does not exist.</summary>
    Missing,

    /// <summary>A quota or the disk is full.</summary>
    Full,

    /// <summary>This machine's clock is wrong.</summary>
    Clock,

    /// <summary>The store lacks a feature, or was asked for it in a way that it does not take.</summary>
    Unsupported,
}

/// <summary>A store that did not do what was asked, in a sentence that says what to do. Never holds a secret.</summary>
public sealed class StoreException : IOException
{
    public StoreException(StoreProblem problem, string message, Exception? cause = null)
        : base(message, cause)
    {
        Problem = problem;
    }

    public StoreProblem Problem { get; }
}
