using System.Globalization;
using System.Net;
using Amazon;
using Amazon.Runtime;
using Amazon.Runtime.CredentialManagement;
using Amazon.S3;
using Polly;
using Polly.Retry;

namespace LoraTrainer.Storage;

/// <summary>What is being done, for messages.</summary>
/// <param name="Permission">The permission that it takes, as policies name it.</param>
/// <param name="FullKey">The object, or a prefix.</param>
/// <param name="Stores">It makes an object appear, which may have happened although it seems to have failed.</param>
internal readonly record struct S3Action(string Permission, string FullKey, bool Stores = false);

/// <summary>
/// The SDK's client with everything around a request: settings, time-outs, trying again, and errors as sentences. Trying again is done here and nowhere
/// below: the SDK and the HTTP client do none of their own.
/// </summary>
internal sealed class S3Connection : IDisposable
{
    private const double BytesPerSecondAtLeast = 1 << 20;

    private static readonly TimeSpan FirstDelay = TimeSpan.FromMilliseconds(200);
    private static readonly TimeSpan LongestDelay = TimeSpan.FromSeconds(8);
    private static readonly TimeSpan LongestConnect = TimeSpan.FromSeconds(10);
    private static readonly ResiliencePropertyKey<S3Call> CallKey = new("call");

    private readonly TimeProvider time;
    private readonly HttpClient http;
    private readonly ClockHandler clock;
    private readonly S3Credentials credentials;
    private readonly ResiliencePipeline pipeline;

    public S3Connection(S3Location location, TimeProvider time)
    {
        Location = location;
        this.time = time;
        CredentialProfile? profile = S3Credentials.ProfileSettings(location.Profile);
        Endpoint = location.Endpoint ?? Variable("AWS_ENDPOINT_URL_S3") ?? Variable("AWS_ENDPOINT_URL") ?? profile?.EndpointUrl;
        string region = location.Region ?? Variable("AWS_REGION") ?? Variable("AWS_DEFAULT_REGION") ?? profile?.Region?.SystemName ?? "us-east-1";
        TimeSpan connect = TimeSpan.FromSeconds(Math.Min(LongestConnect.TotalSeconds, location.TimeoutSeconds));
        clock = new ClockHandler(new SocketsHttpHandler
        {
            ConnectTimeout = connect,
            AllowAutoRedirect = false,
            UseCookies = false,
            AutomaticDecompression = DecompressionMethods.None,
            PooledConnectionLifetime = TimeSpan.FromMinutes(5),
        });
        http = new HttpClient(clock) { Timeout = Timeout.InfiniteTimeSpan };

        bool own = Endpoint is not null;
        bool required = (location.Checksums ?? (own ? S3Checksums.Required : S3Checksums.Supported)) == S3Checksums.Required;
        var config = new AmazonS3Config
        {
            AuthenticationRegion = region,
            ForcePathStyle = location.PathStyle ?? (own || location.Bucket.Contains('.', StringComparison.Ordinal)),
            RequestChecksumCalculation = required ? RequestChecksumCalculation.WHEN_REQUIRED : RequestChecksumCalculation.WHEN_SUPPORTED,
            ResponseChecksumValidation = required ? ResponseChecksumValidation.WHEN_REQUIRED : ResponseChecksumValidation.WHEN_SUPPORTED,
            MaxErrorRetry = 0,
            MaxStaleConnectionRetries = 0,
            DisableClockSkewCorrection = true,
            DisableLogging = true,
            DefaultConfigurationMode = DefaultConfigurationMode.Standard,
            HttpClientFactory = new OneClient(http),
        };
        if (location.Profile is not null)
        {
            config.Profile = new Profile(location.Profile);
        }

        if (own)
        {
            config.ServiceURL = Endpoint;
        }
        else
        {
            config.RegionEndpoint = RegionEndpoint.GetBySystemName(region);
        }

        credentials = new S3Credentials(config, location.Profile, time);
        Client = new AmazonS3Client(credentials, config);
        pipeline = new ResiliencePipelineBuilder { TimeProvider = time }.AddRetry(new RetryStrategyOptions
        {
            MaxRetryAttempts = int.MaxValue,
            BackoffType = DelayBackoffType.Exponential,
            UseJitter = true,
            Delay = FirstDelay,
            MaxDelay = LongestDelay,
            ShouldHandle = arguments => ValueTask.FromResult(arguments.Outcome.Exception is { } failure && arguments.Context.Properties.TryGetValue(CallKey, out S3Call? call) && ShouldRetry(call, failure)),
        }).Build();
    }

