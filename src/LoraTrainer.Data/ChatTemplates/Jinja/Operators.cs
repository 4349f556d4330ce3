using System.Numerics;
using System.Text;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>What Python's operators and built-in functions do with the values of templates.</summary>
internal static class Operators
{
    /// <summary>Bits of a whole number: enough for what anybody counts, too few to fill a memory.</summary>
    private const long MostBits = 4096;

    /// <summary>Of a text that is written piece by piece: the template wrote all of it so far.</summary>
    public const int Nowhere = -2;

    /// <summary>Of a text that is written piece by piece: pieces came from different places.</summary>
    private const int Several = -3;

    public static bool IsTrue(object? value) => value switch
    {
        null or Undefined => false,
        bool flag => flag,
        BigInteger number => !number.IsZero,
        double number => number != 0,
        Text text => text.Length > 0,
        ListValue list => list.Items.Count > 0,
        DictValue dict => dict.Entries.Count > 0,
        DictView view => view.Of.Entries.Count > 0,
        RangeValue range => range.Count > 0,
        _ => true,
    };

    public static bool TryWhole(object? value, out BigInteger number)
    {
        number = value switch
        {
            BigInteger whole => whole,
            true => BigInteger.One,
            _ => BigInteger.Zero,
        };
        return value is BigInteger or bool;
    }

    public static bool TryNumber(object? value, out double number)
    {
        bool isWhole = TryWhole(value, out BigInteger whole);
        number = value is double real ? real : (double)whole;
        return isWhole || value is double;
    }

    /// <summary>The value, or an error in its own words where it is undefined.</summary>
    public static object? Defined(object? value) => value is Undefined undefined ? throw new JinjaException(undefined.Problem) : value;

    public static object? Binary(string sign, object? left, object? right, RenderBudget budget)
    {
        Defined(left);
        Defined(right);
        switch (sign, left, right)
        {
            case ("+", Text a, Text b):
                return a.IsSafe || b.IsSafe
                    ? throw new JinjaException("+ with a text behind |safe would escape the other text for HTML; leave |safe away, it has no meaning in a chat template")
                    : Text.Concat(a, b, budget);
            case ("+", ListValue a, ListValue b) when a.IsTuple == b.IsTuple:
                budget.MakeEntries(a.Items.Count + b.Items.Count);
                return new ListValue([.. a.Items, .. b.Items], a.IsTuple);
            case ("%", Text format, _):
                return PythonFormat.Percent(format, right, budget);
            case ("*", Text or ListValue, _) when TryWhole(right, out BigInteger times):
                return Repeat(left, times, budget);
            case ("*", _, Text or ListValue) when TryWhole(left, out BigInteger times):
                return Repeat(right, times, budget);
        }

        if (TryWhole(left, out BigInteger m) && TryWhole(right, out BigInteger n) && (sign != "**" || n.Sign >= 0) && sign != "/")
        {
            return Whole(sign, m, n);
        }

        return TryNumber(left, out double x) && TryNumber(right, out double y)
            ? Real(sign, x, y)
            : throw new JinjaException($"'{sign}' does not work on {Words.Of(left)} and {Words.Of(right)}");
    }

    public static object Negate(object? value, char sign)
    {
        Defined(value);
        return TryWhole(value, out BigInteger whole) ? sign == '-' ? -whole : whole
            : value is double number ? sign == '-' ? -number : number
            : throw new JinjaException($"'{sign}' does not work on {Words.Of(value)}");
    }

