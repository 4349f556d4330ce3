using System.Text.RegularExpressions;
using System.Xml.Linq;
using Xunit;

namespace LoraTrainer.Architecture.Tests;

/// <summary>The rules that ARCHITECTURE.md states about the source tree.</summary>
public sealed partial class HouseTests
{
    private const int LongestFile = 800;

    /// <summary>Every project of the product: the projects and the packages that it may use. Arrows point down only.</summary>
    private static readonly Dictionary<string, (string[] Projects, string[] Packages)> House = new(StringComparer.Ordinal)
    {
        ["Cli"] = (["Training", "Models", "Data", "Engine", "Storage", "Costs"], ["System.CommandLine", "Spectre.Console", "OpenTelemetry.Exporter.OpenTelemetryProtocol"]),
        ["Training"] = (["Engine", "Storage", "Data", "Models", "Costs"], ["YamlDotNet"]),
        ["Models"] = (["Engine", "Storage"], []),
        ["Data"] = (["Storage"], ["Parquet.Net", "ZstdSharp.Port"]),
        ["Engine"] = ([], []),
        ["Storage"] = ([], ["AWSSDK.S3", "Polly.Core"]),
        ["Costs"] = ([], ["Microsoft.Data.Sqlite", "SQLitePCLRaw.bundle_e_sqlite3"]),
    };

    [Fact]
    public void Projects_AreThoseOfTheHouse()
    {
        string[] expected = [.. House.Keys.Select(ProjectPath).Order(StringComparer.Ordinal)];

        Assert.Equal(expected, Repository.Files("src", "*.csproj"));
    }

    [Fact]
    public void Solution_HoldsEveryProject()
    {
        string solution = File.ReadAllText(Repository.PathOf("LoraTrainer.sln")).Replace('\\', '/');

        Assert.All(Repository.Files("src", "*.csproj").Concat(Repository.Files("tests", "*.csproj")), project => Assert.Contains($"\"{project}\"", solution, StringComparison.Ordinal));
    }

    [Fact]
    public void ProjectReferences_PointDownOnly() => Assert.Equal([], House.Keys.SelectMany(name =>
        References(name, "ProjectReference").Select(path => Path.GetFileNameWithoutExtension(path)["LoraTrainer.".Length..])
            .Except(House[name].Projects)
            .Select(target => $"{name} -> {target}")));

    [Fact]
    public void PackageReferences_AreThoseThatWereAgreed() => Assert.Equal([], House.Keys.SelectMany(name =>
        References(name, "PackageReference").Except(House[name].Packages).Select(package => $"{name} -> {package}")));

    [Fact]
    public void Files_AreShortEnoughToRead() => Assert.Equal([], Sources()
        .Where(file => !file.EndsWith(".Generated.cs", StringComparison.Ordinal))
        .Select(file => (file, Lines: File.ReadLines(Repository.PathOf(file)).Count()))
        .Where(file => file.Lines > LongestFile)
        .Select(file => $"{file.file} has {file.Lines} lines"));

    [Fact]
    public void Product_IsFinished() => Assert.Equal([], Sources().Where(file => file.StartsWith("src/", StringComparison.Ordinal)).SelectMany(file =>
        File.ReadLines(Repository.PathOf(file))
            .Select((text, index) => (text, Number: index + 1))
            .Where(line => Unfinished().IsMatch(line.text))
            .Select(line => $"{file}:{line.Number}: {line.text.Trim()}")));

    [Theory]
    [InlineData("throw new NotImplementedException();", true)]
    [InlineData("// TODO later", true)]
    [InlineData("// FIXME", true)]
    [InlineData("string todoList = \"not yet\";", false)]
    public void Unfinished_IsRecognized(string line, bool expected) => Assert.Equal(expected, Unfinished().IsMatch(line));

    private static string[] Sources() => [.. Repository.Files("src", "*.cs"), .. Repository.Files("tests", "*.cs").Where(file => !file.StartsWith("tests/LoraTrainer.Architecture.Tests/", StringComparison.Ordinal))];

    private static string ProjectPath(string name) => $"src/LoraTrainer.{name}/LoraTrainer.{name}.csproj";

    private static string[] References(string name, string kind) =>
        [.. XDocument.Load(Repository.PathOf(ProjectPath(name))).Descendants(kind).Select(reference => reference.Attribute("Include")!.Value.Replace('\\', '/'))];

    [GeneratedRegex(@"\bNotImplementedException\b|\bTODO\b|\bFIXME\b|\bHACK\b")]
    private static partial Regex Unfinished();
}
