using System.Text;
using System.Text.Json;

namespace LoraTrainer.Training.Interruptions;

/// <summary>
/// Azure's scheduled events. They are told to all machines of a group, so only those count that name this machine. The first question switches
/// the service on and may take two minutes.
/// </summary>
internal sealed class AzureEventsSource(MetadataClient client, Uri endpoint, WatchTimings timings, TimeSpan grace, TimeProvider time) : NoticeSource(time)
{
    private const string EventsPath = "/metadata/scheduledevents?api-version=2020-07-01";
    private const string NamePath = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";

    // Reboots and redeployments are announced a quarter of an hour ahead.
    private static readonly TimeSpan LongestNotice = TimeSpan.FromMinutes(15);

    // Evictions at least half a minute ahead, and hardly more.
    private static readonly TimeSpan LongestEviction = TimeSpan.FromMinutes(2);

    private string? machine;
    private bool hasAnswered;

    public override string Name => "Azure scheduled event";

    public override TimeSpan Pause => timings.Azure;

    public override string Trouble(string why) =>
        $"Azure's instance metadata at {endpoint} cannot be read ({why}), so an eviction will not be noticed ahead.";

    /// <summary>Lets Azure begin at once. Only after the checkpoint is safe: it may end the machine early.</summary>
    /// <param name="notice">Of this source.</param>
    /// <param name="cancellation">Gives up.</param>
    public override async Task<bool> AcknowledgeAsync(InterruptionNotice notice, CancellationToken cancellation)
    {
        string id = notice.Key[(Name.Length + 1)..];
        HttpRequestMessage request = Request(HttpMethod.Post, EventsPath);
        request.Content = new StringContent($$"""{"StartRequests":[{"EventId":"{{JsonEncodedText.Encode(id)}}"}]}""", Encoding.UTF8, "application/json");
        MetadataAnswer answer = await client.SendAsync(request, timings.Answer, cancellation).ConfigureAwait(false);
        return answer.IsOk;
    }

    protected override async Task<SourceAnswer> QuestionAsync(CancellationToken cancellation)
    {
        if (machine is null)
        {
            MetadataAnswer named = await client.SendAsync(Request(HttpMethod.Get, NamePath), timings.Answer, cancellation).ConfigureAwait(false);
            if (!named.IsOk || named.Body.Trim() is not { Length: > 0 and < 256 } name)
            {
                return named.IsOk ? SourceAnswer.Failed("it does not tell this machine's name") : SourceAnswer.Failed(named.Why);
            }

            machine = name;
        }

        MetadataAnswer answer = await client.SendAsync(Request(HttpMethod.Get, EventsPath), hasAnswered ? timings.Answer : timings.AzureFirst, cancellation).ConfigureAwait(false);
        if (!answer.IsOk)
        {
            return SourceAnswer.Failed(answer.Why);
        }

        hasAnswered = true;
        return ReadObject(answer.Body, json => new SourceAnswer(
            true,
            [.. json.GetProperty("Events").EnumerateArray().Where(IsOfThisMachine).Select(scheduled => Read(scheduled, answer.Date)).OfType<InterruptionNotice>()],
            ""));
    }

    private bool IsOfThisMachine(JsonElement scheduled) =>
        scheduled.TryGetProperty("Resources", out JsonElement resources)
        && resources.ValueKind == JsonValueKind.Array
        && resources.EnumerateArray().Any(resource => resource.ValueKind == JsonValueKind.String && string.Equals(resource.GetString(), machine, StringComparison.OrdinalIgnoreCase));

    /// <summary>Null for what is over, and for kinds that do not touch the machine.</summary>
    private InterruptionNotice? Read(JsonElement scheduled, DateTimeOffset? now)
    {
        (NoticeKind Kind, string What, TimeSpan Usual, TimeSpan Longest)? read = TextOf(scheduled, "EventType") switch
        {
            "Preempt" => (NoticeKind.Stop, "Azure takes this machine back", grace, LongestEviction),
            "Terminate" => (NoticeKind.Stop, "Azure deletes this machine", LongestNotice, LongestNotice),
            "Reboot" => (NoticeKind.Stop, "Azure restarts this machine", LongestNotice, LongestNotice),
            "Redeploy" => (NoticeKind.Stop, "Azure moves this machine to another host", LongestNotice, LongestNotice),
            "Freeze" => (NoticeKind.Save, "Azure pauses this machine for some seconds", LongestNotice, LongestNotice),
            _ => null,
        };
        string status = TextOf(scheduled, "EventStatus") ?? "Scheduled";
        if (read is not { } known || status is not ("Scheduled" or "Started") || TextOf(scheduled, "EventId") is not { Length: > 0 } id)
        {
            return null;
        }

        DateTimeOffset? deadline = ReadTime(TextOf(scheduled, "NotBefore"));
        return new InterruptionNotice(Time)
        {
            Source = Name,
            Kind = known.Kind,
            Event = known.What,
            Deadline = deadline,
            TimeLeftAtReceipt = status == "Started" ? TimeSpan.Zero : TimeLeft(deadline, now, known.Usual, known.Longest),
            Grace = known.Usual,
            Key = $"{Name} {id}",
            Origin = this,
        };
    }

    /// <summary>A question about the machine itself.</summary>
    internal static HttpRequestMessage MachineRequest(Uri endpoint) => Request(endpoint, HttpMethod.Get, "/metadata/instance/compute?api-version=2021-02-01&format=json");

    private HttpRequestMessage Request(HttpMethod method, string path) => Request(endpoint, method, path);

    private static HttpRequestMessage Request(Uri endpoint, HttpMethod method, string path)
    {
        HttpRequestMessage request = MetadataClient.Request(method, endpoint, path);
        request.Headers.Add("Metadata", "true");
        return request;
    }
}
