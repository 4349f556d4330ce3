using System.Numerics;
using LoraTrainer.Data.Tokenizers.Unicode;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>Python's methods of texts, lists and dictionaries, as far as they change nothing. There is no way to any other attribute.</summary>
internal static class Methods
{
    private static readonly string[] Changing = ["append", "clear", "extend", "insert", "pop", "popitem", "remove", "reverse", "setdefault", "sort", "update"];

    /// <summary>The method <paramref name="name"/> of a value; null where there is none.</summary>
    public static object? Find(object? value, string name)
    {
        if (name.StartsWith("__", StringComparison.Ordinal))
        {
            return new Undefined($"'{name}' is an inner attribute of Python, which templates may not reach");
        }

        Func<Interpreter, CallArguments, object?>? body = value switch
        {
            Text text => OfText(text, name),
            DictValue dict => OfDict(dict, name),
            ListValue list => OfList(list, name),
            _ => null,
        };
        return body is not null ? new Function(body)
            : value is DictValue or ListValue { IsTuple: false } && Changing.Contains(name) ? new Undefined($"{name} would change {Words.Of(value)}; templates may not")
            : null;
    }

    private static Func<Interpreter, CallArguments, object?>? OfDict(DictValue dict, string name) => name switch
    {
        "get" => (_, arguments) =>
        {
            CallArguments.Bound bound = arguments.For(name, "key", "default");
            return dict.TryGet(bound.Get(0), out object? value) ? value : bound.Get(1, null);
        },
        "items" or "keys" or "values" => (_, arguments) =>
        {
            arguments.For(name);
            return new DictView(dict, name == "items" ? DictPart.Items : name == "keys" ? DictPart.Keys : DictPart.Values);
        },
        "copy" => (_, arguments) =>
        {
            arguments.For(name);
            return dict;
        },
        _ => null,
    };

    private static Func<Interpreter, CallArguments, object?>? OfList(ListValue list, string name) => name switch
    {
        "count" => (interpreter, arguments) => new BigInteger(list.Items.Count(item => Operators.AreEqual(item, arguments.For(name, "value").Get(0), interpreter.Budget))),
        "index" => (interpreter, arguments) =>
        {
            object? sought = arguments.For(name, "value").Get(0);
            for (int i = 0; i < list.Items.Count; i++)
            {
                if (Operators.AreEqual(list.Items[i], sought, interpreter.Budget))
                {
                    return new BigInteger(i);
                }
            }

            throw new JinjaException("index: the list has no such entry");
        },
        "copy" when !list.IsTuple => (_, arguments) =>
        {
            arguments.For(name);
            return list;
        },
        _ => null,
    };

