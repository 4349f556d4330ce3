using System.Text.Json;
using LoraTrainer.Data.Tokenizers.Unicode;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>
/// Reads tokenizer.json (version 1.0). Truncation and padding stored in it are ignored: they are settings of a call, and training has its own.
/// Every other thing that is not supported is refused by name.
/// </summary>
internal static class TokenizerJsonReader
{
    private const int LargestId = (1 << 24) - 1;

    /// <summary>Of the steps of a normalizer, a pre-tokenizer or a decoder, so that no file makes a text go through thousands.</summary>
    private const int MostSteps = 64;

    /// <summary>Around one text.</summary>
    private const int MostTemplateTokens = 64;

    /// <param name="path">Names the file in messages.</param>
    /// <param name="bytes">Its content.</param>
    public static TokenizerDefinition Read(string path, byte[] bytes)
    {
        using JsonDocument document = TokenizerFiles.ParseJson(path, bytes);
        return ReadRoot(new JsonPart(path, "", document.RootElement));
    }

    private static TokenizerDefinition ReadRoot(JsonPart root)
    {
        root.Only("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model");
        if (root["version"].TextOrNull() is var version && version != "1.0")
        {
            throw root["version"].Error($"expected \"1.0\", found {(version is null ? "nothing" : $"\"{version}\"")}");
        }

        Dictionary<string, int> vocabulary = ReadVocabulary(root["model"]);
        TokenModel model = ReadModel(root["model"], vocabulary);
        Normalizer? normalizer = root["normalizer"].IsNull ? null : ReadNormalizer(root["normalizer"]);
        var notices = new List<string>();
        List<AddedToken> added = root["added_tokens"].IsNull ? [] : ReadAddedTokens(root["added_tokens"], vocabulary, normalizer, notices);
        var known = new HashSet<int>(vocabulary.Values.Concat(added.Select(token => token.Id)));
        List<int> prefix = [], suffix = [];
        if (!root["post_processor"].IsNull)
        {
            ReadPostProcessor(root["post_processor"], known, prefix, suffix);
            if (prefix.Count + suffix.Count > MostTemplateTokens)
            {
                throw root["post_processor"].Error($"it puts {prefix.Count + suffix.Count} tokens around a text; at most {MostTemplateTokens} are supported");
            }
        }

