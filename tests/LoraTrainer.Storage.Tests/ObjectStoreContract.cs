using System.Security.Cryptography;
using System.Text;
using Xunit;

namespace LoraTrainer.Storage.Tests;

/// <summary>What every store does alike. Each test has a store of its own, with nothing in it.</summary>
public abstract class ObjectStoreContract
{
    private protected static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    /// <summary>An object of this size takes more than one request, where the store has such.</summary>
    private const int LargeBytes = (11 << 20) + 12345;

    protected abstract IObjectStore Open();

    [Fact]
    public async Task PutGetListDelete_RoundTrip()
    {
        await using IObjectStore store = Open();
        Assert.Empty(await store.ListAsync(cancellation: Cancellation));
        Assert.Null(await store.GetAsync("run/step-1/a", Cancellation));
        Assert.NotNull(await Put(store, "run/step-1/a", "one"));
        Assert.NotNull(await Put(store, "run/step-10/a", "ten"));
        Assert.NotNull(await Put(store, "run/b", "bee"));
        Assert.NotNull(await Put(store, "running", "other"));
        Assert.Equal("one", await Get(store, "run/step-1/a"));
        Assert.Equal(["run/b", "run/step-1/a", "run/step-10/a", "running"], await Keys(store, ""));
        Assert.Equal(["run/step-1/a", "run/step-10/a"], await Keys(store, "run/step-1"));
        Assert.Equal(["run/step-1/a"], await Keys(store, "run/step-1/"));
        Assert.Equal(["run/b", "run/step-1/a", "run/step-10/a", "running"], await Keys(store, "run"));
        Assert.Empty(await Keys(store, "absent/x"));
        Assert.Equal(3, (await store.ListAsync("run/b", Cancellation))[0].SizeBytes);
        Assert.True(await store.ExistsAsync("run/b", Cancellation));
        Assert.False(await store.ExistsAsync("run", Cancellation));
        Assert.True(await store.DeleteAsync("run/step-1/a", Cancellation));
        Assert.False(await store.DeleteAsync("run/step-1/a", Cancellation));
        Assert.NotNull(await Put(store, "run/step-1/a", "again"));
        Assert.Equal("again", await Get(store, "run/step-1/a"));
    }

    [Fact]
    public async Task Put_Empty_IsThere()
    {
        await using IObjectStore store = Open();
        Assert.NotNull(await Put(store, "empty", ""));
        Assert.Equal("", await Get(store, "empty"));
        Assert.Equal([new StoredObject("empty", 0)], await store.ListAsync(cancellation: Cancellation));
    }

    [Fact]
    public async Task Put_RestOfStream_IsStored()
    {
        await using IObjectStore store = Open();
        var content = new MemoryStream(Encoding.UTF8.GetBytes("0123456789")) { Position = 4 };
        Assert.NotNull(await store.PutAsync("rest", content, cancellation: Cancellation));
        Assert.Equal("456789", await Get(store, "rest"));
        Assert.Equal(10, content.Position);
    }

    [Fact]
    public async Task Put_IfAbsent_KeepsTheFirst()
    {
        await using IObjectStore store = Open();
        Assert.NotNull(await Put(store, "m", "first", PutCondition.IfAbsent));
        Assert.Null(await Put(store, "m", "second", PutCondition.IfAbsent));
        Assert.Equal("first", await Get(store, "m"));
        Assert.NotNull(await Put(store, "m", "third"));
        Assert.Equal("third", await Get(store, "m"));
    }

    [Fact]
    public async Task Put_IfAbsentFromTwentyWriters_ExactlyOneSucceeds()
    {
        await using IObjectStore store = Open();
        for (int round = 0; round < 3; round++)
        {
            string key = $"race/{round}";
            string?[] won = await Task.WhenAll(Enumerable.Range(0, 20).Select(writer => Task.Run(() => Put(store, key, $"writer {writer}", PutCondition.IfAbsent), Cancellation)));
            Assert.Equal(1, won.Count(version => version is not null));
            Assert.Equal($"writer {Array.FindIndex(won, version => version is not null)}", await Get(store, key));
        }
    }

    [Fact]
    public async Task Put_IfVersion_HoldsForTheVersionOnly()
    {
        await using IObjectStore store = Open();
        Assert.Null(await Put(store, "head", "never", PutCondition.IfVersion(new string('0', 32))));
        Assert.False(await store.ExistsAsync("head", Cancellation));
        string first = (await Put(store, "head", "first"))!;
        Assert.Equal(first, await Version(store, "head"));
        string second = (await Put(store, "head", "second", PutCondition.IfVersion(first)))!;
        Assert.NotEqual(first, second);
        Assert.Equal(second, await Version(store, "head"));
        Assert.Null(await Put(store, "head", "stale", PutCondition.IfVersion(first)));
        Assert.Null(await Put(store, "head", "unknown", PutCondition.IfVersion("")));
        Assert.Equal("second", await Get(store, "head"));
    }

