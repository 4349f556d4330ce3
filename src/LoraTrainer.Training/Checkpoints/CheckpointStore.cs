using System.Globalization;
using System.Security.Cryptography;
using System.Text.Json;
using LoraTrainer.Storage;

namespace LoraTrainer.Training.Checkpoints;

/// <summary>A checkpoint that was found intact: its name in the store and what its manifest says.</summary>
/// <param name="Name">Its folder's name.</param>
/// <param name="Step">Optimizer steps it holds.</param>
/// <param name="Epoch">Of the lease it was written under.</param>
/// <param name="Files">Name, size and SHA-256 of each file.</param>
/// <param name="Lineage">Which checkpoints of earlier epochs belong to the run.</param>
public sealed record Checkpoint(string Name, int Step, int Epoch, IReadOnlyList<CheckpointFile> Files, IReadOnlyList<LineageEntry> Lineage)
{
    /// <summary>Steps of other checkpoints of the run that whoever goes on from this one will want.</summary>
    public IReadOnlyList<int> Needs { get; init; } = [];

    /// <summary>By the clock of the machine that wrote it; null where the manifest does not say.</summary>
    public DateTimeOffset? Created { get; init; }
}

/// <summary>One file of a checkpoint.</summary>
public readonly record struct CheckpointFile(string Name, long SizeBytes, string Sha256);

/// <summary>
/// What lies of one run in an object store, under its name: <c>config.resolved.yaml</c>, <c>lease.json</c>, <c>attempts/EPOCH.json</c>,
/// <c>requests/</c>, and its checkpoints, <c>step-STEP-EPOCH-RANDOM/</c> with some files and, written last, <c>manifest.json</c> with the size and
/// SHA-256 of each. Without an intact manifest a checkpoint does not exist, and names are never used twice, so nothing that happens while one is
/// written can hurt an older one.
/// </summary>
public sealed class CheckpointStore
{
    /// <summary>The file without which a checkpoint does not exist.</summary>
    public const string ManifestName = "manifest.json";

    private const int ManifestVersion = 1;
    private const string StepPrefix = "step-";
    private const string AttemptsPrefix = "attempts/";
    private const string RequestsPrefix = "requests/";

    /// <summary>Where a process tries out what the store can be relied on for, before it has the run's lease.</summary>
    internal const string ProbePrefix = "probe";

    private readonly IObjectStore store;
    private readonly string runName;
    private readonly TimeProvider time;
    private readonly HashSet<string> damaged = new(StringComparer.Ordinal);
    private string[] probes = [];
    private int epoch = 1;
    private RunLease? lease;
    private PutCondition manifestCondition = PutCondition.IfAbsent;
    private IReadOnlyList<LineageEntry> ancestors = [];

    /// <param name="store">Where the checkpoints of one or more runs lie.</param>
    /// <param name="runName">The run's prefix in the store.</param>
    /// <param name="time">The clock.</param>
    public CheckpointStore(IObjectStore store, string runName, TimeProvider time)
    {
        this.store = store;
        this.runName = runName;
        this.time = time;
    }

    /// <summary>For tests of what several writers leave behind: writes as the holder of that epoch would.</summary>
    internal CheckpointStore(IObjectStore store, string runName, int epoch, TimeProvider time)
        : this(store, runName, time) => this.epoch = epoch;

    /// <summary>Where the run lies, for people.</summary>
    public string Location => ObjectStore.Append(store.Location, runName);

    /// <summary>From now on everything is written under this lease, and only while it is held.</summary>
    /// <param name="held">The run's.</param>
    /// <param name="abilities">What the store was found to be able to do.</param>
    public void WriteUnder(RunLease held, StoreAbilities abilities)
    {
        lease = held;
        epoch = held.Epoch;
        manifestCondition = abilities.PutIfAbsent ? PutCondition.IfAbsent : default;
    }

