using System.Net;
using System.Net.Sockets;

namespace LoraTrainer.Storage;

/// <summary>An answer of a server that is not the content that was asked for. Holds no address and no secret.</summary>
internal sealed class HttpStatusException(HttpStatusCode status, string? code, string? message, TimeSpan? retryAfter) : IOException($"the server answered {(int)status} {status}")
{
    public HttpStatusCode Status => status;

    /// <summary>A word of the hub for the reason (<c>X-Error-Code</c>): GatedRepo, RepoNotFound, RevisionNotFound, EntryNotFound.</summary>
    public string? Code => code;

    /// <summary>The server's own sentence (<c>X-Error-Message</c>), shortened and on one line.</summary>
    public string? ServerMessage => message is null ? null : string.Concat(message.Where(character => !char.IsControl(character)).Take(300));

    public TimeSpan? RetryAfter => retryAfter;
}

/// <summary>Which failures of HTTP may pass.</summary>
internal static class HttpFailure
{
    public static bool MayPass(Exception failure) => failure switch
    {
        HttpStatusException answer => (int)answer.Status is 408 or 425 or 429 or (>= 500 and not 501 and not 505 and not 507),
        StoreException or DamagedContentException => false,
        TimeoutException or HttpRequestException or HttpIOException or EndOfStreamException => true,
        IOException { InnerException: SocketException } => true,
        _ => false,
    };

    /// <summary>A name that the resolver does not know: it will not know it in a minute either.</summary>
    public static bool IsUnknownHost(Exception failure) => SocketErrorOf(failure) is SocketError.HostNotFound or SocketError.NoData or SocketError.TryAgain or SocketError.NoRecovery;

    /// <summary>The failure in a few words, without addresses.</summary>
    public static string Words(Exception failure) => failure switch
    {
        HttpStatusException or TimeoutException or EndOfStreamException => failure.Message,
        _ when IsUnknownHost(failure) => "its name is not known to this machine's resolver",
        _ when SocketErrorOf(failure) is { } error => error switch
        {
            SocketError.ConnectionRefused => "the connection was refused",
            SocketError.ConnectionReset => "the connection was reset",
            SocketError.NetworkUnreachable or SocketError.HostUnreachable => "there is no way to it",
            _ => $"the network failed ({error})",
        },
        HttpRequestException { HttpRequestError: HttpRequestError.SecureConnectionError } => "the secure connection failed: its certificate is not trusted here",
        HttpIOException or HttpRequestException { HttpRequestError: HttpRequestError.ResponseEnded } => "the connection ended in the middle",
        _ => failure.GetType().Name,
    };

    /// <summary>An error of the disk that is written to, as a sentence for the user; null for others.</summary>
    public static StoreException? OfDisk(Exception failure, string path)
    {
        const int noSpace = 28, quota = 122, readOnly = 30;
        return failure switch
        {
            IOException when (failure.HResult & 0xFFFF) is noSpace or quota => new StoreException(
                StoreProblem.Full, $"{path}: the disk is full. Free space and start again; what has arrived is kept and is not fetched twice. Or put the cache on another disk (HF_HUB_CACHE for models and data by name, LT_CACHE for other downloads)."),
            UnauthorizedAccessException => new StoreException(StoreProblem.Denied, $"{path}: no permission to write there. Change it, or put the cache elsewhere (HF_HUB_CACHE for models and data by name, LT_CACHE for other downloads)."),
            IOException when (failure.HResult & 0xFFFF) == readOnly => new StoreException(StoreProblem.Denied, $"{path}: the disk is read-only. Put the cache elsewhere (HF_HUB_CACHE for models and data by name, LT_CACHE for other downloads)."),
            _ => null,
        };
    }

    private static SocketError? SocketErrorOf(Exception failure)
    {
        for (Exception? inner = failure; inner is not null; inner = inner.InnerException)
        {
            if (inner is SocketException socket)
            {
                return socket.SocketErrorCode;
            }
        }

        return null;
    }
}
