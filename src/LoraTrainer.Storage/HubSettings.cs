namespace LoraTrainer.Storage;

/// <summary>Where the hub and its cache are, and who asks: the environment variables that Python's huggingface_hub reads, with the same meanings.</summary>
/// <param name="Endpoint">HF_ENDPOINT; without a '/' at its end.</param>
/// <param name="CacheFolder">HF_HUB_CACHE, or HUGGINGFACE_HUB_CACHE, or <c>hub</c> in HF_HOME, which is <c>huggingface</c> in XDG_CACHE_HOME or ~/.cache.</param>
/// <param name="Token">HF_TOKEN, or HUGGING_FACE_HUB_TOKEN, or the content of HF_TOKEN_PATH or of <c>token</c> in HF_HOME; null: none.</param>
/// <param name="IsOffline">HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE: nothing is asked over the network.</param>
public sealed record HubSettings(string Endpoint, string CacheFolder, string? Token, bool IsOffline)
{
    private const string DefaultEndpoint = "https://huggingface.co";

    private static readonly string[] TrueWords = ["1", "ON", "YES", "TRUE"];

    /// <exception cref="StoreException">HF_ENDPOINT is no address.</exception>
    public static HubSettings FromEnvironment() => From(Environment.GetEnvironmentVariable);

    /// <summary>Without the token.</summary>
    public override string ToString() => $"{Endpoint}, cache {CacheFolder}{(IsOffline ? ", offline" : "")}";

    internal static HubSettings From(Func<string, string?> variable)
    {
        string? Given(string name) => variable(name) is { } value && value.Trim().Length > 0 ? value.Trim() : null;
        bool IsOn(string name) => Given(name) is { } value && TrueWords.Contains(value.ToUpperInvariant());

        string endpoint = (Given("HF_ENDPOINT") ?? DefaultEndpoint).TrimEnd('/');
        if (!Uri.TryCreate(endpoint, UriKind.Absolute, out Uri? address) || address.Scheme is not ("http" or "https") || address.UserInfo.Length > 0 || address.Query.Length > 0)
        {
            throw new StoreException(StoreProblem.Unsupported, $"HF_ENDPOINT must be an address such as {DefaultEndpoint}, without user, password and options.");
        }

        string caches = Given("XDG_CACHE_HOME") ?? Path.Combine(HomeOf(Given), ".cache");
        string home = Expanded(Given("HF_HOME"), Given) ?? Path.Combine(caches, "huggingface");
        string cache = Expanded(Given("HF_HUB_CACHE") ?? Given("HUGGINGFACE_HUB_CACHE"), Given) ?? Path.Combine(home, "hub");
        string? token = Given("HF_TOKEN") ?? Given("HUGGING_FACE_HUB_TOKEN");
        if (token is null && !IsOn("HF_HUB_DISABLE_IMPLICIT_TOKEN"))
        {
            token = TokenIn(Expanded(Given("HF_TOKEN_PATH"), Given) ?? Path.Combine(home, "token"));
        }

        return new HubSettings(endpoint, Path.GetFullPath(cache), token, IsOn("HF_HUB_OFFLINE") || IsOn("TRANSFORMERS_OFFLINE"));
    }

    private static string HomeOf(Func<string, string?> given) => given("HOME") ?? Environment.GetFolderPath(Environment.SpecialFolder.UserProfile);

    private static string? Expanded(string? path, Func<string, string?> given) => path is "~" || path?.StartsWith("~/", StringComparison.Ordinal) == true ? HomeOf(given) + path[1..] : path;

    private static string? TokenIn(string path)
    {
        try
        {
            return File.Exists(path) && File.ReadAllText(path).Trim() is { Length: > 0 } token && !token.Any(char.IsControl) ? token : null;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }
}