    [Fact]
    public async Task Put_IfVersionFromTwentyWriters_EachSwapHasOneWinner()
    {
        await using IObjectStore store = Open();
        string version = (await Put(store, "head", "start"))!;
        for (int round = 0; round < 3; round++)
        {
            string expected = version;
            string?[] won = await Task.WhenAll(Enumerable.Range(0, 20).Select(writer => Task.Run(() => Put(store, "head", $"round {round} writer {writer}", PutCondition.IfVersion(expected)), Cancellation)));
            Assert.Equal(1, won.Count(result => result is not null));
            int winner = Array.FindIndex(won, result => result is not null);
            version = won[winner]!;
            Assert.Equal($"round {round} writer {winner}", await Get(store, "head"));
        }
    }

    [Fact]
    public async Task Put_Counter_LosesNoIncrement()
    {
        await using IObjectStore store = Open();
        await Put(store, "counter", "0");
        await Task.WhenAll(Enumerable.Range(0, 4).Select(_ => Task.Run(
            async () =>
            {
                for (int done = 0; done < 5;)
                {
                    (string text, string version) = await Read(store, "counter");
                    done += await Put(store, "counter", $"{int.Parse(text, System.Globalization.CultureInfo.InvariantCulture) + 1}", PutCondition.IfVersion(version)) is null ? 0 : 1;
                }
            },
            Cancellation)));
        Assert.Equal("20", await Get(store, "counter"));
    }

    [Theory]
    [InlineData("with space/a b.bin")]
    [InlineData("umlaut/Größe-東京-🦜")]
    [InlineData("signs/a+b&c=d%25e#f?g;h,i:j@k$l!m~n'o(p)q*r")]
    [InlineData("dots/a..b/c.d.")]
    [InlineData("percent/%2F%00%")]
    public async Task Keys_OddNames_AreKept(string key)
    {
        await using IObjectStore store = Open();
        Assert.NotNull(await Put(store, key, key));
        Assert.Equal(key, await Get(store, key));
        Assert.Equal([key], await Keys(store, ""));
        Assert.True(await store.ExistsAsync(key, Cancellation));
        Assert.True(await store.DeleteAsync(key, Cancellation));
        Assert.Empty(await Keys(store, ""));
    }

    [Fact]
    public async Task List_Order_IsOrdinal()
    {
        await using IObjectStore store = Open();
        string[] keys = ["a", "A", "a-b", "a/b", "a.b", "aa", "\ue000", "🦜"];
        await Task.WhenAll(keys.Where(key => key != "a").Select(key => Put(store, "k/" + key, key)));
        Assert.Equal(keys.Where(key => key != "a").Select(key => "k/" + key).Order(StringComparer.Ordinal), await Keys(store, ""));
    }

    [Theory]
    [InlineData("")]
    [InlineData("/etc/passwd")]
    [InlineData("a/../b")]
    [InlineData("a\\b")]
    [InlineData("a//b")]
    public async Task AnyCall_BadKey_IsRefused(string key)
    {
        await using IObjectStore store = Open();
        await Assert.ThrowsAsync<ArgumentException>(() => Put(store, key, "x"));
        await Assert.ThrowsAsync<ArgumentException>(() => store.GetAsync(key, Cancellation));
        await Assert.ThrowsAsync<ArgumentException>(() => store.DeleteAsync(key, Cancellation));
        await Assert.ThrowsAsync<ArgumentException>(() => store.ExistsAsync(key, Cancellation));
    }

    [Fact]
    public async Task Put_Large_ArrivesWithProgress()
    {
        await using IObjectStore store = Open();
        byte[] bytes = Bytes(LargeBytes, 1);
        var told = new List<long>();
        Assert.NotNull(await store.PutAsync("large", new MemoryStream(bytes), progress: new Reports(told), cancellation: Cancellation));
        Assert.Equal(LargeBytes, told[^1]);
        Assert.Equal(told.Order(), told);
        Assert.Equal([new StoredObject("large", LargeBytes)], await store.ListAsync(cancellation: Cancellation));
        await using StoredContent stored = (await store.GetAsync("large", Cancellation))!;
        Assert.Equal(LargeBytes, stored.SizeBytes);
        Assert.Equal(SHA256.HashData(bytes), await SHA256.HashDataAsync(stored.Content, Cancellation));
    }

