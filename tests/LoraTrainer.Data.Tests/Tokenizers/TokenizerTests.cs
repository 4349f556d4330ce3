using System.Text;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Data.Tests.Tokenizers;

public class TokenizerTests
{
    /// <summary>A byte-level tokenizer with the merges l+l, h+e; its parts can be replaced to make it wrong.</summary>
    private const string Minimal = """
        {"version":"1.0","truncation":null,"padding":{"any":1},"added_tokens":[{"id":6,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
        "normalizer":null,"pre_tokenizer":null,
        "post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"<s>":{"id":"<s>","ids":[6],"tokens":["<s>"]}}},
        "decoder":{"type":"ByteLevel"},
        "model":{"type":"BPE","dropout":null,"vocab":{"h":0,"e":1,"l":2,"o":3,"ll":4,"he":5},"merges":["l l","h e"]}}
        """;

    [Fact]
    public void Encode_MinimalFile_FollowsMergesAndTemplate()
    {
        Tokenizer tokenizer = Load(Minimal);
        Assert.Equal([6, 5, 4, 3], tokenizer.Encode("hello", addSpecialTokens: true));
        Assert.Equal([5, 4, 2, 6, 3], tokenizer.Encode("helll<s>o", addSpecialTokens: false));
        Assert.Equal([3], tokenizer.Encode("<s>o", addSpecialTokens: false, takeSpecialTokens: false));
        Assert.Equal("hello", tokenizer.Decode([6, 5, 4, 3, 99, -1], skipSpecialTokens: true));
        Assert.Equal(7, tokenizer.VocabularySize);
        Assert.Equal("he", tokenizer.TokenOf(5));
        Assert.Null(tokenizer.TokenOf(7));
        Assert.Null(tokenizer.IdOf("x"));
        Assert.Null(tokenizer.BosId);
        Assert.Empty(tokenizer.Notices);
    }

