using System.Text;
using System.Text.Json.Nodes;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Data.Tests.Tokenizers;

/// <summary>What must hold for any text, and models against slow and simple versions of themselves.</summary>
public class TokenizerPropertyTests
{
    private const int Texts = 400;

    /// <summary>Byte-level tokenizers without a normalizer, and SentencePiece models that keep all spaces and write in bytes what they do not know.</summary>
    [Theory]
    [Trait("Category", "Fixtures")]
    [InlineData("gpt2_style")]
    [InlineData("x_llama3")]
    [InlineData("x_smollm")]
    [InlineData("x_o200k")]
    [InlineData("x_tekken")]
    [InlineData("x_deepseek_v3")]
    [InlineData("tiktoken_llama3_style")]
    [InlineData("tiktoken_x")]
    [InlineData("llama2_style")]
    [InlineData("sentencepiece_bpe_byte_fallback")]
    [InlineData("sentencepiece_tokenizer_model_v1")]
    [InlineData("sentencepiece_x_bpe_llama")]
    [InlineData("sentencepiece_x_unigram_gemma")]
    public void Decode_OfEncodedText_IsTheText(string name)
    {
        Tokenizer tokenizer = Tokenizer.Load(Fixtures.Require($"tokenizers/{name}"));
        RoundTrip(tokenizer, new Random(11));
    }

    [Fact]
    public void Decode_OfEncodedTextInTheCommittedTokenizer_IsTheText()
        => RoundTrip(Tokenizer.Load(Fixtures.Golden("tokenizers/llama3_style")), new Random(12));

    [Fact]
    public void Unigram_ExampleOfTheLibrary_IsCutSo()
    {
        Tokenizer tokenizer = Unigram("""[["<unk>",0],["a",0],["b",0],["c",0],["d",0],["cd",1],["ab",2],["abc",5],["abcd",10]]""", "0", bytes: false);
        Assert.Equal([8, 1, 5, 0], tokenizer.Encode("abcdacdxx", addSpecialTokens: false));
    }

    [Fact]
    public void Unigram_WithoutUnknownToken_RefusesSuchText()
    {
        Tokenizer tokenizer = Unigram("""[["a",0],["b",0]]""", "null", bytes: false);
        Assert.Equal([0, 1], tokenizer.Encode("ab", addSpecialTokens: false));
        TokenizerFormatException exception = Assert.Throws<TokenizerFormatException>(() => tokenizer.Encode("axb", addSpecialTokens: false));
        Assert.Equal($"{tokenizer.SourcePath}: no piece of its vocabulary is 'x', and it has no unk_id", exception.Message);
    }

    [Fact]
    public void Unigram_WithBytes_WritesUnknownRunsInThem()
    {
        string bytes = string.Join(',', Enumerable.Range(0, 256).Select(b => $"[\"<0x{b:X2}>\",-100]"));
        Tokenizer tokenizer = Unigram($"""[["<unk>",0],["a",-1],{bytes}]""", "0", bytes: true);
        Assert.Equal([1, 2 + 0xC3, 2 + 0xA9, 2 + 'x', 1], tokenizer.Encode("aéxa", addSpecialTokens: false));
        Assert.Equal([1, 0, 1], tokenizer.Encode("a<unk>a", addSpecialTokens: false));
    }

    [Theory]
    [InlineData("""[["<unk>",0],["a"]]""", "0", "model.vocab[1]: expected a piece that is not empty, and its score")]
    [InlineData("""[["<unk>",0],["",1]]""", "0", "model.vocab[1]: expected a piece that is not empty, and its score")]
    [InlineData("""[["<unk>",0],["a",1e999]]""", "0", "model.vocab[1][1]: expected a number, found 1e999")]
    [InlineData("""[["<unk>",0],["<unk>",1]]""", "0", "model.vocab[1]: the piece '<unk>' again; it is piece 0 already")]
    [InlineData("""[["<unk>",0]]""", "1", "model.unk_id: 1 is not in the vocabulary of 1 pieces")]
    public void Unigram_WrongFile_SaysWhereAndWhat(string vocabulary, string unknown, string problem)
    {
        TokenizerFormatException exception = Assert.Throws<TokenizerFormatException>(() => Unigram(vocabulary, unknown, bytes: false));
        Assert.Equal($"{exception.Path}: {problem}", exception.Message);
    }