        return new TokenizerDefinition
        {
            Model = model,
            Vocabulary = vocabulary,
            AddedTokens = added,
            Normalizer = normalizer,
            PreTokenizer = root["pre_tokenizer"].IsNull ? null : ReadPreTokenizer(root["pre_tokenizer"]),
            Decoder = root["decoder"].IsNull ? null : ReadDecoder(root["decoder"]),
            Prefix = prefix,
            Suffix = suffix,
            Notices = notices,
        };
    }

    private static Dictionary<string, int> ReadVocabulary(JsonPart model)
    {
        if (model.IsNull)
        {
            throw model.Error("missing; expected an object with vocab and merges");
        }

        if (IsUnigram(model))
        {
            return ReadUnigramVocabulary(model);
        }

        model.Only("type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges");
        var vocabulary = new Dictionary<string, int>(StringComparer.Ordinal);
        JsonPart table = model["vocab"];
        foreach (JsonProperty entry in table.Members())
        {
            if (entry.Value.ValueKind != JsonValueKind.Number || !entry.Value.TryGetInt32(out int id) || id is < 0 or > LargestId)
            {
                throw table.Error($"the id of '{entry.Name}' is {entry.Value.GetRawText()}; expected a whole number from 0 to {LargestId}");
            }

            vocabulary[table.NameOf(entry)] = id;
        }

        return vocabulary;
    }

    /// <summary>The two models that are read; a file without a type is BPE, as the oldest ones are.</summary>
    private static bool IsUnigram(JsonPart model) => model["type"].TextOrNull() switch
    {
        null or "BPE" => false,
        "Unigram" => true,
        { } type => throw model.Error($"the model type '{type}' is not supported; supported: BPE, Unigram"),
    };

    private static Dictionary<string, int> ReadUnigramVocabulary(JsonPart model)
    {
        model.Only("type", "unk_id", "vocab", "byte_fallback");
        var vocabulary = new Dictionary<string, int>(StringComparer.Ordinal);
        List<JsonPart> pieces = model["vocab"].Items();
        for (int id = 0; id < pieces.Count; id++)
        {
            List<JsonPart> pair = pieces[id].Items();
            if (pair.Count != 2 || pair[0].Text().Length == 0)
            {
                throw pieces[id].Error("expected a piece that is not empty, and its score");
            }

            // Of equal pieces the library takes the last one's id, but any one's score; that no file has.
            if (!vocabulary.TryAdd(pair[0].Text(), id))
            {
                throw pieces[id].Error($"the piece '{pair[0].Text()}' again; it is piece {vocabulary[pair[0].Text()]} already");
            }
        }

        return vocabulary;
    }

    private static UnigramModel<double> ReadUnigram(JsonPart model, Dictionary<string, int> vocabulary)
    {
        int? unknown = model["unk_id"].IsNull ? null : model["unk_id"].Number();
        if (unknown >= vocabulary.Count)
        {
            throw model["unk_id"].Error($"{unknown} is not in the vocabulary of {vocabulary.Count} pieces");
        }

        var pieces = new List<(string, int, double)>(vocabulary.Count);
        foreach (JsonPart item in model["vocab"].Items())
        {
            List<JsonPart> pair = item.Items();
            pieces.Add((pair[0].Text(), pieces.Count, pair[1].Fraction()));
        }

        return new UnigramModel<double>(pieces, pieces.Select(piece => piece.Item3).DefaultIfEmpty(0).Min(), unknown, model["byte_fallback"].Flag(absent: false) ? ByteTokens.IdsIn(vocabulary) : null, looksUpUnknown: true);
    }

    private static TokenModel ReadModel(JsonPart model, Dictionary<string, int> vocabulary)
    {
        if (IsUnigram(model))
        {
            return ReadUnigram(model, vocabulary);
        }

        JsonPart dropout = model["dropout"];
        if (!dropout.IsNull && (dropout.Kind != JsonValueKind.Number || dropout.Fraction() != 0))
        {
            throw dropout.Error("dropout of merges is not supported: the same text would give other ids each time. Set it to null");
        }

        var merges = new List<(string, string)>();
        foreach (JsonPart merge in model["merges"].Items())
        {
            if (merge.Kind == JsonValueKind.Array)
            {
                List<JsonPart> pair = merge.Items();
                merges.Add(pair.Count == 2 ? (pair[0].Text(), pair[1].Text()) : throw merge.Error($"expected two tokens, found {pair.Count}"));
                continue;
            }

            string line = merge.Text();
            if (line.StartsWith("#version", StringComparison.Ordinal))
            {
                continue;
            }

            int space = line.IndexOf(' ', StringComparison.Ordinal);
            merges.Add(space > 0 && line.LastIndexOf(' ') == space ? (line[..space], line[(space + 1)..]) : throw merge.Error($"expected two tokens with one space between, found '{line}'"));
        }

        try
        {
            return new BpeModel(vocabulary, merges, new BpeOptions
            {
                UnknownToken = NullIfEmpty(model["unk_token"].TextOrNull()),
                ContinuingSubwordPrefix = NullIfEmpty(model["continuing_subword_prefix"].TextOrNull()),
                EndOfWordSuffix = NullIfEmpty(model["end_of_word_suffix"].TextOrNull()),
                FuseUnknown = model["fuse_unk"].Flag(absent: false),
                ByteFallback = model["byte_fallback"].Flag(absent: false),
                IgnoreMerges = model["ignore_merges"].Flag(absent: false),
            });
        }
        catch (FormatException exception) when (exception is not TokenizerFormatException)
        {
            throw model.Error(exception.Message, exception);
        }

        static string? NullIfEmpty(string? text) => string.IsNullOrEmpty(text) ? null : text;
    }

    /// <summary>
    /// Ids are what the library makes them: that of the vocabulary where the content is in it, else the next free one in list order. An id in the file
    /// that says otherwise has no effect there, so it has none here, but it is worth a notice.
    /// </summary>
    private static List<AddedToken> ReadAddedTokens(JsonPart list, Dictionary<string, int> vocabulary, Normalizer? normalizer, List<string> notices)
    {
        var tokens = new List<AddedToken>();
        var seen = new Dictionary<string, int>(StringComparer.Ordinal);
        int next = vocabulary.Count;
        foreach (JsonPart item in list.Items())
        {
            item.Only("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special");
            string content = item["content"].Text();
            int written = item["id"].Number();
            if (content.Length == 0 || seen.ContainsKey(content))
            {
                continue;
            }

            bool inVocabulary = vocabulary.TryGetValue(content, out int id);
            id = inVocabulary ? id : next;
            if (id != written)
            {
                notices.Add(item["id"].Error($"the file gives '{content}' the id {written}, which has no effect; it is {id} ({(inVocabulary ? "its id in the vocabulary" : "the next free one")})").Message);
            }

            seen.Add(content, id);
            next = Math.Max(next, id + 1);
            if (content.Length > AddedTokenMatcher.LongestToken)
            {
                throw item["content"].Error($"it has {content.Length} characters; at most {AddedTokenMatcher.LongestToken} are supported");
            }

            bool normalized = item["normalized"].Flag(absent: true);
            tokens.Add(new AddedToken(
                id,
                content,
                normalized && normalizer is not null ? Normalized(item["content"], normalizer) : content,
                item["single_word"].Flag(absent: false),
                item["lstrip"].Flag(absent: false),
                item["rstrip"].Flag(absent: false),
                normalized,
                item["special"].Flag(absent: false)));
        }

        return tokens;
    }

    private static string Normalized(JsonPart content, Normalizer normalizer)
    {
        try
        {
            return normalizer.Apply(content.Text());
        }
        catch (FormatException exception) when (exception is not TokenizerFormatException)
        {
            throw content.Error($"the normalizer cannot be applied to it: {exception.Message}", exception);
        }
    }

    /// <summary>The steps of a Sequence, those of Sequences in it among them.</summary>
    private static List<T> ReadSteps<T>(JsonPart part, string name, Func<JsonPart, T> read, Func<T, IReadOnlyList<T>?> stepsOf)
    {
        var steps = new List<T>();
        foreach (JsonPart item in part.Only("type", name)[name].Items())
        {
            T step = read(item);
            steps.AddRange(stepsOf(step) ?? [step]);
            if (steps.Count > MostSteps)
            {
                throw part.Error($"it has more than {MostSteps} steps");
            }
        }

        return steps;
    }

    private static Normalizer ReadNormalizer(JsonPart part)
    {
        string type = part["type"].Text();
        switch (type)
        {
            case "Sequence":
                return new Normalizer.Sequence(ReadSteps(part, "normalizers", ReadNormalizer, step => (step as Normalizer.Sequence)?.Steps));
            case "NFC":
                part.Only("type");
                return new Normalizer.Form(NormalForm.C);
            case "NFD":
                part.Only("type");
                return new Normalizer.Form(NormalForm.D);
            case "NFKC":
                part.Only("type");
                return new Normalizer.Form(NormalForm.KC);
            case "NFKD":
                part.Only("type");
                return new Normalizer.Form(NormalForm.KD);
            case "Lowercase":
                part.Only("type");
                return new Normalizer.Lowercase();
            case "StripAccents":
                part.Only("type");
                return new Normalizer.StripAccents();
            case "Strip":
                part.Only("type", "strip_left", "strip_right");
                return new Normalizer.Strip(part["strip_left"].Flag(absent: true), part["strip_right"].Flag(absent: true));
            case "Prepend":
                return new Normalizer.Prepend(part.Only("type", "prepend")["prepend"].Text());
            case "Replace":
                part.Only("type", "pattern", "content");
                return new Normalizer.Replace(ReadPattern(part["pattern"]), part["content"].Text());
            case "ByteLevel":
                part.Only("type");
                return new Normalizer.ByteLevel();
            case "Precompiled":
                return new Normalizer.Precompiled(ReadCharacterMap(part.Only("type", "precompiled_charsmap")["precompiled_charsmap"]));
            case "Nmt":
                part.Only("type");
                return new Normalizer.Nmt();
            case "BertNormalizer":
                part.Only("type", "clean_text", "handle_chinese_chars", "strip_accents", "lowercase");
                bool lowercases = part["lowercase"].Flag(absent: true);
                return new Normalizer.Bert(part["clean_text"].Flag(absent: true), part["handle_chinese_chars"].Flag(absent: true), part["strip_accents"].Flag(absent: lowercases), lowercases);
            default:
                throw part.Error($"the normalizer '{type}' is not supported; supported: Sequence, NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Prepend, Replace, ByteLevel, Precompiled, Nmt, BertNormalizer");
        }
    }

    private static CharacterMap ReadCharacterMap(JsonPart part)
    {
        byte[] bytes = new byte[part.Text().Length];
        if (!Convert.TryFromBase64String(part.Text(), bytes, out int length))
        {
            throw part.Error("expected base64");
        }

        try
        {
            return CharacterMap.Parse(bytes.AsSpan(0, length));
        }
        catch (FormatException exception)
        {
            throw part.Error(exception.Message, exception);
        }
    }

    private static TextPattern ReadPattern(JsonPart part)
    {
        part.Only("String", "Regex");
        if (part.Has("String") == part.Has("Regex"))
        {
            throw part.Error("expected either String or Regex");
        }

        if (part.Has("String"))
        {
            return new TextPattern(part["String"].Text());
        }

        string pattern = part["Regex"].Text();
        try
        {
            return new TextPattern(SplitPattern.Parse(pattern));
        }
        catch (FormatException exception) when (exception is not TokenizerFormatException)
        {
            throw part["Regex"].Error($"the pattern {pattern} is not supported: {exception.Message}", exception);
        }
    }

    private static SplitBehavior ReadBehavior(JsonPart part, SplitBehavior? absent = null)
    {
        if (part.IsNull && absent is { } given)
        {
            return given;
        }

        string name = part.Text();
        return name switch
        {
            "Removed" => SplitBehavior.Removed,
            "Isolated" => SplitBehavior.Isolated,
            "MergedWithPrevious" => SplitBehavior.MergedWithPrevious,
            "MergedWithNext" => SplitBehavior.MergedWithNext,
            "Contiguous" => SplitBehavior.Contiguous,
            _ => throw part.Error($"the behavior '{name}' is not known; known: Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous"),
        };
    }

    private static PreTokenizer ReadPreTokenizer(JsonPart part)
    {
        string type = part["type"].Text();
        switch (type)
        {
            case "Sequence":
                return new PreTokenizer.Sequence(ReadSteps(part, "pretokenizers", ReadPreTokenizer, step => (step as PreTokenizer.Sequence)?.Steps));
            case "ByteLevel":
                part.Only("type", "add_prefix_space", "trim_offsets", "use_regex");
                return new PreTokenizer.ByteLevel(part["add_prefix_space"].Flag(absent: true), part["use_regex"].Flag(absent: true));
            case "Split":
                part.Only("type", "pattern", "behavior", "invert");
                return new PreTokenizer.Split(ReadPattern(part["pattern"]), ReadBehavior(part["behavior"]), part["invert"].Flag(absent: false));
            case "Metaspace":
                (char replacement, PreTokenizer.PrependScheme scheme, bool splits) = ReadMetaspace(part);
                return new PreTokenizer.Metaspace(replacement, scheme, splits);
            case "Digits":
                part.Only("type", "individual_digits");
                return SplitAt(set => set.AddCategories(UnicodeTables.CategoryMask("N")!.Value, complement: false), part["individual_digits"].Flag(absent: false) ? SplitBehavior.Isolated : SplitBehavior.Contiguous);
            case "Punctuation":
                part.Only("type", "behavior");
                return SplitAt(AddPunctuation, ReadBehavior(part["behavior"], absent: SplitBehavior.Isolated));
            case "Whitespace":
                part.Only("type");
                return new PreTokenizer.Split(new TextPattern(SplitPattern.Parse(@"\w+|[^\w\s]+")), SplitBehavior.Removed, Invert: true);
            case "WhitespaceSplit":
                part.Only("type");
                return SplitAt(set => set.AddWhiteSpace(complement: false), SplitBehavior.Removed);
            case "CharDelimiterSplit":
                return new PreTokenizer.Split(new TextPattern(part.Only("type", "delimiter")["delimiter"].Text()), SplitBehavior.Removed, Invert: false);
            case "BertPreTokenizer":
                part.Only("type");
                return new PreTokenizer.Sequence([SplitAt(set => set.AddWhiteSpace(complement: false), SplitBehavior.Removed), SplitAt(AddPunctuation, SplitBehavior.Isolated)]);
            default:
                throw part.Error($"the pre-tokenizer '{type}' is not supported; supported: Sequence, ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit, CharDelimiterSplit, BertPreTokenizer");
        }

        static PreTokenizer.Split SplitAt(Action<ScalarSet> fill, SplitBehavior behavior)
        {
            var set = new ScalarSet();
            fill(set);
            return new PreTokenizer.Split(new TextPattern(SplitPattern.Single(set.Freeze())), behavior, Invert: false);
        }

        static void AddPunctuation(ScalarSet set)
        {
            set.AddCategories(UnicodeTables.CategoryMask("P")!.Value, complement: false);
            foreach ((int first, int last) in new[] { ('!', '/'), (':', '@'), ('[', '`'), ('{', '~') })
            {
                set.AddRange(first, last);
            }
        }
    }

    private static (char Replacement, PreTokenizer.PrependScheme Scheme, bool Splits) ReadMetaspace(JsonPart part)
    {
        part.Only("type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep");
        string name = part["prepend_scheme"].TextOrNull() ?? "always";
        PreTokenizer.PrependScheme scheme = name switch
        {
            "first" => PreTokenizer.PrependScheme.First,
            "never" => PreTokenizer.PrependScheme.Never,
            "always" => PreTokenizer.PrependScheme.Always,
            _ => throw part["prepend_scheme"].Error($"expected first, never or always, found '{name}'"),
        };
        if (!part["add_prefix_space"].Flag(absent: true) && scheme != PreTokenizer.PrependScheme.Never)
        {
            throw part["add_prefix_space"].Error($"false contradicts prepend_scheme '{name}'");
        }

        return (part["replacement"].Character(), scheme, part["split"].Flag(absent: true));
    }

    private static void ReadPostProcessor(JsonPart part, HashSet<int> known, List<int> prefix, List<int> suffix)
    {
        string type = part["type"].Text();
        switch (type)
        {
            case "Sequence":
                foreach (JsonPart step in part.Only("type", "processors")["processors"].Items())
                {
                    ReadPostProcessor(step, known, prefix, suffix);
                }

                break;

            case "ByteLevel":
                // Moves offsets only; ids stay.
                part.Only("type", "add_prefix_space", "trim_offsets", "use_regex");
                break;

            case "TemplateProcessing":
                ReadTemplate(part.Only("type", "single", "pair", "special_tokens"), known, prefix, suffix);
                break;

            case "RobertaProcessing" or "BertProcessing":
                part.Only("type", "sep", "cls", "trim_offsets", "add_prefix_space");
                prefix.Insert(0, IdIn(part["cls"]));
                suffix.Add(IdIn(part["sep"]));
                break;

            default:
                throw part.Error($"the post-processor '{type}' is not supported; supported: Sequence, ByteLevel, TemplateProcessing, RobertaProcessing, BertProcessing");
        }

        int IdIn(JsonPart pair)
        {
            List<JsonPart> items = pair.Items();
            return items.Count == 2 ? Known(items[1], known) : throw pair.Error($"expected [token, id], found {items.Count} items");
        }
    }

    private static int Known(JsonPart id, HashSet<int> known) => known.Contains(id.Number()) ? id.Number() : throw id.Error($"the id {id.Number()} is not in the vocabulary");

    private static void ReadTemplate(JsonPart part, HashSet<int> known, List<int> prefix, List<int> suffix)
    {
        var before = new List<int>();
        bool passedText = false;
        foreach (JsonPart item in part["single"].Items())
        {
            item.Only("SpecialToken", "Sequence");
            if (item.Has("Sequence"))
            {
                string id = item["Sequence"]["id"].Text();
                if (passedText || id != "A")
                {
                    throw item.Error($"expected exactly one Sequence, A; found {(passedText ? "another one" : id)}");
                }

                passedText = true;
                continue;
            }

            string name = item["SpecialToken"]["id"].Text();
            foreach (JsonPart id in part["special_tokens"][name].Only("id", "ids", "tokens")["ids"].Items())
            {
                (passedText ? suffix : before).Add(Known(id, known));
            }

            if (before.Count + suffix.Count > MostTemplateTokens)
            {
                throw part["single"].Error($"it puts more than {MostTemplateTokens} tokens around a text");
            }
        }

        if (!passedText)
        {
            throw part["single"].Error("expected exactly one Sequence, A; found none");
        }

        prefix.InsertRange(0, before);
    }

    private static Decoder ReadDecoder(JsonPart part)
    {
        string type = part["type"].Text();
        switch (type)
        {
            case "Sequence":
                return new Decoder.Sequence(ReadSteps(part, "decoders", ReadDecoder, step => (step as Decoder.Sequence)?.Steps));
            case "ByteLevel":
                part.Only("type", "add_prefix_space", "trim_offsets", "use_regex");
                return new Decoder.ByteLevel();
            case "Replace":
                part.Only("type", "pattern", "content");
                return new Decoder.Replace(ReadPattern(part["pattern"]), part["content"].Text());
            case "ByteFallback":
                part.Only("type");
                return new Decoder.ByteFallback();
            case "Fuse":
                part.Only("type");
                return new Decoder.Fuse();
            case "Strip":
                part.Only("type", "content", "start", "stop");
                return new Decoder.Strip(part["content"].Character(), part["start"].Number(), part["stop"].Number());
            case "Metaspace":
                (char replacement, PreTokenizer.PrependScheme scheme, _) = ReadMetaspace(part);
                return new Decoder.Metaspace(replacement, scheme);
            default:
                throw part.Error($"the decoder '{type}' is not supported; supported: Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace");
        }
    }
}
