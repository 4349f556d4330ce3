using System.Text;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>Characters of a text, as UTF-16 positions, that came from outside the template.</summary>
/// <param name="Start">The first.</param>
/// <param name="End">Behind the last.</param>
/// <param name="Source">The message they belong to, counted from 0; -1 for tools, documents and other variables.</param>
internal readonly record struct ForeignRange(int Start, int End, int Source)
{
    public int Length => End - Start;

    public ForeignRange Moved(int by) => new(Start + by, End + by, Source);
}

/// <summary>
/// A text of a template, which knows which of its characters came from the conversation instead of the template. Markers such as an end of turn count
/// only where the template wrote all of their characters, and it is known where in the result each message is. Immutable. Positions are UTF-16 units
/// here; what templates count are code points (<see cref="CodePoints"/>).
/// </summary>
internal sealed class Text
{
    /// <summary>Memory of a short text beside its characters.</summary>
    private const int UnitsOfText = 32;

    /// <summary>Each code point is one unit.</summary>
    private static readonly int[] OneUnitEach = [];

    private readonly ForeignRange[] foreign;
    private int[]? starts;

    private Text(string value, ForeignRange[] foreign, bool isSafe = false)
    {
        Value = value;
        this.foreign = foreign;
        IsSafe = isSafe;
    }

    public static Text Empty { get; } = new("", []);

    public string Value { get; }

    public int Length => Value.Length;

    /// <summary>Marked by the filter safe: joining it to another text by + would escape that for HTML, which is refused.</summary>
    public bool IsSafe { get; }

    /// <summary>Ascending, none empty, none touching its neighbour of the same source.</summary>
    public ReadOnlySpan<ForeignRange> Foreign => foreign;

    /// <summary>The number of code points.</summary>
    public int CodePoints => Starts is { } known ? known.Length - 1 : Value.Length;

    /// <summary>Where each code point starts, and the end; null where each is one unit.</summary>
    private int[]? Starts
    {
        get
        {
            starts ??= Value.AsSpan().ContainsAnyInRange('\uD800', '\uDFFF') ? FindStarts() : OneUnitEach;
            return starts == OneUnitEach ? null : starts;
        }
    }

    /// <summary>Written by the template.</summary>
    public static Text Own(string value) => value.Length == 0 ? Empty : new(value, []);

    /// <summary>All of it from outside.</summary>
    public static Text From(string value, int source) => value.Length == 0 ? Empty : new(value, [new(0, value.Length, source)]);

    public static Text WithForeign(string value, List<ForeignRange> foreign) => new(value, [.. foreign]);

    public static Text Concat(Text left, Text right, RenderBudget budget)
    {
        if (left.Length == 0 || right.Length == 0)
        {
            return left.Length == 0 ? right.Plain() : left.Plain();
        }

        var builder = new TextBuilder(budget);
        builder.Append(left);
        builder.Append(right);
        return builder.ToText();
    }

    public Text Plain() => IsSafe ? new Text(Value, foreign) : this;

    public Text Safe() => IsSafe ? this : new Text(Value, foreign, isSafe: true);

    /// <summary>Units from <paramref name="start"/> to before <paramref name="end"/>.</summary>
    public Text Slice(int start, int end, RenderBudget budget)
    {
        if (start >= end)
        {
            return Empty;
        }

        if (start == 0 && end == Length)
        {
            return Plain();
        }

        budget.Make(end - start + UnitsOfText);
        if (foreign.Length == 0)
        {
            return new Text(Value[start..end], []);
        }

        var cut = new List<ForeignRange>();
        foreach (ForeignRange range in foreign)
        {
            int from = Math.Max(range.Start, start), to = Math.Min(range.End, end);
            if (from < to)
            {
                cut.Add(new ForeignRange(from - start, to - start, range.Source));
            }
        }

        return new Text(Value[start..end], [.. cut]);
    }

    /// <summary>The unit at which code point <paramref name="index"/> starts; the end for the number of code points.</summary>
    public int UnitOf(int index) => Starts is { } known ? known[index] : index;

    /// <summary>The number of code points before unit <paramref name="unit"/>.</summary>
    public int CodePointOf(int unit)
    {
        if (Starts is not { } known)
        {
            return unit;
        }

        int found = Array.BinarySearch(known, unit);
        return found >= 0 ? found : ~found;
    }

    /// <summary>One code point.</summary>
    public Text At(int index, RenderBudget budget) => Slice(UnitOf(index), UnitOf(index + 1), budget);

    /// <summary>A text made of this one: its characters keep their origin where there are as many, else all come from wherever one came.</summary>
    public Text Changed(string value, RenderBudget budget)
    {
        budget.Make(value.Length + UnitsOfText);
        return value.Length == 0 ? Empty
            : foreign.Length == 0 || value.Length == Length ? new Text(value, foreign)
            : From(value, SourceOfAll());
    }

    /// <summary>The one message that all foreign characters belong to; -1 where there is none, or several.</summary>
    public int SourceOfAll()
    {
        int source = foreign.Length > 0 ? foreign[0].Source : -1;
        return Array.TrueForAll(foreign, range => range.Source == source) ? source : -1;
    }

    public override string ToString() => Value;

    private int[] FindStarts()
    {
        var found = new List<int>(Value.Length);
        for (int i = 0; i < Value.Length; i++)
        {
            found.Add(i);
            i += char.IsHighSurrogate(Value[i]) && i + 1 < Value.Length && char.IsLowSurrogate(Value[i + 1]) ? 1 : 0;
        }

        found.Add(Value.Length);
        return [.. found];
    }
}

/// <summary>Puts a <see cref="Text"/> together.</summary>
internal sealed class TextBuilder(RenderBudget budget)
{
    private readonly StringBuilder value = new();
    private readonly List<ForeignRange> foreign = [];

    private int lowSurrogates;

    /// <summary>The number of code points so far.</summary>
    public int CodePoints => value.Length - lowSurrogates;

    public void Append(string own) => Append(Text.Own(own));

    public void Append(Text text)
    {
        budget.Make(text.Length + (4 * text.Foreign.Length));
        lowSurrogates += text.Length - text.CodePoints;
        foreach (ForeignRange range in text.Foreign)
        {
            ForeignRange moved = range.Moved(value.Length);
            if (foreign.Count > 0 && foreign[^1].End == moved.Start && foreign[^1].Source == moved.Source)
            {
                foreign[^1] = foreign[^1] with { End = moved.End };
            }
            else
            {
                foreign.Add(moved);
            }
        }

        value.Append(text.Value);
    }

    public Text ToText() => value.Length == 0 ? Text.Empty : Text.WithForeign(value.ToString(), foreign);
}