    private static Func<Interpreter, CallArguments, object?>? OfText(Text text, string name)
    {
        switch (name)
        {
            case "strip" or "lstrip" or "rstrip":
                return (interpreter, arguments) => Strip(text, arguments.For(name, "chars").TextOrNone(0), name != "rstrip", name != "lstrip", interpreter.Budget);
            case "split" or "rsplit":
                return (interpreter, arguments) =>
                {
                    CallArguments.Bound bound = arguments.For(name, "sep", "maxsplit");
                    return Split(text, bound.TextOrNone(0), bound.Number(1, -1), name == "rsplit", interpreter.Budget);
                };
            case "splitlines":
                return (interpreter, arguments) => SplitLines(text, arguments.For(name, "keepends").Flag(0, false), interpreter.Budget);
            case "partition" or "rpartition":
                return (interpreter, arguments) => Partition(text, arguments.For(name, "sep").Text(0), name == "rpartition", interpreter.Budget);
            case "startswith" or "endswith":
                return (interpreter, arguments) =>
                {
                    CallArguments.Bound bound = arguments.For(name, "part", "start", "end");
                    Text within = Part(text, bound, 1, interpreter.Budget);
                    IReadOnlyList<object?> parts = bound.Get(0) is ListValue { IsTuple: true } several ? several.Items : [bound.Get(0)];
                    foreach (object? part in parts)
                    {
                        string sought = (part as Text ?? throw new JinjaException($"{name} expects a text, found {Words.Of(part)}")).Value;
                        interpreter.Budget.Look(sought.Length);
                        if (name == "startswith" ? within.Value.StartsWith(sought, StringComparison.Ordinal) : within.Value.EndsWith(sought, StringComparison.Ordinal))
                        {
                            return true;
                        }
                    }

                    return false;
                };
            case "find" or "rfind" or "index" or "rindex":
                return (interpreter, arguments) =>
                {
                    CallArguments.Bound bound = arguments.For(name, "part", "start", "end");
                    Text within = Part(text, bound, 1, interpreter.Budget);
                    int skipped = bound.Number(1, 0), found = name.StartsWith('r')
                        ? PythonText.FindLast(within.Value, bound.Text(0).Value, within.Length, interpreter.Budget)
                        : PythonText.Find(within.Value, bound.Text(0).Value, 0, interpreter.Budget);
                    skipped = skipped < 0 ? Math.Max(0, skipped + text.CodePoints) : skipped;
                    return found >= 0 ? new BigInteger(within.CodePointOf(found) + skipped)
                        : name.EndsWith("find", StringComparison.Ordinal) ? BigInteger.MinusOne : throw new JinjaException($"{name}: the text has no such part");
                };
            case "count":
                return (interpreter, arguments) =>
                {
                    string sought = arguments.For(name, "part").Text(0).Value;
                    return new BigInteger(sought.Length == 0 ? text.CodePoints + 1 : PythonText.FindAll(text.Value, sought, interpreter.Budget).Count());
                };
            case "replace":
                return (interpreter, arguments) =>
                {
                    CallArguments.Bound bound = arguments.For(name, "old", "new", "count");
                    return Replace(text, bound.Text(0), bound.Text(1), bound.Number(2, -1), interpreter.Budget);
                };
            case "removeprefix" or "removesuffix":
                return (interpreter, arguments) =>
                {
                    string part = arguments.For(name, "part").Text(0).Value;
                    return name == "removeprefix"
                        ? text.Value.StartsWith(part, StringComparison.Ordinal) ? text.Slice(part.Length, text.Length, interpreter.Budget) : text
                        : part.Length > 0 && text.Value.EndsWith(part, StringComparison.Ordinal) ? text.Slice(0, text.Length - part.Length, interpreter.Budget) : text;
                };
            case "join":
                return (interpreter, arguments) =>
                {
                    var builder = new TextBuilder(interpreter.Budget);
                    bool isFirst = true;
                    foreach (object? part in Operators.Entries(arguments.For(name, "parts").Get(0), interpreter.Budget))
                    {
                        builder.Append(isFirst ? Text.Empty : text);
                        builder.Append(part as Text ?? throw new JinjaException($"join expects texts, found {Words.Of(part)}"));
                        isFirst = false;
                    }

                    return builder.ToText();
                };
            case "upper" or "lower" or "capitalize" or "title" or "casefold" or "swapcase":
                return (interpreter, arguments) =>
                {
                    arguments.For(name);
                    interpreter.Budget.Look(text.Length);
                    return text.Changed(name switch
                    {
                        "upper" => PythonText.Upper(text.Value),
                        "capitalize" => PythonText.Capitalize(text.Value),
                        "title" => PythonText.Title(text.Value, c => !char.IsLetter(c)),
                        "swapcase" => string.Concat(text.Value.Select(c => char.IsUpper(c) ? char.ToLowerInvariant(c) : char.ToUpperInvariant(c))),
                        _ => PythonText.Lower(text.Value),
                    }, interpreter.Budget);
                };
            case "center" or "ljust" or "rjust" or "zfill":
                return (interpreter, arguments) =>
                {
                    CallArguments.Bound bound = arguments.For(name, "width", "fill");
                    return Pad(text, name, bound.Number(0, 0), name == "zfill" ? "0" : bound.TextOrNone(1)?.Value ?? " ", interpreter.Budget);
                };
            case "format":
                return (interpreter, arguments) => PythonFormat.Format(text, arguments, interpreter.Budget);
            case "isdigit" or "isnumeric" or "isdecimal" or "isalpha" or "isalnum" or "isspace" or "isupper" or "islower":
                return (interpreter, arguments) =>
                {
                    arguments.For(name);
                    interpreter.Budget.Look(text.Length);
                    return Is(text.Value, name);
                };
            default:
                return null;
        }
    }

