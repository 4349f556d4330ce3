using System.Collections.Concurrent;
using LoraTrainer.Data.Tokenizers.Unicode;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>
/// Text to token ids and back, as the libraries do it from the same files (tokenizers from tokenizer.json, SentencePiece and tiktoken from tokenizer.model):
/// added tokens -> normalizer -> pre-tokenizer -> model -> post-processor, and the decoder on the way back.
/// Immutable; may be used from several threads at once.
/// </summary>
public sealed class Tokenizer
{
    private readonly TokenizerDefinition definition;
    private readonly AddedTokenMatcher rawMatcher, normalizedMatcher;
    private readonly bool hasNormalizedTokens;
    private readonly string?[] texts;
    private readonly HashSet<string> specialContents;
    private readonly Dictionary<string, int> ids;
    private readonly ConcurrentBag<Scratch> scratches = [];

    private Tokenizer(string path, TokenizerDefinition definition, SpecialTokens specialTokens)
    {
        this.definition = definition;
        SourcePath = path;
        SpecialTokens = specialTokens = specialTokens.Or(definition.Roles);
        rawMatcher = new AddedTokenMatcher(definition.AddedTokens, normalized: false);
        normalizedMatcher = new AddedTokenMatcher(definition.AddedTokens, normalized: true);
        hasNormalizedTokens = definition.AddedTokens.Any(token => token.Normalized);
        specialContents = [.. definition.AddedTokens.Where(token => token.Special).Select(token => token.Content)];
        ids = new Dictionary<string, int>(definition.Vocabulary, StringComparer.Ordinal);
        int largest = Math.Max(definition.Vocabulary.Values.DefaultIfEmpty(-1).Max(), definition.AddedTokens.Select(token => token.Id).DefaultIfEmpty(-1).Max());
        texts = new string?[largest + 1];
        foreach ((string token, int id) in definition.Vocabulary)
        {
            texts[id] = token;
        }

        foreach (AddedToken token in definition.AddedTokens)
        {
            texts[token.Id] = token.Text;
            ids[token.Content] = token.Id;
        }

        BosId = IdOf(specialTokens.Bos);
        EosId = IdOf(specialTokens.Eos);
        PadId = IdOf(specialTokens.Pad);
    }

    private sealed class Scratch
    {
        public readonly List<AddedTokenMatcher.Piece> RawPieces = [], NormalizedPieces = [];
        public readonly PreTokenizedText Text = new();
        public readonly TokenModel.Scratch Model = new();
        public readonly List<int> Ids = [];
    }

    /// <summary>The file this was read from.</summary>
    public string SourcePath { get; }

    /// <summary>One more than the largest id; a model's embedding needs at least so many rows.</summary>
    public int VocabularySize => texts.Length;

    public SpecialTokens SpecialTokens { get; }

    /// <summary>Null where the folder names no such token or the vocabulary does not have it.</summary>
    public int? BosId { get; }

    public int? EosId { get; }

    public int? PadId { get; }

    /// <summary>What encoding with special tokens puts before a text; empty for families without BOS.</summary>
    public IReadOnlyList<int> PrefixIds => definition.Prefix;

    /// <summary>What encoding with special tokens puts after a text.</summary>
    public IReadOnlyList<int> SuffixIds => definition.Suffix;

    /// <summary>What is odd in the file without being wrong; one sentence each.</summary>
    public IReadOnlyList<string> Notices => definition.Notices;

    /// <summary>Reads a tokenizer.</summary>
    /// <param name="path">A folder, of which tokenizer.json is taken where it has one, else tokenizer.model; or one of these files.</param>
    /// <exception cref="TokenizerFormatException">The file is damaged or uses something that is not supported.</exception>
    public static Tokenizer Load(string path)
    {
        string file = Directory.Exists(path) ? TokenizerFiles.Find(path) ?? Path.Combine(path, TokenizerFiles.Json) : path;
        if (!File.Exists(file))
        {
            throw new TokenizerFormatException(file, $"no such file; expected a {TokenizerFiles.Json}, or a {TokenizerFiles.Model} of SentencePiece or tiktoken");
        }

        return new Tokenizer(file, TokenizerFiles.Read(file), SpecialTokens.Read(Path.GetDirectoryName(Path.GetFullPath(file))!));
    }

    /// <summary>Whether <see cref="Load"/> finds a file in a folder.</summary>
    public static bool IsIn(string folder) => TokenizerFiles.Find(folder) is not null;

