using System.Text.Json.Nodes;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Packing;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Data.Tests.Datasets;

public class TokenizedDatasetTests(ITestOutputHelper output)
{
    private static readonly TokenizationOptions Options = new() { SequenceLength = 64 };

    /// <summary>The tokenizers of the fixtures that name an end of text; x_ folders are built to be odd, and need not be fit for training.</summary>
    public static TheoryData<string> Usable
    {
        get
        {
            string[] names = [.. Fixtures.Cases("tokenizers").Where(name => !name.StartsWith("x_", StringComparison.Ordinal) && NamesAnEnd(name))];
            return names.Length > 0 ? [.. names] : ["(absent)"];

            static bool NamesAnEnd(string name)
            {
                string file = Path.Combine(Fixtures.Root ?? "", "tokenizers", name, "tokenizer_config.json");
                return Fixtures.Root is not null && File.Exists(file) && JsonNode.Parse(File.ReadAllBytes(file))!["eos_token"] is not null;
            }
        }
    }

    [Theory]
    [Trait("Category", "Fixtures")]
    [MemberData(nameof(Usable))]
    public void Encode_PromptAndCompletion_IsBosPromptCompletionEos(string name)
    {
        Tokenizer tokenizer = Tokenizer.Load(Fixtures.Require($"tokenizers/{name}"));
        JsonNode example = File.ReadLines(Fixtures.Require($"tokenizers/{name}/cases.jsonl")).Select(line => JsonNode.Parse(line)!).First(item => item["ids"]!.AsArray().Count > 0);
        bool hasBos = (int)example["ids_with_special"]![0]! != (int)example["ids"]![0]!;
        TokenizedRow row = TokenizedRow.Encode(Row("What is it? ", "A shareholder."), tokenizer, Options);
        int[] prompt = tokenizer.Encode("What is it? ", addSpecialTokens: true), completion = tokenizer.Encode("A shareholder.", addSpecialTokens: false);
        Assert.Equal([.. prompt, .. completion, tokenizer.EosId!.Value], row.Tokens);
        Assert.Equal(hasBos, row.Tokens[0] == tokenizer.BosId);
        Assert.Equal([.. Enumerable.Repeat(false, prompt.Length), .. Enumerable.Repeat(true, completion.Length + 1)], row.IsSupervised);
        Assert.Equal(completion.Length + 1, row.TargetCount);

        TokenizedRow all = TokenizedRow.Encode(Row("What is it? ", "A shareholder."), tokenizer, Options with { TrainOnInputs = true });
        Assert.Equal(row.Tokens, all.Tokens);
        Assert.Equal([false, .. Enumerable.Repeat(true, row.Tokens.Length - 1)], all.IsSupervised);
    }

    [Fact]
    public void Encode_RawText_IsScoredButForItsFirstToken()
    {
        Tokenizer bos = Load("llama3_style"), none = WithoutBos();
        Assert.Equal([false, true, true], TokenizedRow.Encode(Row("", "a"), bos, Options).IsSupervised);
        Assert.Equal([false, true], TokenizedRow.Encode(Row("", "a"), none, Options).IsSupervised);
    }

    [Fact]
    public void Encode_CompletionThatEndsInEos_GetsNoSecond()
    {
        Tokenizer tokenizer = Load("llama3_style");
        Assert.Equal(
            TokenizedRow.Encode(Row("p", "a"), tokenizer, Options).Tokens,
            TokenizedRow.Encode(Row("p", "a" + tokenizer.SpecialTokens.Eos), tokenizer, Options).Tokens);
        Assert.Equal(7, TokenizedRow.Encode(Row("p", "a"), tokenizer, Options with { EosId = 7 }).Tokens[^1]);
    }

    [Fact]
    public void Build_DubiousRows_AreReportedInOrder()
    {
        Tokenizer tokenizer = Load("llama3_style");
        DatasetRow[] rows =
        [
            new(At(1), "short", "fine"),
            new(At(2), "", ""),
            new(At(3), "prompt", ""),
            new(At(4), new string('x', 500), "a"),
            new(At(5), tokenizer.SpecialTokens.Bos + "again", "b"),
            new(At(6), "p", new string('y', 500)),
        ];
        TokenizedDataset dropped = Build(rows, tokenizer, Options);
        Assert.Equal(2, dropped.RowCount);
        Assert.Equal([1, 5], Enumerable.Range(0, 2).Select(row => dropped.Source(row).Row));
        Assert.Equal(
            [(RowFindingKind.DroppedEmpty, 2), (RowFindingKind.DroppedEmptyCompletion, 3), (RowFindingKind.DroppedTooLong, 4), (RowFindingKind.DoubleBos, 5), (RowFindingKind.DroppedTooLong, 6)],
            dropped.Findings.Select(finding => (finding.Kind, finding.Source.Row)));

        TokenizedDataset cut = Build(rows, tokenizer, Options with { ExcessLength = ExcessLength.Truncate });
        Assert.Equal([1, 5, 6], Enumerable.Range(0, 3).Select(row => cut.Source(row).Row));
        Assert.Equal(Options.SequenceLength, cut.Length(2));
        Assert.Equal(
            [(RowFindingKind.DroppedNothingScored, 4), (RowFindingKind.DoubleBos, 5), (RowFindingKind.Truncated, 6)],
            cut.Findings.Skip(2).Select(finding => (finding.Kind, finding.Source.Row)));
        Assert.NotEqual(dropped.ContentHash, cut.ContentHash);
    }

