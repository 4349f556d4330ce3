using System.Globalization;
using System.Text;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Data.Tests.Tokenizers;

/// <summary>Folders with a tokenizer.model: what they say, what other files add to it, and what is wrong with them.</summary>
public sealed class ModelFileTests : IDisposable
{
    private readonly TemporaryFolder folder = new();

    public void Dispose() => folder.Dispose();

    [Fact]
    public void Load_SentencePiece_NamesRolesAndPutsBosFirst()
    {
        Tokenizer tokenizer = Write(Bpe());
        Assert.Equal((1, 2), (tokenizer.BosId, tokenizer.EosId));
        Assert.Null(tokenizer.PadId);
        Assert.Equal([1], tokenizer.PrefixIds);
        Assert.Empty(tokenizer.SuffixIds);
        Assert.Equal(Ids(tokenizer, "<s>", "▁ab", "c"), tokenizer.Encode("abc", addSpecialTokens: true));
        Assert.Equal("abc", tokenizer.Decode(tokenizer.Encode("abc", addSpecialTokens: true), skipSpecialTokens: true));
        Assert.Equal("<s> abc", tokenizer.Decode(tokenizer.Encode("abc", addSpecialTokens: true), skipSpecialTokens: false));
        Assert.Empty(tokenizer.Notices);
    }

    [Fact]
    public void Encode_ControlPieceInText_IsTakenOnlyWhereAllowed()
    {
        Tokenizer tokenizer = Write(Bpe());
        Assert.Equal([2, .. Ids(tokenizer, "▁ab")], tokenizer.Encode("</s>ab", addSpecialTokens: false));
        int[] text = tokenizer.Encode("</s>ab", addSpecialTokens: false, takeSpecialTokens: false);
        Assert.DoesNotContain(2, text);
        Assert.Equal("</s>ab", tokenizer.Decode(text, skipSpecialTokens: false));
    }

    /// <summary>A file written for the byte pieces themselves is no way in either.</summary>
    [Fact]
    public void Encode_NamesOfBytesAndUnknown_AreText()
    {
        Tokenizer tokenizer = Write(Bpe());
        foreach (string text in (string[])["<0x41>", "<unk>"])
        {
            int[] ids = tokenizer.Encode(text, addSpecialTokens: false);
            Assert.DoesNotContain(tokenizer.IdOf(text)!.Value, ids);
            Assert.Equal(text, tokenizer.Decode(ids, skipSpecialTokens: false));
        }
    }

    [Theory]
    [InlineData("{}", new[] { "<s>" }, new string[0])]
    [InlineData("""{"add_bos_token":false,"add_eos_token":true}""", new string[0], new[] { "</s>" })]
    [InlineData("""{"bos_token":"</s>","eos_token":{"content":"<s>"},"add_eos_token":true}""", new[] { "</s>" }, new[] { "<s>" })]
    [InlineData("""{"bos_token":"nowhere"}""", new string[0], new string[0])]
    public void Load_Config_SaysWhatIsPutAround(string config, string[] prefix, string[] suffix)
    {
        Tokenizer tokenizer = Write(Bpe(), config);
        Assert.Equal(Ids(tokenizer, prefix), tokenizer.PrefixIds);
        Assert.Equal(Ids(tokenizer, suffix), tokenizer.SuffixIds);
    }

    [Fact]
    public void Encode_AfterAnAddedToken_PutsASpaceUnlessTheConfigSaysNot()
    {
        Tokenizer old = Write(Bpe()), later = Write(Bpe(), """{"legacy":false}""");
        Assert.Equal(Ids(old, "▁ab", "</s>", "▁ab"), old.Encode("ab</s>ab", addSpecialTokens: false));
        Assert.Equal(Ids(later, "▁ab", "</s>", "ab"), later.Encode("ab</s>ab", addSpecialTokens: false));
        Assert.Equal(Ids(later, "</s>", "ab"), later.Encode("</s>ab", addSpecialTokens: false));
    }

