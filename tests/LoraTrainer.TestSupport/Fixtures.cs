using System.Diagnostics.CodeAnalysis;
using System.Text.Json;
using Xunit;

namespace LoraTrainer.TestSupport;

/// <summary>
/// Finds the reference data that the real libraries computed. The root is the environment variable LT_FIXTURES, else
/// <c>../shared/fixtures</c> beside the repository, else the committed subset in <c>tests/Golden</c>. A test whose data is not there is skipped with
/// that reason. With CI=true nothing may be left out: the subset does not stand in for the whole, and a test without its data fails. Where
/// LT_FIXTURES names a folder that is not there, the tests that need it fail too: it was asked for.
/// </summary>
public static class Fixtures
{
    public static string RepositoryRoot { get; } = FindRepositoryRoot();

    /// <summary>The fixture root, or null where there is none.</summary>
    public static string? Root { get; } = FindRoot();

    /// <summary>Values of <c>model_type</c> that the model code does not know yet. Enabling a family is deleting its word.</summary>
    public static IReadOnlyList<string> FamiliesNotYetSupported { get; } = ["gemma", "gemma3", "gemma3_text", "mixtral"];

    private static string GoldenRoot => Path.Combine(RepositoryRoot, "tests", "Golden");

    /// <summary>True on the continuous integration machine, where nothing may be left out.</summary>
    public static bool IsContinuousIntegration => string.Equals(Environment.GetEnvironmentVariable("CI"), "true", StringComparison.OrdinalIgnoreCase);

    /// <summary>The folder <paramref name="relative"/> under the root. Skips the running test (or fails it under CI=true) where there is no root.</summary>
    public static string Require(string relative)
    {
        if (Root is null)
        {
            string? given = Environment.GetEnvironmentVariable("LT_FIXTURES");
            Assert.True(string.IsNullOrEmpty(given), $"LT_FIXTURES is {given}, and there is no such folder");
            LeaveOut("the reference fixtures are not here: expected them in ../shared/fixtures beside the repository, or where LT_FIXTURES points");
        }

        string path = Path.Combine(Root, relative);
        if (!Path.Exists(path) && !IsContinuousIntegration && Root == Path.GetFullPath(GoldenRoot))
        {
            Assert.Skip($"the committed subset of the fixtures has no {relative}");
        }

        Assert.True(Path.Exists(path), $"the fixture root {Root} has no {relative}");
        return path;
    }

    /// <summary>A file or folder of the committed subset, which is there always: for tests that need one of a kind, whatever fixtures there are.</summary>
    public static string Golden(string relative)
    {
        string path = Path.Combine(GoldenRoot, relative);
        Assert.True(Path.Exists(path), $"tests/Golden has no {relative}");
        return path;
    }

    /// <summary>A file or folder of the real data, which lies in ../shared/data beside the repository. Skips the running test (or fails it under CI=true) where it is not.</summary>
    public static string RequireData(string relative)
    {
        string root = Path.GetFullPath(Path.Combine(RepositoryRoot, "..", "shared", "data")), path = Path.Combine(root, relative);
        if (!Directory.Exists(root))
        {
            LeaveOut("the real data is not here: expected it in ../shared/data beside the repository");
        }

        if (!Path.Exists(path))
        {
            LeaveOut($"../shared/data beside the repository has no {relative}");
        }

        return path;
    }

    /// <summary>Skips the running test with a reason; under CI=true, where nothing may be left out, fails it.</summary>
    [DoesNotReturn]
    public static void LeaveOut(string reason)
    {
        if (IsContinuousIntegration)
        {
            Assert.Fail($"{reason}. With CI=true nothing may be left out");
        }

        Assert.Skip(reason);
    }

    /// <summary>The model_type in the config.json of a fixture folder; empty where there is no such file.</summary>
    public static string ModelTypeOf(string relative)
    {
        string path = Path.Combine(Root ?? "", relative, "config.json");
        if (Root is null || !File.Exists(path))
        {
            return "";
        }

        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(path));
        return document.RootElement.GetProperty("model_type").GetString() ?? "";
    }

    /// <summary>The sorted names of the case folders in <paramref name="kind"/>; the single name "(absent)" where there is no root, so that a theory still reports its skip.</summary>
    public static IReadOnlyList<string> Cases(string kind)
    {
        if (Root is null || !Directory.Exists(Path.Combine(Root, kind)))
        {
            return ["(absent)"];
        }

        return [.. Directory.EnumerateDirectories(Path.Combine(Root, kind)).Select(Path.GetFileName).Select(name => name!).Order(StringComparer.Ordinal)];
    }

    /// <summary>The sorted names of the files in <paramref name="kind"/> that match <paramref name="pattern"/>.</summary>
    public static IReadOnlyList<string> Files(string kind, string pattern)
    {
        if (Root is null || !Directory.Exists(Path.Combine(Root, kind)))
        {
            return ["(absent)"];
        }

        return [.. Directory.EnumerateFiles(Path.Combine(Root, kind), pattern).Select(Path.GetFileName).Select(name => name!).Order(StringComparer.Ordinal)];
    }

    private static string FindRepositoryRoot()
    {
        for (DirectoryInfo? folder = new(AppContext.BaseDirectory); folder is not null; folder = folder.Parent)
        {
            if (File.Exists(Path.Combine(folder.FullName, "LoraTrainer.sln")))
            {
                return folder.FullName;
            }
        }

        // A published test program runs outside the tree: the current directory is the repository there.
        return Directory.GetCurrentDirectory();
    }

    private static string? FindRoot()
    {
        string? given = Environment.GetEnvironmentVariable("LT_FIXTURES");
        string[] places = !string.IsNullOrEmpty(given) ? [given]
            : IsContinuousIntegration ? [Path.Combine(RepositoryRoot, "..", "shared", "fixtures")]
            : [Path.Combine(RepositoryRoot, "..", "shared", "fixtures"), GoldenRoot];
        return places.FirstOrDefault(Directory.Exists) is { } found ? Path.TrimEndingDirectorySeparator(Path.GetFullPath(found)) : null;
    }
}
