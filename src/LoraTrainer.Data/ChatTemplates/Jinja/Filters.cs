using System.Globalization;
using System.Numerics;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>Jinja's filters, as far as chat templates have a use for them.</summary>
internal static class Filters
{
    public static bool Exists(string name) => name is "abs" or "attr" or "batch" or "capitalize" or "center" or "count" or "d" or "default" or "dictsort" or "e" or "escape" or "first" or "float"
        or "format" or "indent" or "int" or "items" or "join" or "last" or "length" or "list" or "lower" or "map" or "max" or "min" or "reject" or "rejectattr" or "replace" or "reverse"
        or "round" or "safe" or "select" or "selectattr" or "slice" or "sort" or "string" or "sum" or "title" or "tojson" or "trim" or "truncate" or "unique" or "upper" or "wordcount";

    /// <summary>What the filter <paramref name="name"/> makes of <paramref name="value"/>.</summary>
    public static object? Apply(Interpreter interpreter, string name, object? value, CallArguments arguments)
    {
        bool isSafe = value is Text { IsSafe: true };
        object? result = Result(interpreter, name, value, arguments);
        return isSafe && result is Text text && name is not "tojson" ? text.Safe() : result;
    }

    private static object? Result(Interpreter interpreter, string name, object? value, CallArguments arguments)
    {
        RenderBudget budget = interpreter.Budget;
        switch (name)
        {
            case "abs":
                arguments.For(name);
                return Operators.TryWhole(value, out BigInteger whole) ? BigInteger.Abs(whole) : value is double number ? Math.Abs(number) : throw Unfit();
            case "attr":
                return interpreter.Attribute(value, arguments.For(name, "name").Text(0).Value, withItems: false);
            case "capitalize" or "lower" or "title" or "upper":
                arguments.For(name);
                Text cased = Operators.ToText(value, budget);
                budget.Look(cased.Length);
                return cased.Changed(name switch
                {
                    "capitalize" => PythonText.Capitalize(cased.Value),
                    "lower" => PythonText.Lower(cased.Value),
                    "upper" => PythonText.Upper(cased.Value),
                    _ => PythonText.Title(cased.Value, c => c is '-' or '(' or '{' or '[' or '<' || PythonText.IsSpace(c)),
                }, budget);
            case "center":
                return ((Callable)Methods.Find(Operators.ToText(value, budget), "center")!).Call(interpreter, CallArguments.Of(new BigInteger(arguments.For(name, "width").Number(0, 80))));
            case "count" or "length":
                arguments.For(name);
                return Operators.Length(value) is { } length ? new BigInteger(length) : throw new JinjaException($"{Words.Of(value)} has no length");
            case "d" or "default":
                CallArguments.Bound fallback = arguments.For(name, "default_value", "boolean");
                return value is Undefined || (fallback.Flag(1, false) && !Operators.IsTrue(value)) ? fallback.Get(0, Text.Empty) : value;
            case "e" or "escape":
                arguments.For(name);
                return Escape(Operators.ToText(value, budget), budget);
            case "first":
                arguments.For(name);
                foreach (object? entry in Operators.Entries(value, budget))
                {
                    return entry;
                }

                return new Undefined("'first' of something empty");
            case "last":
                arguments.For(name);
                return value is GeneratorValue ? throw Unfit() : Operators.ToList(value, budget) is { Count: > 0 } all ? all[^1] : new Undefined("'last' of something empty");
            case "format":
                return PythonFormat.Percent(
                    Operators.ToText(value, budget),
                    arguments.Keywords.Count > 0 ? new DictValue(arguments.Keywords.Select(pair => ((object?)Text.Own(pair.Key), pair.Value))) : new ListValue(arguments.Positional, isTuple: true), budget);
            case "indent":
                return Indent(Operators.ToText(value, budget), arguments.For(name, "width", "first", "blank"), budget);
            case "int":
                CallArguments.Bound integer = arguments.For(name, "default", "base");
                return ToWhole(Operators.Defined(value), integer.Number(1, 10)) is { } converted ? converted : integer.Get(0, BigInteger.Zero);
            case "float":
                return ToReal(Operators.Defined(value)) is { } real ? real : arguments.For(name, "default").Get(0, 0.0);
            case "items":
                arguments.For(name);
                return value switch
                {
                    Undefined => new GeneratorValue([]),
                    DictValue dict => new GeneratorValue(new DictView(dict, DictPart.Items).Entries()),
                    _ => throw Unfit(),
                };
            case "join":
                return Join(interpreter, value, arguments.For(name, "d", "attribute"));
            case "list":
                arguments.For(name);
                return new ListValue(Operators.ToList(value, budget));
            case "map":
                return Map(interpreter, value, arguments);
            case "select" or "reject":
                return Select(interpreter, value, null, arguments, isKept: name == "select");
            case "selectattr" or "rejectattr":
                return arguments.Positional.Count > 0
                    ? Select(interpreter, value, arguments.Positional[0], new CallArguments([.. arguments.Positional.Skip(1)], arguments.Keywords), isKept: name == "selectattr")
                    : throw new JinjaException($"{name} needs the name of an attribute");
            case "max" or "min":
                CallArguments.Bound extreme = arguments.For(name, "case_sensitive", "attribute");
                List<object?> ordered = Sorted(interpreter, value, extreme.Flag(0, false), extreme.Get(1, null), isDescending: name == "max");
                return ordered.Count > 0 ? ordered[0] : new Undefined($"'{name}' of something empty");
            case "sort":
                CallArguments.Bound sort = arguments.For(name, "reverse", "case_sensitive", "attribute");
                return new ListValue(Sorted(interpreter, value, sort.Flag(1, false), sort.Get(2, null), sort.Flag(0, false)));
            case "dictsort":
                return SortDict(interpreter, value as DictValue ?? throw Unfit(), arguments.For(name, "case_sensitive", "by", "reverse"));
            case "unique":
                CallArguments.Bound unique = arguments.For(name, "case_sensitive", "attribute");
                return new GeneratorValue(Unique(interpreter, value, unique.Flag(0, false), unique.Get(1, null)));
            case "replace":
                CallArguments.Bound replace = arguments.For(name, "old", "new", "count");
                return Methods.Replace(
                    Operators.ToText(value, budget), Operators.ToText(replace.Get(0), budget), Operators.ToText(replace.Get(1), budget), replace.Get(2, null) is null ? -1 : replace.Number(2, -1), budget);
            case "reverse":
                arguments.For(name);
                if (value is Text forward)
                {
                    return Operators.Slice(forward, null, null, BigInteger.MinusOne, budget);
                }

                List<object?> reversed = Operators.ToList(value, budget);
                reversed.Reverse();
                return new GeneratorValue(reversed);
            case "round":
                return Round(value, arguments.For(name, "precision", "method"));
            case "safe":
                arguments.For(name);
                return Operators.ToText(value, budget).Safe();
            case "batch" or "slice":
                CallArguments.Bound cut = arguments.For(name, name == "batch" ? "linecount" : "slices", "fill_with");
                return new GeneratorValue(Cut(Operators.ToList(value, budget), Math.Clamp(cut.Number(0, 1), 1, 100_000), cut.Get(1, null), name == "slice", budget));
            case "string":
                arguments.For(name);
                return Operators.ToText(value, budget);
            case "sum":
                CallArguments.Bound sum = arguments.For(name, "attribute", "start");
                return Values(interpreter, value, sum.Get(0, null)).Aggregate(sum.Get(1, BigInteger.Zero), (total, part) => Operators.Binary("+", total, part, budget));
            case "tojson":
                return JsonText.Write(value, arguments, budget);
            case "trim":
                return Methods.Strip(Operators.ToText(value, budget), arguments.For(name, "chars").TextOrNone(0), left: true, right: true, budget);
            case "truncate":
                return Truncate(Operators.ToText(value, budget), arguments.For(name, "length", "killwords", "end", "leeway"), budget);
            case "wordcount":
                arguments.For(name);
                return new BigInteger(CountWords(Operators.ToText(value, budget), budget));
            default:
                throw new JinjaException($"the filter '{name}' is not supported");
        }

