namespace LoraTrainer.Storage;

/// <summary>An object in a store; its key is its name, parts separated by '/'.</summary>
public readonly record struct StoredObject(string Key, long SizeBytes);

/// <summary>
/// A place for whole objects by key, as object stores have it: what is read is always all of what one writer put, never a mixture, and
/// with <c>ifAbsent</c> exactly one of several writers succeeds. Keys are relative paths with '/'; see <see cref="ObjectKey"/>.
/// </summary>
public interface IObjectStore
{
    /// <summary>Stores the rest of <paramref name="content"/> under the key. With <paramref name="ifAbsent"/> an object that is there stays and false is returned; otherwise it is replaced.</summary>
    Task<bool> PutAsync(string key, Stream content, bool ifAbsent = false, CancellationToken cancellation = default);

    /// <summary>The content, to be disposed by the caller; null where there is no such object.</summary>
    Task<Stream?> GetAsync(string key, CancellationToken cancellation = default);

    /// <summary>All objects whose key starts with <paramref name="prefix"/>, in ordinal order of their keys.</summary>
    Task<IReadOnlyList<StoredObject>> ListAsync(string prefix = "", CancellationToken cancellation = default);

    /// <summary>Removes the object; false where there is none.</summary>
    Task<bool> DeleteAsync(string key, CancellationToken cancellation = default);

    Task<bool> ExistsAsync(string key, CancellationToken cancellation = default);
}

/// <summary>The rule for keys, the same for every store, so that a run can move from one to another.</summary>
public static class ObjectKey
{
    private const int MaximumLength = 1024;
    private const int MaximumPartBytes = 200;

    /// <exception cref="ArgumentException">the key is empty, absolute, leaves the store, or holds what some store does not take</exception>
    public static void Validate(string key)
    {
        string? wrong = key switch
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
        if (wrong is not null)
        {
            throw new ArgumentException($"the key '{key}' {wrong}", nameof(key));
        }
    }
}
