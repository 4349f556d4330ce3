using LoraTrainer.TestSupport;

namespace LoraTrainer.Storage.Tests;

public sealed class FolderStoreContractTests : ObjectStoreContract, IDisposable
{
    private readonly TemporaryFolder folder = new();

    public void Dispose() => folder.Dispose();

    protected override IObjectStore Open() => new FolderStore(folder.Path);

    protected override async Task LeaveUnfinished(IObjectStore store, string key)
    {
        string file = folder.File(key);
        Directory.CreateDirectory(Path.GetDirectoryName(file)!);
        await File.WriteAllTextAsync(Path.Combine(Path.GetDirectoryName(file)!, $".{Path.GetFileName(file)}.{Guid.NewGuid():N}.tmp"), "half", Cancellation);
    }
}
