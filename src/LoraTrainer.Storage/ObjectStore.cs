namespace LoraTrainer.Storage;

/// <summary>Places of objects as people write them: the path of a folder, or a URI.</summary>
public static class ObjectStore
{
    /// <summary>True for a URI; false for a path.</summary>
    public static bool IsUri(string place) => place.Contains("://", StringComparison.Ordinal);

    /// <summary>The store at a place. Nothing is read yet.</summary>
    /// <exception cref="StoreException">the place is of no kind that is known, or is not written as it should be</exception>
    public static IObjectStore Open(string place) => !IsUri(place)
        ? new FolderStore(place)
        : throw new StoreException(StoreProblem.Unsupported, $"'{place}' is no place for objects that this program knows.");

    /// <summary>A name below a place; options behind '?' stay behind.</summary>
    public static string Append(string place, string name)
    {
        int options = IsUri(place) ? place.IndexOf('?', StringComparison.Ordinal) : -1;
        (string path, string rest) = options < 0 ? (place, string.Empty) : (place[..options], place[options..]);
        return IsUri(place) ? $"{path.TrimEnd('/')}/{name}{rest}" : Path.Combine(place, name);
    }

    /// <summary>The last name of a place and the place that it is below; options behind '?' belong to the latter.</summary>
    /// <exception cref="StoreException">there is no name below the store</exception>
    public static (string Root, string Name) SplitLast(string place)
    {
        int options = IsUri(place) ? place.IndexOf('?', StringComparison.Ordinal) : -1;
        (string path, string rest) = options < 0 ? (place, string.Empty) : (place[..options], place[options..]);
        path = path.TrimEnd('/');
        int slash = path.LastIndexOf('/');
        int start = IsUri(place) ? path.IndexOf("://", StringComparison.Ordinal) + 3 : 0;
        return slash > start && slash < path.Length - 1
            ? (path[..slash] + rest, path[(slash + 1)..])
            : throw new StoreException(StoreProblem.Unsupported, $"'{place}' names no run: behind the bucket and its prefix stands the run's name, as in s3://bucket/runs/my-run.");
    }
}