    [Fact]
    public async Task Put_CancelledInTheMiddle_LeavesTheOldObject()
    {
        await using IObjectStore store = Open();
        await Put(store, "kept", "old");
        using var cancel = CancellationTokenSource.CreateLinkedTokenSource(Cancellation);
        byte[] bytes = Bytes(LargeBytes, 2);
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => store.PutAsync("kept", new MemoryStream(bytes), progress: new Cancels(cancel), cancellation: cancel.Token));
        Assert.Equal("old", await Get(store, "kept"));
        Assert.Equal(["kept"], await Keys(store, ""));
        Assert.Equal(0, await store.RemoveUnfinishedAsync("kept", Cancellation));
    }

    [Fact]
    public async Task Put_SourceFails_ThatIsTheErrorAndNothingIsLeft()
    {
        await using IObjectStore store = Open();
        await Assert.ThrowsAsync<ObjectDisposedException>(async () =>
        {
            var closed = new MemoryStream();
            await closed.DisposeAsync();
            await store.PutAsync("a", closed, cancellation: Cancellation);
        });
        var error = await Assert.ThrowsAsync<IOException>(() => store.PutAsync("a", new FailingStream(), cancellation: Cancellation));
        Assert.Equal("the disk failed", error.Message);
        Assert.Empty(await store.ListAsync(cancellation: Cancellation));
    }

    [Fact]
    public async Task Probe_FindsEverything_AndLeavesNothing()
    {
        await using IObjectStore store = Open();
        Assert.Equal(new StoreAbilities(PutIfAbsent: true, CompareAndSwap: true, Lacking: null), await store.ProbeAsync("run", Cancellation));
        Assert.Empty(await store.ListAsync(cancellation: Cancellation));
    }

    [Fact]
    public async Task RemoveUnfinished_OfThePrefixOnly()
    {
        await using IObjectStore store = Open();
        await Put(store, "run-1/a", "whole");
        await LeaveUnfinished(store, "run-1/big");
        await LeaveUnfinished(store, "run-2/big");
        Assert.Equal(["run-1/a"], await Keys(store, ""));
        Assert.Equal(1, await store.RemoveUnfinishedAsync("run-1/", Cancellation));
        Assert.Equal(0, await store.RemoveUnfinishedAsync("run-1/", Cancellation));
        Assert.Equal(1, await store.RemoveUnfinishedAsync("run-2/", Cancellation));
        Assert.Equal("whole", await Get(store, "run-1/a"));
    }

    /// <summary>Leaves what a put leaves behind whose process is killed.</summary>
    protected abstract Task LeaveUnfinished(IObjectStore store, string key);

    internal static byte[] Bytes(int count, int seed)
    {
        byte[] bytes = new byte[count];
        new Random(seed).NextBytes(bytes);
        return bytes;
    }

    internal static Task<string?> Put(IObjectStore store, string key, string content, PutCondition condition = default)
        => store.PutAsync(key, new MemoryStream(Encoding.UTF8.GetBytes(content)), condition, cancellation: Cancellation);

    internal static async Task<string> Get(IObjectStore store, string key) => (await Read(store, key)).Text;

    internal static async Task<IEnumerable<string>> Keys(IObjectStore store, string prefix) => (await store.ListAsync(prefix, Cancellation)).Select(item => item.Key);

    private static async Task<string> Version(IObjectStore store, string key) => (await Read(store, key)).Version;

    private static async Task<(string Text, string Version)> Read(IObjectStore store, string key)
    {
        await using StoredContent? stored = await store.GetAsync(key, Cancellation);
        Assert.NotNull(stored);
        using var reader = new StreamReader(stored.Content);
        return (await reader.ReadToEndAsync(Cancellation), stored.Version);
    }

    private sealed class Reports(List<long> told) : IProgress<long>
    {
        public void Report(long value)
        {
            lock (told)
            {
                told.Add(value);
            }
        }
    }

    private sealed class Cancels(CancellationTokenSource source) : IProgress<long>
    {
        public void Report(long value) => source.Cancel();
    }

    private sealed class FailingStream : MemoryStream
    {
        public FailingStream()
            : base(new byte[100_000])
        {
        }

        public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
            => Position > 0 ? throw new IOException("the disk failed") : base.ReadAsync(buffer[..Math.Min(buffer.Length, 1000)], cancellationToken);
    }
}