    /// <summary>Python's ==: values of different kinds differ, but numbers and truth values are compared as numbers.</summary>
    public static bool AreEqual(object? left, object? right, RenderBudget budget)
    {
        budget.Step();
        if (TryWhole(left, out BigInteger m) && TryWhole(right, out BigInteger n))
        {
            return m == n;
        }

        if (TryNumber(left, out double x) && TryNumber(right, out double y))
        {
            return x == y;
        }

        switch (left, right)
        {
            case (null, null) or (Undefined, Undefined):
                return true;
            case (Text a, Text b):
                budget.Look(a.Length == b.Length ? a.Length : 0);
                return a.Value == b.Value;
            case (ListValue a, ListValue b):
                if (a.IsTuple != b.IsTuple || a.Items.Count != b.Items.Count)
                {
                    return false;
                }

                for (int i = 0; i < a.Items.Count; i++)
                {
                    if (!AreEqual(a.Items[i], b.Items[i], budget))
                    {
                        return false;
                    }
                }

                return true;
            case (DictValue a, DictValue b):
                if (a.Entries.Count != b.Entries.Count)
                {
                    return false;
                }

                foreach ((object? key, object? value) in a.Entries)
                {
                    if (!b.TryGet(key, out object? other) || !AreEqual(value, other, budget))
                    {
                        return false;
                    }
                }

                return true;
            case (RangeValue a, RangeValue b):
                return a.Count == b.Count && (a.Count == 0 || (a.Start == b.Start && (a.Count == 1 || a.Step == b.Step)));
            default:
                return ReferenceEquals(left, right) && left is not null;
        }
    }

    /// <summary>Which comes first; numbers, texts and lists have an order.</summary>
    public static int Order(object? left, object? right, RenderBudget budget)
    {
        budget.Step();
        Defined(left);
        Defined(right);
        if (TryWhole(left, out BigInteger m) && TryWhole(right, out BigInteger n))
        {
            return m.CompareTo(n);
        }

        if (TryNumber(left, out double x) && TryNumber(right, out double y))
        {
            return x.CompareTo(y);
        }

        if (left is Text a && right is Text b)
        {
            budget.Look(Math.Min(a.Length, b.Length));
            return PythonText.Compare(a.Value, b.Value);
        }

        if (left is ListValue p && right is ListValue q && p.IsTuple == q.IsTuple)
        {
            for (int i = 0; i < Math.Min(p.Items.Count, q.Items.Count); i++)
            {
                if (!AreEqual(p.Items[i], q.Items[i], budget))
                {
                    return Order(p.Items[i], q.Items[i], budget);
                }
            }

            return p.Items.Count.CompareTo(q.Items.Count);
        }

        throw new JinjaException($"{Words.Of(left)} and {Words.Of(right)} have no order");
    }

    /// <summary>By <see cref="Order"/> of the keys; what is equal stays in its order, also when descending.</summary>
    public static List<T> Sort<T>(IEnumerable<T> items, Func<T, object?> key, bool isDescending, RenderBudget budget)
    {
        Comparer<object?> comparer = Comparer<object?>.Create((a, b) => Order(a, b, budget));
        try
        {
            return isDescending ? [.. items.OrderByDescending(key, comparer)] : [.. items.OrderBy(key, comparer)];
        }
        catch (InvalidOperationException wrapped) when (wrapped.InnerException is JinjaException inner)
        {
            throw new JinjaException(inner.Message);
        }
    }

    public static bool Compare(string comparison, object? left, object? right, RenderBudget budget) => comparison switch
    {
        "==" => AreEqual(left, right, budget),
        "!=" => !AreEqual(left, right, budget),
        "in" => IsIn(left, right, budget),
        "not in" => !IsIn(left, right, budget),
        "<" => !HasNaN(left, right) & Order(left, right, budget) < 0,
        "<=" => !HasNaN(left, right) & Order(left, right, budget) <= 0,
        ">" => !HasNaN(left, right) & Order(left, right, budget) > 0,
        _ => !HasNaN(left, right) & Order(left, right, budget) >= 0,
    };

    public static bool IsIn(object? part, object? whole, RenderBudget budget)
    {
        switch (whole)
        {
            case Text text:
                return part is Text sought ? PythonText.Find(text.Value, sought.Value, 0, budget) >= 0
                    : throw new JinjaException($"'in' on a text needs a text on its left, found {Words.Of(part)}");
            case DictValue dict:
                return part is not Undefined && dict.TryGet(part, out _);
            case DictView { Part: DictPart.Keys } keys:
                return part is not Undefined && keys.Of.TryGet(part, out _);
            case null or bool or BigInteger or double or Callable or NamespaceValue:
                throw new JinjaException($"'in' does not work on {Words.Of(whole)}");
            default:
                return Entries(whole, budget).Any(entry => AreEqual(part, entry, budget));
        }
    }

