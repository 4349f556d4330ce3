using Amazon.Runtime;
using Amazon.Runtime.CredentialManagement;
using Amazon.Runtime.Credentials;

namespace LoraTrainer.Storage;

/// <summary>
/// The credentials that the SDK's own search finds: environment, profile, web identity, container, instance role. It is repeated when they turn out to
/// have expired, so that what was renewed outside is read again, and its time is bounded: the address that instances ask does not answer elsewhere.
/// </summary>
internal sealed class S3Credentials(IClientConfig config, string? profile, TimeProvider time) : AWSCredentials
{
    private static readonly TimeSpan LongestSearch = TimeSpan.FromSeconds(20);

    private volatile AWSCredentials? found;
    private volatile bool foundBefore;

    /// <summary>What was found is not to be used any more.</summary>
    public void Forget() => found = null;

    public override ImmutableCredentials GetCredentials() => GetCredentialsAsync().GetAwaiter().GetResult();

    public override async Task<ImmutableCredentials> GetCredentialsAsync()
    {
        try
        {
            return await Task.Run(SearchAsync).WaitAsync(LongestSearch, time).ConfigureAwait(false);
        }
        catch (Exception exception) when (foundBefore && exception is not OperationCanceledException)
        {
            // A service that gave them before: it may do so again.
            throw new IOException($"The credentials could not be renewed ({exception.GetType().Name}).", exception);
        }
        catch (Exception exception) when (exception is not OperationCanceledException)
        {
            throw new StoreException(StoreProblem.Credentials, Nothing(exception));
        }
    }

    private async Task<ImmutableCredentials> SearchAsync()
    {
        AWSCredentials source = found ??= await new DefaultAWSCredentialsIdentityResolver().ResolveIdentityAsync(config).ConfigureAwait(false);
        ImmutableCredentials credentials = await source.GetCredentialsAsync().ConfigureAwait(false);
        foundBefore = true;
        return credentials;
    }

    private string Nothing(Exception exception) => exception is ProcessAWSCredentialException
        ? $"The credential_process of the {Named()} did not give credentials. Run its command by hand to see why."
        : profile is not null
            ? $"The {Named()} gives no credentials: it must be in ~/.aws/credentials or ~/.aws/config (or in the files that AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE name)."
            : "There are no credentials for S3. They are looked for in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in a web identity (AWS_WEB_IDENTITY_TOKEN_FILE), in the profile "
              + $"{Environment.GetEnvironmentVariable("AWS_PROFILE") ?? "default"} of ~/.aws/credentials and ~/.aws/config, and in the role of the container or instance.";

    private string Named() => $"profile {profile ?? Environment.GetEnvironmentVariable("AWS_PROFILE") ?? "default"}";

    /// <summary>The profile's own settings; null where there is none.</summary>
    public static CredentialProfile? ProfileSettings(string? name)
        => new CredentialProfileStoreChain().TryGetProfile(name ?? Environment.GetEnvironmentVariable("AWS_PROFILE") ?? "default", out CredentialProfile profile) ? profile : null;
}
