using System.Globalization;
using System.Text;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Data.Tests.Tokenizers;

/// <summary>Files that nobody should trust: each is refused with a sentence or works, in bounded memory.</summary>
public class HostileTokenizerTests(ITestOutputHelper output)
{
    private const int Mutations = 250;

    /// <summary>More than any of the files here needs; the mutated ones are small.</summary>
    private const long MostBytes = 1L << 30;

    private const string Json = """
        {"version":"1.0","added_tokens":[{"id":9,"content":"<s>","single_word":false,"lstrip":true,"rstrip":true,"normalized":true,"special":true}],
        "normalizer":{"type":"Sequence","normalizers":[{"type":"NFKC"},{"type":"Replace","pattern":{"Regex":" {2,}|\\t+"},"content":"  "},{"type":"Prepend","prepend":" "},{"type":"Lowercase"},{"type":"Strip","strip_left":false,"strip_right":true}]},
        "pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"Digits","individual_digits":true},{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":false}]},
        "post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"<s>":{"id":"<s>","ids":[9],"tokens":["<s>"]}}},
        "decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"x"},"content":"yy"},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0},{"type":"ByteLevel"}]},
        "model":{"type":"BPE","dropout":null,"unk_token":"?","fuse_unk":true,"byte_fallback":true,"vocab":{"h":0,"e":1,"l":2,"o":3,"ll":4,"he":5,"?":6,"Ġ":7,"Ġhe":8},"merges":["l l",["h","e"],"Ġ he"]}}
        """;

    [Fact]
    public void Load_MutatedJson_IsRefusedOrWorks() => Mutate("tokenizer.json", Encoding.UTF8.GetBytes(Json), new Random(1), atLeast: 10);

    [Fact]
    public void Load_MutatedSentencePiece_IsRefusedOrWorks()
    {
        Mutate("tokenizer.model", Model(1).ToArray(), new Random(2), atLeast: 20);
        Mutate("tokenizer.model", Model(2).ToArray(), new Random(3), atLeast: 20);
    }

    [Fact]
    public void Load_MutatedTiktoken_IsRefusedOrWorks()
    {
        string[] lines = [.. Enumerable.Range(0, 256).Select(b => System.Convert.ToBase64String([(byte)b])), System.Convert.ToBase64String("he"u8), System.Convert.ToBase64String("hel"u8)];
        Mutate("tokenizer.model", Encoding.UTF8.GetBytes(string.Concat(lines.Select((line, id) => $"{line} {id}\n"))), new Random(4), atLeast: 5);
    }

    /// <summary>Real files of all kinds, mutated.</summary>
    [Theory]
    [Trait("Category", "Fixtures")]
    [InlineData("x_gemma/tokenizer.json")]
    [InlineData("x_split_contiguous/tokenizer.json")]
    [InlineData("sentencepiece_x_bpe_ties_unused/tokenizer.model")]
    [InlineData("sentencepiece_x_unigram_users/tokenizer.model")]
    [InlineData("tiktoken_x/tokenizer.model")]
    public void Load_MutatedFixture_IsRefusedOrWorks(string file)
        => Mutate(Path.GetFileName(file), File.ReadAllBytes(Path.Combine(Fixtures.Require("tokenizers"), file)), new Random(6), atLeast: 1, mutations: 40);

    /// <summary>Each step doubles the text, twenty times.</summary>
    [Fact]
    public void Encode_NormalizerThatGrowsWithoutEnd_IsRefused()
    {
        string steps = string.Join(',', Enumerable.Repeat("""{"type":"Replace","pattern":{"String":"h"},"content":"hh"}""", 40));
        Tokenizer tokenizer = Load(Json.Replace("{\"type\":\"NFKC\"}", steps, StringComparison.Ordinal));
        Assert.EndsWith("longer than 32 times that; such a file is taken for damaged", Refusal(() => tokenizer.Encode("hhhh", addSpecialTokens: false)), StringComparison.Ordinal);
    }

    [Fact]
    public void Decode_DecoderThatGrowsWithoutEnd_IsRefused()
    {
        string steps = string.Join(',', Enumerable.Repeat("""{"type":"Replace","pattern":{"Regex":"h"},"content":"hh"}""", 40));
        Tokenizer tokenizer = Load(Json.Replace("{\"type\":\"Fuse\"}", steps, StringComparison.Ordinal));
        Assert.EndsWith("such a file is taken for damaged", Refusal(() => tokenizer.Decode([0, 0, 0, 0], skipSpecialTokens: false)), StringComparison.Ordinal);
    }

    [Fact]
    public void Encode_PreTokenizerThatGrowsWithoutEnd_IsRefused()
    {
        string steps = string.Join(',', Enumerable.Repeat("""{"type":"ByteLevel","add_prefix_space":true,"use_regex":false}""", 40));
        Tokenizer tokenizer = Load(Json.Replace("""{"type":"Digits","individual_digits":true}""", steps, StringComparison.Ordinal));
        Assert.EndsWith("such a file is taken for damaged", Refusal(() => tokenizer.Encode("é é é", addSpecialTokens: false)), StringComparison.Ordinal);
    }

