namespace LoraTrainer.Storage;

/// <summary>An object in a store; its key is its name, parts separated by '/'.</summary>
public readonly record struct StoredObject(string Key, long SizeBytes);

/// <summary>An object that is being read; disposing it closes the stream.</summary>
/// <param name="Content">From the first byte to the last. A store that can lose its connection goes on where it was; what it cannot mend is an <see cref="IOException"/>.</param>
/// <param name="SizeBytes">Of the whole object.</param>
/// <param name="Version">Names exactly this content, for <see cref="PutCondition.IfVersion"/>; empty where the object is too large for the store to have one.</param>
public sealed record StoredContent(Stream Content, long SizeBytes, string Version) : IAsyncDisposable
{
    public ValueTask DisposeAsync() => Content.DisposeAsync();
}

/// <summary>What must hold of the object that is there when another is put under its key. The default is nothing: it is replaced.</summary>
public readonly record struct PutCondition
{
    /// <summary>There must be no object.</summary>
    public static PutCondition IfAbsent => new() { MustBeAbsent = true };

    /// <summary>The object must be the one that was read or put with this version (compare-and-swap).</summary>
    public static PutCondition IfVersion(string version) => new() { Version = version };

    public bool MustBeAbsent { get; private init; }

    public string? Version { get; private init; }
}

/// <summary>What a store can be relied on for.</summary>
/// <param name="PutIfAbsent"><see cref="PutCondition.IfAbsent"/> holds against other writers.</param>
/// <param name="CompareAndSwap"><see cref="PutCondition.IfVersion"/> holds against other writers.</param>
/// <param name="Lacking">What it lacks and why that matters, as a sentence; null where it lacks nothing.</param>
public sealed record StoreAbilities(bool PutIfAbsent, bool CompareAndSwap, string? Lacking);

/// <summary>
/// A place for whole objects by key, as object stores have it: what is read is always all of what one writer put, never a mixture. Keys are
/// relative paths with '/'; see <see cref="ObjectKey"/>. Safe for several threads and several processes at once.
/// </summary>
public interface IObjectStore : IAsyncDisposable
{
    /// <summary>Where it is, for people: a path or a URI, without secrets.</summary>
    string Location { get; }

    /// <summary>Tries out, with objects under <paramref name="prefix"/> that are gone again afterwards, what the store can be relied on for.</summary>
    /// <exception cref="IOException">the store cannot be reached or refuses; says what to do</exception>
    Task<StoreAbilities> ProbeAsync(string prefix, CancellationToken cancellation = default);

    /// <summary>Stores the rest of <paramref name="content"/>, a stream that can seek, under the key.</summary>
    /// <param name="key">Of the object.</param>
    /// <param name="content">Read from its position to its end, more than once where the store has to try again.</param>
    /// <param name="condition">What must hold of the object that is there.</param>
    /// <param name="progress">Is told the bytes that have safely arrived.</param>
    /// <param name="cancellation">Leaves the object that was there, or none.</param>
    /// <returns>The version of what was stored; null where the condition did not hold and nothing changed.</returns>
    /// <exception cref="IOException">it could not be stored; the object that was there is untouched</exception>
    Task<string?> PutAsync(string key, Stream content, PutCondition condition = default, IProgress<long>? progress = null, CancellationToken cancellation = default);

    /// <summary>The content, to be disposed by the caller; null where there is no such object.</summary>
    Task<StoredContent?> GetAsync(string key, CancellationToken cancellation = default);

    /// <summary>All objects whose key starts with <paramref name="prefix"/>, in ordinal order of their keys.</summary>
    Task<IReadOnlyList<StoredObject>> ListAsync(string prefix = "", CancellationToken cancellation = default);

    /// <summary>Removes the object; false where there is none.</summary>
    Task<bool> DeleteAsync(string key, CancellationToken cancellation = default);

    Task<bool> ExistsAsync(string key, CancellationToken cancellation = default);

    /// <summary>Removes what puts under <paramref name="prefix"/> left behind that did not come to their end; the caller knows that none is under way. Returns how many.</summary>
    Task<int> RemoveUnfinishedAsync(string prefix, CancellationToken cancellation = default);
}

/// <summary>The rule for keys, the same for every store, so that a run can move from one to another.</summary>
public static class ObjectKey
{
    private const int MaximumLength = 1024;
    private const int MaximumPartBytes = 200;

    /// <exception cref="ArgumentException">the key is empty, absolute, leaves the store, or holds what some store does not take</exception>
    public static void Validate(string key)
    {
        if (Wrong(key) is { } wrong)
        {
            throw new ArgumentException($"the key '{key}' {wrong}", nameof(key));
        }
    }

    /// <summary>True for a key that every store takes.</summary>
    public static bool IsValid(string key) => Wrong(key) is null;

    private static string? Wrong(string key) => key switch
    {
        "" => "is empty",
        _ when key.Length > MaximumLength => $"has {key.Length} characters; at most {MaximumLength} are accepted",
        _ when key[0] == '/' => "is absolute; it must be relative to the store",
        _ when key.Contains('\\', StringComparison.Ordinal) => "holds a backslash; parts are separated by '/'",
        _ when key.Any(char.IsControl) => "holds a control character",
        _ when key.Split('/').Any(part => part.Length == 0) => "has an empty part",
        _ when key.Split('/').Any(part => part[0] == '.') => "has a part that starts with a dot; '..' would leave the store, and the others are for files being written",
        _ when key.Split('/').Any(part => System.Text.Encoding.UTF8.GetByteCount(part) > MaximumPartBytes) => $"has a part of more than {MaximumPartBytes} bytes",
        _ => null,
    };
}
