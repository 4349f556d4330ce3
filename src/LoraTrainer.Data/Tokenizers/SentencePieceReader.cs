using System.Globalization;
using System.Text;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>What a piece of a SentencePiece model is; the values are those of its file.</summary>
internal enum PieceKind
{
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// <summary>One piece of a SentencePiece model.</summary>
internal readonly record struct SentencePiece(string Text, float Score, PieceKind Kind);

/// <summary>
/// Reads SentencePiece's tokenizer.model: a protobuf message ModelProto with pieces (1), trainer_spec (2) and normalizer_spec (3). Fields that have no effect on ids or
/// text are passed over; absent ones take the format's defaults.
/// </summary>
internal static class SentencePieceReader
{
    /// <summary>Parts of a piece are looked up one by one, so its length counts twice.</summary>
    private const int LongestPiece = 256;

    /// <param name="path">Names the file in messages.</param>
    /// <param name="bytes">Its content.</param>
    /// <param name="prefixOnlyAtStart">Whether a space is put before a text only where it begins, and not again after each added token.</param>
    public static TokenizerDefinition Read(string path, byte[] bytes, bool prefixOnlyAtStart)
    {
        var file = new Content();
        try
        {
            file.ReadModel(bytes);
            return Define(file, prefixOnlyAtStart);
        }
        catch (FormatException exception) when (exception is not TokenizerFormatException)
        {
            throw new TokenizerFormatException(path, $"not a SentencePiece model that can be read: {exception.Message}", exception);
        }
    }

    private static TokenizerDefinition Define(Content file, bool prefixOnlyAtStart)
    {
        List<SentencePiece> pieces = file.Pieces;
        var vocabulary = new Dictionary<string, int>(pieces.Count, StringComparer.Ordinal);
        int unknownId = -1;
        for (int id = 0; id < pieces.Count; id++)
        {
            if (!vocabulary.TryAdd(pieces[id].Text, id))
            {
                throw new FormatException($"the pieces {vocabulary[pieces[id].Text]} and {id} are both '{pieces[id].Text}'");
            }

            if (pieces[id].Kind == PieceKind.Unknown)
            {
                unknownId = unknownId < 0 ? id : throw new FormatException($"the pieces {unknownId} and {id} are both of the kind 'unknown'; expected exactly one");
            }
        }

        if (unknownId < 0)
        {
            throw new FormatException($"none of its {pieces.Count} pieces is of the kind 'unknown'; expected exactly one");
        }

        int[]? byteIds = file.ByteFallback ? BytesOf(pieces) : null;
        return new TokenizerDefinition
        {
            Model = file.IsUnigram ? Unigram(pieces, unknownId, byteIds) : new SentencePieceBpe(pieces, unknownId, byteIds),
            Vocabulary = vocabulary,
            AddedTokens =
            [
                .. pieces.Select((piece, id) => (piece, id)).Where(item => item.piece.Kind == PieceKind.Control)
                    .Select(item => new AddedToken(item.id, item.piece.Text, item.piece.Text, SingleWord: false, StripLeft: false, StripRight: false, Normalized: false, Special: true)),
            ],
            Normalizer = new Normalizer.SentencePiece(
                file.CharacterMap, UserDefined(pieces), file.AddDummyPrefix, file.RemoveExtraWhitespaces, file.EscapeWhitespaces, file.WhitespaceAsSuffix, prefixOnlyAtStart),
            Decoder = new Decoder.SentencePiece(
                pieces[unknownId].Text, file.UnknownSurface, [.. pieces.Where(piece => piece.Kind == PieceKind.Byte).Select(piece => piece.Text)], file.AddDummyPrefix || file.RemoveExtraWhitespaces, file.RemoveExtraWhitespaces),
            Prefix = [],
            Suffix = [],
            Notices = [],
            Roles = new SpecialTokens { Bos = Control(file.BosPiece), Eos = Control(file.EosPiece), Pad = Control(file.PadPiece), Unknown = pieces[unknownId].Text },
        };

        string? Control(string text) => vocabulary.TryGetValue(text, out int id) && pieces[id].Kind == PieceKind.Control ? text : null;
    }

    private static PieceTrie? UserDefined(List<SentencePiece> pieces)
    {
        (string, int)[] users = [.. pieces.Select((piece, id) => (piece, id)).Where(item => item.piece.Kind == PieceKind.UserDefined).Select(item => (item.piece.Text, item.id))];
        return users.Length > 0 ? new PieceTrie(users) : null;
    }

    private static UnigramModel<float> Unigram(List<SentencePiece> pieces, int unknownId, int[]? byteIds)
    {
        var used = new List<(string, int, float)>();
        float worst = float.MaxValue;
        for (int id = 0; id < pieces.Count; id++)
        {
            (string text, float score, PieceKind kind) = pieces[id];
            if (kind == PieceKind.UserDefined)
            {
                // So much that it is always taken.
                used.Add((text, id, (0.1f * Encoding.UTF8.GetByteCount(text)) - 0.1f));
            }
            else if (kind == PieceKind.Normal)
            {
                used.Add((text, id, score));
                worst = Math.Min(worst, score);
            }
        }

        return new UnigramModel<float>(used, worst, unknownId, byteIds, looksUpUnknown: false);
    }