    /// <summary>All ways to cut a short text, the best sum of scores.</summary>
    [Fact]
    public void Unigram_AnyText_HasTheBestSum()
    {
        var random = new Random(5);
        for (int round = 0; round < 60; round++)
        {
            var scores = new Dictionary<string, double>(StringComparer.Ordinal);
            while (scores.Count < 25)
            {
                scores.TryAdd(Letters(random, 1 + random.Next(4)), -random.Next(1, 1000) / 64.0);
            }

            (string Text, int Id, double Score)[] pieces = [.. scores.Select((entry, id) => (entry.Key, id + 1, entry.Value))];
            double worst = scores.Values.Min();
            var model = new UnigramModel<double>(pieces, worst, unknownId: 0, byteIds: null, looksUpUnknown: false);
            var lattice = new UnigramLattice<double>(new PieceTrie([.. pieces.Select(piece => (piece.Text, piece.Id))]), [0, .. pieces.Select(piece => piece.Score)], 0, worst - 10);
            string text = Letters(random, 1 + random.Next(12));
            var path = new List<(int Start, int End, int Value)>();
            lattice.Cut(text, new UnigramLattice<double>.Scratch(), path);
            Assert.Equal(text, string.Concat(path.Select(step => text[step.Start..step.End])));
            Assert.Equal(Best(text), path.Sum(step => step.Value == 0 ? worst - 10 : pieces[step.Value - 1].Score), 1e-9);
            var ids = new List<int>();
            model.Encode(text, new TokenModel.Scratch(), ids);
            Assert.Equal(path.Where((step, i) => step.Value != 0 || i == 0 || path[i - 1].Value != 0).Select(step => step.Value), ids);

            double Best(string rest)
            {
                if (rest.Length == 0)
                {
                    return 0;
                }

                double best = scores.ContainsKey(rest[..1]) ? double.MinValue : worst - 10 + Best(rest[1..]);
                for (int length = 1; length <= Math.Min(4, rest.Length); length++)
                {
                    if (scores.TryGetValue(rest[..length], out double score))
                    {
                        best = Math.Max(best, score + Best(rest[length..]));
                    }
                }

                return best;
            }
        }
    }

    /// <summary>The same model once as tokenizer.json and once as tokenizer.model, with SentencePiece's own map of characters.</summary>
    [Fact]
    [Trait("Category", "Fixtures")]
    public void Unigram_OfASentencePieceModel_GivesItsIds()
    {
        byte[] model = File.ReadAllBytes(Path.Combine(Fixtures.Require("tokenizers/sentencepiece_unigram"), "tokenizer.model"));
        Tokenizer original = Tokenizer.Load(Fixtures.Require("tokenizers/sentencepiece_unigram")), converted = Load(Convert(model));
        string[] texts = ["Hello, world!", "ﬁne Ⅳ １２３ ｶﾞ", "naïve café", "The quick brown fox", "2024 年 1 月", "x\u0301y\u200Bz", "Ω ㎏ ½"];
        foreach (string text in texts)
        {
            Assert.Equal(original.Encode(text, addSpecialTokens: false), converted.Encode(text, addSpecialTokens: false));
        }
    }