    /// <summary>What is saved from now on goes on from <paramref name="origin"/>: of its epoch only the steps up to it belong to the run.</summary>
    public void ContinueFrom(Checkpoint origin) => ancestors =
        [.. origin.Lineage.Where(entry => entry.Epoch != origin.Epoch && entry.Epoch != epoch), .. origin.Epoch == epoch ? [] : new[] { new LineageEntry(origin.Epoch, origin.Step) }];

    /// <summary>The resolved config of the run, as YAML; null where there is no run.</summary>
    public Task<byte[]?> ReadConfigAsync(CancellationToken cancellation = default) => ReadAsync(CheckpointFiles.ConfigName, cancellation);

    public async Task WriteConfigAsync(byte[] yaml, CancellationToken cancellation = default) => await WriteAsync(CheckpointFiles.ConfigName, yaml, cancellation).ConfigureAwait(false);

    /// <summary>Every process that worked on the run, by its epoch; those that cannot be read are left out.</summary>
    public async Task<IReadOnlyList<AttemptRecord>> AttemptsAsync(CancellationToken cancellation = default)
    {
        var attempts = new List<AttemptRecord>();
        foreach (StoredObject item in await store.ListAsync($"{runName}/{AttemptsPrefix}", cancellation).ConfigureAwait(false))
        {
            if (await ReadAsync(item.Key[(runName.Length + 1)..], cancellation).ConfigureAwait(false) is { } json && AttemptRecord.TryParse(json, out AttemptRecord? attempt))
            {
                attempts.Add(attempt);
            }
        }

        return [.. attempts.OrderBy(attempt => attempt.Epoch)];
    }

    public Task WriteAttemptAsync(AttemptRecord attempt, CancellationToken cancellation = default) =>
        WriteAsync(string.Create(CultureInfo.InvariantCulture, $"{AttemptsPrefix}{attempt.Epoch}.json"), attempt.ToJson(), cancellation);

    /// <summary>The requests of other terminals that wait for an answer, oldest first.</summary>
    public async Task<IReadOnlyList<RunRequest>> RequestsAsync(CancellationToken cancellation = default)
    {
        IReadOnlyList<StoredObject> found = await store.ListAsync($"{runName}/{RequestsPrefix}", cancellation).ConfigureAwait(false);
        return [.. found.Select(item => RunRequest.Parse(item.Key[(runName.Length + 1 + RequestsPrefix.Length)..])).OfType<RunRequest>().OrderBy(request => request.Name, StringComparer.Ordinal)];
    }

    /// <summary>Leaves a request for the process that works on the run.</summary>
    public async Task AddRequestAsync(RunRequest request, CancellationToken cancellation = default)
    {
        using var content = new MemoryStream();
        await store.PutAsync($"{runName}/{RequestsPrefix}{request.Name}", content, cancellation: cancellation).ConfigureAwait(false);
    }

    /// <summary>A request that was done, or is withdrawn.</summary>
    public Task RemoveRequestAsync(RunRequest request, CancellationToken cancellation = default) => store.DeleteAsync($"{runName}/{RequestsPrefix}{request.Name}", cancellation);

    /// <summary>The highest epoch that anything of the run is named after; 0 where there is nothing.</summary>
    public async Task<int> HighestEpochAsync(CancellationToken cancellation = default)
    {
        int highest = 0;
        foreach (StoredObject item in await store.ListAsync(runName + "/", cancellation).ConfigureAwait(false))
        {
            string[] parts = item.Key[(runName.Length + 1)..].Split('/');
            string number = parts[0].StartsWith(StepPrefix, StringComparison.Ordinal) && parts[0].Split('-') is [_, _, { } written, _] ? written
                : parts is ["attempts", { } file] ? Path.GetFileNameWithoutExtension(file) : string.Empty;
            if (int.TryParse(number, NumberStyles.None, CultureInfo.InvariantCulture, out int found) && found <= LeaseRecord.HighestEpoch)
            {
                highest = Math.Max(highest, found);
            }
        }

        return highest;
    }

