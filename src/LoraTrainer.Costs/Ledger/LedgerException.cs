namespace LoraTrainer.Costs.Ledger;

/// <summary>The ledger cannot be read or written. The message is a sentence for the person at the terminal.</summary>
public sealed class LedgerException : Exception
{
    public LedgerException(string message)
        : base(message)
    {
    }

    public LedgerException(string message, Exception inner)
        : base(message, inner)
    {
    }
}