        JinjaException Unfit() => value is Undefined undefined ? new JinjaException(undefined.Problem) : new JinjaException($"the filter '{name}' does not work on {Words.Of(value)}");
    }

    private static Text Join(Interpreter interpreter, object? value, CallArguments.Bound bound)
    {
        Text between = Operators.ToText(bound.Get(0, Text.Empty), interpreter.Budget);
        var builder = new TextBuilder(interpreter.Budget);
        bool isFirst = true;
        foreach (object? part in Values(interpreter, value, bound.Get(1, null)))
        {
            builder.Append(isFirst ? Text.Empty : between);
            builder.Append(Operators.ToText(part, interpreter.Budget));
            isFirst = false;
        }

        return builder.ToText();
    }

    private static GeneratorValue Map(Interpreter interpreter, object? value, CallArguments arguments)
    {
        if (arguments.Positional.Count == 0)
        {
            CallArguments.Bound bound = arguments.For("map", "attribute", "default");
            object attribute = bound.Get(0)!;
            return new GeneratorValue(Operators.Entries(value, interpreter.Budget).Select(entry => Value(interpreter, entry, attribute) switch
            {
                Undefined when bound.Has(1) => bound.Get(1),
                var found => found,
            }));
        }

        string filter = (arguments.Positional[0] as Text ?? throw new JinjaException($"map expects the name of a filter, found {Words.Of(arguments.Positional[0])}")).Value;
        var rest = new CallArguments([.. arguments.Positional.Skip(1)], arguments.Keywords);
        return new GeneratorValue(Operators.Entries(value, interpreter.Budget).Select(entry => Apply(interpreter, filter, entry, rest)));
    }