    /// <summary>Removes what processes that died left half written. The run must be this process's.</summary>
    public async Task RemoveUnfinishedAsync(CancellationToken cancellation = default)
    {
        await store.RemoveUnfinishedAsync(runName + "/", cancellation).ConfigureAwait(false);
        probes = [.. (await store.ListAsync($"{runName}/{ProbePrefix}/", cancellation).ConfigureAwait(false)).Select(item => item.Key)];
        IReadOnlyList<StoredObject> all = await store.ListAsync($"{runName}/{StepPrefix}", cancellation).ConfigureAwait(false);
        foreach (IGrouping<string, StoredObject> checkpoint in all.GroupBy(item => item.Key.Split('/')[1]))
        {
            if (!checkpoint.Any(item => item.Key.EndsWith("/" + ManifestName, StringComparison.Ordinal)))
            {
                foreach (StoredObject item in checkpoint)
                {
                    await DeleteAsync(item.Key, cancellation).ConfigureAwait(false);
                }
            }
        }
    }

    /// <summary>
    /// Removes the probes that lay here when <see cref="RemoveUnfinishedAsync"/> looked: of processes that were killed in that moment. Only now, because one of
    /// them might have been of a process that waits for the run, and has long removed it itself.
    /// </summary>
    public async Task RemoveProbesAsync(CancellationToken cancellation = default)
    {
        foreach (string probe in probes)
        {
            await DeleteAsync(probe, cancellation).ConfigureAwait(false);
        }
    }

    /// <summary>Takes back a run that could not start: its config, its lease, the record of this attempt.</summary>
    /// <param name="isNew">The run did not exist before; otherwise only the attempt is taken back.</param>
    /// <param name="cancellation">Leaves the rest.</param>
    public async Task WithdrawAsync(bool isNew, CancellationToken cancellation = default)
    {
        await DeleteAsync(string.Create(CultureInfo.InvariantCulture, $"{runName}/{AttemptsPrefix}{epoch}.json"), cancellation).ConfigureAwait(false);
        if (isNew)
        {
            await DeleteAsync($"{runName}/{CheckpointFiles.ConfigName}", cancellation).ConfigureAwait(false);
            await DeleteAsync($"{runName}/{RunLease.FileName}", cancellation).ConfigureAwait(false);
        }
    }

    /// <summary>Puts the files of a local folder under a new name, the manifest last. It exists when this returns, and not before.</summary>
    /// <param name="step">Optimizer steps that the files hold.</param>
    /// <param name="folder">Holds the files, and nothing else.</param>
    /// <param name="needs">See <see cref="Checkpoint.Needs"/>; null: none.</param>
    /// <param name="progress">Is told the bytes of all files that have arrived.</param>
    /// <param name="cancellation">Leaves an invisible, unfinished checkpoint behind.</param>
    public async Task<Checkpoint> SaveAsync(int step, string folder, IReadOnlyList<int>? needs = null, IProgress<long>? progress = null, CancellationToken cancellation = default)
    {
        string name = string.Create(CultureInfo.InvariantCulture, $"step-{step:D8}-{epoch}-{Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(4))}");
        var files = new List<CheckpointFile>();
        foreach (string path in Directory.EnumerateFiles(folder).Order(StringComparer.Ordinal))
        {
            string hash = ContentHash.OfFile(path, cancellation);
            FileStream stream = File.OpenRead(path);
            await using (stream.ConfigureAwait(false))
            {
                await RequireHeldAsync().ConfigureAwait(false);
                long before = files.Sum(file => file.SizeBytes);
                files.Add(new CheckpointFile(Path.GetFileName(path), stream.Length, hash));
                await store.PutAsync(Key(name, Path.GetFileName(path)), stream, progress: progress is null ? null : new Offset(progress, before), cancellation: cancellation).ConfigureAwait(false);
            }
        }

        var checkpoint = new Checkpoint(name, step, epoch, files, [new LineageEntry(epoch, null), .. ancestors]) { Created = time.GetUtcNow(), Needs = needs ?? [] };
        await RequireHeldAsync().ConfigureAwait(false);
        using var manifest = new MemoryStream(WriteManifest(checkpoint));
        if (await store.PutAsync(Key(name, ManifestName), manifest, manifestCondition, cancellation: cancellation).ConfigureAwait(false) is null)
        {
            throw new IOException($"The checkpoint {runName}/{name} exists already, though its name was made up just now. Is something else writing to this store?");
        }

        return checkpoint;
    }