    public S3Location Location { get; }

    public AmazonS3Client Client { get; }

    /// <summary>The server that was set, in whatever way; null for AWS itself.</summary>
    public string? Endpoint { get; }

    /// <summary>The server's clock minus this machine's, as the last refusal showed it.</summary>
    public TimeSpan ClockDifference => clock.Difference;

    /// <summary>Does one request, and again while its failures may pass. <paramref name="bytes"/>, moved by it, lengthen its time-out.</summary>
    /// <exception cref="StoreException">it failed for good</exception>
    public Task<T> CallAsync<T>(S3Action action, long bytes, Func<S3Call, S3Watch, Task<T>> once, CancellationToken cancellation)
        => RetryAsync(action, (call, token) => WatchAsync(bytes, watch => once(call, watch), token), cancellation);

    /// <summary>Does something of several requests, each of which is watched by itself, and again while its failures may pass.</summary>
    /// <exception cref="StoreException">it failed for good</exception>
    public async Task<T> RetryAsync<T>(S3Action action, Func<S3Call, CancellationToken, Task<T>> once, CancellationToken cancellation)
    {
        var call = new S3Call(time);
        ResilienceContext context = ResilienceContextPool.Shared.Get(cancellation);
        context.Properties.Set(CallKey, call);
        try
        {
            return await pipeline.ExecuteAsync(
                static async (context, state) =>
                {
                    state.call.Begin();
                    return await state.once(state.call, context.CancellationToken).ConfigureAwait(false);
                },
                context,
                (call, once)).ConfigureAwait(false);
        }
        catch (Exception exception) when (!cancellation.IsCancellationRequested && S3Failure.IsOfTheStore(exception))
        {
            throw S3Failure.Describe(exception, action, this, call);
        }
        finally
        {
            ResilienceContextPool.Shared.Return(context);
        }
    }

    /// <summary>Gives up with a <see cref="TimeoutException"/> when nothing moves for too long.</summary>
    public async Task<T> WatchAsync<T>(long bytes, Func<S3Watch, Task<T>> once, CancellationToken cancellation)
    {
        TimeSpan limit = TimeSpan.FromSeconds(Location.TimeoutSeconds + (bytes / BytesPerSecondAtLeast));
        using var watch = new S3Watch(limit, time, cancellation);
        try
        {
            return await once(watch).ConfigureAwait(false);
        }
        catch (Exception exception) when (watch.IsOver && !cancellation.IsCancellationRequested)
        {
            throw new TimeoutException(string.Create(CultureInfo.InvariantCulture, $"nothing moved for {limit.TotalSeconds:0.#} s"), exception);
        }
        catch (OperationCanceledException exception) when (!cancellation.IsCancellationRequested)
        {
            throw new TimeoutException("the connection was not made in time", exception);
        }
    }

    public void Dispose()
    {
        Client.Dispose();
        http.Dispose();
    }

    private static string? Variable(string name) => Environment.GetEnvironmentVariable(name) is { Length: > 0 } value ? value : null;

