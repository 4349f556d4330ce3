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
        if (SchemeWithOneSlash().IsMatch(uriOrPath))
        {
            throw S3Location.Wrong($"'{uriOrPath}' is neither a path nor a URI: a URI has two slashes behind its colon, as in s3://bucket/prefix. For a folder of that name write ./ before it.");
        }

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

    /// <summary>A name below a place; options behind '?' stay behind.</summary>
    public static string Append(string place, string name)
    {
        if (!IsUri(place))
        {
            return Path.Combine(place, name);
        }

        (string path, string options) = Cut(place);
        return $"{path.TrimEnd('/')}/{name}{options}";
    }

    /// <summary>The last name of a URI and the place that it is below; options behind '?' belong to the latter.</summary>
    /// <exception cref="StoreException">there is no name below the store</exception>
    public static (string Root, string Name) SplitLast(string uri)
    {
        (string path, string options) = Cut(uri);
        path = path.TrimEnd('/');
        int slash = path.LastIndexOf('/');
        return slash > path.IndexOf("://", StringComparison.Ordinal) + 2
            ? (path[..slash] + options, path[(slash + 1)..])
            : throw S3Location.Wrong($"'{path}' names no run. Behind the bucket and its prefix stands the run's name, as in s3://bucket/runs/my-run.");
    }

    private static (string Path, string Options) Cut(string uri) =>
        uri.IndexOf('?', StringComparison.Ordinal) is >= 0 and int options ? (uri[..options], uri[options..]) : (uri, string.Empty);

    [GeneratedRegex("^([A-Za-z][A-Za-z0-9+.-]*)://")]
    private static partial Regex SchemeAtStart();

    [GeneratedRegex("^[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")]
    private static partial Regex SchemeWithOneSlash();
}