    private static int[] BytesOf(List<SentencePiece> pieces)
    {
        int[] ids = ByteTokens.IdsIn(pieces.Select((piece, id) => (piece, id)).Where(item => item.piece.Kind == PieceKind.Byte).ToDictionary(item => item.piece.Text, item => item.id, StringComparer.Ordinal));
        int missing = Array.IndexOf(ids, -1);
        return missing < 0 ? ids : throw new FormatException(string.Create(CultureInfo.InvariantCulture, $"it writes unknown characters in bytes but has no piece <0x{missing:X2}> of the kind 'byte'"));
    }

    /// <summary>The fields that count, with the format's defaults.</summary>
    private sealed class Content
    {
        private const int UnigramType = 1, BpeType = 2;

        private int modelType = UnigramType;

        public List<SentencePiece> Pieces { get; } = [];

        public bool IsUnigram => modelType == UnigramType;

        public bool WhitespaceAsSuffix { get; private set; }

        public bool ByteFallback { get; private set; }

        public string UnknownSurface { get; private set; } = " \u2047 ";

        public string BosPiece { get; private set; } = "<s>";

        public string EosPiece { get; private set; } = "</s>";

        public string PadPiece { get; private set; } = "<pad>";

        public CharacterMap? CharacterMap { get; private set; }

        public bool AddDummyPrefix { get; private set; } = true;

        public bool RemoveExtraWhitespaces { get; private set; } = true;

        public bool EscapeWhitespaces { get; private set; } = true;

        public void ReadModel(ReadOnlySpan<byte> message)
        {
            var reader = new ProtobufReader(message);
            while (reader.Next())
            {
                switch (reader.Field)
                {
                    case 1:
                        ReadPiece(reader.Bytes());
                        break;
                    case 2:
                        ReadTrainer(reader.Bytes());
                        break;
                    case 3:
                        ReadNormalizer(reader.Bytes());
                        break;
                    case 5 when HasMap(reader.Bytes()):
                        throw new FormatException("it has a map of characters for decoding (denormalizer_spec), which is not supported");
                }
            }

            if (modelType is not (UnigramType or BpeType))
            {
                throw new FormatException($"its model_type is {modelType}; supported: {UnigramType} (unigram) and {BpeType} (BPE)");
            }
        }

        private void ReadPiece(ReadOnlySpan<byte> message)
        {
            string text = "";
            float score = 0;
            int kind = (int)PieceKind.Normal;
            var reader = new ProtobufReader(message);
            while (reader.Next())
            {
                switch (reader.Field)
                {
                    case 1:
                        text = reader.Text();
                        break;
                    case 2:
                        score = reader.Single();
                        break;
                    case 3:
                        kind = reader.Int32();
                        break;
                }
            }

            if (text.Length is 0 or > LongestPiece)
            {
                throw new FormatException($"piece {Pieces.Count} has {text.Length} characters; expected 1 to {LongestPiece}");
            }

            if (!Enum.IsDefined((PieceKind)kind))
            {
                throw new FormatException($"piece {Pieces.Count} is of kind {kind}; expected 1 to 6");
            }

            Pieces.Add(new SentencePiece(text, score, (PieceKind)kind));
        }

        private void ReadTrainer(ReadOnlySpan<byte> message)
        {
            var reader = new ProtobufReader(message);
            while (reader.Next())
            {
                switch (reader.Field)
                {
                    case 3:
                        modelType = reader.Int32();
                        break;
                    case 24:
                        WhitespaceAsSuffix = reader.Flag();
                        break;
                    case 35:
                        ByteFallback = reader.Flag();
                        break;
                    case 44:
                        UnknownSurface = reader.Text();
                        break;
                    case 46:
                        BosPiece = reader.Text();
                        break;
                    case 47:
                        EosPiece = reader.Text();
                        break;
                    case 48:
                        PadPiece = reader.Text();
                        break;
                }
            }
        }

        private void ReadNormalizer(ReadOnlySpan<byte> message)
        {
            var reader = new ProtobufReader(message);
            while (reader.Next())
            {
                switch (reader.Field)
                {
                    case 2:
                        CharacterMap = reader.Bytes().IsEmpty ? null : CharacterMap.Parse(reader.Bytes());
                        break;
                    case 3:
                        AddDummyPrefix = reader.Flag();
                        break;
                    case 4:
                        RemoveExtraWhitespaces = reader.Flag();
                        break;
                    case 5:
                        EscapeWhitespaces = reader.Flag();
                        break;
                }
            }
        }

        private static bool HasMap(ReadOnlySpan<byte> message)
        {
            var reader = new ProtobufReader(message);
            while (reader.Next())
            {
                if (reader.Field == 2 && !reader.Bytes().IsEmpty)
                {
                    return true;
                }
            }

            return false;
        }
    }
}
