using System.Collections.Frozen;
using System.Numerics;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

// The values of a template are: null (none), bool, BigInteger, double, Text, and the classes below. Nothing else can get in, and none of them reaches
// anything but the data. Lists and dictionaries cannot be changed, so they have no cycles; how deep they go is bounded where they are made.

/// <summary>What is not there, with the sentence for whoever uses it as if it were. It prints as nothing, is false, and has no entries.</summary>
internal sealed record Undefined(string Problem);

/// <summary>Something that can be called.</summary>
internal abstract class Callable
{
    public abstract object? Call(Interpreter interpreter, CallArguments arguments);
}

/// <summary>A function or a method, by what it does.</summary>
internal sealed class Function(Func<Interpreter, CallArguments, object?> body) : Callable
{
    public override object? Call(Interpreter interpreter, CallArguments arguments) => body(interpreter, arguments);
}

/// <summary>A list or, with <see cref="IsTuple"/>, a tuple.</summary>
internal sealed class ListValue : IDeep
{
    public ListValue(IReadOnlyList<object?> items, bool isTuple = false)
    {
        Items = items;
        IsTuple = isTuple;
        Depth = IDeep.Over(items);
    }

    public static ListValue Empty { get; } = new([]);

    public IReadOnlyList<object?> Items { get; }

    public bool IsTuple { get; }

    public int Depth { get; }
}

/// <summary>A dictionary in the order of its making.</summary>
internal sealed class DictValue : IDeep
{
    private readonly Dictionary<DictKey, int> places = [];
    private readonly List<(object? Key, object? Value)> entries = [];

    public DictValue(IEnumerable<(object? Key, object? Value)> items)
    {
        foreach ((object? key, object? value) in items)
        {
            var place = DictKey.Of(key);
            if (places.TryGetValue(place, out int at))
            {
                entries[at] = (entries[at].Key, value);
            }
            else
            {
                places.Add(place, entries.Count);
                entries.Add((key, value));
            }
        }

        Depth = IDeep.Over(entries.Select(entry => entry.Value));
    }

    public IReadOnlyList<(object? Key, object? Value)> Entries => entries;

    public int Depth { get; }

    public bool TryGet(object? key, out object? value)
    {
        bool found = places.TryGetValue(DictKey.Of(key), out int at);
        value = found ? entries[at].Value : null;
        return found;
    }

    public bool TryGet(string key, out object? value) => TryGet(Text.Own(key), out value);

    /// <summary>The same entries but for one, which is replaced or put behind them.</summary>
    public DictValue With(string key, object? value) => new([.. entries, (Text.Own(key), value)]);

    /// <summary>A key as it is compared: 1, 1.0 and true are one.</summary>
    private readonly record struct DictKey(string? Text, double Number, BigInteger Whole, char Kind)
    {
        public static DictKey Of(object? key) => key switch
        {
            Text text => new DictKey(text.Value, 0, 0, 't'),
            null => new DictKey(null, 0, 0, '0'),
            bool flag => new DictKey(null, 0, flag ? 1 : 0, 'i'),
            BigInteger whole => new DictKey(null, 0, whole, 'i'),
            double number when double.IsInteger(number) => new DictKey(null, 0, new BigInteger(number), 'i'),
            double number => new DictKey(null, number, 0, 'd'),
            _ => throw new JinjaException($"{Words.Of(key)} cannot be the key of a dictionary"),
        };
    }
}

/// <summary>What holds other values, and how deep.</summary>
internal interface IDeep
{
    /// <summary>JSON of conversations is not so deep; all that walks through values counts on it.</summary>
    private const int Most = 100;

    int Depth { get; }

    protected static int Over(IEnumerable<object?> parts)
    {
        int depth = 1;
        foreach (object? part in parts)
        {
            depth = Math.Max(depth, part is IDeep deep ? deep.Depth + 1 : 1);
        }

        return depth <= Most ? depth : throw new JinjaException($"lists and dictionaries are more than {Most} deep within each other");
    }
}

/// <summary>Which part of its dictionary a <see cref="DictView"/> shows.</summary>
internal enum DictPart
{
    Keys,
    Values,
    Items,
}

/// <summary>What keys(), values() and items() give.</summary>
internal sealed record DictView(DictValue Of, DictPart Part)
{
    public IEnumerable<object?> Entries() => Of.Entries.Select(entry => Part switch
    {
        DictPart.Keys => entry.Key,
        DictPart.Values => entry.Value,
        _ => new ListValue([entry.Key, entry.Value], isTuple: true),
    });
}