    [Fact]
    public void ContentHash_SameTokensOtherMask_Differs()
    {
        Tokenizer tokenizer = Load("llama3_style");
        TokenizedDataset masked = Build([Row("a b", "c")], tokenizer, Options), all = Build([Row("a b", "c")], tokenizer, Options with { TrainOnInputs = true });
        Assert.Equal(masked.Tokens(0), all.Tokens(0));
        Assert.NotEqual(masked.ContentHash, all.ContentHash);
        Assert.NotEqual(masked.TargetCount, all.TargetCount);
    }

    [Fact]
    public void Build_NothingLeft_IsASentence()
    {
        Tokenizer tokenizer = Load("llama3_style");
        Assert.Equal("the data set is empty: no row was read", Assert.Throws<DatasetException>(() => Build([], tokenizer, Options)).Message);
        Assert.Equal(
            "no row is left of 2: 2 without an answer to learn; the first is data.jsonl:1 (row 1) with 3 tokens, sequence_len is 64",
            Assert.Throws<DatasetException>(() => Build([new(At(1), "a", ""), new(At(2), "b", "")], tokenizer, Options)).Message);
    }

    [Fact]
    public void Build_WithoutEos_SaysWhatToSet()
    {
        using var folder = new TemporaryFolder();
        File.Copy(Fixtures.Golden("tokenizers/llama3_style/tokenizer.json"), folder.File("tokenizer.json"));
        Tokenizer tokenizer = Tokenizer.Load(folder.Path);
        Assert.EndsWith("Add \"eos_token\" to the tokenizer_config.json beside it.", Assert.Throws<DatasetException>(() => Build([Row("a", "b")], tokenizer, Options)).Message, StringComparison.Ordinal);
    }

    /// <summary>Every file of the real data: read, recognized, tokenized on one and on four threads with the same content, packed.</summary>
    [Theory]
    [InlineData("finlora/xbrl_term_train.jsonl", 5856)]
    [InlineData("finlora/xbrl_term_test.jsonl", 651)]
    [InlineData("finlora/formula_train.jsonl", 800)]
    [InlineData("finlora/formula_test.jsonl", 200)]
    [InlineData("finlora/ner_test.jsonl", 3502)]
    [InlineData("finlora/fpb_test.jsonl", 1212)]
    [InlineData("finlora/fiqa_test.jsonl", 235)]
    [InlineData("finlora/financebench_train.jsonl", 86)]
    [InlineData("llama-factory-demo/alpaca_en_demo.json", 999)]
    [InlineData("llama-factory-demo/alpaca_zh_demo.json", 1000)]
    [InlineData("llama-factory-demo/c4_demo.jsonl", 300)]
    public void Build_RealFile_IsWholeAndIndependentOfThreads(string name, int expectedRows)
    {
        string path = Fixtures.RequireData(name);
        Tokenizer tokenizer = Load("llama3_style");
        var options = new TokenizationOptions { SequenceLength = 16384 };
        DatasetFormat format = DatasetFormat.Recognize(RowReader.Read(path).First());
        var seen = new List<int>();
        TokenizedDataset one = TokenizedDataset.Build(RowReader.Read(path).Select(format.Convert), tokenizer, options, seen.Add, TestContext.Current.CancellationToken);
        TokenizedDataset four = TokenizedDataset.Build(RowReader.Read(path).Select(format.Convert), tokenizer, options with { Threads = 4 }, cancellation: TestContext.Current.CancellationToken);
        Assert.Equal(expectedRows, one.RowCount + one.Findings.Count);
        Assert.Equal(expectedRows, seen[^1]);
        Assert.Empty(one.Findings);
        Assert.Equal(one.ContentHash, four.ContentHash);
        Assert.Equal(64, one.ContentHash.Length);

        int[] lengths = [.. Enumerable.Range(0, one.RowCount).Select(one.Length)];
        int[][] bins = BinPacking.BestFitDecreasing(lengths, options.SequenceLength);
        var batch = new MicroBatch(options.SequenceLength, one.RowCount);
        int targets = 0, tokens = 0;
        foreach (int[] bin in bins)
        {
            batch.Fill(one, bin);
            targets += batch.TargetCount;
            tokens += batch.TokenCount;
        }

        Assert.Equal((one.TokenCount, one.TargetCount), (tokens, targets));
        output.WriteLine($"{name}: {format}, {one.RowCount} rows, {one.TokenCount} tokens, {one.TargetCount} scored, {bins.Length} bins, {(double)tokens / bins.Length / options.SequenceLength:P1} full");
        string text = tokenizer.Decode(one.Tokens(0), skipSpecialTokens: true);
        DatasetRow first = format.Convert(RowReader.Read(path).First());
        Assert.Equal(first.Prompt + first.Completion, text);
    }

    private static TokenizedDataset Build(IEnumerable<DatasetRow> rows, Tokenizer tokenizer, TokenizationOptions options)
        => TokenizedDataset.Build(rows, tokenizer, options, cancellation: TestContext.Current.CancellationToken);

    private static Tokenizer Load(string name) => Tokenizer.Load(Fixtures.Golden($"tokenizers/{name}"));

    /// <summary>The same tokenizer without its post-processor, which is what puts the BOS in front.</summary>
    private static Tokenizer WithoutBos()
    {
        using var folder = new TemporaryFolder();
        JsonNode json = JsonNode.Parse(File.ReadAllBytes(Fixtures.Golden("tokenizers/llama3_style/tokenizer.json")))!;
        json["post_processor"] = null;
        File.WriteAllText(folder.File("tokenizer.json"), json.ToJsonString());
        File.Copy(Fixtures.Golden("tokenizers/llama3_style/tokenizer_config.json"), folder.File("tokenizer_config.json"));
        return Tokenizer.Load(folder.Path);
    }

    private static RowSource At(int row) => new("/x/data.jsonl", row, row);

    private static DatasetRow Row(string prompt, string completion) => new(At(1), prompt, completion);
}
