using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Storage.Tests;

public sealed class FileHashesTests
{
    private const string Planted = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    private static CancellationToken Stop => TestContext.Current.CancellationToken;

    [Fact]
    public void Of_FileThatIsNew_IsReadEachTime()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("a"), "one");
        Assert.Equal(ContentHash.OfFile(folder.File("a"), Stop), new FileHashes(folder.File("hashes.json"), new Clock(TimeSpan.Zero)).Of(folder.File("a"), Stop));
        Assert.False(File.Exists(folder.File("hashes.json")));
    }

    [Fact]
    public void Of_FileThatHasNotChanged_IsRemembered()
    {
        if (!OperatingSystem.IsLinux())
        {
            Assert.Skip("only Linux tells enough of a file");
        }

        using var folder = new TemporaryFolder();
        string file = folder.File("a"), memory = folder.File("new/hashes.json");
        File.WriteAllText(file, "one");
        var hashes = new FileHashes(memory, new Clock(TimeSpan.FromHours(1)));
        string one = hashes.Of(file, Stop);
        Assert.Equal(ContentHash.OfFile(file, Stop), one);

        // What is remembered is what is told: a planted word shows that the file is not read.
        File.WriteAllText(memory, File.ReadAllText(memory).Replace(one, Planted, StringComparison.Ordinal));
        Assert.Equal(Planted, hashes.Of(file, Stop));
        Assert.Equal(Planted, hashes.Of(Path.Combine(folder.Path, ".", "a"), Stop));

        // Of the same length, and by another file of that name with the same times.
        DateTime written = File.GetLastWriteTimeUtc(file);
        File.WriteAllText(folder.File("b"), "two");
        File.SetLastWriteTimeUtc(folder.File("b"), written);
        File.Move(folder.File("b"), file, overwrite: true);
        string two = ContentHash.OfFile(file, Stop);
        Assert.Equal(two, hashes.Of(file, Stop));
        Assert.NotEqual(one, two);

        // Written into, with its time set back: the time of the last change says so.
        File.WriteAllText(file, "three");
        string three = hashes.Of(file, Stop);
        Thread.Sleep(20);
        File.WriteAllText(file, "eerht");
        File.SetLastWriteTimeUtc(file, written);
        Assert.NotEqual(three, hashes.Of(file, Stop));
    }

    [Theory]
    [InlineData("")]
    [InlineData("{")]
    [InlineData("[]")]
    [InlineData("{\"version\": 2, \"files\": {}}")]
    [InlineData("{\"version\": 1}")]
    [InlineData("{\"version\": 1, \"files\": {\"FILE\": {\"sha256\": 1}}}")]
    [InlineData("{\"version\": 1, \"files\": {\"FILE\": []}}")]
    public void Of_MemoryThatIsDamaged_IsWrittenAnew(string damaged)
    {
        using var folder = new TemporaryFolder();
        string file = folder.File("a"), memory = folder.File("hashes.json");
        File.WriteAllText(file, "one");
        File.WriteAllText(memory, damaged.Replace("FILE", file, StringComparison.Ordinal));
        var hashes = new FileHashes(memory, new Clock(TimeSpan.FromHours(1)));
        Assert.Equal(ContentHash.OfFile(file, Stop), hashes.Of(file, Stop));
        if (OperatingSystem.IsLinux())
        {
            Assert.Contains(ContentHash.OfFile(file, Stop), File.ReadAllText(memory), StringComparison.Ordinal);
        }
    }

    [Fact]
    public void Of_MemoryThatCannotBeWritten_IsNoError()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("a"), "one");
        Assert.Equal(ContentHash.OfFile(folder.File("a"), Stop), new FileHashes(folder.File("a/hashes.json"), new Clock(TimeSpan.FromHours(1))).Of(folder.File("a"), Stop));
    }

    /// <summary>The system's, and some time more.</summary>
    private sealed class Clock(TimeSpan ahead) : TimeProvider
    {
        public override DateTimeOffset GetUtcNow() => System.GetUtcNow() + ahead;
    }
}
