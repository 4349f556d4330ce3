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
        TokenizedRow row = Encode(Row("What is it? ", "A shareholder."), tokenizer, Options);
        int[] prompt = tokenizer.Encode("What is it? ", addSpecialTokens: true), completion = tokenizer.Encode("A shareholder.", addSpecialTokens: false);
        Assert.Equal([.. prompt, .. completion, tokenizer.EosId!.Value], row.Tokens);
        Assert.Equal(hasBos, row.Tokens[0] == tokenizer.BosId);
        Assert.Equal([.. Enumerable.Repeat(false, prompt.Length), .. Enumerable.Repeat(true, completion.Length + 1)], row.IsSupervised);
        Assert.Equal(completion.Length + 1, row.TargetCount);

        TokenizedRow all = Encode(Row("What is it? ", "A shareholder."), tokenizer, Options with { TrainOnInputs = true });
        Assert.Equal(row.Tokens, all.Tokens);
        Assert.Equal([false, .. Enumerable.Repeat(true, row.Tokens.Length - 1)], all.IsSupervised);
    }

    [Fact]
    public void Encode_RawText_IsScoredButForItsFirstToken()
    {
        Tokenizer bos = Load("llama3_style"), none = WithoutBos();
        Assert.Equal([false, true, true], Encode(Row("", "a"), bos, Options).IsSupervised);
        Assert.Equal([false, true], Encode(Row("", "a"), none, Options).IsSupervised);
    }

    [Fact]
    public void Encode_CompletionThatEndsInEos_GetsNoSecond()
    {
        Tokenizer tokenizer = Load("llama3_style");
        Assert.Equal(
            Encode(Row("p", "a"), tokenizer, Options).Tokens,
            Encode(Row("p", "a" + tokenizer.SpecialTokens.Eos), tokenizer, Options).Tokens);
        Assert.Equal(7, Encode(Row("p", "a"), tokenizer, Options with { EosId = 7 }).Tokens[^1]);
    }

    [Fact]
    public void Encode_Segments_AddsNothing()
    {
        Tokenizer tokenizer = Load("llama3_style");
        var row = new DatasetRow.Segmented(At(1), [new("What? ", false), new("This." + tokenizer.SpecialTokens.Eos, true)]);
        int[] asked = tokenizer.Encode("What? ", addSpecialTokens: false), said = tokenizer.Encode("This.", addSpecialTokens: false);
        TokenizedRow encoded = Encode(row, tokenizer, Options);
        Assert.Equal([.. asked, .. said, tokenizer.EosId!.Value], encoded.Tokens);
        Assert.Equal([.. Enumerable.Repeat(false, asked.Length), .. Enumerable.Repeat(true, said.Length + 1)], encoded.IsSupervised);
        RowQuestion question = Assert.NotNull(new RowEncoder(tokenizer, Options).Question(row));
        Assert.Equal(("What? ", "This." + tokenizer.SpecialTokens.Eos), (question.Prompt, question.Completion));
    }

    [Fact]
    public void Build_DubiousRows_AreReported()
    {
        Tokenizer tokenizer = Load("llama3_style");
        DatasetRow[] rows =
        [
            Answered(1, "short", "fine"),
            Answered(2, "", ""),
            Answered(3, "prompt", ""),
            Answered(4, new string('x', 500), "a"),
            Answered(5, tokenizer.SpecialTokens.Bos + "again", "b"),
            Answered(6, "p", new string('y', 500)),
            new DatasetRow.Faulty(At(7), "no field 'a'"),
            Answered(8, "short", "fine"),
            new DatasetRow.Segmented(At(9), [new("Q ", false), new("A", true)]),
        ];
        var seen = new List<(RowFindingKind, int)>();
        using TokenizedDataset dropped = Build(rows, tokenizer, Options, finding => seen.Add((finding.Kind, finding.Source.Row)));
        Assert.Equal([1, 5, 8, 9], Enumerable.Range(0, dropped.RowCount).Select(row => dropped.Source(row).Row));
        Assert.Equal(
            [
                (RowFindingKind.Empty, 2), (RowFindingKind.NothingToLearn, 3), (RowFindingKind.TooLong, 4), (RowFindingKind.DoubleBos, 5), (RowFindingKind.TooLong, 6),
                (RowFindingKind.Faulty, 7), (RowFindingKind.Duplicate, 8), (RowFindingKind.EndNotLearned, 9),
            ],
            seen);
        AuditReport audit = dropped.Audit;
        Assert.Equal((9, 4, 5, 0, dropped.TokenCount, dropped.TargetCount), (audit.Rows, audit.Kept, audit.Dropped, audit.Truncated, audit.Tokens, audit.SupervisedTokens));
        Assert.Equal("double_bos", Assert.Single(audit.Findings, finding => finding.Severity == AuditSeverity.Error).Code);
        AuditFinding tooLong = audit.Findings.Single(finding => finding.Code == "too_long");
        Assert.Equal("2 of 9 rows are longer than sequence_len 64 and left out (excess_length_strategy: drop): data.jsonl:4 (row 4) with 503 tokens, data.jsonl:6 (row 6) with 503 tokens.", tooLong.Message);
        Assert.Equal((2, "/x/data.jsonl"), (tooLong.Count, tooLong.File));
        Assert.Equal([4, 6], tooLong.Rows);
        Assert.Contains(audit.Findings, finding => finding.Message == "1 of 9 rows is not usable and left out: data.jsonl:7 (row 7), no field 'a'.");

        using TokenizedDataset cut = Build(rows, tokenizer, Options with { ExcessLength = ExcessLength.Truncate });
        Assert.Equal([1, 5, 6, 8, 9], Enumerable.Range(0, cut.RowCount).Select(row => cut.Source(row).Row));
        Assert.Equal(Options.SequenceLength, cut.Length(2));
        Assert.Equal(["cut_to_nothing", "truncated"], cut.Audit.Findings.Select(finding => finding.Code).Where(code => code is "cut_to_nothing" or "truncated" or "too_long").Order());
        Assert.NotEqual(dropped.ContentHash, cut.ContentHash);

        Assert.StartsWith(
            "data.jsonl:4 (row 4): the row has 503 tokens, sequence_len is 64. Raise it, or set",
            Assert.Throws<DatasetException>(() => Build(rows, tokenizer, Options with { ExcessLength = ExcessLength.Raise })).Message, StringComparison.Ordinal);
    }

    /// <summary>A row may have more than one fault; its end is told of only where the row is not cut before it.</summary>
    [Fact]
    public void Encode_RowWithSeveralFaults_TellsEach()
    {
        Tokenizer tokenizer = Load("llama3_style");
        string bos = tokenizer.SpecialTokens.Bos!;
        DatasetRow both = new DatasetRow.Segmented(At(1), [new(bos + bos + "Q ", false), new("A", true)]), cut = Answered(2, bos + "p", new string('y', 500));
        var cutting = new RowEncoder(tokenizer, Options with { ExcessLength = ExcessLength.Truncate });
        Assert.Equal([RowFindingKind.DoubleBos, RowFindingKind.EndNotLearned], cutting.Encode(both).Findings.Select(finding => finding.Kind));
        Assert.Equal([RowFindingKind.Truncated, RowFindingKind.DoubleBos], cutting.Encode(cut).Findings.Select(finding => finding.Kind));
        Assert.Equal([RowFindingKind.TooLong], new RowEncoder(tokenizer, Options).Encode(cut).Findings.Select(finding => finding.Kind));

        var audit = new DatasetAudit(Options);
        audit.Add(cutting.Encode(both));
        audit.Add(cutting.Encode(cut));
        AuditReport report = audit.Finish();
        Assert.Equal(["double_bos", "truncated", "end_not_learned"], report.Findings.Select(finding => finding.Code));
        Assert.Equal(1, report.Truncated);
    }

    [Fact]
    public void InOrder_OnSeveralThreads_KeepsTheOrderAndThrowsTheFirst()
    {
        using var met = new Barrier(2);
        int[] doubled = [.. EncodedRows.InOrder(Enumerable.Range(0, 1000), 2, row =>
        {
            if (row is 0 or 100)
            {
                // Only two threads that work at once come past it.
                Assert.True(met.SignalAndWait(TimeSpan.FromMinutes(1)));
            }

            return 2 * row;
        }, TestContext.Current.CancellationToken)];
        Assert.Equal(Enumerable.Range(0, 1000).Select(row => 2 * row), doubled);
        Assert.Equal("7", Assert.Throws<InvalidOperationException>(() => EncodedRows.InOrder(Enumerable.Range(0, 100), 4, int (row) => row is 7 or 90 ? throw new InvalidOperationException($"{row}") : row, TestContext.Current.CancellationToken).Count()).Message);
    }

    [Fact]
    public void Audit_HeldOutRowThatIsTrained_IsTold()
    {
        Tokenizer tokenizer = Load("llama3_style");
        var encoder = new RowEncoder(tokenizer, Options);
        var audit = new DatasetAudit(Options);
        audit.Add(encoder.Encode(Answered(1, "a", "b")));
        audit.AddHeldOut(encoder.Encode(Answered(2, "a", "c")));
        audit.AddHeldOut(encoder.Encode(Answered(3, "a", "b")));
        AuditFinding finding = Assert.Single(audit.Finish().Findings);
        Assert.Equal("1 of 2 held-out rows is evaluated, but trained on as well: data.jsonl:3 (row 3). What is measured on them says nothing: take them out of one of the two.", finding.Message);
    }

    /// <summary>Held-out rows are none of those that are counted as read to train on, and each row that has its own reason has its own line.</summary>
    [Fact]
    public void Audit_OfRowsThatCannotBeUsed_CountsHeldOutRowsApart()
    {
        var encoder = new RowEncoder(Load("llama3_style"), Options);
        var audit = new DatasetAudit(Options);
        for (int row = 1; row <= 4; row++)
        {
            audit.Add(encoder.Encode(new DatasetRow.Faulty(At(row), "no field 'a'; the row has: b, c")));
        }

        audit.AddHeldOut(encoder.Encode(new DatasetRow.Faulty(At(5), "no field 'a'; the row has: b, c")));
        AuditReport report = audit.Finish();
        Assert.Equal((4, 0, 4, 1), (report.Rows, report.Kept, report.Dropped, report.HeldOut));
        Assert.Equal(
            [
                "No row is left of 4: 4 not usable and left out; the first is data.jsonl:1 (row 1), no field 'a'; the row has: b, c.",
                "4 of 4 rows are not usable and left out:\n  data.jsonl:1 (row 1), no field 'a'; the row has: b, c\n  data.jsonl:2 (row 2), no field 'a'; the row has: b, c\n  data.jsonl:3 (row 3), no field 'a'; the row has: b, c\n  ...",
                "1 of 1 held-out row is not usable and left out: data.jsonl:5 (row 5), no field 'a'; the row has: b, c.",
            ],
            report.Findings.Select(finding => finding.Message));
    }

    [Fact]
    public void Audit_AllRowsWithoutAnEnd_IsAnError()
    {
        Tokenizer tokenizer = Load("llama3_style");
        using TokenizedDataset data = Build([new DatasetRow.Segmented(At(1), [new("Q ", false), new("A", true)]), new DatasetRow.Segmented(At(2), [new("Q ", false), new("B", true)])], tokenizer, Options);
        Assert.Equal((AuditSeverity.Error, "end_not_learned"), (data.Audit.Findings[0].Severity, data.Audit.Findings[0].Code));
    }

    [Fact]
    public void File_WrittenAndOpened_HoldsTheSame_AndADamagedOneIsRefused()
    {
        using var folder = new TemporaryFolder();
        Tokenizer tokenizer = Load("llama3_style");
        var encoder = new RowEncoder(tokenizer, Options);
        DatasetRow[] rows = [.. Enumerable.Range(1, 50).Select(index => Answered(index, $"what is {index}", new string('z', index % 7)))];
        string path = folder.File("a.tokens");
        var audit = new DatasetAudit(Options);
        using (var writer = TokenizedDatasetWriter.At(path))
        {
            foreach (EncodedRow row in EncodedRows.Of(rows, encoder, TestContext.Current.CancellationToken))
            {
                audit.Add(row);
                if (row.IsKept)
                {
                    writer.Add(row.Row);
                }
            }

            Assert.False(File.Exists(path));
            writer.Finish(audit.Finish()).Dispose();
        }

        using (TokenizedDataset read = TokenizedDataset.Open(path), built = Build(rows, tokenizer, Options))
        {
            Assert.Equal(built.ContentHash, read.ContentHash);
            Assert.Equal(built.RowCount, read.RowCount);
            for (int row = 0; row < read.RowCount; row++)
            {
                Assert.Equal(built.Tokens(row), read.Tokens(row));
                Assert.Equal(built.IsSupervised(row), read.IsSupervised(row));
                Assert.Equal(built.Source(row), read.Source(row));
            }

            Assert.Equal(built.Audit.Findings.Select(finding => finding.Message), read.Audit.Findings.Select(finding => finding.Message));
        }

        byte[] whole = File.ReadAllBytes(path);
        var random = new Random(5);
        for (int i = 0; i < 60; i++)
        {
            byte[] damaged = i % 3 == 0 ? whole[..random.Next(whole.Length)] : [.. whole];
            if (damaged.Length == whole.Length)
            {
                damaged[random.Next(damaged.Length)] ^= (byte)random.Next(1, 256);
            }

            File.WriteAllBytes(path, damaged);
            Exception? refusal = Record.Exception(() => TokenizedDataset.Open(path).Dispose());

            // The hash of the content is about the rows as a whole; it is not looked at when the file is opened.
            Assert.True(refusal is DatasetException || (refusal is null && damaged.Length == whole.Length), $"{i}: {refusal}");
        }
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
    public void Build_NothingLeft_IsAnErrorOfTheAudit()
    {
        Tokenizer tokenizer = Load("llama3_style");
        using TokenizedDataset empty = Build([], tokenizer, Options), none = Build([Answered(1, "a", ""), Answered(2, "b", "")], tokenizer, Options);
        Assert.Equal("The data set is empty: no row was read.", Assert.Single(empty.Audit.Findings).Message);
        Assert.Equal("No row is left of 2: 2 without an answer to learn and left out; the first is data.jsonl:1 (row 1).", none.Audit.Findings[0].Message);
        Assert.True(none.Audit.HasErrors);
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
        IEnumerable<DatasetRow> rows = RowReader.Read(path).Select(format.ConvertOrFault);
        using TokenizedDataset one = Build(rows, tokenizer, options), four = Build(rows, tokenizer, options with { Threads = 4 });
        Assert.Equal(expectedRows, one.RowCount);
        Assert.Equal(0, one.Audit.Dropped);
        Assert.Equal(one.ContentHash, four.ContentHash);
        Assert.Equal(64, one.ContentHash.Length);

        int[] lengths = [.. Enumerable.Range(0, one.RowCount).Select(one.Length)];
        int[][] bins = BinPacking.BestFitDecreasing(lengths, options.SequenceLength);
        var batch = new MicroBatch(options.SequenceLength, one.RowCount);
        long targets = 0, tokens = 0;
        foreach (int[] bin in bins)
        {
            batch.Fill(one, bin);
            targets += batch.TargetCount;
            tokens += batch.TokenCount;
        }

        Assert.Equal((one.TokenCount, one.TargetCount), (tokens, targets));
        output.WriteLine($"{name}: {format}, {one.RowCount} rows, {one.TokenCount} tokens, {one.TargetCount} scored, {bins.Length} bins, {(double)tokens / bins.Length / options.SequenceLength:P1} full");
        string text = tokenizer.Decode(one.Tokens(0), skipSpecialTokens: true);
        var first = (DatasetRow.Answered)format.Convert(RowReader.Read(path).First());
        Assert.Equal(first.Prompt + first.Completion, text);
    }

    /// <summary>Of a process that is killed between the file's last name and its removal, what is left must be known as a leftover.</summary>
    [Fact]
    public void Temporary_UnderBothItsNames_IsAFileBeingWritten()
    {
        using var folder = new TemporaryFolder();
        using var writer = TokenizedDatasetWriter.Temporary(folder.Path);
        string written = Path.GetFileName(Assert.Single(Directory.EnumerateFiles(folder.Path)));
        string last = written[1..written.LastIndexOf('.', written.Length - ".tmp".Length - 1)];

        // The names that AtomicFile.IsTemporary knows.
        Assert.Matches(@"^\.\.tokens.*\.[0-9a-f]{32}\.tmp$", written);
        Assert.Matches(@"^\.tokens\.[0-9a-f]{32}\.tmp$", last);
    }

    private static TokenizedRow Encode(DatasetRow row, Tokenizer tokenizer, TokenizationOptions options) => new RowEncoder(tokenizer, options).EncodeWhole(row);

    private static TokenizedDataset Build(IEnumerable<DatasetRow> rows, Tokenizer tokenizer, TokenizationOptions options, Action<RowFinding>? listener = null)
    {
        using var folder = new TemporaryFolder();
        using var writer = TokenizedDatasetWriter.Temporary(folder.Path);
        var audit = new DatasetAudit(options, listener);
        foreach (EncodedRow row in EncodedRows.Of(rows, new RowEncoder(tokenizer, options), TestContext.Current.CancellationToken))
        {
            audit.Add(row);
            if (row.IsKept)
            {
                writer.Add(row.Row);
            }
        }

        return writer.Finish(audit.Finish());
    }

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

    private static DatasetRow.Answered Row(string prompt, string completion) => Answered(1, prompt, completion);

    private static DatasetRow.Answered Answered(int row, string prompt, string completion) => new(At(row), prompt, completion);
}
