using System.Text;
using System.Text.Json;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>A line of <c>log.jsonl</c>, as far as a report needs it.</summary>
/// <param name="Step">From 1 on.</param>
/// <param name="Loss">NaN where the line has none.</param>
/// <param name="Tokens">Of this step.</param>
/// <param name="Seconds">Of this step.</param>
/// <param name="MemoryBytes">Resident memory of the process after it; 0 where the line has none.</param>
public readonly record struct LoggedStep(int Step, double Loss, long Tokens, double Seconds, long MemoryBytes);

/// <summary>log.jsonl: one JSON object for each logged step and each evaluation during the training, appended and flushed as the steps are done.</summary>
public sealed class RunLog : IDisposable
{
    private const int LongestLine = 4096;
    private const string EvaluationLoss = "eval_loss";

    private readonly FileStream stream;
    private readonly MemoryStream line = new();
    private readonly Utf8JsonWriter json;

    private RunLog(FileStream stream)
    {
        this.stream = stream;
        json = new Utf8JsonWriter(line);
    }

    /// <summary>Opens the log behind the lines of the last completed step; what comes after it is cut off.</summary>
    /// <param name="path">The file; made where there is none.</param>
    /// <param name="completedSteps">Of the run.</param>
    /// <param name="evaluatedStep">After which the last evaluation was that the run knows of.</param>
    internal static RunLog Open(string path, int completedSteps, int evaluatedStep = 0)
    {
        var stream = new FileStream(path, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.Read);
        stream.SetLength(EndOfStep(stream, completedSteps, evaluatedStep));
        stream.Seek(0, SeekOrigin.End);
        return new RunLog(stream);
    }

    /// <summary>Step and loss of the last whole line; null where there is none, or the log was not written after that moment. Only looks.</summary>
    internal static (int Step, double? Loss)? LastStep(string path, DateTimeOffset after)
    {
        if (!File.Exists(path) || File.GetLastWriteTimeUtc(path) < after.UtcDateTime)
        {
            return null;
        }

        using var stream = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
        stream.Seek(-Math.Min(stream.Length, LongestLine), SeekOrigin.End);
        byte[] end = new byte[LongestLine];
        int length = stream.ReadAtLeast(end, end.Length, throwOnEndOfStream: false);
        string[] lines = Encoding.UTF8.GetString(end, 0, length).Split('\n');

        // Behind the last line break there is nothing, or a line that is being written.
        LoggedStep last = lines.SkipLast(1).Select(Parse).LastOrDefault(step => step is not null) ?? default;
        return last.Step == 0 ? null : (last.Step, double.IsNaN(last.Loss) ? null : last.Loss);
    }

    /// <summary>The steps that a run's folder tells of, in their order; lines that are torn or of another kind are left out. Empty where there is no log. Only looks.</summary>
    /// <param name="folder">The run's <c>output_dir</c>.</param>
    public static IReadOnlyList<LoggedStep> Read(string folder)
    {
        string path = Path.Combine(folder, CheckpointFiles.LogName);
        try
        {
            using var reader = new StreamReader(new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete));
            var steps = new List<LoggedStep>();
            while (reader.ReadLine() is { } text)
            {
                if (Parse(text) is { } step && (steps.Count == 0 || step.Step > steps[^1].Step))
                {
                    steps.Add(step);
                }
            }

            return steps;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return [];
        }
    }

    private static LoggedStep? Parse(string text)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(text);
            JsonElement root = document.RootElement;
            return new LoggedStep(
                root.GetProperty("step").GetInt32(), root.GetProperty("loss") is { ValueKind: JsonValueKind.Number } loss ? loss.GetDouble() : double.NaN,
                root.GetProperty("tokens").GetInt64(), root.GetProperty("seconds").GetDouble(),
                root.TryGetProperty("memory_bytes", out JsonElement memory) ? memory.GetInt64() : 0);
        }
        catch (Exception exception) when (exception is JsonException or KeyNotFoundException or InvalidOperationException or FormatException)
        {
            return null;
        }
    }

    /// <param name="point">That was measured.</param>
    /// <param name="epoch">Passes over the data that were done.</param>
    /// <param name="rows">That were evaluated.</param>
    /// <param name="seconds">That it took.</param>
    public void Write(EvaluationPoint point, double epoch, int rows, double seconds)
    {
        Begin(point.Step);
        json.WriteNumber("epoch", Math.Round(epoch, 4));
        json.WriteNumberOrNull(EvaluationLoss, double.IsFinite(point.Loss) ? point.Loss : null);
        json.WriteNumber("eval_rows", rows);
        json.WriteNumber("seconds", Math.Round(seconds, 4));
        End();
    }

    /// <param name="leftOut">Steps that are not applied.</param>
    /// <param name="finding">What was found, as a sentence.</param>
    public void Write(LeftOutSteps leftOut, string finding)
    {
        Begin(leftOut.Last);
        json.WriteNumber("left_out_from", leftOut.First);
        json.WriteNumber("back_to", leftOut.BackTo);
        json.WriteString("reason", finding);
        End();
    }

    /// <param name="step">That was done.</param>
    /// <param name="epoch">Passes over the data before it.</param>
    public void Write(in StepResult step, double epoch)
    {
        Begin(step.Step);
        json.WriteNumber("epoch", Math.Round(epoch, 4));
        json.WriteNumber("loss", step.Loss);
        json.WriteNumber("learning_rate", step.LearningRate);
        json.WriteNumber("grad_norm", step.GradientNorm);
        json.WriteNumber("tokens", step.Tokens);
        json.WriteNumber("supervised_tokens", step.SupervisedTokens);
        json.WriteNumber("seconds", Math.Round(step.Seconds, 4));
        json.WriteNumber("memory_bytes", ProcessMemory.ResidentBytes());
        End();
    }

    private void Begin(int step)
    {
        line.SetLength(0);
        json.Reset(line);
        json.WriteStartObject();
        json.WriteNumber("step", step);
    }

    private void End()
    {
        json.WriteEndObject();
        json.Flush();
        line.WriteByte((byte)'\n');
        stream.Write(line.GetBuffer(), 0, (int)line.Length);
        stream.Flush();
    }

    public void Dispose()
    {
        json.Dispose();
        line.Dispose();
        stream.Dispose();
    }

    /// <summary>Bytes of the lines up to and including <paramref name="completedSteps"/>; a torn line, from a process that died while writing it, ends the count.</summary>
    private static long EndOfStep(FileStream stream, int completedSteps, int evaluatedStep)
    {
        byte[] content = new byte[stream.Length];
        stream.ReadExactly(content);
        int end = 0;
        while (content.AsSpan(end).IndexOf((byte)'\n') is >= 0 and int length && IsOfRun(content.AsMemory(end, length), completedSteps, evaluatedStep))
        {
            end += length + 1;
        }

        return end;
    }

    private static bool IsOfRun(ReadOnlyMemory<byte> text, int completedSteps, int evaluatedStep)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(text);
            return document.RootElement is { ValueKind: JsonValueKind.Object } root
                && root.TryGetProperty("step", out JsonElement step) && step.ValueKind == JsonValueKind.Number && step.TryGetInt32(out int number)
                && number <= (root.TryGetProperty(EvaluationLoss, out _) ? Math.Min(completedSteps, evaluatedStep) : completedSteps);
        }
        catch (JsonException)
        {
            return false;
        }
    }
}
