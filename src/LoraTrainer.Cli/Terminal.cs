using System.Text.Json;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Cli;

/// <summary>
/// All that the program writes. Results go to standard output; notes, warnings and errors to standard error. With <c>--json</c> standard output gets
/// exactly one document and everything else goes to standard error; with <c>--quiet</c> only results and errors are left.
/// </summary>
internal sealed class Terminal(TextWriter output, TextWriter error)
{
    // Back to the start of the line, and what stands there away.
    private const string ClearLine = "\r\u001b[K";

    private readonly Lock gate = new();
    private bool isLineOpen;

    public bool IsJson { get; init; }

    public bool IsQuiet { get; init; }

    /// <summary>A person is watching, so lines may be rewritten.</summary>
    public bool IsInteractive { get; init; }

    /// <summary>Colours are understood and wanted (NO_COLOR is not set).</summary>
    public bool HasColour => IsInteractive && string.IsNullOrEmpty(Environment.GetEnvironmentVariable("NO_COLOR"));

    /// <summary>Letters on a line; null where nobody's screen sets a limit.</summary>
    public int? Width { get; init; }

    public bool HasWrittenJson { get; private set; }

    /// <summary>What was asked for, in words or as YAML; with <c>--json</c> the document stands for it.</summary>
    public void Result(string text)
    {
        if (!IsJson)
        {
            Write(output, text);
        }
    }

    /// <summary>A piece of a result that comes bit by bit; with <c>--json</c> the document stands for the whole.</summary>
    public void Stream(string piece)
    {
        if (!IsJson)
        {
            lock (gate)
            {
                CloseLine();
                output.Write(piece);
                output.Flush();
            }
        }
    }

    /// <summary>A document for other programs, exactly as it is.</summary>
    public void Document(string text)
    {
        lock (gate)
        {
            output.Write(text);
            output.Flush();
        }
    }

    /// <summary>How the work goes.</summary>
    public void Say(string line)
    {
        if (!IsQuiet)
        {
            Write(IsJson ? error : output, line);
        }
    }

    /// <summary>How far the work is: a line that the next thing that is written takes the place of. Only where a person is watching.</summary>
    public void Progress(string line)
    {
        if (!IsQuiet && !IsJson && IsInteractive)
        {
            lock (gate)
            {
                output.Write(ClearLine + (Width is { } width && line.Length >= width ? line[..(width - 1)] : line));
                output.Flush();
                isLineOpen = true;
            }
        }
    }

    /// <summary>A remark that is not the result.</summary>
    public void Note(string sentence)
    {
        if (!IsQuiet)
        {
            Write(error, $"note: {sentence}");
        }
    }

    public void Warn(string sentence)
    {
        if (!IsQuiet)
        {
            Write(error, $"warning: {sentence}");
        }
    }

    public void Error(string sentence, bool prefix = true) => Write(error, prefix ? $"error: {sentence}" : sentence);

    /// <summary>The one document on standard output; nothing without <c>--json</c>.</summary>
    public void Json(Action<Utf8JsonWriter> write)
    {
        if (!IsJson)
        {
            return;
        }

        if (HasWrittenJson)
        {
            throw new InvalidOperationException("a verb wrote two JSON documents");
        }

        HasWrittenJson = true;
        using MemoryStream buffer = new();
        using (Utf8JsonWriter json = new(buffer, new JsonWriterOptions { Indented = true, Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping }))
        {
            write(json);
        }

        Write(output, System.Text.Encoding.UTF8.GetString(buffer.GetBuffer(), 0, (int)buffer.Length));
    }

    /// <summary>The document of a run that failed before it wrote its own.</summary>
    public void JsonError(IReadOnlyList<string> messages, ExitCode code)
    {
        if (HasWrittenJson)
        {
            return;
        }

        Json(json =>
        {
            json.WriteStartObject();
            json.WriteNumber("exit_code", (int)code);
            json.WriteStartArray("errors");
            foreach (string message in messages)
            {
                json.WriteStartObject();
                json.WriteString("message", message);
                json.WriteEndObject();
            }

            json.WriteEndArray();
            json.WriteEndObject();
        });
    }

    /// <summary>Warnings and notices of a configuration.</summary>
    public void Remarks(ConfigurationResult configuration)
    {
        foreach (ConfigurationIssue warning in configuration.Warnings)
        {
            Warn(warning.Message);
        }

        foreach (ConfigurationIssue notice in configuration.Notices)
        {
            Note(notice.Message);
        }
    }

    private void Write(TextWriter writer, string text)
    {
        lock (gate)
        {
            CloseLine();
            writer.WriteLine(text.TrimEnd('\n'));
            writer.Flush();
        }
    }

    private void CloseLine()
    {
        if (isLineOpen)
        {
            output.Write(ClearLine);
            output.Flush();
            isLineOpen = false;
        }
    }
}
