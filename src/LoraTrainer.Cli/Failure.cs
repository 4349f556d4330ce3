using LoraTrainer.Costs.Ledger;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Storage;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli;

/// <summary>The one place that turns an exception into sentences and an exit code.</summary>
internal static class Failure
{
    // errno of Linux and macOS, and the code of Windows.
    private const int NoSpace = 28;
    private const int QuotaLinux = 122;
    private const int QuotaMac = 69;
    private const int DiskFullWindows = unchecked((int)0x80070070);

    public static ExitCode Report(Exception exception, Terminal terminal, bool stopRequested, bool debug)
    {
        while (exception is AggregateException { InnerExceptions.Count: 1 } or TypeInitializationException or System.Reflection.TargetInvocationException && exception.InnerException is { } inner)
        {
            exception = inner;
        }

        (ExitCode code, string[] sentences) = Describe(exception, stopRequested, debug);
        if (exception is CudaException { Fault: not GpuFault.None and var fault } && GpuInquiry.Ask(fault) is { } found)
        {
            sentences = [.. sentences, found];
        }

        foreach (string sentence in sentences)
        {
            terminal.Error(sentence);
        }

        if (debug)
        {
            terminal.Error(exception.ToString(), prefix: false);
        }

        terminal.JsonError(sentences, code);
        return code;
    }

    /// <summary>What the user is told, and the exit code.</summary>
    internal static (ExitCode Code, string[] Sentences) Describe(Exception exception, bool stopRequested, bool debug) => exception switch
    {
        ConfigurationException wrong => (ExitCode.WrongInput, [.. wrong.Errors.Select(error => error.Message)]),
        TrainingSetupException wrong => (ExitCode.WrongInput, [.. wrong.Problems]),
        DatasetException => (ExitCode.WrongInput, [Sentence(exception.Message)]),
        NonFiniteException or CudaException or PassGraphException or KernelCompilationException or LedgerException => (ExitCode.Failed, [exception.Message]),
        OperationCanceledException when stopRequested => (ExitCode.Interrupted, ["Stopped as requested."]),
        _ when IsFormat(exception) => (ExitCode.WrongInput, [Sentence(exception.Message)]),
        StoreException { Problem: not (StoreProblem.Unreachable or StoreProblem.Full) } => (ExitCode.WrongInput, [Sentence(exception.Message)]),
        FileNotFoundException or DirectoryNotFoundException => (ExitCode.WrongInput, [Sentence(exception.Message)]),
        UnauthorizedAccessException => (ExitCode.Failed, [$"{Sentence(exception.Message)} Check the owner and the permissions."]),
        IOException { HResult: NoSpace or QuotaLinux or QuotaMac or DiskFullWindows } => (ExitCode.Failed, [$"The disk is full: {Sentence(exception.Message)}{(exception.Message.Contains("Free space", StringComparison.Ordinal) ? "" : " Free some space, or put output_dir on another disk.")}"]),
        IOException => (ExitCode.Failed, [Sentence(exception.Message)]),
        InsufficientMemoryException => (ExitCode.Failed, [$"There is not enough memory: {Sentence(exception.Message)} Use a smaller micro_batch_size or sequence_len, or gradient_checkpointing: true."]),
        OutOfMemoryException => (ExitCode.Failed, ["There is not enough memory. Use a smaller micro_batch_size or sequence_len, or gradient_checkpointing: true."]),
        _ => (ExitCode.Failed, [$"{Sentence(exception.Message)} This is a defect of lora-trainer, not a mistake of yours.{(debug ? "" : " Please report it with what the same command says with --debug.")}"]),
    };

    /// <summary>A file that does not hold what it should; each kind of file has its own exception.</summary>
    private static bool IsFormat(Exception exception) => exception is FormatException or InvalidDataException || exception.GetType().Name.EndsWith("FormatException", StringComparison.Ordinal);

    private static string Sentence(string message)
    {
        string text = message.ReplaceLineEndings(" ").Trim();
        return text.EndsWith('.') || text.EndsWith('?') ? text : text + ".";
    }
}
