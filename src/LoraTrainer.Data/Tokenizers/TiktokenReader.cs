using System.Buffers;
using System.Buffers.Text;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>
/// Reads tokenizer.model files of Llama 3, which are tiktoken's: a line per token, its bytes in base64 and its rank, which is its id. Neither the split pattern nor the
/// special tokens are in the file; the pattern is Llama 3's, and a file with as many tokens as Llama 3 has gets Llama 3's special tokens.
/// </summary>
internal static class TiktokenReader
{
    private const string Pattern = @"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    private const int Llama3Tokens = 128_000;
    private const int Llama3Specials = 256;
    private const int LongestToken = 512;
    private const int LargestId = (1 << 24) - 1;

    /// <summary>The names that Llama 3.1 and later gave to some of the places after the ranks; the others are reserved tokens.</summary>
    private static readonly (int Place, string Content)[] Llama3Names =
    [
        (0, "<|begin_of_text|>"), (1, "<|end_of_text|>"), (4, "<|finetune_right_pad_id|>"), (6, "<|start_header_id|>"), (7, "<|end_header_id|>"),
        (8, "<|eom_id|>"), (9, "<|eot_id|>"), (10, "<|python_tag|>"),
    ];

    /// <summary>Whether a file looks like one of these: its first line is base64, a space and a number.</summary>
    public static bool Recognizes(ReadOnlySpan<byte> bytes)
    {
        int end = bytes[..Math.Min(bytes.Length, 2 * LongestToken)].IndexOf((byte)'\n');
        ReadOnlySpan<byte> line = (end < 0 ? bytes[..Math.Min(bytes.Length, 2 * LongestToken)] : bytes[..end]).TrimEnd((byte)'\r');
        int space = line.IndexOf((byte)' ');
        return space > 0 && Base64.IsValid(line[..space]) && space + 1 < line.Length && !line[(space + 1)..].ContainsAnyExceptInRange((byte)'0', (byte)'9');
    }

    /// <param name="path">Names the file in messages.</param>
    /// <param name="bytes">Its content.</param>
    public static TokenizerDefinition Read(string path, byte[] bytes)
    {
        var vocabulary = new Dictionary<string, int>(StringComparer.Ordinal);
        var ids = new HashSet<int>();
        ReadOnlySpan<byte> rest = bytes;
        byte[] decoded = new byte[LongestToken];
        for (int number = 1; !rest.IsEmpty; number++)
        {
            int end = rest.IndexOf((byte)'\n');
            ReadOnlySpan<byte> line = (end < 0 ? rest : rest[..end]).TrimEnd((byte)'\r');
            rest = end < 0 ? default : rest[(end + 1)..];
            if (line.IsEmpty)
            {
                continue;
            }

            int space = line.IndexOf((byte)' ');
            if (space <= 0 || !Utf8Parser.TryParse(line[(space + 1)..], out int id, out int consumed) || consumed != line.Length - space - 1 || id is < 0 or > LargestId)
            {
                throw Error(path, number, $"expected a token in base64, a space and a number from 0 to {LargestId}");
            }

            if (Base64.DecodeFromUtf8(line[..space], decoded, out int read, out int length) != OperationStatus.Done || read != space || length == 0)
            {
                throw Error(path, number, $"expected 1 to {LongestToken} bytes in base64 before the space");
            }

            string token = string.Create(length, decoded, static (text, source) =>
            {
                for (int i = 0; i < text.Length; i++)
                {
                    text[i] = ByteAlphabet.CharOf(source[i]);
                }
            });
            if (!vocabulary.TryAdd(token, id))
            {
                throw Error(path, number, $"the token of {vocabulary[token]} again");
            }

            if (!ids.Add(id))
            {
                throw Error(path, number, $"the number {id} again");
            }
        }

        for (int b = 0; b < 256; b++)
        {
            if (!vocabulary.ContainsKey(ByteAlphabet.CharOf((byte)b).ToString()))
            {
                throw new TokenizerFormatException(path, $"it has {vocabulary.Count} tokens, but none of the one byte {b}; expected all 256, so that every text has ids");
            }
        }

        var merges = BpeMerges.OfPieces(vocabulary.ToDictionary(entry => entry.Key, entry => (entry.Value, entry.Value), StringComparer.Ordinal), _ => null);
        bool isLlama3 = vocabulary.Count == Llama3Tokens && ids.Max() == Llama3Tokens - 1;
        return new TokenizerDefinition
        {
            Model = new BpeModel(vocabulary, merges, new BpeOptions { IgnoreMerges = true }),
            Vocabulary = vocabulary,
            AddedTokens = isLlama3 ? SpecialTokensOfLlama3() : [],
            PreTokenizer = new PreTokenizer.Sequence([
                new PreTokenizer.Split(new TextPattern(SplitPattern.Parse(Pattern)), SplitBehavior.Isolated, Invert: false),
                new PreTokenizer.ByteLevel(AddPrefixSpace: false, UseRegex: false),
            ]),
            Decoder = new Decoder.ByteLevel(),
            Prefix = [],
            Suffix = [],
            Notices = isLlama3 ? [] : [$"{path}: a tiktoken file of {vocabulary.Count} tokens is read with Llama 3's split pattern, and without special tokens of its own; it does not say which are right."],
            Roles = isLlama3 ? new SpecialTokens { Bos = Llama3Names[0].Content, Eos = Llama3Names[1].Content } : new SpecialTokens(),
        };
    }

    private static TokenizerFormatException Error(string path, int line, string problem) => new(path, $"line {line}: {problem}");

    private static List<AddedToken> SpecialTokensOfLlama3()
    {
        var tokens = new List<AddedToken>();
        int reserved = 0;
        for (int place = 0; place < Llama3Specials; place++)
        {
            string? name = Llama3Names.FirstOrDefault(item => item.Place == place).Content;
            string content = name ?? string.Create(System.Globalization.CultureInfo.InvariantCulture, $"<|reserved_special_token_{reserved++}|>");
            tokens.Add(new AddedToken(Llama3Tokens + place, content, content, SingleWord: false, StripLeft: false, StripRight: false, Normalized: false, Special: true));
        }

        return tokens;
    }
}
