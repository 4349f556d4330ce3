using System.Net;
using System.Net.Http.Headers;

namespace LoraTrainer.Training.Interruptions;

/// <summary>What a metadata service answered, or why there is no answer.</summary>
internal readonly record struct MetadataAnswer
{
    /// <summary>Something answered with a status.</summary>
    public bool IsReached { get; init; }

    public HttpStatusCode Status { get; init; }

    /// <summary>Empty unless the status is 200.</summary>
    public string Body { get; init; }

    public HttpResponseHeaders? Headers { get; init; }

    /// <summary>What was wrong, as a part of a sentence; empty if the status is 200.</summary>
    public string Why { get; init; }

    public bool IsOk => IsReached && Status == HttpStatusCode.OK;

    public bool IsNotFound => IsReached && Status == HttpStatusCode.NotFound;

    /// <summary>The service's clock.</summary>
    public DateTimeOffset? Date => Headers?.Date;

    public string? Header(string name) => Headers is not null && Headers.TryGetValues(name, out IEnumerable<string>? values) ? values.FirstOrDefault() : null;
}

/// <summary>
/// Asks metadata services, which are at a link-local address: no proxy, no redirects (a redirect would carry the question to somebody else), small
/// answers, and an end to every wait.
/// </summary>
internal sealed class MetadataClient : IDisposable
{
    private const int LargestAnswer = 1 << 18;

    private readonly HttpClient client;
    private readonly TimeProvider time;

    /// <param name="connectTimeout">What a connection may take.</param>
    /// <param name="time">Bounds the answers.</param>
    public MetadataClient(TimeSpan connectTimeout, TimeProvider time)
    {
        this.time = time;
        client = new HttpClient(new SocketsHttpHandler
        {
            UseProxy = false,
            UseCookies = false,
            AllowAutoRedirect = false,
            ActivityHeadersPropagator = null,
            ConnectTimeout = connectTimeout,
            MaxResponseHeadersLength = 16,
            PooledConnectionLifetime = TimeSpan.FromMinutes(10),
        })
        {
            MaxResponseContentBufferSize = LargestAnswer,
            Timeout = Timeout.InfiniteTimeSpan,
        };
    }

    /// <summary>Sends a request and reads the answer whole. Failing is an answer too; throws only when cancelled.</summary>
    /// <param name="request">Is disposed.</param>
    /// <param name="limit">What all of it may take.</param>
    /// <param name="cancellation">The end of the program.</param>
    public async Task<MetadataAnswer> SendAsync(HttpRequestMessage request, TimeSpan limit, CancellationToken cancellation)
    {
        using HttpRequestMessage sent = request;
        using CancellationTokenSource timeout = new(limit, time);
        using var either = CancellationTokenSource.CreateLinkedTokenSource(timeout.Token, cancellation);
        try
        {
            using HttpResponseMessage response = await client.SendAsync(sent, either.Token).ConfigureAwait(false);
            bool isOk = response.StatusCode == HttpStatusCode.OK;
            return new MetadataAnswer
            {
                IsReached = true,
                Status = response.StatusCode,
                Body = isOk ? await response.Content.ReadAsStringAsync(either.Token).ConfigureAwait(false) : "",
                Headers = response.Headers,
                Why = isOk ? "" : $"it answers with status {(int)response.StatusCode}",
            };
        }
        catch (OperationCanceledException) when (!cancellation.IsCancellationRequested)
        {
            return new MetadataAnswer { Body = "", Why = "it does not answer in time" };
        }
        catch (Exception exception) when (exception is HttpRequestException or IOException or InvalidOperationException or ArgumentException)
        {
            // An answer that is too large or is not HTTP came from something; no connection came from nothing. ArgumentException: a charset that is none.
            bool reached = exception is not HttpRequestException { HttpRequestError: HttpRequestError.ConnectionError or HttpRequestError.NameResolutionError or HttpRequestError.Unknown };
            return new MetadataAnswer { IsReached = reached, Status = 0, Body = "", Why = reached ? "its answer cannot be read" : "there is no connection" };
        }
    }

    public void Dispose() => client.Dispose();

    /// <summary>A request to a path below a base address that may have a path itself.</summary>
    public static HttpRequestMessage Request(HttpMethod method, Uri endpoint, string path) =>
        new(method, new Uri(endpoint.AbsoluteUri.TrimEnd('/') + path));
}
