using System.Globalization;
using System.Net;
using System.Net.Http.Headers;
using Polly;
using Polly.Retry;

namespace LoraTrainer.Storage;

/// <summary>How long a server is waited for.</summary>
internal sealed record HttpPatience
{
    /// <summary>Without a byte for so long a connection counts as dead.</summary>
    public TimeSpan Silence { get; init; } = TimeSpan.FromSeconds(30);

    /// <summary>How long failures in a row are borne, from the last byte on.</summary>
    public TimeSpan Failures { get; init; } = TimeSpan.FromSeconds(90);

    /// <summary>The first wait between two tries; they double.</summary>
    public TimeSpan FirstDelay { get; init; } = TimeSpan.FromMilliseconds(500);

    /// <summary>The longest wait that a server may ask for with Retry-After.</summary>
    public TimeSpan LongestAsked { get; init; } = TimeSpan.FromMinutes(6);
}

/// <summary>A GET or HEAD.</summary>
/// <param name="Address">May hold secrets; it is in no message.</param>
/// <param name="Shown">What messages call it.</param>
internal sealed record HttpAsk(Uri Address, string Shown)
{
    /// <summary>A bearer token, sent to the host of <see cref="Address"/> and to no other that it redirects to.</summary>
    public string? Token { get; init; }

    public HttpMethod Method { get; init; } = HttpMethod.Get;

    /// <summary>The first byte that is wanted.</summary>
    public long From { get; init; }

    /// <summary>Bytes from <see cref="From"/> on are wanted only of the content with this ETag; null: of whatever is there.</summary>
    public string? IfRange { get; init; }

    public string? IfNoneMatch { get; init; }

    public DateTimeOffset? IfModifiedSince { get; init; }

    /// <summary>Without address and token.</summary>
    public override string ToString() => $"{Method} {Shown}";
}

/// <summary>HTTP with redirects, time-outs and trying again. Trying again is done here and nowhere below. Secrets stay with the host that they are for.</summary>
internal sealed class HttpConnection : IDisposable
{
    private const int MostRedirects = 10;
    private const int MostSlowdowns = 6;

    private static readonly TimeSpan LongestDelay = TimeSpan.FromSeconds(10);
    private static readonly ResiliencePropertyKey<HttpCall> CallKey = new("call");

    private readonly TimeProvider time;
    private readonly HttpClient http;
    private readonly ResiliencePipeline pipeline;

    public HttpConnection(HttpPatience? patience = null, TimeProvider? time = null)
    {
        this.time = time ?? TimeProvider.System;
        Patience = patience ?? new HttpPatience();
        http = new HttpClient(new SocketsHttpHandler
        {
            ConnectTimeout = TimeSpan.FromSeconds(10),
            AllowAutoRedirect = false,
            UseCookies = false,
            AutomaticDecompression = DecompressionMethods.None,
            PooledConnectionLifetime = TimeSpan.FromMinutes(5),
            MaxConnectionsPerServer = 16,
        })
        { Timeout = Timeout.InfiniteTimeSpan };
        pipeline = new ResiliencePipelineBuilder { TimeProvider = this.time }.AddRetry(new RetryStrategyOptions
        {
            MaxRetryAttempts = int.MaxValue,
            BackoffType = DelayBackoffType.Exponential,
            UseJitter = true,
            Delay = Patience.FirstDelay,
            MaxDelay = LongestDelay,
            ShouldHandle = arguments => ValueTask.FromResult(arguments.Outcome.Exception is { } failure && arguments.Context.Properties.TryGetValue(CallKey, out HttpCall? call) && ShouldRetry(call, failure)),
            DelayGenerator = arguments => ValueTask.FromResult((arguments.Outcome.Exception as HttpStatusException)?.RetryAfter is { } asked && asked <= Patience.LongestAsked ? asked : (TimeSpan?)null),
        }).Build();
    }

    public HttpPatience Patience { get; }