    /// <summary>Patterns that other engines need longer than a life for.</summary>
    [Theory]
    [InlineData(@"a*a*a*a*a*a*a*a*a*a*b")]
    [InlineData(@"(?:a+a+)?(?:a+a+)?(?:a+a+)?(?:a+a+)?b")]
    [InlineData(@"a++b|a++c|a++d")]
    [InlineData(@"(?!a*a*a*a*a*b)a")]
    public void Encode_PatternWithTooManyWays_IsRefused(string pattern)
    {
        const string before = "\"Split\",\"pattern\":{\"Regex\":\"";
        int start = Json.IndexOf(before, StringComparison.Ordinal) + before.Length, end = Json.IndexOf('"', start);
        Tokenizer tokenizer = Load(Json[..start] + pattern + Json[end..]);
        Assert.EndsWith("its pattern tries too many ways to match this text; such a pattern is taken for damaged", Refusal(() => tokenizer.Encode(new string('a', 20_000), addSpecialTokens: false)), StringComparison.Ordinal);
    }

    [Fact]
    public void Load_TemplateOfManyTokens_IsRefused()
    {
        string many = string.Join(',', Enumerable.Repeat("9", 65));
        Assert.EndsWith("post_processor.single: it puts more than 64 tokens around a text", Refusal(() => Load(Json.Replace("\"ids\":[9]", $"\"ids\":[{many}]", StringComparison.Ordinal))), StringComparison.Ordinal);
    }

    [Fact]
    public void Load_ManySteps_IsRefused()
    {
        string steps = string.Join(',', Enumerable.Repeat("""{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"NFD"}]}""", 33));
        Assert.EndsWith("normalizer: it has more than 64 steps", Refusal(() => Load(Json.Replace("{\"type\":\"NFKC\"}", steps, StringComparison.Ordinal))), StringComparison.Ordinal);
    }

    [Fact]
    public void Load_LongAddedToken_IsRefused()
        => Assert.EndsWith("added_tokens[0].content: it has 1025 characters; at most 1024 are supported", Refusal(() => Load(Json.Replace("\"content\":\"<s>\"", $"\"content\":\"{new string('<', 1025)}\"", StringComparison.Ordinal))), StringComparison.Ordinal);

    /// <summary>Unused pieces that are made of unused pieces, as deep as pieces may be long.</summary>
    [Fact]
    public void Encode_NestedUnusedPieces_AreTakenApart()
    {
        SentencePieceWriter model = new SentencePieceWriter().Piece("<unk>", 0, (int)PieceKind.Unknown).Piece("a", -1).Piece("b", -2);
        for (int length = 2; length <= 256; length++)
        {
            model.Piece("b" + new string('a', length - 1), -length, (int)PieceKind.Unused);
        }

        Tokenizer tokenizer = LoadModel(model.Message(2, trainer => trainer.Number(3, 2)).Message(3, normalizer => normalizer.Number(3, 0)));
        Assert.Equal([2, .. Enumerable.Repeat(1, 255)], tokenizer.Encode("b" + new string('a', 255), addSpecialTokens: false));
    }

    [Fact]
    public void Encode_DamagedCharacterMap_IsRefusedWhereItIsUsed()
    {
        // The root's child for 'a' (0x61) has a leaf that points far beyond the texts.
        byte[] map = new byte[4 + (4 * 256)];
        BitConverter.TryWriteBytes(map, 4 * 256);
        BitConverter.TryWriteBytes(map.AsSpan(4 + (4 * 0x61)), 0x100u | 0x61);
        BitConverter.TryWriteBytes(map.AsSpan(4), 0u);
        map[4 + (4 * 0x61) + 3] = 0;
        BitConverter.TryWriteBytes(map.AsSpan(4 + (4 * 0x61)), (0x10u << 10) | 0x100u | 0x61);
        BitConverter.TryWriteBytes(map.AsSpan(4 + (4 * 0x71)), 0x80000000u | 12345);
        Tokenizer tokenizer = LoadModel(Model(1).Message(3, normalizer => normalizer.Blob(2, map)));
        Assert.NotEmpty(tokenizer.Encode("b", addSpecialTokens: false));
        Assert.EndsWith("the character map is damaged: an entry points to byte 12345 of its texts (0 bytes), where no text of at most 256 bytes is", Refusal(() => tokenizer.Encode("ba", addSpecialTokens: false)), StringComparison.Ordinal);
    }

    /// <summary>Texts that are one endless word, for models that take a text as one.</summary>
    [Theory]
    [InlineData(1, 'a')]
    [InlineData(1, 'x')]
    [InlineData(1, ' ')]
    [InlineData(2, 'a')]
    [InlineData(2, 'x')]
    [InlineData(2, ' ')]
    public void Encode_EndlessWord_Ends(int modelType, char c)
    {
        Tokenizer tokenizer = LoadModel(Model(modelType));
        string text = new(c, 300_000);
        Assert.Equal(text, tokenizer.Decode(tokenizer.Encode(text, addSpecialTokens: false), skipSpecialTokens: false));
    }

