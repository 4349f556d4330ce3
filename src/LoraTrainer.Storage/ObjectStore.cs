using System.Text.RegularExpressions;

namespace LoraTrainer.Storage;

/// <summary>Stores by the text that names them.</summary>
public static partial class ObjectStore
{
    /// <summary>True for text with a scheme, <c>s3://bucket/prefix</c> for example; false for a path.</summary>
    public static bool IsUri(string uriOrPath) => SchemeAtStart().IsMatch(uriOrPath);

    /// <summary>The store at a path, <c>file://</c> URI or <c>s3://</c> URI. Nothing is asked of it yet.</summary>
    /// <exception cref="StoreException">what is written names no store; says why</exception>
    public static IObjectStore Open(string uriOrPath)
    {
        Match scheme = SchemeAtStart().Match(uriOrPath);
        return scheme.Groups[1].Value.ToLowerInvariant() switch
        {
            "" => new FolderStore(uriOrPath),
            "s3" => new S3Store(S3Location.Parse(uriOrPath)),
            "file" when Uri.TryCreate(uriOrPath, UriKind.Absolute, out Uri? uri) && uri.Host.Length == 0 => new FolderStore(uri.LocalPath),
            "file" => throw S3Location.Wrong("A file:// URI has three slashes and a path of this machine: file:///data/runs."),
            "http" or "https" => throw S3Location.Wrong("A store is not named by http:// or https://. An S3 server is written s3://bucket/prefix?endpoint=http://host:port, and AWS itself s3://bucket/prefix."),
            string other => throw S3Location.Wrong($"There is no store for {other}://. Known are paths, file:// and s3://; other services are reached through their S3 interface, with endpoint=."),
        };
    }

    [GeneratedRegex("^([A-Za-z][A-Za-z0-9+.-]*)://")]
    private static partial Regex SchemeAtStart();
}
