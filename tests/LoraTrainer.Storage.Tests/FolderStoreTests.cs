using System.Text;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Storage.Tests;

public class FolderStoreTests
{
    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    [Fact]
    public async Task Delete_LastOfAFolder_RemovesTheFolder()
    {
        using var folder = new TemporaryFolder();
        var store = new FolderStore(folder.File("root"));
        Assert.True(await Put(store, "run/step-1/a", "one"));
        Assert.True(await Put(store, "run/b", "bee"));
        Assert.True(await store.DeleteAsync("run/step-1/a", Cancellation));
        Assert.False(Directory.Exists(folder.File("root/run/step-1")));
        Assert.True(Directory.Exists(folder.File("root/run")));
        Assert.True(await Put(store, "run/step-1/a", "again"));
        Assert.Equal("again", await Get(store, "run/step-1/a"));
    }

    [Fact]
    public async Task Put_IfAbsentFromManyWriters_ExactlyOneSucceeds()
    {
        using var folder = new TemporaryFolder();
        var store = new FolderStore(folder.Path);
        for (int round = 0; round < 20; round++)
        {
            string key = $"deep/{round}/m";
            using var start = new Barrier(8);
            bool[] won = await Task.WhenAll(Enumerable.Range(0, 8).Select(writer => Task.Factory.StartNew(
                () =>
                {
                    start.SignalAndWait(Cancellation);
                    return Put(store, key, $"writer {writer}", ifAbsent: true);
                },
                Cancellation,
                TaskCreationOptions.LongRunning,
                TaskScheduler.Default).Unwrap()));
            Assert.Equal(1, won.Count(success => success));
            Assert.Equal($"writer {Array.IndexOf(won, true)}", await Get(store, key));
            Assert.Single(Directory.GetFileSystemEntries(folder.File($"deep/{round}")));
        }
    }

    /// <summary>Whoever gets a run clears away what dead processes left in it, while another one may be putting its own: that one is not hurt.</summary>
    [Theory]
    [InlineData("")]
    [InlineData("absent")]
    [InlineData("swap")]
    public async Task Put_WhoseUnfinishedFileIsRemoved_IsDoneAgain(string condition)
    {
        using var folder = new TemporaryFolder();
        var store = new FolderStore(folder.Path);
        string? version = condition == "swap" ? await store.PutAsync("run/a", new MemoryStream([9]), cancellation: Cancellation) : null;
        using var content = new MemoryStream([0, 1, 2, 3]) { Position = 1 };
        int removed = 0;
        string? put = await store.PutAsync(
            "run/a",
            content,
            condition switch { "absent" => PutCondition.IfAbsent, "swap" => PutCondition.IfVersion(version!), _ => default },
            new Once(() => removed = store.RemoveUnfinishedAsync("run/", Cancellation).Result),
            Cancellation);

        Assert.Equal(1, removed);
        Assert.NotNull(put);
        Assert.Equal([1, 2, 3], File.ReadAllBytes(folder.File("run/a")));
        Assert.Single(Directory.GetFileSystemEntries(folder.File("run")));
    }

    private sealed class Once(Action act) : IProgress<long>
    {
        private bool isDone;

        public void Report(long value)
        {
            if (!isDone)
            {
                isDone = true;
                act();
            }
        }
    }

    /// <summary>A process that is suspended while it has the lock gives it back to nobody: whoever waits is told, and does not wait for ever.</summary>
    [Fact]
    public async Task Lock_ThatIsNotGivenBack_IsAnErrorThatSaysWhatToDo()
    {
        using var folder = new TemporaryFolder();
        using (await FolderLock.TakeAsync(folder.Path, Cancellation))
        {
            StoreException stuck = await Assert.ThrowsAsync<StoreException>(() => FolderLock.TakeAsync(folder.Path, Cancellation, TimeSpan.FromSeconds(1)));
            Assert.Equal($"Another process on this machine has held the lock on {folder.Path} for 1 s: it was suspended in the middle of a change. Let it go on (fg, or kill -CONT) or end it; then try again.", stuck.Message);
        }

        (await FolderLock.TakeAsync(folder.Path, Cancellation, TimeSpan.FromSeconds(1))).Dispose();
    }

    [Fact]
    public async Task PutAndDelete_AtOnceInOneFolder_NeverFail()
    {
        using var folder = new TemporaryFolder();
        var store = new FolderStore(folder.Path);
        await Task.WhenAll(Enumerable.Range(0, 4).Select(writer => Task.Run(
            async () =>
            {
                for (int i = 0; i < 60; i++)
                {
                    Assert.True(await Put(store, $"shared/inner/{writer}", "x"));
                    await store.ListAsync("shared", Cancellation);
                    Assert.True(await store.DeleteAsync($"shared/inner/{writer}", Cancellation));
                }
            },
            Cancellation)));
        Assert.Empty(await store.ListAsync(cancellation: Cancellation));
    }

    [Fact]
    public async Task Put_SourceFails_LeavesNothing()
    {
        using var folder = new TemporaryFolder();
        var store = new FolderStore(folder.Path);
        await Assert.ThrowsAsync<ObjectDisposedException>(async () =>
        {
            var closed = new MemoryStream();
            await closed.DisposeAsync();
            await store.PutAsync("a", closed, cancellation: Cancellation);
        });
        Assert.Empty(Directory.GetFileSystemEntries(folder.Path));
    }

    [Theory]
    [InlineData("", "the key '' is empty")]
    [InlineData("/etc/passwd", "the key '/etc/passwd' is absolute; it must be relative to the store")]
    [InlineData("a/../b", "the key 'a/../b' has a part that starts with a dot; '..' would leave the store, and the others are for files being written")]
    [InlineData("..", "the key '..' has a part that starts with a dot; '..' would leave the store, and the others are for files being written")]
    [InlineData("a\\b", "the key 'a\\b' holds a backslash; parts are separated by '/'")]
    [InlineData("a//b", "the key 'a//b' has an empty part")]
    [InlineData("a/", "the key 'a/' has an empty part")]
    [InlineData("a\0b", "the key 'a\0b' holds a control character")]
    public async Task AnyCall_BadKey_IsRefused(string key, string message)
    {
        using var folder = new TemporaryFolder();
        var store = new FolderStore(folder.Path);
        var error = await Assert.ThrowsAsync<ArgumentException>(() => Put(store, key, "x"));
        Assert.Equal($"{message} (Parameter 'key')", error.Message);
        await Assert.ThrowsAsync<ArgumentException>(() => store.GetAsync(key, Cancellation));
        await Assert.ThrowsAsync<ArgumentException>(() => store.DeleteAsync(key, Cancellation));
        await Assert.ThrowsAsync<ArgumentException>(() => store.ExistsAsync(key, Cancellation));
    }

    private static async Task<bool> Put(FolderStore store, string key, string content, bool ifAbsent = false)
        => await store.PutAsync(key, new MemoryStream(Encoding.UTF8.GetBytes(content)), ifAbsent ? PutCondition.IfAbsent : default, cancellation: Cancellation) is not null;

    private static async Task<string> Get(FolderStore store, string key)
    {
        await using StoredContent? stored = await store.GetAsync(key, Cancellation);
        Assert.NotNull(stored);
        using var reader = new StreamReader(stored.Content);
        return await reader.ReadToEndAsync(Cancellation);
    }
}
