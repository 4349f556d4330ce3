using System.Security.Cryptography;
using System.Text;

namespace LoraTrainer.Engine.Devices;

/// <summary>
/// Compiled kernels on disk, so that the second start compiles nothing. An entry is named by the hash of everything that decides its content; it
/// holds that name and its content's hash, so a file that is torn, changed or put there by something else is never used. A folder that
/// cannot be read or written costs time, never a run.
/// </summary>
/// <param name="folder">Made when the first entry is written. Null: nothing is kept.</param>
internal sealed class KernelCache(string? folder)
{
    private const string FolderVariable = "LT_KERNEL_CACHE";
    private const string Off = "off";

    // 8 bytes of kind and version of the file, the key, the hash of the image, the image.
    private const int ImageStart = 8 + 2 * SHA256.HashSizeInBytes;

    private static ReadOnlySpan<byte> Magic => "LTKERN1\n"u8;

    public string? Folder => folder;

    /// <summary>LT_KERNEL_CACHE, else lora-trainer/kernels in the user's cache folder; null where that is "off" (in any case), and for a user without a home.</summary>
    public static string? DefaultFolder(Func<string, string?> environment)
    {
        if (environment(FolderVariable) is { Length: > 0 } given)
        {
            return given.Equals(Off, StringComparison.OrdinalIgnoreCase) ? null : given;
        }

        // The specification of XDG_CACHE_HOME says that a relative path is to be ignored.
        string? caches = environment("XDG_CACHE_HOME") is { Length: > 0 } named && Path.IsPathRooted(named) ? named
            : environment("HOME") is { Length: > 0 } home ? Path.Combine(home, ".cache")
            : null;
        return caches is null ? null : Path.Combine(caches, "lora-trainer", "kernels");
    }

    /// <summary>A hash of the parts, in order; where one part ends and the next begins matters.</summary>
    public static byte[] KeyOf(IEnumerable<string> parts)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        Span<byte> length = stackalloc byte[sizeof(int)];
        foreach (string part in parts)
        {
            byte[] bytes = Encoding.UTF8.GetBytes(part);
            BitConverter.TryWriteBytes(length, bytes.Length);
            hash.AppendData(length);
            hash.AppendData(bytes);
        }

        return hash.GetHashAndReset();
    }

    /// <summary>The image that was stored under the key; null if there is none that is whole.</summary>
    public byte[]? TryRead(ReadOnlySpan<byte> key)
    {
        if (folder is null)
        {
            return null;
        }

        byte[] file;
        try
        {
            string path = PathOf(key);
            if (!File.Exists(path))
            {
                return null;
            }

            file = File.ReadAllBytes(path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return null;
        }

        ReadOnlySpan<byte> content = file;
        if (content.Length < ImageStart || !content.StartsWith(Magic) || !content.Slice(Magic.Length, key.Length).SequenceEqual(key))
        {
            return null;
        }

        ReadOnlySpan<byte> image = content[ImageStart..];
        Span<byte> hash = stackalloc byte[SHA256.HashSizeInBytes];
        SHA256.HashData(image, hash);
        return content.Slice(Magic.Length + key.Length, hash.Length).SequenceEqual(hash) ? image.ToArray() : null;
    }

    /// <summary>Stores an image, whole or not at all.</summary>
    public void TryWrite(ReadOnlySpan<byte> key, ReadOnlySpan<byte> image)
    {
        if (folder is null)
        {
            return;
        }

        string path = PathOf(key);
        string temporary = $"{path}.{Environment.ProcessId}.{Guid.NewGuid():N}.tmp";
        try
        {
            Directory.CreateDirectory(folder);
            using (FileStream stream = new(temporary, FileMode.CreateNew, FileAccess.Write))
            {
                stream.Write(Magic);
                stream.Write(key);
                stream.Write(SHA256.HashData(image));
                stream.Write(image);
            }

            File.Move(temporary, path, overwrite: true);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // A full disk, a read-only home: the kernels are compiled again next time.
            TryDelete(temporary);
        }
    }

    internal string PathOf(ReadOnlySpan<byte> key) => Path.Combine(folder ?? "", Convert.ToHexStringLower(key) + ".kernels");

    private static void TryDelete(string path)
    {
        try
        {
            File.Delete(path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // What cannot be removed is not read either: its name is no entry's.
        }
    }
}