    /// <summary>
    /// The checkpoint to go on from: of the highest epoch the highest step, whole and undamaged. Each candidate that is not is told and passed over.
    /// </summary>
    /// <param name="onDamaged">Is told, in a sentence, about each checkpoint that cannot be used.</param>
    /// <param name="cancellation">Stops the search.</param>
    /// <returns>Null where there is none.</returns>
    public async Task<Checkpoint?> FindNewestIntactAsync(Action<string> onDamaged, CancellationToken cancellation = default)
    {
        IReadOnlyList<Checkpoint> candidates = await ListAsync(onDamaged, cancellation).ConfigureAwait(false);
        foreach (Checkpoint candidate in candidates)
        {
            if (await DamageOfAsync(candidate, cancellation).ConfigureAwait(false) is not { } damage)
            {
                return candidate;
            }

            damaged.Add(candidate.Name);
            onDamaged($"The checkpoint {candidate.Name} is damaged ({damage}); it is passed over.");
        }

        return null;
    }

    /// <summary>Copies a checkpoint's files into a local folder and checks each against the manifest.</summary>
    /// <exception cref="CheckpointFormatException">A file is missing or is not what was written.</exception>
    public async Task DownloadAsync(Checkpoint checkpoint, string folder, CancellationToken cancellation = default)
    {
        foreach (CheckpointFile file in checkpoint.Files)
        {
            string target = Path.Combine(folder, file.Name);
            StoredContent source = await store.GetAsync(Key(checkpoint.Name, file.Name), cancellation).ConfigureAwait(false)
                ?? throw new CheckpointFormatException($"The checkpoint {checkpoint.Name} has no {file.Name} any more.");
            await using (source.ConfigureAwait(false))
            {
                FileStream copy = File.Create(target);
                await using (copy.ConfigureAwait(false))
                {
                    await source.Content.CopyToAsync(copy, cancellation).ConfigureAwait(false);
                }
            }

            if (ContentHash.OfFile(target, cancellation) != file.Sha256)
            {
                throw new CheckpointFormatException($"The checkpoint {checkpoint.Name} changed while it was read: {file.Name} is not what its manifest says.");
            }
        }
    }

    /// <summary>One small file of a checkpoint; null where it has none of that name.</summary>
    public Task<byte[]?> ReadFileAsync(Checkpoint checkpoint, string file, CancellationToken cancellation = default) => ReadAsync($"{checkpoint.Name}/{file}", cancellation);

    /// <summary>
    /// Deletes all but the newest <paramref name="keep"/> checkpoints and those that they need. Manifests go first, so that a half-deleted one does not exist. Those that were
    /// found damaged are no reserve: they do not count, and go once the run has come as far again.
    /// </summary>
    /// <param name="keep">How many stay, <paramref name="newest"/> included.</param>
    /// <param name="newest">The one that was saved last; it always stays. What lies ahead of it was passed over when the run was resumed, and stays for whoever wants to look.</param>
    /// <param name="cancellation">Stops between two deletions.</param>
    public async Task ApplyRetentionAsync(int keep, Checkpoint newest, CancellationToken cancellation = default)
    {
        IReadOnlyList<Checkpoint> all = await ReadManifestsAsync(_ => { }, cancellation).ConfigureAwait(false), ofRun = OfLineage(all);
        Checkpoint[] older = [.. ofRun.Where(item => item.Name != newest.Name && (item.Epoch < newest.Epoch || (item.Epoch == newest.Epoch && item.Step <= newest.Step)))];
        Checkpoint[] whole = [.. older.Where(item => !damaged.Contains(item.Name))], kept = [newest, .. whole.Take(Math.Max(1, keep) - 1)];
        IEnumerable<Checkpoint> needed = kept.SelectMany(item => item.Needs).Distinct().Select(step => Array.Find(whole, item => item.Step == step)).OfType<Checkpoint>();
        IEnumerable<Checkpoint> passedOver = all.Where(item => item.Epoch < newest.Epoch && item.Step <= newest.Step).Except(ofRun);
        foreach (Checkpoint old in older.Except(kept).Except(needed).Concat(passedOver))
        {
            await DeleteAsync(Key(old.Name, ManifestName), cancellation).ConfigureAwait(false);
            foreach (CheckpointFile file in old.Files)
            {
                await DeleteAsync(Key(old.Name, file.Name), cancellation).ConfigureAwait(false);
            }
        }
    }

