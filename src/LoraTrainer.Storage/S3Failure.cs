using System.Globalization;
using System.Net;
using System.Net.Sockets;
using Amazon.Runtime;

namespace LoraTrainer.Storage;

/// <summary>What kind of failure a request had: it decides whether it is tried again.</summary>
internal enum S3FailureKind
{
    /// <summary>It may pass: the network, a server that is down or busy.</summary>
    Passing,

    /// <summary>The server says that what arrived is not what was sent.</summary>
    Damaged,

    /// <summary>The credentials may have been renewed meanwhile; and a byte flipped on the way shows as a wrong signature.</summary>
    Credentials,

    /// <summary>Trying again changes nothing.</summary>
    Final,
}

/// <summary>What was read is not what was stored.</summary>
internal sealed class DamagedContentException(string message) : IOException(message);

/// <summary>The content that was to be stored could not be read.</summary>
internal sealed class SourceException(Exception cause) : Exception(cause.Message, cause);

/// <summary>Failures of requests: their kinds, and their sentences. No message holds a header, a signature or a key of the account.</summary>
internal static class S3Failure
{
    private static readonly string[] PassingCodes =
        ["SlowDown", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "InternalError", "ServiceUnavailable", "ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded"];

    private static readonly string[] DamagedCodes = ["BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody", "InvalidChunkSizeError"];

    private static readonly string[] CredentialCodes = ["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"];

    private static readonly string[] FullCodes = ["QuotaExceeded", "InsufficientCapacity", "InsufficientStorage", "XMinioStorageFull", "ServiceQuotaExceeded"];

    /// <summary>False for what the caller did: cancelled, or gave content that cannot be read.</summary>
    public static bool IsOfTheStore(Exception failure) => failure is not (DamagedContentException or StoreException or ArgumentException) && SourceOf(failure) is null;

    /// <summary>The failure to read what was to be stored, however it was wrapped on its way; null for other failures.</summary>
    public static SourceException? SourceOf(Exception failure) => Inner<SourceException>(failure);

    public static S3FailureKind KindOf(Exception failure)
    {
        if (failure is DamagedContentException || SourceOf(failure) is not null || Inner<StoreException>(failure) is not null)
        {
            return S3FailureKind.Final;
        }

        if (Inner<AmazonServiceException>(failure) is { } answer && (answer.StatusCode != 0 || !string.IsNullOrEmpty(answer.ErrorCode)))
        {
            string code = answer.ErrorCode ?? string.Empty;
            return PassingCodes.Contains(code) || (int)answer.StatusCode is 429 or (>= 500 and not 501 and not 505 and not 507) || answer is AmazonUnmarshallingException
                ? S3FailureKind.Passing
                : DamagedCodes.Contains(code) ? S3FailureKind.Damaged : CredentialCodes.Contains(code) ? S3FailureKind.Credentials : S3FailureKind.Final;
        }

        return Inner<IOException>(failure) is not null || Inner<HttpRequestException>(failure) is not null || Inner<SocketException>(failure) is not null
            || Inner<TimeoutException>(failure) is not null || failure is AmazonUnmarshallingException
            ? S3FailureKind.Passing
            : S3FailureKind.Final;
    }

    /// <summary>Nothing of the request can have arrived.</summary>
    public static bool IsRefusedConnection(Exception failure) => Inner<SocketException>(failure) is { SocketErrorCode: SocketError.ConnectionRefused or SocketError.HostNotFound or SocketError.NoData };

    public static bool IsStatus(Exception failure, HttpStatusCode status) => failure is AmazonServiceException answer && answer.StatusCode == status;

    /// <summary>There is no such object; a bucket that is not there is another matter.</summary>
    public static bool IsNoObject(Exception failure) => failure is AmazonServiceException { StatusCode: HttpStatusCode.NotFound } answer && answer.ErrorCode != "NoSuchBucket";

    public static StoreException Describe(Exception failure, S3Action action, S3Connection connection, S3Call call)
    {
        if (Inner<StoreException>(failure) is { } known)
        {
            return known;
        }

        string what = $"{connection.Location.PathOf(action.FullKey)}{(connection.Endpoint is null ? string.Empty : $" at {connection.Endpoint}")}";
        return Inner<AmazonServiceException>(failure) is { } answer && (answer.StatusCode != 0 || !string.IsNullOrEmpty(answer.ErrorCode))
            ? FromAnswer(answer, what, action, connection, call)
            : KindOf(failure) == S3FailureKind.Passing
                ? NoAnswer(failure, what, action, call)
                : new StoreException(StoreProblem.Unsupported, $"{action.Permission} on {what} failed in a way that is not known ({failure.GetType().Name}: {failure.Message})");
    }

    private static StoreException NoAnswer(Exception failure, string what, S3Action action, S3Call call)
    {
        Exception innermost = failure;
        while (innermost.InnerException is { } inner)
        {
            innermost = inner;
        }

        string reason = Inner<TimeoutException>(failure)?.Message ?? (innermost.Message.Length > 0 ? innermost.Message : innermost.GetType().Name);
        string known = action.Stores && call.MayHaveBeenDone ? " Whether it was stored is not known." : string.Empty;
        string advice = Inner<SocketException>(failure)?.SocketErrorCode switch
        {
            SocketError.ConnectionRefused => "Nothing listens there: is the server running, and are endpoint= and its port right?",
            SocketError.HostNotFound or SocketError.NoData or SocketError.TryAgain => "There is no such host: are endpoint=, region= and path_style= right?",
            _ => "Check the network and the server; retry_seconds= sets how long it is tried, timeout_seconds= how long a silence may be.",
        };
        return new StoreException(StoreProblem.Unreachable, $"{action.Permission} on {what} did not succeed in {Tries(call)}: {reason.TrimEnd('.')}.{known} {advice}", failure);
    }

