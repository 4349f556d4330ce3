using System.Text;
using System.Text.Json;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>log.jsonl: one JSON object for each logged step, appended and flushed as the steps are done.</summary>
public sealed class RunLog : IDisposable
{
    private const int LongestLine = 4096;

    private readonly FileStream stream;
    private readonly MemoryStream line = new();
    private readonly Utf8JsonWriter json;

    private RunLog(FileStream stream)
    {
        this.stream = stream;
        json = new Utf8JsonWriter(line);
    }

    /// <summary>Opens the log behind the line of the last completed step; what comes after it is cut off.</summary>
    internal static RunLog Open(string path, int completedSteps)
    {
        var stream = new FileStream(path, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.Read);
        stream.SetLength(EndOfStep(stream, completedSteps));
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
        try
        {
            // Behind the last line break there is nothing, or a line that is being written.
            using JsonDocument document = JsonDocument.Parse(lines.Length > 1 ? lines[^2] : string.Empty);
            JsonElement loss = document.RootElement.GetProperty("loss");
            return (document.RootElement.GetProperty("step").GetInt32(), loss.ValueKind == JsonValueKind.Number ? loss.GetDouble() : null);
        }
        catch (Exception exception) when (exception is JsonException or KeyNotFoundException or InvalidOperationException or FormatException)
        {
            return null;
        }
    }

    /// <param name="step">That was done.</param>
    /// <param name="epoch">Passes over the data before it.</param>
    public void Write(in StepResult step, double epoch)
    {
        line.SetLength(0);
        json.Reset(line);
        json.WriteStartObject();
        json.WriteNumber("step", step.Step);
        json.WriteNumber("epoch", Math.Round(epoch, 4));
        json.WriteNumber("loss", step.Loss);
        json.WriteNumber("learning_rate", step.LearningRate);
        json.WriteNumber("grad_norm", step.GradientNorm);
        json.WriteNumber("tokens", step.Tokens);
        json.WriteNumber("supervised_tokens", step.SupervisedTokens);
        json.WriteNumber("seconds", Math.Round(step.Seconds, 4));
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
    private static long EndOfStep(FileStream stream, int completedSteps)
    {
        byte[] content = new byte[stream.Length];
        stream.ReadExactly(content);
        int end = 0;
        while (content.AsSpan(end).IndexOf((byte)'\n') is >= 0 and int length && IsOfRun(content.AsMemory(end, length), completedSteps))
        {
            end += length + 1;
        }

        return end;
    }

    private static bool IsOfRun(ReadOnlyMemory<byte> text, int completedSteps)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(text);
            return document.RootElement is { ValueKind: JsonValueKind.Object } root
                && root.TryGetProperty("step", out JsonElement step) && step.ValueKind == JsonValueKind.Number && step.TryGetInt32(out int number)
                && number <= completedSteps;
        }
        catch (JsonException)
        {
            return false;
        }
    }
}