    /// <summary>Copies the files of the run's checkpoint of a step into a local folder, as <see cref="DownloadAsync"/>; one that is damaged is told and another of that step taken.</summary>
    /// <param name="step">Optimizer steps that it holds.</param>
    /// <param name="folder">Is there and empty.</param>
    /// <param name="onDamaged">Is told, in a sentence, about each checkpoint that cannot be used.</param>
    /// <param name="cancellation">Gives up.</param>
    /// <returns>False where there is none that is whole.</returns>
    public async Task<bool> TryDownloadAsync(int step, string folder, Action<string> onDamaged, CancellationToken cancellation = default)
    {
        foreach (Checkpoint candidate in (await ListAsync(onDamaged, cancellation).ConfigureAwait(false)).Where(item => item.Step == step))
        {
            try
            {
                await DownloadAsync(candidate, folder, cancellation).ConfigureAwait(false);
                return true;
            }
            catch (CheckpointFormatException exception)
            {
                onDamaged(exception.Message);
            }
        }

        return false;
    }

    /// <summary>All checkpoints with a readable manifest that belong to the run, the one to prefer first. Whether their files are whole is not looked at.</summary>
    /// <param name="onDamaged">Is told, in a sentence, about each manifest that cannot be read.</param>
    /// <param name="cancellation">Stops the search.</param>
    public async Task<IReadOnlyList<Checkpoint>> ListAsync(Action<string> onDamaged, CancellationToken cancellation = default) =>
        OfLineage(await ReadManifestsAsync(onDamaged, cancellation).ConfigureAwait(false));

    /// <summary>
    /// Those that belong to the run, of all in their order. A machine that lost its lease may still have written: what it wrote after the takeover does
    /// not count, and the newest writer's manifests say up to where each earlier one does.
    /// </summary>
    private static IReadOnlyList<Checkpoint> OfLineage(IReadOnlyList<Checkpoint> ordered)
    {
        IReadOnlyList<LineageEntry> lineage = ordered.Count > 0 ? ordered[0].Lineage : [];
        return [.. ordered.Where(checkpoint => ordered[0].Epoch == checkpoint.Epoch || lineage.Any(entry => entry.Epoch == checkpoint.Epoch && checkpoint.Step <= (entry.UpToStep ?? int.MaxValue)))];
    }

    /// <summary>All checkpoints with a readable manifest, by epoch and then step, the highest first.</summary>
    private async Task<IReadOnlyList<Checkpoint>> ReadManifestsAsync(Action<string> onDamaged, CancellationToken cancellation)
    {
        var found = new List<Checkpoint>();
        foreach (StoredObject item in await store.ListAsync($"{runName}/{StepPrefix}", cancellation).ConfigureAwait(false))
        {
            if (!item.Key.EndsWith("/" + ManifestName, StringComparison.Ordinal))
            {
                continue;
            }

            string name = item.Key[(runName.Length + 1)..^(ManifestName.Length + 1)];
            try
            {
                StoredContent stored = await store.GetAsync(item.Key, cancellation).ConfigureAwait(false) ?? throw new CheckpointFormatException("it vanished while it was read");
                await using (stored.ConfigureAwait(false))
                {
                    found.Add(await ReadManifestAsync(name, stored.Content, cancellation).ConfigureAwait(false));
                }
            }
            catch (CheckpointFormatException exception)
            {
                onDamaged($"The checkpoint {name} has an unreadable manifest ({exception.Message}); it is passed over.");
            }
        }

        return [.. found.OrderByDescending(checkpoint => checkpoint.Epoch).ThenByDescending(checkpoint => checkpoint.Step)];
    }