    /// <summary>Python's strip: white space, or the given set of characters.</summary>
    public static Text Strip(Text text, Text? chars, bool left, bool right, RenderBudget budget)
    {
        budget.Look(text.Length);
        HashSet<int>? set = null;
        if (chars is not null)
        {
            budget.Make(4L * chars.Length);
            set = [.. chars.Value.EnumerateRunes().Select(rune => rune.Value)];
        }

        int start = 0, end = text.Length;
        while (left && start < end && IsStripped(UnicodeTables.ScalarAt(text.Value, start, out int length)))
        {
            start += length;
        }

        while (right && start < end && IsStripped(UnicodeTables.ScalarBefore(text.Value, end, out int length)))
        {
            end -= length;
        }

        return text.Slice(start, end, budget);

        bool IsStripped(int scalar) => set is null ? scalar < 0x10000 && PythonText.IsSpace((char)scalar) : set.Contains(scalar);
    }

    /// <summary>Python's replace; without <paramref name="most"/> (negative) all of them.</summary>
    public static Text Replace(Text text, Text old, Text with, int most, RenderBudget budget)
    {
        var builder = new TextBuilder(budget);
        if (old.Length == 0)
        {
            // The new part goes before each character and behind the last.
            for (int i = 0; i <= text.CodePoints; i++)
            {
                budget.Step();
                builder.Append(most < 0 || i < most ? with : Text.Empty);
                builder.Append(i < text.CodePoints ? text.At(i, budget) : Text.Empty);
            }

            return builder.ToText();
        }

        int done = 0, count = 0;
        foreach (int at in PythonText.FindAll(text.Value, old.Value, budget))
        {
            if (most >= 0 && count++ >= most)
            {
                break;
            }

            builder.Append(text.Slice(done, at, budget));
            builder.Append(with);
            done = at + old.Length;
        }

        if (done == 0)
        {
            return text;
        }

        builder.Append(text.Slice(done, text.Length, budget));
        return builder.ToText();
    }

    private static ListValue Split(Text text, Text? separator, int most, bool fromRight, RenderBudget budget)
    {
        if (separator is { Length: 0 })
        {
            throw new JinjaException("split: the separator is empty");
        }

        int limit = most < 0 ? int.MaxValue : most;
        var parts = new List<object?>();
        string value = text.Value;
        if (fromRight && most >= 0)
        {
            int end = value.Length;
            while (true)
            {
                int cutEnd = separator is null ? Skip(end, -1, isSpace: true) : end;
                if (separator is null && cutEnd == 0)
                {
                    break;
                }

                int start = separator is null ? Skip(cutEnd, -1, isSpace: false) : PythonText.FindLast(value, separator.Value, cutEnd, budget);
                if (parts.Count == limit || start < 0 || (separator is null && start == 0))
                {
                    Add(0, cutEnd);
                    break;
                }

                int length = separator?.Length ?? 0;
                Add(start + length, cutEnd);
                end = start;
            }

            parts.Reverse();
            return new ListValue(parts);
        }

        if (separator is null)
        {
            for (int start = Skip(0, 1, isSpace: true); start < value.Length;)
            {
                int end = parts.Count == limit ? Skip(value.Length, -1, isSpace: true) : Skip(start, 1, isSpace: false);
                Add(start, parts.Count == limit ? value.Length : end);
                start = parts.Count > limit ? value.Length : Skip(end, 1, isSpace: true);
            }

            return new ListValue(parts);
        }

        int done = 0;
        foreach (int at in PythonText.FindAll(value, separator.Value, budget))
        {
            if (parts.Count == limit)
            {
                break;
            }

            Add(done, at);
            done = at + separator.Length;
        }

        Add(done, value.Length);
        return new ListValue(parts);

        void Add(int start, int end)
        {
            budget.MakeEntries(1);
            parts.Add(text.Slice(start, end, budget));
        }

        int Skip(int at, int step, bool isSpace)
        {
            int begin = at;
            while (step > 0 ? at < value.Length && PythonText.IsSpace(value[at]) == isSpace : at > 0 && PythonText.IsSpace(value[at - 1]) == isSpace)
            {
                at += step;
            }

            budget.Look(Math.Abs(at - begin));
            return at;
        }
    }

