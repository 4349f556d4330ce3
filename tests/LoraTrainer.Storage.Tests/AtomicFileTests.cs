using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Storage.Tests;

public class AtomicFileTests
{
    [Fact]
    public void Commit_ReplacesTheOldFile()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("a"), "old and longer");
        using (AtomicFile file = AtomicFile.Create(folder.File("a")))
        {
            file.Append("new"u8);
            file.Append("er"u8);
            Assert.Equal("old and longer", File.ReadAllText(folder.File("a")));
            file.Commit();
        }

        Assert.Equal("newer", File.ReadAllText(folder.File("a")));
        Assert.Single(Directory.GetFileSystemEntries(folder.Path));
    }

    [Fact]
    public void Dispose_WithoutCommit_LeavesNothing()
    {
        using var folder = new TemporaryFolder();
        using (AtomicFile file = AtomicFile.Create(folder.File("a")))
        {
            file.Append("half"u8);
            Assert.Single(Directory.GetFileSystemEntries(folder.Path));
        }

        Assert.Empty(Directory.GetFileSystemEntries(folder.Path));
    }

    [Fact]
    public void TryCommitNew_NameTaken_ChangesNothing()
    {
        using var folder = new TemporaryFolder();
        using (AtomicFile first = AtomicFile.Create(folder.File("a")), second = AtomicFile.Create(folder.File("a")))
        {
            first.Append("first"u8);
            second.Append("second"u8);
            Assert.True(first.TryCommitNew());
            Assert.False(second.TryCommitNew());
        }

        Assert.Equal("first", File.ReadAllText(folder.File("a")));
        Assert.Single(Directory.GetFileSystemEntries(folder.Path));
    }

    [Fact]
    public void Append_DiskFull_SaysSo()
    {
        // A device that is always full; only its error is of interest, so it is reached through a link in place of the temporary file.
        if (!File.Exists("/dev/full"))
        {
            Fixtures.LeaveOut("this system has no /dev/full");
        }

        using var folder = new TemporaryFolder();
        using AtomicFile file = AtomicFile.Over(folder.File("a"), "/dev/full");
        var error = Assert.Throws<IOException>(() => file.Append(new byte[10]));
        Assert.StartsWith($"{folder.File("a")} could not be written: after 0 bytes, 10 more did not fit or failed (", error.Message, StringComparison.Ordinal);
        Assert.EndsWith("Nothing was left behind and an older file of that name is untouched. Free space on that disk, or choose another folder.", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void OfFile_MatchesStandard()
    {
        // FIPS 180-4: SHA-256 of "abc"; and of a million times 'a', which needs several reads.
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("a"), "abc");
        Assert.Equal("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", ContentHash.OfFile(folder.File("a"), TestContext.Current.CancellationToken));
        File.WriteAllText(folder.File("m"), new string('a', 1_000_000));
        Assert.Equal("cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0", ContentHash.OfFile(folder.File("m"), TestContext.Current.CancellationToken));
        Assert.Equal("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", ContentHash.OfBytes([]));
    }
}