    /// <summary>Where a text is cut into words for the cache, the words' ids are those of the text.</summary>
    [Fact]
    public void SafeCuts_AnyMerges_ChangeNothing()
    {
        var random = new Random(8);
        int cutTexts = 0;
        for (int round = 0; round < 200; round++)
        {
            Dictionary<string, int> vocabulary = "▁abc".Select((letter, id) => (letter, id)).ToDictionary(item => item.letter.ToString(), item => item.id);
            var merges = new List<(string, string)>();
            for (int i = 0; i < 12; i++)
            {
                string[] tokens = [.. vocabulary.Keys];
                (string left, string right) = (tokens[random.Next(tokens.Length)], tokens[random.Next(tokens.Length)]);
                if (left.Length + right.Length < 8 && vocabulary.TryAdd(left + right, vocabulary.Count))
                {
                    merges.Add((left, right));
                }
            }

            vocabulary.Add("?", vocabulary.Count);
            var whole = new BpeMerges([.. merges.Select((pair, rank) => new BpeMerges.Merge(vocabulary[pair.Item1], vocabulary[pair.Item2], rank, vocabulary[pair.Item1 + pair.Item2]))]);
            var model = new BpeModel(vocabulary, merges, new BpeOptions { UnknownToken = "?" });
            var cuts = new SafeCuts(vocabulary.Keys);
            string text = new([.. Enumerable.Range(0, 60).Select(_ => "▁▁abc"[random.Next(5)])]);
            cutTexts += cuts.FirstWord(text) < text.Length ? 1 : 0;
            var ids = new List<int>();
            model.Encode(text, new TokenModel.Scratch(), ids);
            int[] symbols = [.. text.Select(c => vocabulary[c.ToString()])];
            int left2 = whole.Apply(symbols, new BpeMerges.Scratch());
            Assert.Equal(symbols[..left2], ids);
        }

        Assert.InRange(cutTexts, 50, 199);
    }

    private static void RoundTrip(Tokenizer tokenizer, Random random)
    {
        int bytes = 0;
        for (int i = 0; i < Texts; i++)
        {
            string text = RandomText.Make(random, random.Next(60));
            int[] ids = tokenizer.Encode(text, addSpecialTokens: false, takeSpecialTokens: false);
            Assert.Equal(text, tokenizer.Decode(ids, skipSpecialTokens: false));
            bytes += Encoding.UTF8.GetByteCount(text);
        }

        Assert.True(bytes > 10 * Texts);
    }

    private static string Letters(Random random, int length) => new([.. Enumerable.Range(0, length).Select(_ => "abcd"[random.Next(4)])]);

    private static Tokenizer Unigram(string vocabulary, string unknown, bool bytes)
        => Load($$"""{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{"type":"Unigram","unk_id":{{unknown}},"vocab":{{vocabulary}},"byte_fallback":{{(bytes ? "true" : "false")}} } }""");

    private static Tokenizer Load(string json)
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("tokenizer.json"), json);
        return Tokenizer.Load(folder.Path);
    }

    private static string Convert(byte[] model)
    {
        var vocabulary = new JsonArray();
        string map = "";
        var reader = new ProtobufReader(model);
        while (reader.Next())
        {
            var part = new ProtobufReader(reader.Bytes());
            string text = "";
            double score = 0;
            while (part.Next())
            {
                if (reader.Field == 1 && part.Field == 1)
                {
                    text = part.Text();
                }
                else if (reader.Field == 1 && part.Field == 2)
                {
                    score = part.Single();
                }
                else if (reader.Field == 3 && part.Field == 2)
                {
                    map = System.Convert.ToBase64String(part.Bytes());
                }
            }

            if (reader.Field == 1)
            {
                vocabulary.Add((JsonNode)new JsonArray(text, score));
            }
        }

        return new JsonObject
        {
            ["version"] = "1.0",
            ["normalizer"] = new JsonObject { ["type"] = "Precompiled", ["precompiled_charsmap"] = map },
            ["pre_tokenizer"] = new JsonObject { ["type"] = "Metaspace", ["replacement"] = "▁", ["prepend_scheme"] = "always", ["split"] = false },
            ["model"] = new JsonObject { ["type"] = "Unigram", ["unk_id"] = 0, ["vocab"] = vocabulary },
        }.ToJsonString();
    }
}
