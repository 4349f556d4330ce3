using System.Globalization;

namespace LoraTrainer.Training.Interruptions;

/// <summary>Google Cloud's instance metadata. Its answers carry the header that its questions must carry, so that no other service is taken for it.</summary>
internal sealed class GcpMetadata(MetadataClient client, Uri endpoint)
{
    private const string Flavor = "Metadata-Flavor";

    public Uri Endpoint => endpoint;

    public async Task<MetadataAnswer> GetAsync(string path, TimeSpan limit, CancellationToken cancellation)
    {
        HttpRequestMessage request = MetadataClient.Request(HttpMethod.Get, endpoint, "/computeMetadata/v1/instance/" + path);
        request.Headers.Add(Flavor, "Google");
        MetadataAnswer answer = await client.SendAsync(request, limit, cancellation).ConfigureAwait(false);
        return answer.IsReached && answer.Header(Flavor) != "Google"
            ? new MetadataAnswer { IsReached = true, Body = "", Why = answer.IsOk ? "what answers is not Google's metadata server" : answer.Why }
            : answer;
    }
}

/// <summary>
/// Whether this machine is being preempted. After a first plain question each waits at the server until the value changes; if that does not work,
/// plain questions follow each other.
/// </summary>
internal sealed class GcpPreemptionSource(GcpMetadata metadata, WatchTimings timings, TimeSpan grace, TimeProvider time) : NoticeSource(time)
{
    private const int TriesOfWaiting = 2;

    private string? etag;
    private int failures;
    private bool waited;

    public override string Name => "Google Cloud preemption";

    public override TimeSpan Pause => CanWait ? TimeSpan.Zero : timings.Gcp;

    public override string Trouble(string why) =>
        $"Google Cloud's metadata server at {metadata.Endpoint} cannot be read ({why}), so a preemption will not be noticed before its SIGTERM.";

    protected override bool AnswersAtTheEnd => waited;

    private bool CanWait => etag is not null && failures < TriesOfWaiting;

    protected override async Task<SourceAnswer> QuestionAsync(CancellationToken cancellation)
    {
        long asked = Time.GetTimestamp();
        waited = CanWait;
        MetadataAnswer answer = waited
            ? await metadata.GetAsync(
                string.Create(CultureInfo.InvariantCulture, $"preempted?wait_for_change=true&last_etag={Uri.EscapeDataString(etag!)}&timeout_sec={(int)Math.Ceiling(timings.GcpWait.TotalSeconds)}"),
                timings.GcpWait + timings.Answer,
                cancellation).ConfigureAwait(false)
            : await metadata.GetAsync("preempted", timings.Answer, cancellation).ConfigureAwait(false);
        string value = answer.IsOk ? answer.Body.Trim() : "";
        if (value == "TRUE")
        {
            // Nothing changes any more: plain questions from now on. It says no time: the usual one counts from the change, which a question that
            // waited saw at once.
            etag = null;
            return SourceAnswer.Of(new InterruptionNotice(Time)
            {
                Source = Name,
                Kind = NoticeKind.Stop,
                Event = "Google Cloud takes this machine back",
                TimeLeftAtReceipt = waited ? grace : TimeLeft(null, null, grace, grace),
                Grace = grace,
                Key = Name,
                Origin = this,
            });
        }

        if (value == "FALSE")
        {
            // A server that answers at once that nothing has changed does not wait at all, and must not be asked without a pause.
            failures = !waited ? failures : Time.GetElapsedTime(asked) < timings.GcpWait / 4 ? failures + 1 : 0;
            etag = answer.Header("ETag") is { Length: > 0 and < 256 } tag ? tag : null;
            return SourceAnswer.Quiet;
        }

        failures += waited ? 1 : 0;
        return answer.IsOk ? SourceAnswer.Failed("its answer is neither TRUE nor FALSE") : SourceAnswer.Failed(answer.Why);
    }
}

/// <summary>The hour's notice that a machine with GPUs gets before maintenance of its host.</summary>
internal sealed class GcpMaintenanceSource(GcpMetadata metadata, WatchTimings timings, TimeProvider time) : NoticeSource(time)
{
    private int occurrence;
    private bool isUnderWay;

    public override string Name => "Google Cloud host maintenance";

    public override TimeSpan Pause => timings.GcpMaintenance;

    // The source of the preemptions says it for both.
    public override string Trouble(string why) => "";

    protected override async Task<SourceAnswer> QuestionAsync(CancellationToken cancellation)
    {
        MetadataAnswer answer = await metadata.GetAsync("maintenance-event", timings.Answer, cancellation).ConfigureAwait(false);
        if (!answer.IsOk)
        {
            return answer.IsNotFound ? SourceAnswer.Quiet : SourceAnswer.Failed(answer.Why);
        }

        // A migration keeps the machine running; only a termination matters.
        bool isAnnounced = answer.Body.Trim() == "TERMINATE_ON_HOST_MAINTENANCE";
        occurrence += isAnnounced && !isUnderWay ? 1 : 0;
        isUnderWay = isAnnounced;
        return !isAnnounced ? SourceAnswer.Quiet : SourceAnswer.Of(new InterruptionNotice(Time)
        {
            Source = Name,
            Kind = NoticeKind.Save,
            Event = "Google Cloud stops this machine within an hour for maintenance of its host",
            Key = string.Create(CultureInfo.InvariantCulture, $"{Name} {occurrence}"),
            Origin = this,
        });
    }
}