    [Fact]
    public void Load_Folder_ReadsSpecialTokens()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("tokenizer.json"), Minimal);
        File.WriteAllText(folder.File("tokenizer_config.json"), """{"bos_token":{"content":"<s>"},"eos_token":null}""");
        File.WriteAllText(folder.File("special_tokens_map.json"), """{"eos_token":"o","bos_token":"e"}""");
        Tokenizer tokenizer = Tokenizer.Load(folder.Path);
        Assert.Equal((6, 3), (tokenizer.BosId, tokenizer.EosId));
        Assert.Null(tokenizer.PadId);
    }

    [Theory]
    [InlineData("\"1.0\"", "\"2.0\"", "version: expected \"1.0\", found \"2.0\"")]
    [InlineData("\"BPE\"", "\"WordLevel\"", "model: the model type 'WordLevel' is not supported; supported: BPE, Unigram")]
    [InlineData("\"normalizer\":null", "\"normalizer\":{\"type\":\"Twist\"}", "normalizer: the normalizer 'Twist' is not supported; supported: Sequence, NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Prepend, Replace, ByteLevel, Precompiled, Nmt, BertNormalizer")]
    [InlineData("\"normalizer\":null", "\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAAAAA==\"}", "normalizer.precompiled_charsmap: the character map's trie has 0 bytes; expected a multiple of 4 from 4 to 0")]
    [InlineData("\"normalizer\":null", "\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"?\"}", "normalizer.precompiled_charsmap: expected base64")]
    [InlineData("\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\",\"twist\":1}", "normalizer: the key 'twist' is not supported; known here: type")]
    [InlineData("\"normalizer\":null", "\"normalizer\":[]", "normalizer: expected Object, found Array")]
    [InlineData("\"pre_tokenizer\":null", "\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}", "pre_tokenizer: the pre-tokenizer 'UnicodeScripts' is not supported; supported: Sequence, ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit, CharDelimiterSplit, BertPreTokenizer")]
    [InlineData("\"pre_tokenizer\":null", "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a*\"},\"behavior\":\"Isolated\"}", "pre_tokenizer.pattern.Regex: the pattern a* is not supported: it can match the empty text")]
    [InlineData("{\"type\":\"ByteLevel\"}", "{\"type\":\"CTC\"}", "decoder: the decoder 'CTC' is not supported; supported: Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace")]
    [InlineData("\"ids\":[6]", "\"ids\":[77]", "post_processor.special_tokens.<s>.ids[0]: the id 77 is not in the vocabulary")]
    [InlineData("\"dropout\":null", "\"dropout\":0.1", "model.dropout: dropout of merges is not supported: the same text would give other ids each time. Set it to null")]
    [InlineData("\"he\":5", "\"he\":-5", "model.vocab: the id of 'he' is -5; expected a whole number from 0 to 16777215")]
    [InlineData("\"he\":5", "\"he\":99999999999", "model.vocab: the id of 'he' is 99999999999; expected a whole number from 0 to 16777215")]
    [InlineData("\"l l\"", "\"l x\"", "model: merge 0 names 'x', which is not in the vocabulary")]
    [InlineData("\"l l\"", "\"l o\"", "model: merge 0 names 'lo', which is not in the vocabulary")]
    [InlineData("\"l l\"", "\"l l l\"", "model.merges[0]: expected two tokens with one space between, found 'l l l'")]
    [InlineData("\"l l\"", "[\"l\"]", "model.merges[0]: expected two tokens, found 1")]
    [InlineData("\"l l\"", "7", "model.merges[0]: expected String, found Number")]
    [InlineData("\"h\":0", "\"\\ud800\":0", "model.vocab: a name is not valid Unicode (a surrogate without its partner)")]
    [InlineData("\"merges\"", "\"marges\"", "model: the key 'marges' is not supported; known here: type, dropout, unk_token, continuing_subword_prefix, end_of_word_suffix, fuse_unk, byte_fallback, ignore_merges, vocab, merges")]
    [InlineData("\"dropout\":null", "\"unk_token\":\"?\"", "model: unk_token '?' is not in the vocabulary")]
    public void Load_WrongFile_SaysWhereAndWhat(string part, string replacement, string problem)
    {
        Assert.Contains(part, Minimal, StringComparison.Ordinal);
        TokenizerFormatException exception = Assert.Throws<TokenizerFormatException>(() => Load(Minimal.Replace(part, replacement, StringComparison.Ordinal)));
        Assert.Equal($"{exception.Path}: {problem}", exception.Message);
    }

    [Theory]
    [InlineData("")]
    [InlineData("{")]
    [InlineData("nothing")]
    [InlineData("[]")]
    [InlineData("{} {}")]
    [InlineData("{\"version\":\"1.0\"}")]
    public void Load_NotATokenizer_IsRefusedWithTheFile(string json)
    {
        TokenizerFormatException exception = Assert.Throws<TokenizerFormatException>(() => Load(json));
        Assert.StartsWith(exception.Path, exception.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Load_DeepNesting_IsRefused()
        => Assert.Throws<TokenizerFormatException>(() => Load(new string('[', 100_000)));

    [Fact]
    public void Load_AddedTokenWithAnotherId_TakesTheLibrarysAndSaysSo()
    {
        Tokenizer tokenizer = Load(Minimal.Replace("\"id\":6", "\"id\":9", StringComparison.Ordinal));
        Assert.Equal([6], tokenizer.Encode("<s>", addSpecialTokens: false));
        string notice = Assert.Single(tokenizer.Notices);
        Assert.EndsWith("added_tokens[0].id: the file gives '<s>' the id 9, which has no effect; it is 6 (the next free one)", notice, StringComparison.Ordinal);
    }

    [Fact]
    public void Encode_LoneSurrogate_IsReadAsReplacementCharacter()
    {
        Tokenizer tokenizer = Tokenizer.Load(Fixtures.Golden("tokenizers/llama3_style"));
        Assert.Equal(tokenizer.Encode("a\uFFFDb", addSpecialTokens: false), tokenizer.Encode("a\uD800b", addSpecialTokens: false));
    }

    /// <summary>Words of all lengths go through the scan or the heap; both are the same algorithm.</summary>
    [Fact]
    public void Encode_LongWord_EqualsTheNaiveAlgorithm()
    {
        const string letters = "theaandinofr esto";
        var random = new Random(3);
        Dictionary<string, int> vocabulary = letters.Distinct().Select((letter, id) => (Token: letter.ToString(), id)).ToDictionary(item => item.Token, item => item.id);
        var merges = new List<(string Left, string Right)>();
        while (merges.Count < 600)
        {
            // Pieces of pieces, the short ones more often, so that merges build on each other and compete.
            string[] tokens = [.. vocabulary.Keys];
            (string left, string right) = (tokens[random.Next(random.Next(tokens.Length) + 1)], tokens[random.Next(random.Next(tokens.Length) + 1)]);
            if (vocabulary.TryAdd(left + right, vocabulary.Count))
            {
                merges.Add((left, right));
            }
        }

        Dictionary<(string, string), int> ranks = merges.Select((pair, rank) => (pair, rank)).ToDictionary(item => item.pair, item => item.rank);
        var model = new BpeModel(vocabulary, merges, new BpeOptions());
        var scratch = new TokenModel.Scratch();
        int merged = 0;
        foreach (int length in new[] { 30, 39, 40, 41, 42, 60, 127, 128, 129, 500, 3000 })
        {
            string text = new([.. Enumerable.Range(0, length).Select(_ => letters[random.Next(letters.Length)])]);
            var ids = new List<int>();
            model.Encode(text, scratch, ids);
            Assert.Equal(Naive(text), ids);
            merged += length - ids.Count;
        }

        Assert.InRange(merged, 1000, 4000);

        int[] Naive(string word)
        {
            var symbols = word.Select(c => c.ToString()).ToList();
            while (true)
            {
                int best = -1, bestRank = int.MaxValue;
                for (int i = 0; i + 1 < symbols.Count; i++)
                {
                    if (ranks.TryGetValue((symbols[i], symbols[i + 1]), out int rank) && rank < bestRank)
                    {
                        (best, bestRank) = (i, rank);
                    }
                }

                if (best < 0)
                {
                    return [.. symbols.Select(symbol => vocabulary[symbol])];
                }

                symbols[best] += symbols[best + 1];
                symbols.RemoveAt(best + 1);
            }
        }
    }

    /// <summary>The work on one endless word grows with its length: at most one candidate per adjacent pair and two per merge.</summary>
    [Fact]
    public void Encode_EndlessWord_ProposesAtMostThreeMergesPerCharacter()
    {
        var vocabulary = new Dictionary<string, int> { ["a"] = 0, ["b"] = 1, ["aa"] = 2, ["aaaa"] = 3, ["ab"] = 4 };
        var model = new BpeModel(vocabulary, [("a", "a"), ("aa", "aa"), ("a", "b")], new BpeOptions());
        var scratch = new TokenModel.Scratch();
        var ids = new List<int>();
        const int length = 300_001;
        model.Encode(new string('a', length) + "b", scratch, ids);
        Assert.Equal(Enumerable.Repeat(3, length / 4).Append(4), ids);
        Assert.InRange(scratch.Merging.Candidates, length, 3 * length);
    }

    /// <summary>A run of white space, which every alternative of the pattern tries, is not searched again from each of its characters: this would take hours.</summary>
    [Theory]
    [InlineData(' ')]
    [InlineData('\n')]
    [InlineData('!')]
    [InlineData('x')]
    public void Encode_EndlessRun_Ends(char c)
    {
        Tokenizer tokenizer = Tokenizer.Load(Fixtures.Golden("tokenizers/llama3_style"));
        string text = new(c, 1_000_000);
        Assert.Equal(text, tokenizer.Decode(tokenizer.Encode(text, addSpecialTokens: false), skipSpecialTokens: false));
    }

    [Fact]
    public void Encode_ManyThreads_GivesTheSame()
    {
        Tokenizer tokenizer = Tokenizer.Load(Fixtures.Golden("tokenizers/llama3_style"));
        string[] texts = [.. Enumerable.Range(0, 400).Select(i => $"row {i % 37} the quick café {i} fox's")];
        int[][] expected = [.. texts.Select(text => tokenizer.Encode(text, addSpecialTokens: true))];
        int[][] actual = new int[texts.Length][];
        Parallel.For(0, texts.Length, i => actual[i] = tokenizer.Encode(texts[i], addSpecialTokens: true));
        Assert.Equal(expected, actual);
    }

    /// <summary>Words seen before cost no memory: what is left is the result, and a few strings per text.</summary>
    [Fact]
    public void Encode_KnownWords_AllocatesLittleBesideTheResult()
    {
        Tokenizer tokenizer = Tokenizer.Load(Fixtures.Golden("tokenizers/llama3_style"));
        string text = string.Concat(Enumerable.Range(0, 2000).Select(i => $" word{i % 50} it's 12345, café\n"));
        for (int i = 0; i < 3; i++)
        {
            tokenizer.Encode(text, addSpecialTokens: true);
        }

        long before = GC.GetAllocatedBytesForCurrentThread();
        int[] ids = tokenizer.Encode(text, addSpecialTokens: true);
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 4 * ids.Length, (4 * ids.Length) + 1024);
        Assert.True(ids.Length > 10_000);
    }

    [Fact]
    public void StreamingDecoder_SplitCharacter_IsHeldUntilComplete()
    {
        Tokenizer tokenizer = Tokenizer.Load(Fixtures.Golden("tokenizers/llama3_style"));
        int[] ids = tokenizer.Encode("a\U0001F980b", addSpecialTokens: false);
        StreamingDecoder stream = tokenizer.StartDecoding(skipSpecialTokens: false);
        string[] pieces = [.. ids.Select(stream.Add)];
        Assert.Contains("", pieces);
        Assert.DoesNotContain(pieces, piece => piece.Contains('\uFFFD', StringComparison.Ordinal));
        Assert.Equal("a\U0001F980b", string.Concat(pieces) + stream.Finish());
    }

    private static Tokenizer Load(string json)
    {
        using var folder = new TemporaryFolder();
        string file = folder.File("tokenizer.json");
        File.WriteAllText(file, json, new UTF8Encoding(encoderShouldEmitUTF8Identifier: true));
        return Tokenizer.Load(file);
    }
}