    /// <summary>The same tokenizer with more tokens: each is one id wherever it stands in a text. What the vocabulary has already is left as it is.</summary>
    /// <param name="tokens">Not empty each.</param>
    public Tokenizer WithTokens(IReadOnlyList<string> tokens)
    {
        List<(string Content, int Id)> more = Unknown(tokens);
        return more.Count == 0 ? this
            : TokenizerFiles.IsJson(SourcePath) ? new Tokenizer(SourcePath, TokenizerJsonReader.Read(SourcePath, TokenizerFiles.WithTokens(SourcePath, more).Content), SpecialTokens)
            : new Tokenizer(SourcePath, TokenizerFiles.With(definition, more), SpecialTokens);
    }

    /// <summary>The file that has to be written beside the others, or in place of one, so that a folder's tokenizer has these tokens too.</summary>
    /// <param name="tokens">Not empty each; those that are not known take the ids after the largest.</param>
    public (string Name, byte[] Content) FileWithTokens(IReadOnlyList<string> tokens) => TokenizerFiles.WithTokens(SourcePath, Unknown(tokens));

    private List<(string Content, int Id)> Unknown(IReadOnlyList<string> tokens)
        => [.. tokens.Where(token => !ids.ContainsKey(token)).Distinct(StringComparer.Ordinal).Select((token, index) => (token, VocabularySize + index))];

    /// <summary>Text to ids.</summary>
    /// <param name="text">A surrogate without its partner is read as U+FFFD.</param>
    /// <param name="addSpecialTokens">Whether the post-processor's tokens (BOS and the like) are put around the text.</param>
    /// <param name="takeSpecialTokens">Whether special tokens written out in the text are taken as such; false for text that must not forge them.</param>
    /// <exception cref="TokenizerFormatException">The tokenizer's file turned out to be damaged: it grows the text without bounds, or its pattern does not come to an end.</exception>
    public int[] Encode(ReadOnlySpan<char> text, bool addSpecialTokens, bool takeSpecialTokens = true)
    {
        if (!scratches.TryTake(out Scratch? scratch))
        {
            scratch = new Scratch();
        }

        scratch.Ids.Clear();
        if (addSpecialTokens)
        {
            scratch.Ids.AddRange(definition.Prefix);
        }

        if (UnicodeTables.HasLoneSurrogate(text))
        {
            text = UnicodeTables.ReplaceLoneSurrogates(text);
        }

        try
        {
            EncodeText(text, takeSpecialTokens, scratch);
        }
        catch (FormatException exception) when (exception is not TokenizerFormatException)
        {
            throw new TokenizerFormatException(SourcePath, exception.Message, exception);
        }

        if (addSpecialTokens)
        {
            scratch.Ids.AddRange(definition.Suffix);
        }

        int[] result = [.. scratch.Ids];
        scratches.Add(scratch);
        return result;
    }

    /// <summary>The text of <paramref name="tokens"/>. Ids that are not in the vocabulary are left out.</summary>
    public string Decode(ReadOnlySpan<int> tokens, bool skipSpecialTokens)
    {
        var parts = new List<string>(tokens.Length);
        foreach (int id in tokens)
        {
            if (TextOf(id) is not { } text)
            {
                continue;
            }

            if (!skipSpecialTokens || !specialContents.Contains(text))
            {
                parts.Add(text);
            }
            else if (definition.Decoder is Decoder.SentencePiece)
            {
                // A control piece has no text but keeps the bytes on its two sides apart.
                parts.Add("");
            }
        }

        try
        {
            return definition.Decoder is { } decoder ? string.Concat(decoder.Apply(parts)) : string.Join(' ', parts);
        }
        catch (FormatException exception) when (exception is not TokenizerFormatException)
        {
            throw new TokenizerFormatException(SourcePath, exception.Message, exception);
        }
    }

    /// <summary>The vocabulary's spelling of a token; null for an id that is not in it.</summary>
    public string? TokenOf(int id) => TextOf(id);

    /// <summary>The id of a token by its content; null for one that is not in the vocabulary.</summary>
    public int? IdOf(string? token) => token is not null && ids.TryGetValue(token, out int id) ? id : null;

    /// <summary>A decoder that yields text as tokens arrive.</summary>
    public StreamingDecoder StartDecoding(bool skipSpecialTokens) => new(this, skipSpecialTokens);

    private string? TextOf(int id) => (uint)id < (uint)texts.Length ? texts[id] : null;