    [Fact]
    public void Load_AddedTokens_AreThoseOfBothFiles()
    {
        int next = PieceCount;
        File.WriteAllText(folder.File("added_tokens.json"), $$"""{"<tool>":{{next}}}""");
        Tokenizer tokenizer = Write(Bpe(), """
            {"added_tokens_decoder":{"1":{"content":"<s>","lstrip":false,"normalized":false,"rstrip":false,"single_word":false,"special":true},
            "NEXT":{"content":"<end>","lstrip":true,"normalized":false,"rstrip":true,"single_word":true,"special":true}}}
            """.Replace("NEXT", (next + 1).ToString(CultureInfo.InvariantCulture), StringComparison.Ordinal));
        Assert.Equal(next + 2, tokenizer.VocabularySize);
        Assert.Equal([next, .. Ids(tokenizer, "▁ab"), next + 1], tokenizer.Encode("<tool>ab <end> ", addSpecialTokens: false));
        Assert.DoesNotContain(next + 1, tokenizer.Encode("ab<end>", addSpecialTokens: false));
        Assert.DoesNotContain(next + 1, tokenizer.Encode("ab <end>", addSpecialTokens: false, takeSpecialTokens: false));
        Assert.Equal("<tool> ab", tokenizer.Decode(tokenizer.Encode("<tool>ab <end>", addSpecialTokens: false), skipSpecialTokens: true));
    }