    /// <summary>Does <paramref name="once"/>, and again while its failures may pass.</summary>
    /// <exception cref="HttpStatusException">the server said no</exception>
    /// <exception cref="StoreException">the server cannot be reached, or a redirect is refused</exception>
    public async Task<T> RetryAsync<T>(string shown, Func<HttpCall, CancellationToken, Task<T>> once, CancellationToken cancellation)
    {
        var call = new HttpCall(time);
        ResilienceContext context = ResilienceContextPool.Shared.Get(cancellation);
        context.Properties.Set(CallKey, call);
        try
        {
            return await pipeline.ExecuteAsync(static async (context, state) => await state.once(state.call, context.CancellationToken).ConfigureAwait(false), context, (call, once)).ConfigureAwait(false);
        }
        catch (Exception exception) when (!cancellation.IsCancellationRequested && exception is not HttpStatusException && (HttpFailure.MayPass(exception) || exception is OperationCanceledException))
        {
            throw Unreachable(shown, exception, call);
        }
        finally
        {
            ResilienceContextPool.Shared.Return(context);
        }
    }

    /// <summary>One answer, redirects followed; to be disposed. Anything but success is an exception, and so are 304 and 416 unless they were to be expected.</summary>
    public async Task<HttpResponseMessage> SendAsync(HttpAsk ask, CancellationToken cancellation)
    {
        Uri address = ask.Address;
        for (int redirects = 0; ; redirects++)
        {
            using HttpRequestMessage request = Request(ask, address);
            HttpResponseMessage response = await WithinAsync(token => http.SendAsync(request, HttpCompletionOption.ResponseHeadersRead, token), cancellation).ConfigureAwait(false);
            if (response.StatusCode is not (HttpStatusCode.MovedPermanently or HttpStatusCode.Found or HttpStatusCode.SeeOther or HttpStatusCode.TemporaryRedirect or HttpStatusCode.PermanentRedirect))
            {
                if (response.IsSuccessStatusCode || (response.StatusCode == HttpStatusCode.NotModified && (ask.IfNoneMatch ?? (object?)ask.IfModifiedSince) is not null))
                {
                    return response;
                }

                using (response)
                {
                    throw new HttpStatusException(response.StatusCode, Header(response, "X-Error-Code"), Header(response, "X-Error-Message"), RetryAfter(response));
                }
            }

            using (response)
            {
                Uri next = response.Headers.Location is { } location ? new Uri(address, location) : throw new StoreException(StoreProblem.Unsupported, $"{ask.Shown}: the server redirects without saying where to.");
                if (next.Scheme is not ("https" or "http") || (address.Scheme == "https" && next.Scheme == "http"))
                {
                    throw new StoreException(StoreProblem.Unsupported, $"{ask.Shown}: the server redirects to an address that is not secure, which is not followed.");
                }

                if (redirects == MostRedirects)
                {
                    throw new StoreException(StoreProblem.Unsupported, $"{ask.Shown}: more than {MostRedirects} redirects, one after the other.");
                }

                address = next;
            }
        }
    }

    /// <summary>A small content, whole.</summary>
    public async Task<byte[]> ReadAsync(HttpAsk ask, int mostBytes, CancellationToken cancellation) => await RetryAsync(
        ask.Shown,
        async (_, token) =>
        {
            using HttpResponseMessage response = await SendAsync(ask, token).ConfigureAwait(false);
            await using Stream stream = await response.Content.ReadAsStreamAsync(token).ConfigureAwait(false);
            using var content = new MemoryStream();
            byte[] buffer = new byte[1 << 16];
            while (await ReadSomeAsync(stream, buffer, token).ConfigureAwait(false) is > 0 and int read)
            {
                content.Write(buffer, 0, read);
                if (content.Length > mostBytes)
                {
                    throw new StoreException(StoreProblem.Unsupported, $"{ask.Shown}: the answer has more than {mostBytes >> 20} MiB.");
                }
            }

            return content.ToArray();
        },
        cancellation).ConfigureAwait(false);

    /// <summary>The next bytes; a <see cref="TimeoutException"/> where none come.</summary>
    public Task<int> ReadSomeAsync(Stream stream, Memory<byte> buffer, CancellationToken cancellation) => WithinAsync(token => stream.ReadAsync(buffer, token).AsTask(), cancellation);