    private static SentencePieceWriter Model(int type) => new SentencePieceWriter()
        .Piece("<unk>", 0, (int)PieceKind.Unknown).Piece("<s>", 0, (int)PieceKind.Control).Piece("</s>", 0, (int)PieceKind.Control).Bytes()
        .Piece("ab", -1).Piece("▁ab", -2).Piece("▁▁", -3).Piece("bc", -4, (int)PieceKind.Unused).Piece("▁", -5).Piece("a", -6).Piece("b", -7).Piece("aa", -8).Piece("<u>", 0, (int)PieceKind.UserDefined)
        .Message(2, trainer => trainer.Number(3, type).Number(35, 1))
        .Message(3, normalizer => normalizer.Number(3, 1).Number(4, 0).Number(5, 1));

    private static Tokenizer Load(string json)
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("tokenizer.json"), json);
        return Tokenizer.Load(folder.Path);
    }

    private static Tokenizer LoadModel(SentencePieceWriter model)
    {
        using var folder = new TemporaryFolder();
        File.WriteAllBytes(folder.File("tokenizer.model"), model.ToArray());
        return Tokenizer.Load(folder.Path);
    }

    private static string Refusal(Action act) => Assert.Throws<TokenizerFormatException>(act).Message;

    /// <summary>Loads mutated files and, where that works, encodes and decodes with them. Anything but a clear refusal fails.</summary>
    private void Mutate(string name, byte[] original, Random random, int atLeast, int mutations = Mutations)
    {
        using var folder = new TemporaryFolder();
        string path = folder.File(name);
        int loaded = 0, refused = 0;
        for (int i = 0; i < mutations; i++)
        {
            byte[] content = Mutated(original, random, name.EndsWith(".json", StringComparison.Ordinal));
            File.WriteAllBytes(path, content);
            long before = GC.GetAllocatedBytesForCurrentThread();
            try
            {
                Tokenizer tokenizer = Tokenizer.Load(folder.Path);
                loaded++;
                for (int text = 0; text < 4; text++)
                {
                    int[] ids = tokenizer.Encode(RandomText.Make(random, 30), addSpecialTokens: true);
                    Assert.All(ids, id => Assert.InRange(id, 0, tokenizer.VocabularySize - 1));
                    tokenizer.Decode(ids, skipSpecialTokens: text % 2 == 0);
                    tokenizer.Decode([.. Enumerable.Range(0, 20).Select(_ => random.Next(-2, tokenizer.VocabularySize + 2))], skipSpecialTokens: false);
                }
            }
            catch (TokenizerFormatException exception)
            {
                refused++;
                Assert.StartsWith(folder.Path, exception.Message, StringComparison.Ordinal);
                Assert.InRange(exception.Message.Length, path.Length + 5, 2000);
            }

            long allocated = GC.GetAllocatedBytesForCurrentThread() - before;
            Assert.True(allocated < MostBytes, string.Create(CultureInfo.InvariantCulture, $"mutation {i} took {allocated} bytes"));
        }

        output.WriteLine($"{name}: {loaded} read, {refused} refused");
        Assert.True(loaded >= atLeast && refused >= atLeast, $"{loaded} read, {refused} refused");
    }

    private static byte[] Mutated(byte[] original, Random random, bool isJson)
    {
        var content = new List<byte>(original);
        for (int edits = 1 + random.Next(3); edits > 0 && content.Count > 0; edits--)
        {
            int at = random.Next(content.Count);
            if (isJson && random.Next(4) > 0)
            {
                Exchange(content, random);
                continue;
            }

            switch (random.Next(6))
            {
                case 0:
                    content[at] ^= (byte)(1 << random.Next(8));
                    break;
                case 1:
                    content[at] = (byte)random.Next(256);
                    break;
                case 2:
                    content.RemoveRange(at, Math.Min(content.Count - at, 1 + random.Next(20)));
                    break;
                case 3:
                    content.InsertRange(at, content.GetRange(at, Math.Min(content.Count - at, 1 + random.Next(40))));
                    break;
                case 4:
                    content[at] = (byte)"0123456789{}[]\",:+*?()|\\"[random.Next(24)];
                    break;
                default:
                    if (random.Next(4) == 0)
                    {
                        content.RemoveRange(at, content.Count - at);
                    }

                    break;
            }
        }

        return [.. content];
    }

    /// <summary>What leaves JSON well-formed: a digit for a digit, a letter for a letter, true for false.</summary>
    private static void Exchange(List<byte> content, Random random)
    {
        int at = random.Next(content.Count);
        while (!char.IsAsciiLetterOrDigit((char)content[at]))
        {
            at = (at + 1) % content.Count;
        }

        string text = Encoding.Latin1.GetString([.. content.Skip(at).Take(5)]);
        string? other = text == "false" ? "true" : text.StartsWith("true", StringComparison.Ordinal) ? "false" : null;
        if (other is not null)
        {
            content.RemoveRange(at, text == "false" ? 5 : 4);
            content.InsertRange(at, Encoding.ASCII.GetBytes(other));
        }
        else
        {
            content[at] = (byte)(char.IsAsciiDigit((char)content[at]) ? '0' + random.Next(10) : 'a' + random.Next(26));
        }
    }
}