    private static GeneratorValue Select(Interpreter interpreter, object? value, object? attribute, CallArguments arguments, bool isKept)
    {
        string? test = arguments.Positional.Count == 0 ? null : (arguments.Positional[0] as Text ?? throw new JinjaException($"the name of a test is expected, found {Words.Of(arguments.Positional[0])}")).Value;
        var rest = new CallArguments([.. arguments.Positional.Skip(1)], arguments.Keywords);
        return new GeneratorValue(Operators.Entries(value, interpreter.Budget).Where(entry =>
        {
            object? tested = attribute is null ? entry : Value(interpreter, entry, attribute);
            return (test is null ? Operators.IsTrue(tested) : Tests.Check(interpreter, test, tested, rest)) == isKept;
        }));
    }

    private static IEnumerable<object?> Values(Interpreter interpreter, object? value, object? attribute)
    {
        IEnumerable<object?> entries = Operators.Entries(value, interpreter.Budget);
        return attribute is null ? entries : entries.Select(entry => Value(interpreter, entry, attribute));
    }

    /// <summary>"a.b" is item b of item a; numbers are places.</summary>
    private static object? Value(Interpreter interpreter, object? entry, object attribute)
    {
        foreach (string part in attribute is Text path ? path.Value.Split('.') : [PythonText.Write(Operators.TryWhole(attribute, out BigInteger place) ? place : throw new JinjaException("an attribute is a text or a number"))])
        {
            interpreter.Budget.Step();
            entry = interpreter.Item(entry, BigInteger.TryParse(part, NumberStyles.None, CultureInfo.InvariantCulture, out BigInteger index) ? index : Text.Own(part));
        }

        return entry;
    }

    private static object? Folded(object? value, bool isCaseSensitive, RenderBudget budget) => value is Text text && !isCaseSensitive ? text.Changed(PythonText.Lower(text.Value), budget) : value;