    private static ListValue SplitLines(Text text, bool keepEnds, RenderBudget budget)
    {
        var lines = new List<object?>();
        string value = text.Value;
        budget.Look(value.Length);
        for (int start = 0; start < value.Length;)
        {
            int end = start;
            while (end < value.Length && value[end] is not ('\n' or '\r' or '\v' or '\f' or '\x1c' or '\x1d' or '\x1e' or '\x85' or '\u2028' or '\u2029'))
            {
                end++;
            }

            int next = Math.Min(value.Length, end + (end + 1 < value.Length && value[end] == '\r' && value[end + 1] == '\n' ? 2 : 1));
            budget.MakeEntries(1);
            lines.Add(text.Slice(start, keepEnds ? next : end, budget));
            start = next;
        }

        return new ListValue(lines);
    }

    private static ListValue Partition(Text text, Text separator, bool fromRight, RenderBudget budget)
    {
        if (separator.Length == 0)
        {
            throw new JinjaException("partition: the separator is empty");
        }

        int at = fromRight ? PythonText.FindLast(text.Value, separator.Value, text.Length, budget) : PythonText.Find(text.Value, separator.Value, 0, budget);
        return new ListValue(
            at < 0 ? fromRight ? [Text.Empty, Text.Empty, text] : [text, Text.Empty, Text.Empty]
            : [text.Slice(0, at, budget), separator, text.Slice(at + separator.Length, text.Length, budget)],
            isTuple: true);
    }

    /// <summary>The part from the argument at <paramref name="first"/> to the one behind it.</summary>
    private static Text Part(Text text, CallArguments.Bound bound, int first, RenderBudget budget)
        => bound.Has(first) || bound.Has(first + 1) ? (Text)Operators.Slice(text, bound.Get(first, null), bound.Get(first + 1, null), null, budget) : text;

    private static Text Pad(Text text, string name, int width, string fill, RenderBudget budget)
    {
        int missing = width - text.CodePoints;
        if (missing <= 0 || fill.Length == 0)
        {
            return text;
        }

        if (fill.Length > 2)
        {
            throw new JinjaException($"{name}: the fill is one character");
        }

        budget.Make(2L * missing);
        int before = name switch
        {
            "ljust" => 0,
            "center" => (missing / 2) + (missing & width & 1),
            _ => missing,
        };
        var builder = new TextBuilder(budget);
        bool isSigned = name == "zfill" && text.Value.AsSpan().StartsWith("-") | text.Value.AsSpan().StartsWith("+");
        builder.Append(isSigned ? text.Slice(0, 1, budget) : Text.Empty);
        builder.Append(string.Concat(Enumerable.Repeat(fill, before)));
        builder.Append(isSigned ? text.Slice(1, text.Length, budget) : text);
        builder.Append(string.Concat(Enumerable.Repeat(fill, missing - before)));
        return builder.ToText();
    }

    /// <summary>Python's str.is...: true where all characters are of that kind and there is one.</summary>
    public static bool Is(string text, string name)
    {
        if (name is "isupper" or "islower")
        {
            return text.Any(c => name == "isupper" ? char.IsUpper(c) : char.IsLower(c)) && !text.Any(c => name == "isupper" ? char.IsLower(c) : char.IsUpper(c));
        }

        uint mask = name switch
        {
            "isalpha" => UnicodeTables.CategoryMask("L")!.Value,
            "isdecimal" or "isdigit" => UnicodeTables.CategoryMask("Nd")!.Value,
            "isnumeric" => UnicodeTables.CategoryMask("N")!.Value,
            _ => UnicodeTables.CategoryMask("L")!.Value | UnicodeTables.CategoryMask("N")!.Value,
        };
        return text.Length > 0 && (name == "isspace"
            ? PythonText.IsAllSpace(text)
            : text.EnumerateRunes().All(rune => UnicodeTables.IsInCategories(rune.Value, mask)));
    }
}
