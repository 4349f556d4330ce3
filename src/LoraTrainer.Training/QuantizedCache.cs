using System.Globalization;
using System.Text.RegularExpressions;
using LoraTrainer.Models;
using LoraTrainer.Storage;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>
/// Bases as they were quantized, in a folder of this machine and perhaps in an object store, so that the next start reads instead of quantizing. An entry is one
/// file, named by the hash of all that decides its content; what is in it is checked when it is read (<see cref="QuantizedBaseFile"/>). Nothing that happens here
/// ends a run: a cache that fails costs the time of quantizing. Several processes may use one folder; each file appears whole, and those of one name are equal.
/// </summary>
internal sealed partial class QuantizedCache : IAsyncDisposable
{
    private const string Suffix = ".safetensors";
    private const string HashesName = "hashes.json";
    private const int BufferBytes = 1 << 18;

    // What a killed process left half written is nobody's after so long.
    private static readonly TimeSpan Abandoned = TimeSpan.FromDays(1);

    private readonly string folder;
    private readonly IObjectStore? store;
    private readonly long largestBytes;
    private readonly ITrainingObserver observer;
    private readonly TimeProvider time;
    private readonly CancellationToken stop;
    private readonly FileHashes hashes;
    private Task upload = Task.CompletedTask;

    // What was damaged may have come from the store, where it is then to be replaced.
    private bool hasRejected;

    private QuantizedCache(string folder, IObjectStore? store, long largestBytes, ITrainingObserver observer, TimeProvider time, CancellationToken stop)
    {
        this.folder = folder;
        this.store = store;
        this.largestBytes = largestBytes;
        this.observer = observer;
        this.time = time;
        this.stop = stop;
        hashes = new FileHashes(Path.Combine(folder, HashesName), time);
    }

    /// <summary>The cache that the config names; null where it names none.</summary>
    /// <param name="options">The config's.</param>
    /// <param name="observer">Is told what of the cache was used, and why it was not.</param>
    /// <param name="time">The clock.</param>
    /// <param name="stop">Ends downloads and uploads.</param>
    /// <exception cref="StoreException">The URI names no store.</exception>
    public static QuantizedCache? Open(QuantizedCacheOptions options, ITrainingObserver observer, TimeProvider time, CancellationToken stop) => options.Path is { } path
        ? new QuantizedCache(Path.GetFullPath(path), options.Uri is { } uri ? ObjectStore.Open(uri) : null, (long)(options.MaxGigabytes * 1e9), observer, time, stop)
        : null;

    /// <summary>SHA-256 of a file, as it was remembered here if the file has not changed.</summary>
    public string HashOf(string file) => hashes.Of(file, stop);

    /// <summary>The base as it was quantized under that key, to be disposed by the caller; null where there is none, here or in the store.</summary>
    public async Task<QuantizedBaseFile?> FindAsync(string key)
    {
        string path = PathOf(key);
        if (TryOpen(path, key) is { } local)
        {
            return local;
        }

        try
        {
            if (store is not null && await DownloadAsync(store, key).ConfigureAwait(false))
            {
                observer.OnNotice($"The quantized base was fetched from {store.Location}.");
                return TryOpen(path, key);
            }
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            observer.OnWarning($"The quantized base could not be fetched from {store!.Location}, so it is quantized here: {exception.Message}");
        }

        return null;
    }

    /// <summary>Says why an entry is not used, and takes it away.</summary>
    public void Reject(string key, string why)
    {
        hasRejected = true;
        observer.OnWarning($"The kept quantized base is not used, so the base is quantized again: {why}");
        TryDelete(PathOf(key));
    }

    /// <summary>Keeps a base that was quantized; in the store it is put behind the training.</summary>
    /// <param name="key">See <see cref="QuantizedBaseFile.KeyOf"/>.</param>
    /// <param name="model">With the quantized matrices.</param>
    public void Keep(string key, CausalLanguageModel model)
    {
        long size = QuantizedBaseFile.SizeOf(model);
        if (size > largestBytes)
        {
            observer.OnNotice(string.Create(CultureInfo.InvariantCulture, $"The quantized base has {size / 1e9:0.0} GB, more than quantized_cache.max_gigabytes, and is not kept."));
            return;
        }

        string path = PathOf(key);
        try
        {
            Directory.CreateDirectory(folder);
            Prune(largestBytes - size, path);
            QuantizedBaseFile.Write(path, model, key);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            observer.OnWarning($"The quantized base could not be kept, so the next start quantizes again: {exception.Message}");
            return;
        }

        observer.OnNotice(string.Create(CultureInfo.InvariantCulture, $"The quantized base is kept in {path} ({size / 1e9:0.00} GB)."));
        if (store is not null)
        {
            upload = Task.Run(() => UploadAsync(store, key, path), CancellationToken.None);
        }
    }