    private static StoreException FromAnswer(AmazonServiceException answer, string what, S3Action action, S3Connection connection, S3Call call)
    {
        string code = string.IsNullOrEmpty(answer.ErrorCode) ? $"status {(int)answer.StatusCode}" : answer.ErrorCode;
        string bucket = connection.Location.Bucket;
        string told = string.IsNullOrWhiteSpace(answer.Message) || answer.Message == code ? string.Empty : $" The server says: {answer.Message.TrimEnd('.')}.";
        (StoreProblem problem, string sentence) = code switch
        {
            "NoSuchBucket" => (StoreProblem.Missing, $"There is no bucket {bucket}{At(connection)}. Make it, or correct the name, endpoint= or region=."),
            "InvalidAccessKeyId" => (StoreProblem.Credentials, $"The access key is not known to the server ({what}). Check AWS_ACCESS_KEY_ID or the profile, and that they belong to this endpoint."),
            "SignatureDoesNotMatch" => (StoreProblem.Credentials, $"The server does not accept the signature of {action.Permission} on {what}: the secret key is wrong, or something on the way changes requests. Check AWS_SECRET_ACCESS_KEY or the profile."),
            "ExpiredToken" or "ExpiredTokenException" or "TokenRefreshRequired" or "InvalidToken" => (StoreProblem.Credentials, $"The session token of the credentials has expired or is not valid ({what}), and reading them again gave no better one. Renew them, for example by signing in again; then resume."),
            "RequestTimeTooSkewed" or "RequestExpired" => (StoreProblem.Clock, $"This machine's clock is {Offset(connection.ClockDifference)} the server's, so {what} refuses its requests. Set the clock (timedatectl set-ntp true)."),
            "AuthorizationHeaderMalformed" or "PermanentRedirect" or "IllegalLocationConstraintException" => (StoreProblem.Unsupported, $"The bucket {bucket} is in another region.{told} Set region= in the URI."),
            "UserSuspended" or "AccountProblem" => (StoreProblem.Denied, $"The account is suspended ({action.Permission} on {what})."),
            "EntityTooLarge" => (StoreProblem.Unsupported, $"{what} is larger than the server takes in one piece. A smaller part_mib= helps where objects are sent in parts."),
            "XAmzContentSHA256Mismatch" or "NotImplemented" when action.Permission == "s3:PutObject" => (StoreProblem.Unsupported, $"The server does not take the form in which {what} was sent ({code}). If it is not AWS, set checksums=required in the URI; if that does not help, chunk_encoding=false.{told}"),
            "InvalidObjectState" => (StoreProblem.Unsupported, $"{what} is archived and must be restored before it can be read."),
            "InvalidStorageClass" => (StoreProblem.Unsupported, $"The server does not know the storage class {connection.Location.StorageClass}. Change storage_class= in the URI."),
            _ when FullCodes.Contains(code) || (int)answer.StatusCode == 507 => (StoreProblem.Full, $"{what} could not be stored: the server's quota or space is used up ({code}). Delete old runs, or have the quota raised."),
            _ when code.StartsWith("KMS", StringComparison.Ordinal) || code.StartsWith("InvalidEncryption", StringComparison.Ordinal) => (StoreProblem.Denied, $"The encryption key cannot be used for {what} ({code}).{told} Check kms_key= and the permissions kms:GenerateDataKey and kms:Decrypt."),
            _ when answer.StatusCode == HttpStatusCode.Forbidden => (StoreProblem.Denied, $"The credentials are not allowed {action.Permission} on {what} ({code}). Give them that permission on the bucket {bucket}, or use others."),
            _ when KindOf(answer) == S3FailureKind.Passing => (StoreProblem.Unreachable, $"{action.Permission} on {what} did not succeed in {Tries(call)}: the server answered {(int)answer.StatusCode} {code}.{told} Try again later; retry_seconds= sets how long it is tried."),
            _ => (StoreProblem.Unsupported, $"The server refused {action.Permission} on {what}: {(int)answer.StatusCode} {code}.{told}"),
        };
        string request = string.IsNullOrEmpty(answer.RequestId) ? string.Empty : $" Request {answer.RequestId}.";

        // The SDK's exception stays out: it keeps the server's answer, which repeats the signed headers of a request whose signature is wrong.
        return new StoreException(problem, sentence + request);
    }

    private static string At(S3Connection connection) => connection.Endpoint is null ? string.Empty : $" at {connection.Endpoint}";

    private static string Tries(S3Call call) => string.Create(CultureInfo.InvariantCulture, $"{call.Try} {(call.Try == 1 ? "try" : "tries")} over {call.Elapsed.TotalSeconds:0.#} s");

    private static string Offset(TimeSpan difference)
    {
        string amount = difference.Duration() switch
        {
            { TotalHours: >= 48 } d => string.Create(CultureInfo.InvariantCulture, $"{d.TotalDays:0} days"),
            { TotalMinutes: >= 120 } d => string.Create(CultureInfo.InvariantCulture, $"{d.TotalHours:0.#} hours"),
            { TotalSeconds: >= 120 } d => string.Create(CultureInfo.InvariantCulture, $"{d.TotalMinutes:0} minutes"),
            TimeSpan d => string.Create(CultureInfo.InvariantCulture, $"{d.TotalSeconds:0} seconds"),
        };
        return difference == TimeSpan.Zero ? "too far from" : difference > TimeSpan.Zero ? $"{amount} behind" : $"{amount} ahead of";
    }

    private static T? Inner<T>(Exception failure)
        where T : Exception
    {
        for (Exception? current = failure; current is not null; current = current.InnerException)
        {
            if (current is T found)
            {
                return found;
            }
        }

        return null;
    }
}
