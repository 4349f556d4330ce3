using System.Runtime.Versioning;
using System.Text.RegularExpressions;
using Xunit;

namespace LoraTrainer.Architecture.Tests;

/// <summary>What the pages for people name exists: files, links, verbs, commands.</summary>
public sealed partial class DocumentationTests
{
    private static readonly string[] Pages =
    [
        .. Directory.EnumerateFiles(Repository.Root, "*.md").Select(path => Path.GetRelativePath(Repository.Root, path)).Order(StringComparer.Ordinal),
        .. Repository.Files("docs", "*.md"), "tests/Golden/README.md",
    ];

    /// <summary>The verbs, from the sources of the command line: each file of Verbs/ creates one.</summary>
    private static readonly string[] Verbs =
        [.. Repository.Files("src/LoraTrainer.Cli/Verbs", "*.cs").SelectMany(file => VerbName().Matches(File.ReadAllText(Repository.PathOf(file)))).Select(match => match.Groups[1].Value)];

    [Fact]
    public void Readme_FirstBlock_IsTheMainJobAndTheTests()
    {
        string[] commands = FirstBlock();

        Assert.Equal(2, commands.Length);
        string config = Regex.Match(commands[0], @" train (\S+)$").Groups[1].Value;
        Assert.StartsWith("dotnet run --project src/LoraTrainer.Cli -c Release -- train ", commands[0], StringComparison.Ordinal);
        Assert.True(File.Exists(Repository.PathOf(config)), $"the first command names {config}, which is not here");
        Assert.True(File.Exists(Repository.PathOf(commands[1])), $"the second command is {commands[1]}, which is not here");
    }

    [Fact]
    public void ContinuousIntegration_RunsTheTestCommandOfTheReadme()
    {
        string[] lines = File.ReadAllLines(Repository.PathOf(".ci/run"));

        Assert.Equal($"exec {FirstBlock()[1]}", lines[^1]);
    }

    [Fact]
    [UnsupportedOSPlatform("windows")]
    public void Scripts_CanBeRun() => Assert.All(Repository.Files("scripts", "*.sh").Append(".ci/run"), file => Assert.True((File.GetUnixFileMode(Repository.PathOf(file)) & UnixFileMode.UserExecute) != 0, $"{file} is not executable"));

    [Fact]
    public void Pages_EssentialOnes_AreThere() => Assert.All(
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/configuration.md", "docs/troubleshooting.md", "docs/data.md", "docs/checkpoints-and-resume.md"],
        page => Assert.Contains(page, Pages));

    [Fact]
    public void Links_LeadSomewhere() => Assert.Equal([], Pages.SelectMany(page => Link().Matches(WithoutBlocks(page))
        .Select(match => match.Groups[1].Value)
        .Where(target => !target.StartsWith("https://", StringComparison.Ordinal) && !Leads(page, target))
        .Select(target => $"{page} -> {target}")));

    [Fact]
    public void Paths_ThatPagesName_Exist() => Assert.Equal([], Pages.SelectMany(page => RepositoryPath().Matches(File.ReadAllText(Repository.PathOf(page)))
        .Select(match => match.Value.TrimEnd('.', '/'))
        .Where(path => !Path.Exists(Repository.PathOf(path)))
        .Select(path => $"{page} names {path}")));

    [Fact]
    public void Verbs_ThatPagesName_Exist()
    {
        Assert.Contains("train", Verbs);
        Assert.Equal([], Pages.SelectMany(page => VerbUse().Matches(File.ReadAllText(Repository.PathOf(page)))
            .Select(match => match.Groups[1].Value)
            .Except(Verbs)
            .Select(verb => $"{page} names the verb {verb}")));
    }

    private static string[] FirstBlock()
    {
        Match block = Regex.Match(File.ReadAllText(Repository.PathOf("README.md")), "^```[a-z]*\n(.*?)^```", RegexOptions.Singleline | RegexOptions.Multiline);
        Assert.True(block.Success, "README.md has no fenced block");
        return block.Groups[1].Value.Split('\n', StringSplitOptions.RemoveEmptyEntries);
    }

    private static bool Leads(string page, string target)
    {
        string[] parts = target.Split('#');
        string file = parts[0].Length == 0 ? page : Path.Combine(Path.GetDirectoryName(page)!, parts[0]);
        if (!Path.Exists(Repository.PathOf(file)))
        {
            return false;
        }

        return parts.Length == 1 || File.ReadLines(Repository.PathOf(file)).Where(line => line.StartsWith('#')).Any(line => Anchor(line) == parts[1]);
    }

    private static string Anchor(string heading) => Regex.Replace(heading.TrimStart('#').Trim().ToLowerInvariant(), "[^a-z0-9 _-]", "").Replace(' ', '-');

    private static string WithoutBlocks(string page) => Regex.Replace(File.ReadAllText(Repository.PathOf(page)), "^```.*?^```|`[^`\n]*`", "", RegexOptions.Singleline | RegexOptions.Multiline);

    [GeneratedRegex(@"new Verb\(""([a-z-]+)""")]
    private static partial Regex VerbName();

    [GeneratedRegex(@"\]\(([^)\s]+)\)")]
    private static partial Regex Link();

    // A path that begins with a folder of the repository; patterns and places to fill in are no paths.
    [GeneratedRegex(@"(?<![\w./<-])(?:src|tests|docs|scripts|configs|quickstart|\.ci)/[\w./-]+(?![\w*<{])")]
    private static partial Regex RepositoryPath();

    [GeneratedRegex(@"(?:lora-trainer|-c Release --) (?!--)([a-z][a-z-]+)(?= |`|$)", RegexOptions.Multiline)]
    private static partial Regex VerbUse();
}