    public void Dispose() => http.Dispose();

    public static string? Header(HttpResponseMessage response, string name) => response.Headers.TryGetValues(name, out IEnumerable<string>? values) ? values.FirstOrDefault() : null;

    private static HttpRequestMessage Request(HttpAsk ask, Uri address)
    {
        var request = new HttpRequestMessage(ask.Method, address);
        request.Headers.UserAgent.Add(new ProductInfoHeaderValue("lora-trainer", "1"));
        if (ask.Token is not null && IsSameOrigin(ask.Address, address))
        {
            request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", ask.Token);
        }

        if (ask.From > 0)
        {
            request.Headers.Range = new RangeHeaderValue(ask.From, null);
            if (ask.IfRange is { } tag)
            {
                request.Headers.TryAddWithoutValidation("If-Range", tag);
            }
        }

        if (ask.IfNoneMatch is { } known)
        {
            request.Headers.TryAddWithoutValidation("If-None-Match", known);
        }
        else if (ask.IfModifiedSince is { } since)
        {
            request.Headers.IfModifiedSince = since;
        }

        return request;
    }

    private static bool IsSameOrigin(Uri one, Uri other) => one.Scheme == other.Scheme && one.Port == other.Port && one.IdnHost.Equals(other.IdnHost, StringComparison.OrdinalIgnoreCase);

    private TimeSpan? RetryAfter(HttpResponseMessage response)
    {
        TimeSpan? asked = response.Headers.RetryAfter is { } header ? header.Delta ?? header.Date - time.GetUtcNow() : null;
        return asked is { } wait ? (wait > TimeSpan.Zero ? wait : TimeSpan.Zero) : null;
    }

    private bool ShouldRetry(HttpCall call, Exception failure)
    {
        if (failure is OperationCanceledException || !HttpFailure.MayPass(failure))
        {
            return false;
        }

        call.Failures++;
        return failure is HttpStatusException { RetryAfter: { } asked } ? asked <= Patience.LongestAsked && ++call.Slowdowns <= MostSlowdowns
            : HttpFailure.IsUnknownHost(failure) && !call.HasProgressed ? call.Failures <= 2
            : call.SinceProgress < Patience.Failures;
    }

    private async Task<T> WithinAsync<T>(Func<CancellationToken, Task<T>> work, CancellationToken cancellation)
    {
        using var timer = new CancellationTokenSource(Patience.Silence, time);
        using var linked = CancellationTokenSource.CreateLinkedTokenSource(timer.Token, cancellation);
        try
        {
            return await work(linked.Token).ConfigureAwait(false);
        }
        catch (OperationCanceledException exception) when (!cancellation.IsCancellationRequested)
        {
            throw new TimeoutException(string.Create(CultureInfo.InvariantCulture, $"nothing came for {Patience.Silence.TotalSeconds:0.#} s"), exception);
        }
    }

    private static StoreException Unreachable(string shown, Exception failure, HttpCall call)
        => new(StoreProblem.Unreachable, string.Create(CultureInfo.InvariantCulture, $"{shown} cannot be fetched: {HttpFailure.Words(failure)} ({call.Failures} {(call.Failures == 1 ? "try" : "tries")} in {call.Elapsed.TotalSeconds:0} s). Check the network and the proxy (HTTPS_PROXY), then start again; what has arrived is kept."), failure);
}

/// <summary>One piece of work through all its tries.</summary>
internal sealed class HttpCall(TimeProvider time)
{
    private readonly long started = time.GetTimestamp();
    private long progressed = time.GetTimestamp();

    public int Failures { get; set; }

    public int Slowdowns { get; set; }

    public bool HasProgressed { get; private set; }

    public TimeSpan Elapsed => time.GetElapsedTime(started);

    public TimeSpan SinceProgress => time.GetElapsedTime(Interlocked.Read(ref progressed));

    /// <summary>Something arrived: the patience starts anew.</summary>
    public void Progressed()
    {
        HasProgressed = true;
        Slowdowns = 0;
        Interlocked.Exchange(ref progressed, time.GetTimestamp());
    }
}