    private static List<object?> Sorted(Interpreter interpreter, object? value, bool isCaseSensitive, object? attribute, bool isDescending)
    {
        RenderBudget budget = interpreter.Budget;
        List<(object? Key, object? Entry)> pairs = [.. Operators.ToList(value, budget).Select(entry => (Folded(attribute is null ? entry : Value(interpreter, entry, attribute), isCaseSensitive, budget), entry))];
        return [.. Operators.Sort(pairs, pair => pair.Key, isDescending, budget).Select(pair => pair.Entry)];
    }

    private static ListValue SortDict(Interpreter interpreter, DictValue dict, CallArguments.Bound bound)
    {
        string by = bound.Get(1, Text.Own("key")) is Text { Value: "key" or "value" } which ? which.Value : throw new JinjaException("dictsort: 'by' is 'key' or 'value'");
        List<(object? Key, object? Entry)> pairs =
        [
            .. dict.Entries.Select(entry => (
                Folded(by == "key" ? entry.Key : entry.Value, bound.Flag(0, false), interpreter.Budget),
                (object?)new ListValue([entry.Key, entry.Value], isTuple: true))),
        ];
        interpreter.Budget.MakeEntries(4L * pairs.Count);
        return new ListValue([.. Operators.Sort(pairs, pair => pair.Key, bound.Flag(2, false), interpreter.Budget).Select(pair => pair.Entry)]);
    }

    private static IEnumerable<object?> Unique(Interpreter interpreter, object? value, bool isCaseSensitive, object? attribute)
    {
        var seen = new List<object?>();
        foreach (object? entry in Operators.Entries(value, interpreter.Budget))
        {
            object? key = Folded(attribute is null ? entry : Value(interpreter, entry, attribute), isCaseSensitive, interpreter.Budget);
            if (!seen.Exists(known => Operators.AreEqual(known, key, interpreter.Budget)))
            {
                interpreter.Budget.MakeEntries(1);
                seen.Add(key);
                yield return entry;
            }
        }
    }

    private static IEnumerable<object?> Cut(List<object?> all, int size, object? fill, bool isSlices, RenderBudget budget)
    {
        int parts = isSlices ? size : (all.Count + size - 1) / size, start = 0;
        for (int i = 0; i < parts; i++)
        {
            int length = !isSlices ? Math.Min(size, all.Count - start) : (all.Count / size) + (i < all.Count % size ? 1 : 0);
            budget.MakeEntries(2 + size);
            List<object?> part = all.GetRange(start, length);
            start += length;
            if (fill is not null && !isSlices)
            {
                part.AddRange(Enumerable.Repeat(fill, size - length));
            }
            else if (fill is not null && all.Count % size > 0 && i >= all.Count % size)
            {
                part.Add(fill);
            }

            yield return new ListValue(part);
        }
    }

    private static Text Indent(Text text, CallArguments.Bound bound, RenderBudget budget)
    {
        Text prefix = bound.Get(0, null) is Text given ? given : Text.Own(new string(' ', Math.Clamp(bound.Number(0, 4), 0, 1000)));
        bool withBlank = bound.Flag(2, false);
        var builder = new TextBuilder(budget);
        builder.Append(bound.Flag(1, false) ? prefix : Text.Empty);
        int start = 0;
        for (int end = text.Value.IndexOf('\n', StringComparison.Ordinal); end >= 0; end = text.Value.IndexOf('\n', start))
        {
            budget.Step();
            builder.Append(text.Slice(start, end + 1, budget));
            start = end + 1;
            bool isBlank = start == text.Length || text.Value[start] == '\n';
            builder.Append(withBlank || !isBlank ? prefix : Text.Empty);
            if (start == text.Length)
            {
                break;
            }
        }

        builder.Append(text.Slice(start, text.Length, budget));
        return builder.ToText();
    }