    /// <summary>Whether a value has entries to go through; undefined has none, and that is allowed.</summary>
    public static bool IsIterable(object? value) => value is Text or ListValue or DictValue or DictView or RangeValue or GeneratorValue or Undefined;

    /// <summary>What a loop goes through: code points, entries, keys, numbers. They are made as they are asked for.</summary>
    public static IEnumerable<object?> Entries(object? value, RenderBudget budget)
    {
        IEnumerable<object?> entries = value switch
        {
            Text text => CodePoints(text, budget),
            ListValue list => list.Items,
            DictValue dict => dict.Entries.Select(entry => entry.Key),
            DictView view => view.Entries(),
            RangeValue range => Enumerable.Range(0, range.Count).Select(i => (object?)range.At(i)),
            GeneratorValue generator => generator.Entries(budget),
            Undefined => [],
            _ => throw new JinjaException($"{Words.Of(value)} has no entries to go through"),
        };
        return Counted(entries, budget);
    }

    /// <summary>The entries as a list.</summary>
    public static List<object?> ToList(object? value, RenderBudget budget)
    {
        var list = new List<object?>();
        foreach (object? entry in Entries(value, budget))
        {
            budget.MakeEntries(1);
            list.Add(entry);
        }

        return list;
    }

    /// <summary>Python's len; null for what has none.</summary>
    public static int? Length(object? value) => value switch
    {
        Text text => text.CodePoints,
        ListValue list => list.Items.Count,
        DictValue dict => dict.Entries.Count,
        DictView view => view.Of.Entries.Count,
        RangeValue range => range.Count,
        Undefined => 0,
        _ => null,
    };

    /// <summary>value[index], or null-safe absence: false where there is no such entry.</summary>
    public static bool TryItem(object? value, object? index, RenderBudget budget, out object? item)
    {
        item = null;
        if (value is DictValue dict)
        {
            return index is null or bool or BigInteger or double or Text && dict.TryGet(index, out item);
        }

        if (value is not (Text or ListValue or RangeValue) || !TryWhole(index, out BigInteger at))
        {
            return false;
        }

        int length = Length(value)!.Value;
        at = at.Sign < 0 ? at + length : at;
        if (at.Sign < 0 || at >= length)
        {
            return false;
        }

        item = value switch
        {
            Text text => text.At((int)at, budget),
            ListValue list => list.Items[(int)at],
            _ => ((RangeValue)value).At((int)at),
        };
        return true;
    }

    /// <summary>value[start:stop:step]</summary>
    public static object Slice(object? value, object? start, object? stop, object? step, RenderBudget budget)
    {
        Defined(value);
        if (value is not (Text or ListValue or RangeValue))
        {
            throw new JinjaException($"{Words.Of(value)} cannot be cut with [:]");
        }

        int length = Length(value)!.Value;
        BigInteger by = Bound(step, 1);
        if (by.IsZero)
        {
            throw new JinjaException("[::0]: the step is 0");
        }

        bool isForward = by.Sign > 0;
        int low = isForward ? 0 : -1, high = isForward ? length : length - 1;
        int from = start is null ? isForward ? low : high : Clamp(Bound(start, 0));
        int to = stop is null ? isForward ? high : low : Clamp(Bound(stop, 0));
        int stride = (int)BigInteger.Max(BigInteger.Min(by, length + 1), -length - 1);
        if (value is Text text && stride == 1)
        {
            return from < to ? text.Slice(text.UnitOf(from), text.UnitOf(to), budget) : Text.Empty;
        }