/// <summary>Whole numbers; none is stored.</summary>
internal sealed record RangeValue(BigInteger Start, BigInteger Step, int Count)
{
    /// <summary>As the reference allows.</summary>
    private const int Most = 100_000;

    public static RangeValue Between(BigInteger start, BigInteger stop, BigInteger step)
    {
        if (step.IsZero)
        {
            throw new JinjaException("range: the step is 0");
        }

        BigInteger distance = step.Sign > 0 ? stop - start : start - stop, size = BigInteger.Abs(step);
        BigInteger count = distance.Sign > 0 ? (distance + size - 1) / size : 0;
        return count <= Most ? new RangeValue(start, step, (int)count) : throw new JinjaException($"range: {count} numbers are more than the {Most} that templates may have");
    }

    public BigInteger At(int index) => Start + (index * Step);
}

/// <summary>Entries that are made while they are asked for, once: what map, select and their like give.</summary>
internal sealed class GeneratorValue(IEnumerable<object?> entries)
{
    private readonly IEnumerator<object?> remaining = entries.GetEnumerator();

    public IEnumerable<object?> Entries(RenderBudget budget)
    {
        while (MoveNext(budget))
        {
            yield return remaining.Current;
        }
    }

    /// <summary>Entries may come from another such value, and that from another, as deep as the template likes.</summary>
    private bool MoveNext(RenderBudget budget)
    {
        budget.Enter();
        bool found = remaining.MoveNext();
        budget.Leave();
        return found;
    }
}

/// <summary>The one thing that a template can change: variables that outlive the block in which they are set.</summary>
internal sealed class NamespaceValue
{
    public Dictionary<string, object?> Attributes { get; } = new(StringComparer.Ordinal);
}

/// <summary>What stands in the brackets of a call.</summary>
internal sealed class CallArguments(IReadOnlyList<object?> positional, IReadOnlyDictionary<string, object?> keywords)
{
    private static readonly FrozenDictionary<string, object?> NoKeywords = FrozenDictionary<string, object?>.Empty;

    public static CallArguments None { get; } = new([], NoKeywords);

    public IReadOnlyList<object?> Positional => positional;

    public IReadOnlyDictionary<string, object?> Keywords => keywords;

    public static CallArguments Of(params IReadOnlyList<object?> positional) => new(positional, NoKeywords);

    /// <summary>Refuses arguments beyond those named.</summary>
    /// <param name="what">Who is called, for the sentence.</param>
    /// <param name="names">Of the parameters, in order.</param>
    public Bound For(string what, params IReadOnlyList<string> names)
    {
        if (positional.Count > names.Count)
        {
            throw new JinjaException($"{what} takes {(names.Count == 0 ? "no arguments" : $"at most {names.Count} ({string.Join(", ", names)})")}, got {positional.Count}");
        }

        foreach (string keyword in keywords.Keys)
        {
            int index = names.ToList().IndexOf(keyword);
            if (index < 0)
            {
                throw new JinjaException($"{what} has no argument '{keyword}'{(names.Count == 0 ? "" : $"; it takes {string.Join(", ", names)}")}");
            }

            if (index < positional.Count)
            {
                throw new JinjaException($"{what} got its argument '{keyword}' twice");
            }
        }

        return new Bound(what, this, names);
    }

    /// <summary>The arguments by the names of the parameters.</summary>
    public readonly struct Bound(string what, CallArguments arguments, IReadOnlyList<string> names)
    {
        public bool Has(int index) => TryGet(index, out _);

        public object? Get(int index) => TryGet(index, out object? value) ? value : throw new JinjaException($"{what} needs its argument '{names[index]}'");

        public object? Get(int index, object? absent) => TryGet(index, out object? value) ? value : absent;

        public Text Text(int index) => Get(index) as Text ?? throw Wrong(index, "a text");

        public Text? TextOrNone(int index) => Get(index, null) switch
        {
            null => null,
            Text text => text,
            _ => throw Wrong(index, "a text or none"),
        };

        public bool Flag(int index, bool absent) => TryGet(index, out object? value) ? Operators.IsTrue(value) : absent;

        public int Number(int index, int absent) => TryGet(index, out object? value)
            ? Operators.TryWhole(value, out BigInteger whole) && BigInteger.Abs(whole) <= int.MaxValue ? (int)whole : throw Wrong(index, "a whole number")
            : absent;

        private bool TryGet(int index, out object? value)
        {
            if (index < arguments.Positional.Count)
            {
                value = arguments.Positional[index];
                return true;
            }

            return arguments.Keywords.TryGetValue(names[index], out value);
        }

        private JinjaException Wrong(int index, string expected)
            => new($"{what} expects {expected} as its argument '{names[index]}', found {Words.Of(Get(index))}");
    }
}
