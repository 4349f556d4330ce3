namespace LoraTrainer.Storage;

/// <summary>What a path lies on.</summary>
public static class MountedFileSystem
{
    /// <summary>nfs, cifs, fuse.gcsfuse and the like, where another machine or a program of a user is behind the path; null for a disk of this machine.</summary>
    public static string? RemoteTypeOf(string path) => FileSystemCalls.RemoteFileSystemOf(path);
}
