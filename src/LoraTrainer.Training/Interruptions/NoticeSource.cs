using System.Globalization;
using System.Text.Json;

namespace LoraTrainer.Training.Interruptions;

/// <summary>An answer of a source.</summary>
/// <param name="IsUnderstood">The source is there and said what it is asked for.</param>
/// <param name="Notices">What is announced at this moment, whether it was before or not.</param>
/// <param name="Why">What was wrong, as a part of a sentence; empty when nothing was.</param>
internal readonly record struct SourceAnswer(bool IsUnderstood, IReadOnlyList<InterruptionNotice> Notices, string Why)
{
    public static SourceAnswer Quiet { get; } = new(true, [], "");

    public static SourceAnswer Of(InterruptionNotice notice) => new(true, [notice], "");

    public static SourceAnswer Failed(string why) => new(false, [], why);
}

/// <summary>Something that is asked again and again whether the machine goes away. Asked by one caller at a time; does not throw but for cancellation.</summary>
internal abstract class NoticeSource(TimeProvider time)
{
    // Within this much of what is plausible a time that a source says is believed.
    private static readonly TimeSpan ClockSlack = TimeSpan.FromSeconds(30);

    private long? quietAt;

    /// <summary>"AWS spot".</summary>
    public abstract string Name { get; }

    /// <summary>What a failure of this source means and what to do, as a whole sentence; empty where failing means nothing.</summary>
    /// <param name="why">What was wrong.</param>
    public abstract string Trouble(string why);

    /// <summary>The pause between two questions.</summary>
    public abstract TimeSpan Pause { get; }

    protected TimeProvider Time => time;

    /// <summary>What the source says now.</summary>
    public async Task<SourceAnswer> AskAsync(CancellationToken cancellation)
    {
        long asked = time.GetTimestamp();
        SourceAnswer answer = await QuestionAsync(cancellation).ConfigureAwait(false);
        if (answer is { IsUnderstood: true, Notices.Count: 0 })
        {
            // An answer is not older than its question, except that a long poll is answered at its end.
            quietAt = AnswersAtTheEnd ? time.GetTimestamp() : asked;
        }

        return answer;
    }

    /// <summary>Says to the source that this machine needs no more time. False: the source did not take it.</summary>
    public virtual Task<bool> AcknowledgeAsync(InterruptionNotice notice, CancellationToken cancellation) => Task.FromResult(true);

    /// <summary>The question waited at the source for something to happen.</summary>
    protected virtual bool AnswersAtTheEnd => false;

    protected abstract Task<SourceAnswer> QuestionAsync(CancellationToken cancellation);

    /// <summary>
    /// What is left until <paramref name="deadline"/>. The source's own clock decides, if its answer showed it, else this machine's. A result that
    /// cannot be (in the past, or later than the source ever announces) comes of a wrong clock: then it is what is left of the usual notice since
    /// the source last said that all is quiet, and null if it never did.
    /// </summary>
    /// <param name="deadline">As the source said it; null: it did not.</param>
    /// <param name="sourceNow">The source's time, or null.</param>
    /// <param name="grace">The usual notice.</param>
    /// <param name="longest">How long ahead it announces at most.</param>
    protected TimeSpan? TimeLeft(DateTimeOffset? deadline, DateTimeOffset? sourceNow, TimeSpan grace, TimeSpan longest)
    {
        if (deadline is { } end)
        {
            TimeSpan left = end - (sourceNow ?? time.GetUtcNow());
            if (left > TimeSpan.Zero && left <= longest + ClockSlack)
            {
                return left;
            }
        }

        TimeSpan? since = quietAt is { } quiet ? time.GetElapsedTime(quiet) : null;
        return since is { } age ? (age < grace ? grace - age : TimeSpan.Zero) : null;
    }

    /// <summary>Reads an answer that ought to be a JSON object.</summary>
    /// <param name="text">Anything.</param>
    /// <param name="read">What to make of the object; a JSON value of the wrong kind may throw.</param>
    protected static SourceAnswer ReadObject(string text, Func<JsonElement, SourceAnswer> read)
    {
        try
        {
            using var document = JsonDocument.Parse(text);
            return document.RootElement.ValueKind == JsonValueKind.Object ? read(document.RootElement) : SourceAnswer.Failed("its answer is not a JSON object");
        }
        catch (Exception exception) when (exception is JsonException or InvalidOperationException or FormatException or KeyNotFoundException)
        {
            return SourceAnswer.Failed("its answer is not the JSON that was asked for");
        }
    }

    /// <summary>The text of a member, or null.</summary>
    protected static string? TextOf(JsonElement element, string member) =>
        element.TryGetProperty(member, out JsonElement value) && value.ValueKind == JsonValueKind.String ? value.GetString() : null;

    /// <summary>An ISO 8601 or RFC 1123 time in UTC, or null.</summary>
    protected static DateTimeOffset? ReadTime(string? text) =>
        DateTimeOffset.TryParse(text, CultureInfo.InvariantCulture, DateTimeStyles.AssumeUniversal | DateTimeStyles.AdjustToUniversal, out DateTimeOffset read) ? read : null;
}