        var picked = new List<object?>();
        for (int i = from; isForward ? i < to : i > to; i += stride)
        {
            budget.MakeEntries(1);
            picked.Add(value switch
            {
                Text characters => characters.At(i, budget),
                ListValue list => list.Items[i],
                _ => ((RangeValue)value).At(i),
            });
        }

        if (value is not Text)
        {
            return new ListValue(picked, value is ListValue { IsTuple: true });
        }

        var builder = new TextBuilder(budget);
        foreach (object? part in picked)
        {
            builder.Append((Text)part!);
        }

        return builder.ToText();

        int Clamp(BigInteger index) => (int)BigInteger.Max(low, BigInteger.Min(high, index.Sign < 0 ? index + length : index));

        static BigInteger Bound(object? bound, int absent) => bound is null ? absent
            : TryWhole(bound, out BigInteger number) ? number : throw new JinjaException($"[:] needs whole numbers, found {Words.Of(bound)}");
    }

    /// <summary>Python's str.</summary>
    public static Text ToText(object? value, RenderBudget budget)
    {
        switch (value)
        {
            case Text text:
                return text;
            case Undefined:
                return Text.Empty;
            default:
                return Repr(value, budget);
        }
    }

    /// <summary>Python's repr.</summary>
    public static Text Repr(object? value, RenderBudget budget)
    {
        var builder = new StringBuilder();
        int source = Nowhere;
        Write(value, builder, ref source, budget);
        return Written(builder, source);
    }

    /// <summary>What was written piece by piece, all of it from where its foreign pieces came.</summary>
    public static Text Written(StringBuilder builder, int source)
        => source == Nowhere ? Text.Own(builder.ToString()) : Text.From(builder.ToString(), source == Several ? -1 : source);

    /// <summary>Where a text comes from that has this part in it too.</summary>
    public static int Joined(int source, Text part)
        => part.Foreign.IsEmpty ? source : source == Nowhere || source == part.SourceOfAll() ? part.SourceOfAll() : Several;

    /// <param name="value">Any.</param>
    /// <param name="to">Gets the text.</param>
    /// <param name="source">Where its foreign characters come from so far.</param>
    /// <param name="budget">Of the rendering.</param>
    private static void Write(object? value, StringBuilder to, ref int source, RenderBudget budget)
    {
        int before = to.Length;
        budget.Step();
        switch (value)
        {
            case null:
                to.Append("None");
                break;
            case bool flag:
                to.Append(flag ? "True" : "False");
                break;
            case BigInteger number:
                to.Append(PythonText.Write(number));
                break;
            case double number:
                to.Append(PythonText.Write(number));
                break;
            case Text text:
                source = Joined(source, text);
                to.Append(text.IsSafe ? "Markup(" : "");
                PythonText.Quote(text.Value, to);
                to.Append(text.IsSafe ? ")" : "");
                break;
            case Undefined:
                to.Append("Undefined");
                break;
            case ListValue list:
                to.Append(list.IsTuple ? '(' : '[');
                for (int i = 0; i < list.Items.Count; i++)
                {
                    to.Append(i > 0 ? ", " : "");
                    Write(list.Items[i], to, ref source, budget);
                }

                to.Append(list.IsTuple ? list.Items.Count == 1 ? ",)" : ")" : "]");
                return;
            case DictValue dict:
                to.Append('{');
                for (int i = 0; i < dict.Entries.Count; i++)
                {
                    to.Append(i > 0 ? ", " : "");
                    Write(dict.Entries[i].Key, to, ref source, budget);
                    to.Append(": ");
                    Write(dict.Entries[i].Value, to, ref source, budget);
                }

                to.Append('}');
                return;
            case DictView view:
                to.Append(view.Part switch
                {
                    DictPart.Keys => "dict_keys(",
                    DictPart.Values => "dict_values(",
                    _ => "dict_items(",
                });
                Write(new ListValue([.. view.Entries()]), to, ref source, budget);
                to.Append(')');
                return;
            case RangeValue range:
                to.Append("range(").Append(PythonText.Write(range.Start)).Append(", ").Append(PythonText.Write(range.At(range.Count)))
                    .Append(range.Step.IsOne ? "" : $", {PythonText.Write(range.Step)}").Append(')');
                break;
            default:
                throw new JinjaException($"{Words.Of(value)} cannot be printed");
        }

        budget.Make(to.Length - before);
    }