    /// <summary>Reads every file of a checkpoint and holds size and SHA-256 against its manifest.</summary>
    /// <returns>What is wrong first, as a clause; null where all is intact.</returns>
    public async Task<string?> DamageOfAsync(Checkpoint checkpoint, CancellationToken cancellation = default)
    {
        foreach (CheckpointFile file in checkpoint.Files)
        {
            StoredContent? stored = await store.GetAsync(Key(checkpoint.Name, file.Name), cancellation).ConfigureAwait(false);
            if (stored is null)
            {
                return $"{file.Name} is missing";
            }

            await using (stored.ConfigureAwait(false))
            {
                if (stored.SizeBytes != file.SizeBytes)
                {
                    return $"{file.Name} has {stored.SizeBytes} bytes, expected {file.SizeBytes}";
                }

                if (Convert.ToHexStringLower(await SHA256.HashDataAsync(stored.Content, cancellation).ConfigureAwait(false)) != file.Sha256)
                {
                    return $"{file.Name} has another SHA-256 than its manifest says";
                }
            }
        }

        return null;
    }

    private byte[] WriteManifest(Checkpoint checkpoint)
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            json.WriteNumber("version", ManifestVersion);
            json.WriteString("run_name", runName);
            json.WriteNumber("step", checkpoint.Step);
            json.WriteNumber("epoch", checkpoint.Epoch);
            json.WriteString("created", checkpoint.Created?.ToString("O", CultureInfo.InvariantCulture));
            json.WriteStartArray("lineage");
            foreach (LineageEntry entry in checkpoint.Lineage)
            {
                json.WriteStartObject();
                json.WriteNumber("epoch", entry.Epoch);
                if (entry.UpToStep is { } last)
                {
                    json.WriteNumber("up_to_step", last);
                }
                else
                {
                    json.WriteNull("up_to_step");
                }

                json.WriteEndObject();
            }

            json.WriteEndArray();
            json.WriteStartArray("needs");
            foreach (int step in checkpoint.Needs)
            {
                json.WriteNumberValue(step);
            }

            json.WriteEndArray();
            json.WriteStartArray("files");
            foreach (CheckpointFile file in checkpoint.Files)
            {
                json.WriteStartObject();
                json.WriteString("name", file.Name);
                json.WriteNumber("size", file.SizeBytes);
                json.WriteString("sha256", file.Sha256);
                json.WriteEndObject();
            }

