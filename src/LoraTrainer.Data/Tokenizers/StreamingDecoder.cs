using System.Runtime.InteropServices;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>
/// Decodes a growing sequence of tokens: each call returns the text that has become certain. A character whose bytes are not complete is held back;
/// what is still held at the end comes with <see cref="Finish"/>. The pieces joined are the text of <see cref="Tokenizer.Decode"/>, except that
/// byte tokens of broken UTF-8 already shown are not taken back.
/// </summary>
public sealed class StreamingDecoder
{
    /// <summary>More undecided tokens than any character has bytes: then the text is broken, not unfinished.</summary>
    private const int MostHeldTokens = 16;

    private readonly Tokenizer tokenizer;
    private readonly bool skipSpecialTokens;
    private readonly List<int> window = [];
    private int shownTokens;
    private string shown = "";

    internal StreamingDecoder(Tokenizer tokenizer, bool skipSpecialTokens)
    {
        this.tokenizer = tokenizer;
        this.skipSpecialTokens = skipSpecialTokens;
    }

    /// <summary>Takes the next token; returns the text it completes, often none.</summary>
    public string Add(int id)
    {
        window.Add(id);
        string text = Decode();
        return text.EndsWith('\uFFFD') && window.Count - shownTokens < MostHeldTokens ? "" : Show(text);
    }

    /// <summary>The text that was held back.</summary>
    public string Finish() => Show(Decode());

    private string Decode() => tokenizer.Decode(CollectionsMarshal.AsSpan(window), skipSpecialTokens);

    /// <summary>Returns what is new in <paramref name="text"/> and keeps as context only the tokens it is about.</summary>
    private string Show(string text)
    {
        int common = shown.AsSpan().CommonPrefixLength(text);
        string added = text[common..];
        shown = text;
        if (added.AsSpan().ContainsAnyExcept(' '))
        {
            // The tokens shown now stay as context, so that a space at their border is decoded as inside a text. Spaces alone would not do: some decoders drop all that a text begins with.
            window.RemoveRange(0, shownTokens);
            shown = Decode();
        }

        shownTokens = window.Count;
        return added;
    }
}
