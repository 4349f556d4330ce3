using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Costs.Tests.Ledger;

/// <summary>A file system of its own that can be full or read-only. Skips the test where this process may not mount one.</summary>
internal sealed class SmallDisk : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    public SmallDisk(int sizeKilobytes)
    {
        if (!TryMount(sizeKilobytes, out string reason))
        {
            _folder.Dispose();
            Assert.Skip($"a small disk needs a tmpfs, and it cannot be mounted: {reason.Trim()}");
        }
    }

    public string Path => _folder.Path;

    public void Fill()
    {
        using var file = new FileStream(_folder.File("filler"), FileMode.Create, FileAccess.Write, FileShare.None, bufferSize: 0);
        try
        {
            for (var block = new byte[4096]; ;)
            {
                file.Write(block);
            }
        }
        catch (IOException)
        {
            // Full.
        }
    }

    public void Free() => File.Delete(_folder.File("filler"));

    public void MakeReadOnly() => Remount("ro");

    public void MakeWritable() => Remount("rw");

    public void Dispose()
    {
        Tool.Run("umount", "-l", Path);
        _folder.Dispose();
    }

    private void Remount(string mode) => Assert.Equal((0, string.Empty), Tool.Run("mount", "-o", $"remount,{mode}", Path));

    private bool TryMount(int sizeKilobytes, out string reason)
    {
        (int exitCode, reason) = Tool.Run("mount", "-t", "tmpfs", "-o", $"size={sizeKilobytes}k", "tmpfs", Path);
        return exitCode == 0;
    }
}
