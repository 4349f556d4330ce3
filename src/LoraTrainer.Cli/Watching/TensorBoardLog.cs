using System.Buffers.Binary;
using System.Globalization;
using System.Numerics;
using System.Text;
using LoraTrainer.Training;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli.Watching;

/// <summary>
/// Writes what a run measures as a TensorBoard event file: TFRecords (length, masked CRC-32C, content, masked CRC-32C) of Event messages
/// (tensorflow/core/util/event.proto, tensorflow/core/lib/io/record_writer.cc). Each process writes a file of its own; its first event says from which step
/// on it replaces those of processes before it. A file that cannot be written is told once and ends the log, never the run.
/// </summary>
internal sealed class TensorBoardLog : ITrainingObserver, IDisposable
{
    /// <summary>The folder in a run's output_dir.</summary>
    public const string FolderName = "tensorboard";

    // Fields of Event, Summary, Summary.Value and SessionLog.
    private const int WallTime = 1, Step = 2, FileVersion = 3, SummaryField = 5, SessionLog = 7;
    private const int SummaryValue = 1;
    private const int Tag = 1, SimpleValue = 2;
    private const int Status = 1, StatusStart = 1;

    private readonly string folder;
    private readonly TimeProvider time;
    private readonly Action<string> warn;
    private FileStream? stream;
    private int lastStep = -1;
    private int lastEvaluated = -1;
    private bool isBroken;

    /// <param name="outputDir">Of the run; the file is made when its first step is due.</param>
    /// <param name="time">The clock.</param>
    /// <param name="warn">Is told, once, that the file cannot be written.</param>
    public TensorBoardLog(string outputDir, TimeProvider time, Action<string> warn)
    {
        folder = Path.Combine(outputDir, FolderName);
        this.time = time;
        this.warn = warn;
    }

    public void OnProgress(in TrainingProgress progress)
    {
        if (progress.Phase != TrainingPhase.Training || isBroken)
        {
            return;
        }

        if (stream is null)
        {
            int first = progress.Loss is null ? progress.Step + 1 : progress.Step;
            Try(() => Open(first));
        }

        if (progress.Loss is { } loss && progress.Step > lastStep)
        {
            lastStep = progress.Step;
            (string, double?)[] values =
            [
                ("train/loss", loss),
                ("train/learning_rate", progress.LearningRate),
                ("train/grad_norm", progress.GradientNorm),
                ("speed/tokens_per_second", progress.TokensPerSecond),
                ("speed/supervised_tokens_per_second", progress.SupervisedTokensPerSecond),
                ("memory/bytes", progress.MemoryBytes),
                ("cost/spent", (double?)progress.MoneySpent),
            ];
            Try(() => Write(lastStep, values));
        }
    }

    public void OnNotice(string sentence)
    {
    }

    public void OnWarning(string sentence)
    {
    }

    public void OnEvaluation(EvaluationPoint point, bool isBest)
    {
        if (stream is not null && !isBroken && double.IsFinite(point.Loss))
        {
            lastEvaluated = point.Step;
            Try(() => Write(point.Step, [("eval/loss", point.Loss)]));
        }
    }

    public void OnSample(string prompt, string expected, string generated)
    {
    }

    /// <summary>The held-out loss and exact match of a run that has ended, at its first and last step.</summary>
    public void Evaluated(RunSummary summary)
    {
        if (stream is null)
        {
            return;
        }

        foreach ((int step, EvaluationResult? result) in new[] { (0, summary.Before), (summary.Steps, summary.After) })
        {
            if (result is { } measured)
            {
                // What was measured after the last step is there already.
                Try(() => Write(step, [("eval/loss", step == lastEvaluated ? null : measured.Loss), ("eval/exact_match", measured.ExactMatch)]));
            }
        }
    }

    public void Dispose() => stream?.Dispose();