    /// <summary>Waits for what is on its way to the store, unless the run is to stop.</summary>
    public async ValueTask DisposeAsync()
    {
        if (!upload.IsCompleted && !stop.IsCancellationRequested)
        {
            observer.OnNotice("Waiting until the quantized base is in its store.");
        }

        await upload.ConfigureAwait(false);
        if (store is not null)
        {
            await store.DisposeAsync().ConfigureAwait(false);
        }
    }

    private string PathOf(string key) => Path.Combine(folder, key + Suffix);

    private QuantizedBaseFile? TryOpen(string path, string key)
    {
        try
        {
            if (!File.Exists(path))
            {
                return null;
            }

            QuantizedBaseFile entry = QuantizedBaseFile.Open(path, key);
            Touch(path);
            return entry;
        }
        catch (FormatException exception)
        {
            Reject(key, exception.Message);
        }
        catch (FileNotFoundException)
        {
            // Another process has just removed it.
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            observer.OnWarning($"The kept quantized base cannot be read, so the base is quantized again: {exception.Message}");
        }

        return null;
    }

    /// <summary>Its time says when it was used last, by which the oldest go first.</summary>
    private void Touch(string path)
    {
        try
        {
            File.SetLastWriteTimeUtc(path, time.GetUtcNow().UtcDateTime);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // A folder that can be read only is of use too.
        }
    }

    private async Task<bool> DownloadAsync(IObjectStore from, string key)
    {
        StoredContent? found = await from.GetAsync(key + Suffix, stop).ConfigureAwait(false);
        if (found is null)
        {
            return false;
        }

        await using (found.ConfigureAwait(false))
        {
            if (found.SizeBytes > largestBytes)
            {
                observer.OnNotice(string.Create(CultureInfo.InvariantCulture, $"The quantized base in {from.Location} has {found.SizeBytes / 1e9:0.0} GB, more than quantized_cache.max_gigabytes, and is not fetched."));
                return false;
            }

            Directory.CreateDirectory(folder);
            Prune(largestBytes - found.SizeBytes, PathOf(key));
            using AtomicFile file = AtomicFile.Create(PathOf(key), durable: false);
            byte[] buffer = new byte[BufferBytes];
            int read;
            while ((read = await found.Content.ReadAsync(buffer, stop).ConfigureAwait(false)) > 0)
            {
                file.Append(buffer.AsSpan(0, read));
            }

            if (file.Length != found.SizeBytes)
            {
                throw new IOException($"{from.Location}: of {found.SizeBytes} bytes {file.Length} came.");
            }

            file.Commit();
            return true;
        }
    }

    private async Task UploadAsync(IObjectStore to, string key, string path)
    {
        try
        {
            FileStream content = File.OpenRead(path);
            await using (content.ConfigureAwait(false))
            {
                if (hasRejected || !await to.ExistsAsync(key + Suffix, stop).ConfigureAwait(false))
                {
                    await to.PutAsync(key + Suffix, content, cancellation: stop).ConfigureAwait(false);
                    observer.OnNotice($"The quantized base is in {to.Location} too.");
                }
            }
        }
        catch (OperationCanceledException) when (stop.IsCancellationRequested)
        {
            // Whoever needs it quantizes; a machine that goes has no time for it.
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            observer.OnWarning($"The quantized base could not be put into {to.Location}: {exception.Message}");
        }
    }

    /// <summary>Removes the entries that were not used for the longest time until the others have no more than that, and what killed processes left half written. Touches nothing else.</summary>
    private void Prune(long bytes, string except)
    {
        DateTime now = time.GetUtcNow().UtcDateTime;
        FileInfo[] files = [.. new DirectoryInfo(folder).EnumerateFiles()];
        foreach (FileInfo half in files.Where(file => AtomicFile.IsTemporary(file.Name) && EntryName().IsMatch(file.Name.Split('.')[1] + Suffix) && now - file.LastWriteTimeUtc > Abandoned))
        {
            TryDelete(half.FullName);
        }

        FileInfo[] entries = [.. files.Where(file => EntryName().IsMatch(file.Name) && file.FullName != except).OrderByDescending(file => file.LastWriteTimeUtc)];
        long sum = 0;
        foreach (FileInfo entry in entries)
        {
            sum += entry.Length;
            if (sum > bytes)
            {
                TryDelete(entry.FullName);
            }
        }
    }

    private static void TryDelete(string path)
    {
        try
        {
            File.Delete(path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // It stays; what is damaged is noticed each time.
        }
    }

    [GeneratedRegex(@"^[0-9a-f]{64}\.safetensors$", RegexOptions.CultureInvariant)]
    private static partial Regex EntryName();
}