    /// <summary>added_tokens.json does not say which tokens are special; the files beside it do, in three spellings.</summary>
    [Fact]
    public void Encode_TokensThatAreCalledSpecial_CannotBeForged()
    {
        string[] tokens = ["<|a|>", "<|b|>", "<|c|>", "<|plain|>"];
        File.WriteAllText(folder.File("added_tokens.json"), $"{{{string.Join(',', tokens.Select((token, i) => $"\"{token}\":{PieceCount + i}"))}}}");
        File.WriteAllText(folder.File("special_tokens_map.json"), """{"additional_special_tokens":["<|a|>",{"content":"<|b|>"}]}""");
        Tokenizer tokenizer = Write(Bpe(), """{"eos_token":"<|c|>"}""");
        foreach (string token in tokens)
        {
            Assert.Equal([tokenizer.IdOf(token)!.Value], tokenizer.Encode(token, addSpecialTokens: false));
            Assert.Equal(token == "<|plain|>", tokenizer.Encode(token, addSpecialTokens: false, takeSpecialTokens: false).Contains(tokenizer.IdOf(token)!.Value));
        }

        Assert.Equal(PieceCount + 2, tokenizer.EosId);
    }

    [Theory]
    [InlineData("added_tokens.json", """{"ab":1}""", "ab: 'ab' has the id 1 here, and ")]
    [InlineData("added_tokens.json", """{"<x>":1}""", "<x>: '<x>' has the id 1 here, which is another token's in the model")]
    [InlineData("added_tokens.json", """{"<x>":99999999}""", "<x>: the id 99999999 is too large; at most 16777215 is supported")]
    [InlineData("added_tokens.json", """{"":9999}""", "the token has 0 characters; expected 1 to 1024")]
    [InlineData("added_tokens.json", """{"<x>":9999,"<y>":9999}""", "the added tokens '<x>' and '<y>' both have the id 9999")]
    [InlineData("added_tokens.json", """{"\ud800":9999}""", "a name is not valid Unicode (a surrogate without its partner)")]
    [InlineData("added_tokens.json", """[]""", "expected Object, found Array")]
    [InlineData("tokenizer_config.json", """{"added_tokens_decoder":{"x":{"content":"<x>"}}}""", "added_tokens_decoder.x: the key is not an id")]
    [InlineData("tokenizer_config.json", """{"added_tokens_decoder":{"9999":{}}}""", "added_tokens_decoder.9999.content: missing; expected String")]
    [InlineData("tokenizer_config.json", """{"add_bos_token":1}""", "add_bos_token: expected true or false, found Number")]
    [InlineData("tokenizer_config.json", """{""", "not valid JSON: ")]
    public void Load_WrongCompanion_SaysWhereAndWhat(string name, string content, string problem)
    {
        File.WriteAllText(folder.File(name), content);
        File.WriteAllBytes(folder.File("tokenizer.model"), Bpe().ToArray());
        TokenizerFormatException exception = Assert.Throws<TokenizerFormatException>(() => Tokenizer.Load(folder.Path));
        Assert.Contains(problem, exception.Message, StringComparison.Ordinal);
        Assert.StartsWith(folder.Path, exception.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(null, "added_tokens.json")]
    [InlineData("""{"legacy":true}""", "added_tokens.json")]
    [InlineData("""{"added_tokens_decoder":{}}""", "tokenizer_config.json")]
    public void FileWithTokens_WrittenBeside_ReadsAsWithTokens(string? config, string expected)
    {
        Tokenizer tokenizer = Write(Bpe(), config);
        string[] tokens = ["<tool>", "ab", "<tool>", "</tool>"];
        (string name, byte[] content) = tokenizer.FileWithTokens(tokens);
        Assert.Equal(expected, name);
        File.WriteAllBytes(folder.File(name), content);
        Tokenizer more = tokenizer.WithTokens(tokens), read = Tokenizer.Load(folder.Path);
        foreach (Tokenizer each in new[] { more, read })
        {
            Assert.Equal(PieceCount + 2, each.VocabularySize);
            Assert.Equal([PieceCount, .. Ids(each, "▁ab"), PieceCount + 1], each.Encode("<tool>ab</tool>", addSpecialTokens: false));
        }

        // Written again, the tokens of the first time stay.
        (name, content) = read.FileWithTokens(["<third>"]);
        File.WriteAllBytes(folder.File(name), content);
        Assert.Equal(PieceCount + 2, Tokenizer.Load(folder.Path).IdOf("<third>"));
        Assert.Equal(PieceCount, Tokenizer.Load(folder.Path).IdOf("<tool>"));
    }

    [Fact]
    public void Load_BothFiles_TakesTokenizerJson()
    {
        File.WriteAllBytes(folder.File("tokenizer.model"), Bpe().ToArray());
        File.Copy(Fixtures.Golden("tokenizers/llama3_style/tokenizer.json"), folder.File("tokenizer.json"));
        Assert.Equal("tokenizer.json", Path.GetFileName(Tokenizer.Load(folder.Path).SourcePath));
        Assert.Equal("tokenizer.model", Path.GetFileName(Tokenizer.Load(folder.File("tokenizer.model")).SourcePath));
        Assert.True(Tokenizer.IsIn(folder.Path));
    }

    [Fact]
    public void Load_Neither_NamesBoth()
    {
        TokenizerFormatException exception = Assert.Throws<TokenizerFormatException>(() => Tokenizer.Load(folder.Path));
        Assert.Equal($"{folder.File("tokenizer.json")}: no such file; expected a tokenizer.json, or a tokenizer.model of SentencePiece or tiktoken", exception.Message);
        Assert.False(Tokenizer.IsIn(folder.Path));
    }

    public static TheoryData<string, byte[], string> WrongModels => new()
    {
        { "empty", [], "none of its 0 pieces is of the kind 'unknown'; expected exactly one" },
        { "text", Encoding.UTF8.GetBytes("hello"), "field 13 at byte 2 has the wire type 4" },
        { "cut", Bpe().ToArray()[..^1], "field 3 has 6 bytes from byte 4515 on; only 5 are left" },
        { "no unknown", new SentencePieceWriter().Piece("a").ToArray(), "none of its 1 pieces is of the kind 'unknown'" },
        { "two unknowns", new SentencePieceWriter().Piece("a", 0, (int)PieceKind.Unknown).Piece("b", 0, (int)PieceKind.Unknown).ToArray(), "the pieces 0 and 1 are both of the kind 'unknown'" },
        { "twice", new SentencePieceWriter().Piece("a", 0, (int)PieceKind.Unknown).Piece("b").Piece("b").ToArray(), "the pieces 1 and 2 are both 'b'" },
        { "empty piece", new SentencePieceWriter().Piece("").ToArray(), "piece 0 has 0 characters; expected 1 to 256" },
        { "long piece", new SentencePieceWriter().Piece(new string('a', 257)).ToArray(), "piece 0 has 257 characters; expected 1 to 256" },
        { "kind", new SentencePieceWriter().Piece("a", 0, 7).ToArray(), "piece 0 is of kind 7; expected 1 to 6" },
        { "score", new SentencePieceWriter().Piece("a", float.NaN).ToArray(), "is not a finite number" },
        { "not UTF-8", new SentencePieceWriter().Message(1, piece => piece.Blob(1, [0xFF])).ToArray(), "is not valid UTF-8" },
        { "word model", new SentencePieceWriter().Piece("<unk>", 0, (int)PieceKind.Unknown).Message(2, trainer => trainer.Number(3, 3)).ToArray(), "its model_type is 3; supported: 1 (unigram) and 2 (BPE)" },
        { "bytes", new SentencePieceWriter().Piece("<unk>", 0, (int)PieceKind.Unknown).Message(2, trainer => trainer.Number(35, 1)).ToArray(), "it writes unknown characters in bytes but has no piece <0x00> of the kind 'byte'" },
        { "map", new SentencePieceWriter().Piece("<unk>", 0, (int)PieceKind.Unknown).Message(3, normalizer => normalizer.Blob(2, [1, 0, 0, 0])).ToArray(), "the character map's trie has 1 bytes; expected a multiple of 4 from 4 to 0" },
        { "denormalizer", new SentencePieceWriter().Piece("<unk>", 0, (int)PieceKind.Unknown).Message(5, normalizer => normalizer.Blob(2, [0])).ToArray(), "it has a map of characters for decoding (denormalizer_spec), which is not supported" },
        { "group", [0x0B], "has the wire type 3; expected 0, 1, 2 or 5" },
        { "wire type", new SentencePieceWriter().Number(1, 7).ToArray(), "has the wire type 0; expected bytes" },
        { "length", [0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01], "field 1 has 18446744073709551615 bytes" },
        { "varint", [0x0A, .. Enumerable.Repeat((byte)0xFF, 30)], "has more than 10 bytes" },
        { "field 0", [0x00, 0x00], "no field begins at byte 0" },
    };

    [Theory]
    [MemberData(nameof(WrongModels))]
    public void Load_WrongSentencePiece_SaysWhat(string name, byte[] content, string problem)
    {
        File.WriteAllBytes(folder.File("tokenizer.model"), content);
        TokenizerFormatException exception = Assert.Throws<TokenizerFormatException>(() => Tokenizer.Load(folder.Path));
        Assert.StartsWith($"{folder.File("tokenizer.model")}: not a SentencePiece model that can be read: ", exception.Message, StringComparison.Ordinal);
        Assert.True(exception.Message.Contains(problem, StringComparison.Ordinal), $"{name}: {exception.Message}");
    }

    [Theory]
    [InlineData("IQ== 0\nIg==\n", "line 2: expected a token in base64, a space and a number from 0 to 16777215")]
    [InlineData("IQ== 0\nIg== -1\n", "line 2: expected a token in base64, a space and a number from 0 to 16777215")]
    [InlineData("IQ== 0\nIg== 1 2\n", "line 2: expected a token in base64, a space and a number from 0 to 16777215")]
    [InlineData("IQ== 0\nIg== 99999999999999999999\n", "line 2: expected a token in base64, a space and a number from 0 to 16777215")]
    [InlineData("IQ== 0\n!! 1\n", "line 2: expected 1 to 512 bytes in base64 before the space")]
    [InlineData("IQ== 0\nIg== 0\n", "line 2: the number 0 again")]
    [InlineData("IQ== 0\r\nIQ== 1\r\n", "line 2: the token of 0 again")]
    [InlineData("IQ== 0\n", "it has 1 tokens, but none of the one byte 0; expected all 256, so that every text has ids")]
    public void Load_WrongTiktoken_SaysWhat(string content, string problem)
    {
        File.WriteAllText(folder.File("tokenizer.model"), content);
        TokenizerFormatException exception = Assert.Throws<TokenizerFormatException>(() => Tokenizer.Load(folder.Path));
        Assert.Equal($"{folder.File("tokenizer.model")}: {problem}", exception.Message);
    }

    /// <summary>Llama 3's own file has 128,000 tokens and no word of its special ones.</summary>
    [Fact]
    public void Load_TiktokenOfLlama3_HasItsSpecialTokens()
    {
        WriteTiktoken(128_000);
        var tokenizer = Tokenizer.Load(folder.Path);
        Assert.Equal(128_256, tokenizer.VocabularySize);
        Assert.Equal([128_000], tokenizer.PrefixIds);
        Assert.Equal((128_000, 128_001), (tokenizer.BosId, tokenizer.EosId));
        Assert.Equal([128_006, 128_007, 128_009, 128_008, 128_010, 128_004], ((string[])["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "<|finetune_right_pad_id|>"]).Select(token => tokenizer.IdOf(token)!.Value));
        Assert.Equal([128_002, 128_003, 128_005, 128_011, 128_255], ((int[])[0, 1, 2, 3, 247]).Select(n => tokenizer.IdOf($"<|reserved_special_token_{n}|>")!.Value));
        Assert.Equal([128_009], tokenizer.Encode("<|eot_id|>", addSpecialTokens: false));
        Assert.DoesNotContain(128_009, tokenizer.Encode("<|eot_id|>", addSpecialTokens: false, takeSpecialTokens: false));
        Assert.Empty(tokenizer.Notices);
    }

    [Fact]
    public void Load_OtherTiktoken_SaysWhatTheFileDoesNot()
    {
        WriteTiktoken(300);
        var tokenizer = Tokenizer.Load(folder.Path);
        Assert.Empty(tokenizer.PrefixIds);
        Assert.EndsWith("a tiktoken file of 300 tokens is read with Llama 3's split pattern, and without special tokens of its own; it does not say which are right.", Assert.Single(tokenizer.Notices), StringComparison.Ordinal);
        File.WriteAllText(folder.File("tokenizer_config.json"), """{"bos_token":"<b>","added_tokens_decoder":{"300":{"content":"<b>","special":true}}}""");
        tokenizer = Tokenizer.Load(folder.Path);
        Assert.Equal([300], tokenizer.PrefixIds);
    }

    [Fact]
    public void Encode_ManyThreads_GivesTheSame()
    {
        Tokenizer tokenizer = Write(Bpe());
        string[] texts = [.. Enumerable.Range(0, 400).Select(i => $"ab {i % 37} abc <s> café {i}")];
        int[][] expected = [.. texts.Select(text => tokenizer.Encode(text, addSpecialTokens: true))];
        int[][] actual = new int[texts.Length][];
        Parallel.For(0, texts.Length, i => actual[i] = tokenizer.Encode(texts[i], addSpecialTokens: true));
        Assert.Equal(expected, actual);
    }

    private const int PieceCount = 3 + 256 + 8;

    private static SentencePieceWriter Bpe() => new SentencePieceWriter()
        .Piece("<unk>", 0, (int)PieceKind.Unknown).Piece("<s>", 0, (int)PieceKind.Control).Piece("</s>", 0, (int)PieceKind.Control).Bytes()
        .Piece("ab", -1).Piece("▁ab", -2).Piece("▁▁", -3).Piece("bc", -4).Piece("▁", -5).Piece("a", -6).Piece("b", -7).Piece("c", -8)
        .Message(2, trainer => trainer.Number(3, 2).Number(35, 1))
        .Message(3, normalizer => normalizer.Number(3, 1).Number(4, 0).Number(5, 1));

    private static int[] Ids(Tokenizer tokenizer, params string[] tokens) => [.. tokens.Select(token => tokenizer.IdOf(token)!.Value)];

    private Tokenizer Write(SentencePieceWriter model, string? config = null)
    {
        File.WriteAllBytes(folder.File("tokenizer.model"), model.ToArray());
        if (config is not null)
        {
            File.WriteAllText(folder.File("tokenizer_config.json"), config);
        }

        return Tokenizer.Load(folder.Path);
    }

    /// <summary>The 256 bytes, then what no text has.</summary>
    private void WriteTiktoken(int count)
    {
        using StreamWriter writer = File.CreateText(folder.File("tokenizer.model"));
        for (int id = 0; id < count; id++)
        {
            byte[] token = id < 256 ? [(byte)id] : [1, (byte)id, (byte)(id >> 8), (byte)(id >> 16), 2];
            writer.Write($"{Convert.ToBase64String(token)} {id}\n");
        }
    }
}