            json.WriteEndArray();
            json.WriteEndObject();
        }

        return buffer.ToArray();
    }

    private static async Task<Checkpoint> ReadManifestAsync(string name, Stream stream, CancellationToken cancellation)
    {
        try
        {
            using JsonDocument document = await JsonDocument.ParseAsync(stream, cancellationToken: cancellation).ConfigureAwait(false);
            JsonElement root = document.RootElement;
            if (root.GetProperty("version").GetInt32() != ManifestVersion)
            {
                throw new CheckpointFormatException($"its version is {root.GetProperty("version")}, this program reads {ManifestVersion}");
            }

            var checkpoint = new Checkpoint(
                name,
                root.GetProperty("step").GetInt32(),
                root.GetProperty("epoch").GetInt32(),
                [.. root.GetProperty("files").EnumerateArray().Select(file => new CheckpointFile(
                    file.GetProperty("name").GetString() ?? string.Empty, file.GetProperty("size").GetInt64(), file.GetProperty("sha256").GetString() ?? string.Empty))],
                [.. root.GetProperty("lineage").EnumerateArray().Select(entry => new LineageEntry(
                    entry.GetProperty("epoch").GetInt32(),
                    entry.GetProperty("up_to_step") is { ValueKind: JsonValueKind.Number } last ? last.GetInt32() : null))])
            {
                Needs = root.TryGetProperty("needs", out JsonElement needs) ? [.. needs.EnumerateArray().Select(item => item.GetInt32())] : [],
                Created = root.TryGetProperty("created", out JsonElement created) && created.ValueKind == JsonValueKind.String && created.TryGetDateTimeOffset(out DateTimeOffset when) ? when : null,
            };
            RefuseHostile(checkpoint);
            return checkpoint;
        }
        catch (Exception exception) when (exception is JsonException or KeyNotFoundException or InvalidOperationException or FormatException and not CheckpointFormatException)
        {
            throw new CheckpointFormatException(exception is JsonException json ? JsonProblem.Reason(json) : exception.Message, exception);
        }
    }

    /// <summary>A manifest is input from outside: nothing in it may lead out of the checkpoint's folder, or pass for another checkpoint.</summary>
    private static void RefuseHostile(Checkpoint checkpoint)
    {
        if (checkpoint.Step < 0 || checkpoint.Epoch is < 1 or > LeaseRecord.HighestEpoch || !checkpoint.Name.StartsWith(string.Create(CultureInfo.InvariantCulture, $"step-{checkpoint.Step:D8}-{checkpoint.Epoch}-"), StringComparison.Ordinal))
        {
            throw new CheckpointFormatException($"it is for step {checkpoint.Step} of epoch {checkpoint.Epoch}, which is not what its folder is named");
        }

        if (checkpoint.Files.Count == 0)
        {
            throw new CheckpointFormatException("it names no files");
        }

        var names = new HashSet<string>(StringComparer.Ordinal);
        foreach (CheckpointFile file in checkpoint.Files)
        {
            bool isPlain = file.Name.Length is > 0 and <= 200 && file.Name[0] != '.' && file.Name.All(letter => char.IsAsciiLetterOrDigit(letter) || letter is '.' or '_' or '-');
            if (!isPlain || file.Name == ManifestName || !names.Add(file.Name))
            {
                throw new CheckpointFormatException($"it names a file '{file.Name}'{(isPlain ? " twice, or itself" : string.Empty)}");
            }

            if (file.SizeBytes < 0)
            {
                throw new CheckpointFormatException($"it gives {file.Name} a size of {file.SizeBytes} bytes");
            }
        }
    }

    private async Task<byte[]?> ReadAsync(string name, CancellationToken cancellation)
    {
        StoredContent? stored = await store.GetAsync($"{runName}/{name}", cancellation).ConfigureAwait(false);
        if (stored is null)
        {
            return null;
        }

        await using (stored.ConfigureAwait(false))
        {
            using var content = new MemoryStream();
            await stored.Content.CopyToAsync(content, cancellation).ConfigureAwait(false);
            return content.ToArray();
        }
    }

    private Task RequireHeldAsync() => lease?.RequireHeldAsync() ?? Task.CompletedTask;

    private async Task WriteAsync(string name, byte[] content, CancellationToken cancellation)
    {
        await RequireHeldAsync().ConfigureAwait(false);
        using var stream = new MemoryStream(content);
        await store.PutAsync($"{runName}/{name}", stream, cancellation: cancellation).ConfigureAwait(false);
    }

    private async Task<bool> DeleteAsync(string key, CancellationToken cancellation)
    {
        await RequireHeldAsync().ConfigureAwait(false);
        return await store.DeleteAsync(key, cancellation).ConfigureAwait(false);
    }

    /// <summary>Progress of one file among several.</summary>
    private sealed class Offset(IProgress<long> progress, long before) : IProgress<long>
    {
        public void Report(long value) => progress.Report(before + value);
    }

    private string Key(string checkpoint, string file) => $"{runName}/{checkpoint}/{file}";
}
