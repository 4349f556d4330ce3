using System.Buffers;
using System.Diagnostics;
using System.Text.Json;
using System.Text.RegularExpressions;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>The quickstart's claim: its held-out messages, and the people who send them, are met nowhere else. And its files are what its script writes.</summary>
public sealed partial class QuickstartDataTests
{
    private const int HeldOutRows = 200, TrainingRows = 4000;

    private static readonly string Quickstart = Path.Combine(Fixtures.RepositoryRoot, "quickstart");

    private static readonly string Generator = Path.Combine(Fixtures.RepositoryRoot, "scripts", "quickstart", "make.py");

    [Fact]
    public void HeldOut_SharesNoMessageAndNoPersonWithTraining()
    {
        List<Order> heldOut = Read(Path.Combine(Quickstart, "task", "held_out.jsonl"));
        List<Order> train = Read(Path.Combine(Quickstart, "task", "train.jsonl"));

        Assert.Equal(HeldOutRows, heldOut.Count);
        Assert.Equal(TrainingRows, train.Count);
        Assert.Equal(HeldOutRows, heldOut.Select(order => order.Message).Distinct().Count());
        Assert.Empty(heldOut.Select(order => order.Message).Intersect(train.Select(order => order.Message)));
        Assert.Empty(heldOut.Select(order => order.Name).Intersect(train.Select(order => order.Name)));
    }

    [Fact]
    public void Record_HasTheNameOfItsMessage_InOneForm() => Assert.All(
        Read(Path.Combine(Quickstart, "task", "held_out.jsonl")).Concat(Read(Path.Combine(Quickstart, "task", "train.jsonl"))),
        order =>
        {
            Assert.Matches(RecordPattern(), order.Record);
            Assert.Contains(order.Name, order.Message, StringComparison.Ordinal);
        });

    [Fact]
    public void Shuffled_HasTheSameMessagesAndRecords_ButNoMessageItsOwn()
    {
        List<Order> train = Read(Path.Combine(Quickstart, "task", "train.jsonl"));
        List<Order> shuffled = Read(Path.Combine(Quickstart, "task", "train_shuffled.jsonl"));

        Assert.Equal(train.Select(order => order.Message), shuffled.Select(order => order.Message));
        Assert.Equal(train.Select(order => order.Record).Order(StringComparer.Ordinal), shuffled.Select(order => order.Record).Order(StringComparer.Ordinal));
        Assert.DoesNotContain(train.Zip(shuffled), pair => pair.First.Record == pair.Second.Record);
    }

    [Fact]
    public void Tokenizer_PutsBosFirst_AndGivesEveryTextBack()
    {
        var tokenizer = Tokenizer.Load(Path.Combine(Quickstart, "base"));

        Assert.Empty(tokenizer.Notices);
        Assert.Equal((1534, 1535, 1536), (tokenizer.BosId, tokenizer.EosId, tokenizer.VocabularySize));
        Assert.All(Read(Path.Combine(Quickstart, "task", "held_out.jsonl")), order =>
        {
            string text = $"Message:\n{order.Message}\nRecord:\n{order.Record}";
            int[] tokens = tokenizer.Encode(text, addSpecialTokens: true);
            Assert.Equal(1534, tokens[0]);
            Assert.InRange(tokens.Length, 20, 128);
            Assert.Equal(text, tokenizer.Decode(tokens, skipSpecialTokens: true));
        });
        Assert.Equal("Grüße, 東京 🙂!\n", tokenizer.Decode(tokenizer.Encode("Grüße, 東京 🙂!\n", addSpecialTokens: false), skipSpecialTokens: true));
    }

    [Fact]
    public void Generator_WritesTheCommittedFiles_AndACorpusWithoutHeldOutMessagesOrPeople()
    {
        using var folder = new TemporaryFolder();
        string corpus = Path.Combine(folder.Path, "corpus.jsonl");
        Generate(folder.Path, corpus);

        string[] files = ["task/train.jsonl", "task/held_out.jsonl", "task/train_shuffled.jsonl", "base/tokenizer.json", "base/tokenizer_config.json", "base/special_tokens_map.json"];
        Assert.All(files, file => Assert.Equal(File.ReadAllBytes(Path.Combine(Quickstart, file)), File.ReadAllBytes(Path.Combine(folder.Path, file))));

        // Every message names its sender, so a text without a held-out person holds no held-out message either.
        List<Order> heldOut = Read(Path.Combine(Quickstart, "task", "held_out.jsonl"));
        var people = SearchValues.Create([.. heldOut.Select(order => order.Name).Distinct()], StringComparison.Ordinal);
        Assert.All(heldOut, order => Assert.True(order.Message.AsSpan().ContainsAny(people)));
        int texts = 0;
        foreach (string text in File.ReadLines(corpus).Select(line => JsonDocument.Parse(line).RootElement.GetProperty("text").GetString()!))
        {
            texts++;
            Assert.False(text.AsSpan().ContainsAny(people), $"a person of the held-out messages: {text}");
            Assert.DoesNotContain("Record:", text, StringComparison.Ordinal);
            Assert.DoesNotMatch(RecordLine(), text);
        }

        Assert.InRange(texts, 50_000, 200_000);
    }

    private static void Generate(string output, string corpus)
    {
        var start = new ProcessStartInfo("python3", ["-B", Generator, "--out", output, "--corpus", corpus]) { RedirectStandardError = true };
        Process process;
        try
        {
            process = Process.Start(start)!;
        }
        catch (System.ComponentModel.Win32Exception)
        {
            Fixtures.LeaveOut("python3 is not here, so the generator cannot be run; scripts/install-test-dependencies.sh installs it");
            throw;
        }

        using (process)
        {
            string errors = process.StandardError.ReadToEnd();
            process.WaitForExit();
            Assert.True(process.ExitCode == 0, errors);
        }
    }

    private static List<Order> Read(string path) => [.. File.ReadLines(path).Select(line => JsonDocument.Parse(line).RootElement)
        .Select(row => new Order(row.GetProperty("message").GetString()!, row.GetProperty("record").GetString()!))];

    [GeneratedRegex(@"^[1-9][0-9]? [a-z]+ \| [a-z]+ \| [A-Z][a-z]+ [A-Z][a-z]+ \| (Mon|Tue|Wed|Thu|Fri|Sat|Sun) (0[7-9]|1[0-9]|20):(00|15|30|45)$")]
    private static partial Regex RecordPattern();

    [GeneratedRegex(@"[1-9][0-9]? [a-z]+ \| [a-z]+ \|")]
    private static partial Regex RecordLine();

    private sealed record Order(string Message, string Record)
    {
        public string Name => Record.Split(" | ")[2];
    }
}