    /// <summary>
    /// Text to ids, with where in the text each piece is: an added token, or what stands between two. Special tokens count only where <paramref name="isTrusted"/>
    /// says so of all their characters.
    /// </summary>
    /// <param name="text">Without lone surrogates.</param>
    /// <param name="isTrusted">Whether nobody but the program wrote the characters from the first place to before the second.</param>
    /// <exception cref="TokenizerFormatException">A special token is looked for in normalized text only, and text that is not trusted has it too: they cannot be told apart.</exception>
    internal List<EncodedPiece> EncodeInPieces(string text, Func<int, int, bool> isTrusted)
    {
        if (!scratches.TryTake(out Scratch? scratch))
        {
            scratch = new Scratch();
        }

        var pieces = new List<AddedTokenMatcher.Piece>();
        rawMatcher.Split(text, takeSpecial: true, pieces, isTrusted);
        var encoded = new List<EncodedPiece>(pieces.Count);
        foreach (AddedTokenMatcher.Piece piece in pieces)
        {
            scratch.Ids.Clear();
            EncodePiece(text, piece, piece.Token is null && TakesNormalizedTokens(text, piece, isTrusted), scratch);
            encoded.Add(new EncodedPiece(piece.Start, piece.End, piece.Token, [.. scratch.Ids]));
        }

        scratches.Add(scratch);
        return encoded;
    }

    /// <summary>Whether special tokens of the normalized text may count in a piece.</summary>
    private bool TakesNormalizedTokens(string text, AddedTokenMatcher.Piece piece, Func<int, int, bool> isTrusted)
    {
        if (!hasNormalizedTokens || isTrusted(piece.Start, piece.End))
        {
            return true;
        }

        foreach (AddedToken token in definition.AddedTokens)
        {
            for (int at = piece.Start; token is { Normalized: true, Special: true } && at < piece.End && (at = text.IndexOf(token.Content, at, piece.End - at, StringComparison.Ordinal)) >= 0; at++)
            {
                if (!isTrusted(at, at + token.Content.Length))
                {
                    throw new TokenizerFormatException(SourcePath, $"the text of a message has the special token '{token.Content}', which this tokenizer finds after normalization only; it cannot be told from the template's own. Remove it from the data");
                }
            }
        }

        return true;
    }

    private void EncodeText(ReadOnlySpan<char> text, bool takeSpecialTokens, Scratch scratch)
    {
        scratch.RawPieces.Clear();
        rawMatcher.Split(text, takeSpecialTokens, scratch.RawPieces);
        foreach (AddedTokenMatcher.Piece piece in scratch.RawPieces)
        {
            EncodePiece(text, piece, takeSpecialTokens, scratch);
        }
    }

    private void EncodePiece(ReadOnlySpan<char> text, AddedTokenMatcher.Piece piece, bool takeSpecialTokens, Scratch scratch)
    {
        if (piece.Token is { } token)
        {
            scratch.Ids.Add(token.Id);
            return;
        }

        bool atTextStart = piece.Start == 0;
        ReadOnlySpan<char> normalized = text[piece.Start..piece.End];
        if (definition.Normalizer is { } normalizer)
        {
            normalized = normalizer.Apply(normalized.ToString(), ref atTextStart);
        }

        if (!hasNormalizedTokens)
        {
            EncodeWords(normalized, atTextStart, scratch);
            return;
        }

        scratch.NormalizedPieces.Clear();
        normalizedMatcher.Split(normalized, takeSpecialTokens, scratch.NormalizedPieces);
        foreach (AddedTokenMatcher.Piece part in scratch.NormalizedPieces)
        {
            if (part.Token is { } found)
            {
                scratch.Ids.Add(found.Id);
            }
            else
            {
                EncodeWords(normalized[part.Start..part.End], atTextStart && part.Start == 0, scratch);
            }
        }
    }

    private void EncodeWords(ReadOnlySpan<char> text, bool atTextStart, Scratch scratch)
    {
        if (definition.PreTokenizer is null)
        {
            if (!text.IsEmpty)
            {
                definition.Model.Encode(text, scratch.Model, scratch.Ids);
            }

            return;
        }

        scratch.Text.Set(text, atTextStart);
        definition.PreTokenizer.Apply(scratch.Text);
        foreach ((int start, int end) in scratch.Text.Ranges)
        {
            definition.Model.Encode(scratch.Text.Text[start..end], scratch.Model, scratch.Ids);
        }
    }
}
