using System.Globalization;
using System.Net;

namespace LoraTrainer.Training.Interruptions;

/// <summary>AWS's instance metadata, version 2: every question carries a token, which is fetched first, again before it expires, and again after a 401.</summary>
internal sealed class AwsMetadata(MetadataClient client, Uri endpoint, WatchTimings timings, TimeProvider time) : IDisposable
{
    private const string TokenHeader = "X-aws-ec2-metadata-token";
    private const string LifetimeHeader = "X-aws-ec2-metadata-token-ttl-seconds";
    private const int LifetimeSeconds = 21600;

    private readonly SemaphoreSlim one = new(1);
    private string? token;
    private long tokenFrom;
    private TimeSpan tokenLifetime;

    public Uri Endpoint => endpoint;

    public async Task<MetadataAnswer> GetAsync(string path, CancellationToken cancellation)
    {
        for (bool isSecond = false; ; isSecond = true)
        {
            (string? current, MetadataAnswer failure) = await TokenAsync(cancellation).ConfigureAwait(false);
            if (current is null)
            {
                return failure;
            }

            HttpRequestMessage request = MetadataClient.Request(HttpMethod.Get, endpoint, path);
            request.Headers.TryAddWithoutValidation(TokenHeader, current);
            MetadataAnswer answer = await client.SendAsync(request, timings.Answer, cancellation).ConfigureAwait(false);
            if (!answer.IsReached || answer.Status != HttpStatusCode.Unauthorized || isSecond)
            {
                return answer;
            }

            Interlocked.CompareExchange(ref token, null, current);
        }
    }

    public void Dispose() => one.Dispose();

    private async Task<(string? Token, MetadataAnswer Failure)> TokenAsync(CancellationToken cancellation)
    {
        await one.WaitAsync(cancellation).ConfigureAwait(false);
        try
        {
            // A tenth of its life is left for what is under way.
            if (token is { } held && time.GetElapsedTime(tokenFrom) < tokenLifetime * 0.9)
            {
                return (held, default);
            }

            long asked = time.GetTimestamp();
            HttpRequestMessage request = MetadataClient.Request(HttpMethod.Put, endpoint, "/latest/api/token");
            request.Headers.Add(LifetimeHeader, LifetimeSeconds.ToString(CultureInfo.InvariantCulture));
            MetadataAnswer answer = await client.SendAsync(request, timings.Answer, cancellation).ConfigureAwait(false);
            string fetched = answer.IsOk ? answer.Body.Trim() : "";
            if (fetched.Length is 0 or > 4096 || !fetched.All(character => character is > ' ' and < '\x7f'))
            {
                return (null, answer.IsOk ? answer with { Why = "it gives no token", Status = 0 } : answer with { Why = $"asked for a token, {answer.Why}", Status = 0 });
            }

            tokenLifetime = int.TryParse(answer.Header(LifetimeHeader), NumberStyles.None, CultureInfo.InvariantCulture, out int seconds) && seconds is > 0 and < LifetimeSeconds
                ? TimeSpan.FromSeconds(seconds)
                : TimeSpan.FromSeconds(LifetimeSeconds);
            tokenFrom = asked;
            token = fetched;
            return (fetched, default);
        }
        finally
        {
            one.Release();
        }
    }
}

/// <summary>The two minutes' notice of a spot instance.</summary>
internal sealed class AwsSpotSource(AwsMetadata metadata, WatchTimings timings, TimeSpan grace, TimeProvider time) : NoticeSource(time)
{
    private static readonly TimeSpan LongestNotice = TimeSpan.FromSeconds(ProviderInfo.AwsGrace);

    public override string Name => "AWS spot";

    public override TimeSpan Pause => timings.Aws;

    public override string Trouble(string why) =>
        $"AWS's instance metadata at {metadata.Endpoint} cannot be read ({why}), so a spot interruption will not be noticed ahead. In a container, raise the instance's metadata hop limit to 2.";

    protected override async Task<SourceAnswer> QuestionAsync(CancellationToken cancellation)
    {
        MetadataAnswer answer = await metadata.GetAsync("/latest/meta-data/spot/instance-action", cancellation).ConfigureAwait(false);
        return answer.IsNotFound ? SourceAnswer.Quiet : answer.IsOk ? ReadObject(answer.Body, json =>
        {
            if (TextOf(json, "action") is not { Length: > 0 } action)
            {
                return SourceAnswer.Failed("its answer names no action");
            }

            DateTimeOffset? deadline = ReadTime(TextOf(json, "time"));

            // Hibernation begins with the notice; the two others come at the time that is said.
            bool isAtOnce = action == "hibernate";
            return SourceAnswer.Of(new InterruptionNotice(Time)
            {
                Source = Name,
                Kind = NoticeKind.Stop,
                Event = action switch
                {
                    "stop" => "AWS stops this machine",
                    "hibernate" => "AWS hibernates this machine",
                    _ => "AWS takes this machine back",
                },
                Deadline = isAtOnce ? null : deadline,
                TimeLeftAtReceipt = isAtOnce ? TimeSpan.Zero : TimeLeft(deadline, answer.Date, grace, LongestNotice),
                Grace = isAtOnce ? TimeSpan.Zero : grace,
                Key = Name,
                Origin = this,
            });
        })
        : SourceAnswer.Failed(answer.Why);
    }
}

/// <summary>The advice that a spot instance is more likely than before to be interrupted. It may come long before the notice, with it, or alone.</summary>
internal sealed class AwsRebalanceSource(AwsMetadata metadata, WatchTimings timings, TimeProvider time) : NoticeSource(time)
{
    public override string Name => "AWS rebalance recommendation";

    public override TimeSpan Pause => timings.Aws;

    // The source of the notices says it for both.
    public override string Trouble(string why) => "";

    protected override async Task<SourceAnswer> QuestionAsync(CancellationToken cancellation)
    {
        MetadataAnswer answer = await metadata.GetAsync("/latest/meta-data/events/recommendations/rebalance", cancellation).ConfigureAwait(false);
        return answer.IsNotFound ? SourceAnswer.Quiet : answer.IsOk ? ReadObject(answer.Body, json =>
            TextOf(json, "noticeTime") is { Length: > 0 } noticed
                ? SourceAnswer.Of(new InterruptionNotice(Time)
                {
                    Source = Name,
                    Kind = NoticeKind.Save,
                    Event = "AWS may take this machine back soon (rebalance recommendation)",
                    Key = $"{Name} {noticed}",
                    Origin = this,
                })
                : SourceAnswer.Failed("its answer has no noticeTime"))
        : SourceAnswer.Failed(answer.Why);
    }
}