    private static Text Truncate(Text text, CallArguments.Bound bound, RenderBudget budget)
    {
        int length = bound.Number(0, 255), leeway = bound.Number(3, 5);
        Text end = Operators.ToText(bound.Get(2, Text.Own("...")), budget);
        if (length < end.CodePoints || leeway < 0)
        {
            throw new JinjaException($"truncate: the length {length} has no room for \"{end.Value}\"");
        }

        if (text.CodePoints <= (long)length + leeway)
        {
            return text;
        }

        Text kept = text.Slice(0, text.UnitOf(length - end.CodePoints), budget);
        int space = bound.Flag(1, false) ? -1 : kept.Value.LastIndexOf(' ');
        return Text.Concat(space < 0 ? kept : kept.Slice(0, space, budget), end, budget);
    }

    private static int CountWords(Text text, RenderBudget budget)
    {
        budget.Look(text.Length);
        int words = 0;
        bool isInside = false;
        foreach (System.Text.Rune rune in text.Value.EnumerateRunes())
        {
            bool isWord = Tokenizers.Unicode.UnicodeTables.IsWord(rune.Value);
            words += isWord && !isInside ? 1 : 0;
            isInside = isWord;
        }

        return words;
    }

    private static Text Escape(Text text, RenderBudget budget)
    {
        if (text.IsSafe)
        {
            return text;
        }

        foreach ((string plain, string escaped) in (ReadOnlySpan<(string, string)>)[("&", "&amp;"), (">", "&gt;"), ("<", "&lt;"), ("'", "&#39;"), ("\"", "&#34;")])
        {
            text = Methods.Replace(text, Text.Own(plain), Text.Own(escaped), -1, budget);
        }

        return text.Safe();
    }

    private static BigInteger? ToWhole(object? value, int radix)
    {
        switch (value)
        {
            case bool or BigInteger:
                Operators.TryWhole(value, out BigInteger whole);
                return whole;
            case double number:
                return double.IsFinite(number) ? new BigInteger(Math.Truncate(number)) : null;
            case Text { Length: <= 400 } text:
                string digits = text.Value.Trim();
                if (radix == 10 && BigInteger.TryParse(digits.Replace("_", "", StringComparison.Ordinal), NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out BigInteger parsed))
                {
                    return parsed;
                }

                if (radix == 16 && long.TryParse(digits.StartsWith("0x", StringComparison.OrdinalIgnoreCase) ? digits.AsSpan(2) : digits, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out long hexadecimal))
                {
                    return hexadecimal;
                }

                return ToReal(value) is { } real && double.IsFinite(real) ? new BigInteger(Math.Truncate(real)) : null;
            default:
                return null;
        }
    }

    private static double? ToReal(object? value) => value switch
    {
        Text { Length: <= 400 } text => double.TryParse(text.Value.Trim(), NumberStyles.Float, CultureInfo.InvariantCulture, out double number) ? number : null,
        _ => Operators.TryNumber(value, out double number) ? number : null,
    };

    private static object Round(object? value, CallArguments.Bound bound)
    {
        if (!Operators.TryNumber(Operators.Defined(value), out double number))
        {
            throw new JinjaException($"the filter 'round' does not work on {Words.Of(value)}");
        }

        int precision = Math.Clamp(bound.Number(0, 0), -15, 15);
        double scale = Math.Pow(10, precision);
        if (value is BigInteger whole && (bound.TextOrNone(1)?.Value ?? "common") == "common")
        {
            // A half goes to the even side.
            BigInteger unit = BigInteger.Pow(10, Math.Max(0, -precision)), rest = ((whole % unit) + unit) % unit, down = whole - rest;
            return 2 * rest > unit || (2 * rest == unit && !(down / unit).IsEven) ? down + unit : down;
        }

        return (bound.TextOrNone(1)?.Value ?? "common") switch
        {
            "common" => precision >= 0 ? Math.Round(number, precision, MidpointRounding.ToEven) : Math.Round(number * scale, MidpointRounding.ToEven) / scale,
            "ceil" => Math.Ceiling(number * scale) / scale,
            "floor" => Math.Floor(number * scale) / scale,
            var other => throw new JinjaException($"round: the method is common, ceil or floor, not '{other}'"),
        };
    }
}
