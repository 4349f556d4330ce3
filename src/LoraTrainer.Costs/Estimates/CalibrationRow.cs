using System.Globalization;
using System.Text;
using System.Text.Json;

namespace LoraTrainer.Costs.Estimates;

/// <summary>What a finished training measured about the device that it ran on.</summary>
public sealed record CalibrationRow
{
    // Raised when the parts of a RooflineTime come to mean something else: older rows are passed over then.
    internal const int CurrentVersion = 1;

    /// <summary>The device: a GPU as its driver calls it, or the processor with threads and instruction set.</summary>
    public required string Device { get; init; }

    /// <summary>When the run ended.</summary>
    public required DateTimeOffset Measured { get; init; }

    /// <summary>Of one mean optimizer step.</summary>
    public required RooflineTime Step { get; init; }

    /// <summary>Of that step: the median of the steps' seconds per token, times its tokens.</summary>
    public required double StepSeconds { get; init; }

    /// <summary>Of that step.</summary>
    public required double StepTokens { get; init; }

    /// <summary>That were measured.</summary>
    public required int Steps { get; init; }

    /// <summary>Bytes of the base's files; with <see cref="LoadSeconds"/> the rate at which models are loaded.</summary>
    public double LoadBytes { get; init; }

    /// <summary>Loading, and quantizing where it was quantized.</summary>
    public double LoadSeconds { get; init; }

    public bool IsQuantized { get; init; }

    /// <summary>Of all evaluations; zero where there were none.</summary>
    public RooflineTime Evaluation { get; init; }

    public double EvaluationSeconds { get; init; }

    /// <summary>One line of JSON.</summary>
    internal string ToLine()
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer))
        {
            json.WriteStartObject();
            json.WriteNumber("version", CurrentVersion);
            json.WriteString("device", Device);
            json.WriteString("measured", Measured.UtcDateTime.ToString("yyyy-MM-ddTHH:mm:ssZ", CultureInfo.InvariantCulture));
            Write(json, "step", Step);
            json.WriteNumber("step_seconds", StepSeconds);
            json.WriteNumber("step_tokens", StepTokens);
            json.WriteNumber("steps", Steps);
            json.WriteNumber("load_bytes", LoadBytes);
            json.WriteNumber("load_seconds", LoadSeconds);
            json.WriteBoolean("quantized", IsQuantized);
            Write(json, "evaluation", Evaluation);
            json.WriteNumber("evaluation_seconds", EvaluationSeconds);
            json.WriteEndObject();
        }

        return Encoding.UTF8.GetString(buffer.ToArray());
    }

    /// <summary>Null for a row of another version.</summary>
    /// <exception cref="FormatException">The line is not a row; says why, as a clause.</exception>
    internal static CalibrationRow? FromLine(string line)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(line);
            JsonElement root = document.RootElement;
            if (root.GetProperty("version").GetInt32() != CurrentVersion)
            {
                return null;
            }

            var row = new CalibrationRow
            {
                Device = root.GetProperty("device").GetString() is { Length: > 0 } device ? device : throw new FormatException("device is empty"),
                Measured = DateTimeOffset.Parse(root.GetProperty("measured").GetString() ?? "", CultureInfo.InvariantCulture, DateTimeStyles.AssumeUniversal),
                Step = Read(root, "step"),
                StepSeconds = Number(root, "step_seconds"),
                StepTokens = Number(root, "step_tokens"),
                Steps = root.GetProperty("steps").GetInt32(),
                LoadBytes = Number(root, "load_bytes"),
                LoadSeconds = Number(root, "load_seconds"),
                IsQuantized = root.GetProperty("quantized").GetBoolean(),
                Evaluation = Read(root, "evaluation"),
                EvaluationSeconds = Number(root, "evaluation_seconds"),
            };
            return row.StepSeconds > 0 && row.Step.Operations > 0 ? row : throw new FormatException("step and step_seconds must be above 0");
        }
        catch (Exception exception) when (exception is JsonException or InvalidOperationException or KeyNotFoundException or OverflowException)
        {
            throw new FormatException(exception.Message.TrimEnd('.'), exception);
        }
    }

    private static void Write(Utf8JsonWriter json, string name, RooflineTime work)
    {
        json.WriteStartObject(name);
        json.WriteNumber("products", work.Products);
        json.WriteNumber("attention", work.Attention);
        json.WriteNumber("expansion", work.Expansion);
        json.WriteNumber("memory", work.Memory);
        json.WriteNumber("operations", work.Operations);
        json.WriteEndObject();
    }

    private static RooflineTime Read(JsonElement root, string name)
    {
        JsonElement work = root.GetProperty(name);
        return new RooflineTime(Number(work, "products"), Number(work, "attention"), Number(work, "expansion"), Number(work, "memory"), Number(work, "operations"));
    }

    private static double Number(JsonElement element, string name)
    {
        double number = element.GetProperty(name).GetDouble();
        return number >= 0 && double.IsFinite(number) ? number : throw new FormatException(string.Create(CultureInfo.InvariantCulture, $"{name} is {number}, expected 0 or more"));
    }
}