    private static bool HasNaN(object? left, object? right) => left is double.NaN || right is double.NaN;

    private static IEnumerable<object?> CodePoints(Text text, RenderBudget budget)
    {
        for (int i = 0; i < text.CodePoints; i++)
        {
            yield return text.At(i, budget);
        }
    }

    private static IEnumerable<object?> Counted(IEnumerable<object?> entries, RenderBudget budget)
    {
        foreach (object? entry in entries)
        {
            budget.Step();
            yield return entry;
        }
    }

    private static object Repeat(object? value, BigInteger times, RenderBudget budget)
    {
        // Refused before anything is made.
        int length = value is Text measured ? measured.Length : 16 * ((ListValue)value!).Items.Count;
        BigInteger size = BigInteger.Max(times, 0) * length;
        budget.Make(size > long.MaxValue / 32 ? long.MaxValue / 32 : (long)size);
        int count = length == 0 ? 0 : (int)BigInteger.Max(times, 0);
        if (value is Text text)
        {
            var builder = new TextBuilder(budget);
            for (int i = 0; i < count; i++)
            {
                builder.Append(text);
            }

            return builder.ToText();
        }

        var items = new List<object?>();
        for (int i = 0; i < count; i++)
        {
            items.AddRange(((ListValue)value!).Items);
        }

        return new ListValue(items, ((ListValue)value!).IsTuple);
    }

    private static BigInteger Whole(string sign, BigInteger left, BigInteger right)
    {
        if (right.IsZero && sign is "//" or "%")
        {
            throw new JinjaException($"'{sign}' by 0");
        }

        if (sign == "**" && right > MostBits && BigInteger.Abs(left) > 1)
        {
            throw TooLarge();
        }

        if (sign == "**" && (left.GetBitLength() + 1) * (long)BigInteger.Min(right, MostBits + 1) > 8 * MostBits && BigInteger.Abs(left) > 1)
        {
            throw TooLarge();
        }

        BigInteger result = sign switch
        {
            "+" => left + right,
            "-" => left - right,
            "*" => left * right,
            "//" => FloorDivide(left, right),
            "%" => left - (FloorDivide(left, right) * right),
            _ => BigInteger.Abs(left) <= 1 ? left.IsZero ? right.IsZero ? 1 : 0 : left.IsOne || right.IsEven ? 1 : -1 : BigInteger.Pow(left, (int)right),
        };
        return result.GetBitLength() <= MostBits ? result : throw TooLarge();

        static JinjaException TooLarge() => new($"the number has more than {MostBits} bits");
    }

    private static BigInteger FloorDivide(BigInteger left, BigInteger right)
    {
        BigInteger quotient = BigInteger.DivRem(left, right, out BigInteger rest);
        return !rest.IsZero && rest.Sign != right.Sign ? quotient - 1 : quotient;
    }

    private static double Real(string sign, double left, double right)
    {
        if (right == 0 && sign is "/" or "//" or "%")
        {
            throw new JinjaException($"'{sign}' by 0");
        }

        if (sign == "**")
        {
            double power = Math.Pow(left, right);
            return double.IsFinite(power) ? power : throw new JinjaException("the power is not a finite real number");
        }

        double rest = 0;
        if (sign is "//" or "%")
        {
            rest = left % right;
            rest = rest != 0 && (rest < 0) != (right < 0) ? rest + right : rest;
        }

        return sign switch
        {
            "+" => left + right,
            "-" => left - right,
            "*" => left * right,
            "/" => left / right,
            "//" => Math.Round((left - rest) / right),
            _ => rest == 0 ? Math.CopySign(0, right) : rest,
        };
    }
}
