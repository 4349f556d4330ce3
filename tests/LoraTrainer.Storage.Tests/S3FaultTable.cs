using System.Diagnostics;
using System.Globalization;
using System.Text;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Storage.Tests;

/// <summary>What each fault ended in, collected from the tests: written to docs/s3-faults.md with LT_UPDATE_DOCS=1.</summary>
public sealed class S3FaultTable : IDisposable
{
    private const string Page = "docs/s3-faults.md";
    private const string Begin = "<!-- faults: written by the tests -->";
    private const string End = "<!-- end -->";

    private readonly SortedDictionary<string, string> rows = new(StringComparer.Ordinal);

    /// <summary>Runs a fault; the text that it returns is its outcome.</summary>
    public async Task Row(string fault, Func<Task<string>> run)
    {
        long start = Stopwatch.GetTimestamp();
        string outcome = await run();
        string row = string.Create(CultureInfo.InvariantCulture, $"| {fault} | {outcome.Replace("|", "\\|", StringComparison.Ordinal)} | {Stopwatch.GetElapsedTime(start).TotalSeconds:0.0} |");
        TestContext.Current.TestOutputHelper?.WriteLine(row);
        rows.Add(fault, row);
    }

    /// <summary>Runs a fault that is to end in an error of this kind, which the row quotes; it holds these words and no secret.</summary>
    public Task Error(string fault, StoreProblem problem, string[] words, Func<Task> run) => Row(fault, async () =>
    {
        var error = await Assert.ThrowsAsync<StoreException>(run);
        Assert.True(problem == error.Problem, error.ToString());
        Assert.All(words, word => Assert.Contains(word, error.Message, StringComparison.Ordinal));
        Assert.False(S3Profiles.AppearIn(error.ToString()), "the message holds a secret");
        return $"{problem}: {Anonymous(error.Message)}";
    });

    public void Dispose()
    {
        if (Environment.GetEnvironmentVariable("LT_UPDATE_DOCS") != "1" || rows.Count == 0)
        {
            return;
        }

        string file = Path.Combine(Fixtures.RepositoryRoot, Page);
        string text = File.ReadAllText(file);
        int begin = text.IndexOf(Begin, StringComparison.Ordinal) + Begin.Length;
        var table = new StringBuilder().Append("\n| Fault | Ends in | Seconds |\n|---|---|---|\n").AppendJoin('\n', rows.Values).Append('\n');
        File.WriteAllText(file, text[..begin] + table + text[text.IndexOf(End, StringComparison.Ordinal)..]);
    }

    // Ports, names and requests of one run say nothing.
    private static string Anonymous(string message)
    {
        string text = System.Text.RegularExpressions.Regex.Replace(message, @"127\.0\.0\.1:\d+", "127.0.0.1:PORT");
        text = System.Text.RegularExpressions.Regex.Replace(text, @"faults/[0-9a-f]{32}", "faults");
        return System.Text.RegularExpressions.Regex.Replace(text, @" Request [^ ]+\.", "");
    }
}
