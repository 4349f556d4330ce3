namespace LoraTrainer.Storage;

/// <summary>A file of a repository.</summary>
/// <param name="Path">Relative, parts separated by '/'.</param>
/// <param name="SizeBytes">Null where the hub does not say it.</param>
public sealed record HubFile(string Path, long? SizeBytes)
{
    /// <summary>SHA-256 of the content, for files that the hub keeps as large ones.</summary>
    internal string? Sha256 { get; init; }

    /// <summary>git's name of the content, for all others.</summary>
    internal string? BlobId { get; init; }
}

/// <summary>One commit of a repository: what is in it, and the folder where its files appear as they are fetched.</summary>
public sealed class HubSnapshot
{
    private readonly Hub hub;

    internal HubSnapshot(Hub hub, HubRepository repository, string commit, string folder, IReadOnlyList<HubFile> files, bool isCachedOnly)
    {
        this.hub = hub;
        Repository = repository;
        Commit = commit;
        Folder = folder;
        Files = files;
        IsCachedOnly = isCachedOnly;
    }

    public HubRepository Repository { get; }

    /// <summary>40 hexadecimal digits.</summary>
    public string Commit { get; }

    /// <summary>Of the cache: snapshots/COMMIT.</summary>
    public string Folder { get; }

    /// <summary>All files of the commit; without the hub only those in the cache.</summary>
    public IReadOnlyList<HubFile> Files { get; }

    /// <summary>The hub was not asked, or did not answer.</summary>
    public bool IsCachedOnly { get; }

    public bool Has(string path) => Files.Any(file => file.Path == path);

    public string PathOf(string path) => System.IO.Path.Combine([Folder, .. path.Split('/')]);

    /// <summary>Sees to it that the files are in <see cref="Folder"/>.</summary>
    /// <param name="paths">Of <see cref="Files"/>.</param>
    /// <param name="cancellation">Leaves what has arrived.</param>
    /// <exception cref="IOException">they cannot be fetched; says what to do</exception>
    public Task FetchAsync(IReadOnlyCollection<string> paths, CancellationToken cancellation) => hub.FetchAsync(this, paths, cancellation);
}