    private void Open(int first)
    {
        Directory.CreateDirectory(folder);
        string name = string.Create(CultureInfo.InvariantCulture, $"events.out.tfevents.{time.GetUtcNow().ToUnixTimeSeconds()}.{Environment.MachineName}.{Environment.ProcessId}.0");
        stream = new FileStream(Path.Combine(folder, name), FileMode.CreateNew, FileAccess.Write, FileShare.ReadWrite);
        Append(Event(null, message => message.Text(FileVersion, "brain.Event:2")));
        Append(Event(first, message => message.Inner(SessionLog, inner => inner.Number(Status, StatusStart))));
        stream.Flush();
    }

    private void Write(int step, (string Tag, double? Value)[] values)
    {
        Append(Event(step, message => message.Inner(SummaryField, summary =>
        {
            foreach ((string tag, double? value) in values)
            {
                if (value is { } known)
                {
                    summary.Inner(SummaryValue, inner =>
                    {
                        inner.Text(Tag, tag);
                        inner.Single(SimpleValue, (float)known);
                    });
                }
            }
        })));
        stream!.Flush();
    }

    private byte[] Event(int? step, Action<Message> fill)
    {
        var message = new Message();
        message.Double(WallTime, (time.GetUtcNow() - DateTimeOffset.UnixEpoch).TotalSeconds);
        if (step is { } number)
        {
            message.Number(Step, (ulong)number);
        }

        fill(message);
        return message.ToArray();
    }

    private void Append(byte[] content)
    {
        Span<byte> length = stackalloc byte[8], sum = stackalloc byte[4];
        BinaryPrimitives.WriteUInt64LittleEndian(length, (ulong)content.Length);
        stream!.Write(length);
        BinaryPrimitives.WriteUInt32LittleEndian(sum, Masked(length));
        stream.Write(sum);
        stream.Write(content);
        BinaryPrimitives.WriteUInt32LittleEndian(sum, Masked(content));
        stream.Write(sum);
    }

    /// <summary>CRC-32C as these files keep it: rotated and shifted, since sums over data that holds sums are weak.</summary>
    private static uint Masked(ReadOnlySpan<byte> content)
    {
        uint crc = uint.MaxValue;
        foreach (byte value in content)
        {
            crc = BitOperations.Crc32C(crc, value);
        }

        return BitOperations.RotateRight(~crc, 15) + 0xA282EAD8;
    }

    private void Try(Action write)
    {
        try
        {
            write();
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            isBroken = true;
            warn($"The TensorBoard file in {folder} cannot be written ({exception.Message}): it ends here. The log of the steps in log.jsonl goes on.");
        }
    }

    /// <summary>A protocol buffer message that is being written, field by field (protobuf.dev, "Encoding").</summary>
    private sealed class Message
    {
        private const int Varint = 0, Fixed64 = 1, Length = 2, Fixed32 = 5;

        private readonly List<byte> bytes = [];

        public byte[] ToArray() => [.. bytes];

        public void Number(int field, ulong value)
        {
            Key(field, Varint);
            Raw(value);
        }

        public void Double(int field, double value)
        {
            Key(field, Fixed64);
            bytes.AddRange(LittleEndian(BitConverter.DoubleToUInt64Bits(value), sizeof(double)));
        }

        public void Single(int field, float value)
        {
            Key(field, Fixed32);
            bytes.AddRange(LittleEndian(BitConverter.SingleToUInt32Bits(value), sizeof(float)));
        }

        public void Text(int field, string value) => Bytes(field, Encoding.UTF8.GetBytes(value));

        public void Inner(int field, Action<Message> fill)
        {
            var inner = new Message();
            fill(inner);
            Bytes(field, inner.ToArray());
        }

        private static byte[] LittleEndian(ulong value, int size)
        {
            byte[] all = new byte[sizeof(ulong)];
            BinaryPrimitives.WriteUInt64LittleEndian(all, value);
            return all[..size];
        }

        private void Bytes(int field, byte[] content)
        {
            Key(field, Length);
            Raw((ulong)content.Length);
            bytes.AddRange(content);
        }

        private void Key(int field, int kind) => Raw((ulong)((field << 3) | kind));

        private void Raw(ulong value)
        {
            for (; value >= 0x80; value >>= 7)
            {
                bytes.Add((byte)(value | 0x80));
            }

            bytes.Add((byte)value);
        }
    }
}
