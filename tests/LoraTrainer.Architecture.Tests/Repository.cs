using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Architecture.Tests;

/// <summary>The files of the repository; what builds and runs leave behind is not among them.</summary>
internal static class Repository
{
    private static readonly string[] LeftBehind = ["bin", "obj", ".git", ".vs", ".idea", "artifacts", "publish", "outputs", "TestResults", "BenchmarkDotNet.Artifacts"];

    public static string Root => Fixtures.RepositoryRoot;

    public static string PathOf(string relative) => Path.Combine(Root, relative);

    /// <summary>Paths relative to the root, with slashes, sorted.</summary>
    public static string[] Files(string folder, string pattern)
    {
        string[] found = [.. Walk(new DirectoryInfo(PathOf(folder)), pattern).Order(StringComparer.Ordinal)];
        Assert.True(found.Length > 0, $"no {pattern} under {PathOf(folder)}: these tests read the source tree and run inside it");
        return found;
    }

    private static IEnumerable<string> Walk(DirectoryInfo folder, string pattern)
    {
        IEnumerable<string> here = folder.EnumerateFiles(pattern).Select(file => Path.GetRelativePath(Root, file.FullName).Replace('\\', '/'));
        return here.Concat(folder.EnumerateDirectories().Where(child => !LeftBehind.Contains(child.Name)).SelectMany(child => Walk(child, pattern)));
    }
}