    private bool ShouldRetry(S3Call call, Exception failure)
    {
        S3FailureKind kind = S3Failure.KindOf(failure);
        call.Failed(failure, kind);
        if (kind == S3FailureKind.Credentials)
        {
            credentials.Forget();
        }

        return kind switch
        {
            S3FailureKind.Passing => call.SinceProgress < TimeSpan.FromSeconds(Location.RetrySeconds),
            S3FailureKind.Damaged => call.CountOf(kind) <= 2,
            S3FailureKind.Credentials => call.CountOf(kind) <= 1,
            _ => false,
        };
    }

    /// <summary>Hands the one HTTP client of the store to the SDK.</summary>
    private sealed class OneClient(HttpClient http) : HttpClientFactory
    {
        public override HttpClient CreateHttpClient(IClientConfig clientConfig) => http;

        public override bool UseSDKHttpClientCaching(IClientConfig clientConfig) => false;

        public override bool DisposeHttpClientsAfterUse(IClientConfig clientConfig) => false;
    }

    /// <summary>Compares the time in a refused request with that in the answer.</summary>
    private sealed class ClockHandler(HttpMessageHandler inner) : DelegatingHandler(inner)
    {
        private long differenceTicks;

        public TimeSpan Difference => new(Interlocked.Read(ref differenceTicks));

        protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            HttpResponseMessage response = await base.SendAsync(request, cancellationToken).ConfigureAwait(false);
            if (response.StatusCode == HttpStatusCode.Forbidden
                && response.Headers.Date is { } theirs
                && request.Headers.TryGetValues("x-amz-date", out IEnumerable<string>? values)
                && DateTimeOffset.TryParseExact(values.First(), "yyyyMMddTHHmmssZ", CultureInfo.InvariantCulture, DateTimeStyles.AssumeUniversal, out DateTimeOffset ours))
            {
                Interlocked.Exchange(ref differenceTicks, (theirs - ours).Ticks);
            }

            return response;
        }
    }
}

/// <summary>One request or group of requests through all its tries.</summary>
internal sealed class S3Call(TimeProvider time)
{
    private readonly Dictionary<S3FailureKind, int> failures = [];
    private readonly long started = time.GetTimestamp();
    private long progressed = time.GetTimestamp();

    /// <summary>1 for the first.</summary>
    public int Try { get; private set; }

    /// <summary>An earlier try may have done its work although it seemed to fail.</summary>
    public bool MayHaveBeenDone { get; private set; }

    public TimeSpan Elapsed => time.GetElapsedTime(started);

    public TimeSpan SinceProgress => time.GetElapsedTime(Interlocked.Read(ref progressed));

    public void Begin() => Try++;

    /// <summary>Something arrived: the patience starts anew.</summary>
    public void Progressed() => Interlocked.Exchange(ref progressed, time.GetTimestamp());

    public int CountOf(S3FailureKind kind) => failures.GetValueOrDefault(kind);

    public void Failed(Exception failure, S3FailureKind kind)
    {
        failures[kind] = CountOf(kind) + 1;
        MayHaveBeenDone |= kind == S3FailureKind.Passing && !S3Failure.IsRefusedConnection(failure);
    }
}

/// <summary>Watches one request: its token fires when the caller cancels, and when <see cref="Touch"/> was not called for the limit.</summary>
internal sealed class S3Watch : IDisposable
{
    private readonly TimeSpan limit;
    private readonly CancellationTokenSource timer;
    private readonly CancellationTokenSource linked;

    public S3Watch(TimeSpan limit, TimeProvider time, CancellationToken cancellation)
    {
        this.limit = limit;
        timer = new CancellationTokenSource(limit, time);
        linked = CancellationTokenSource.CreateLinkedTokenSource(timer.Token, cancellation);
    }

    public CancellationToken Token => linked.Token;

    public bool IsOver => timer.IsCancellationRequested;

    /// <summary>A byte moved.</summary>
    public void Touch() => timer.CancelAfter(limit);

    public void Dispose()
    {
        linked.Dispose();
        timer.Dispose();
    }
}
