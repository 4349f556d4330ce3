using System.Globalization;
using System.Numerics;
using System.Text;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>The filter tojson, as transformers has it: Python's json.dumps, with characters beyond ASCII as they are.</summary>
internal sealed class JsonText
{
    private readonly StringBuilder to = new();
    private readonly RenderBudget budget;
    private readonly string? indent;
    private readonly string itemSeparator, keySeparator;
    private readonly bool isAscii, isSorted;
    private int source = Operators.Nowhere;

    private JsonText(bool isAscii, string? indent, string itemSeparator, string keySeparator, bool isSorted, RenderBudget budget)
    {
        this.isAscii = isAscii;
        this.indent = indent;
        this.itemSeparator = itemSeparator;
        this.keySeparator = keySeparator;
        this.isSorted = isSorted;
        this.budget = budget;
    }

    /// <param name="value">Of the template.</param>
    /// <param name="arguments">ensure_ascii (false), indent (none), separators (none), sort_keys (false).</param>
    /// <param name="budget">Of the rendering.</param>
    public static Text Write(object? value, CallArguments arguments, RenderBudget budget)
    {
        CallArguments.Bound bound = arguments.For("tojson", "ensure_ascii", "indent", "separators", "sort_keys");
        string? indent = bound.Get(1, null) switch
        {
            null => null,
            Text text => text.Value,
            _ => new string(' ', Math.Clamp(bound.Number(1, 0), 0, 100)),
        };
        (string item, string key) = bound.Get(2, null) switch
        {
            null => (indent is null ? ", " : ",", ": "),
            ListValue { Items: [Text first, Text second] } => (first.Value, second.Value),
            var other => throw new JinjaException($"tojson expects two texts as its argument 'separators', found {Words.Of(other)}"),
        };
        var writer = new JsonText(bound.Flag(0, false), indent, item, key, bound.Flag(3, false), budget);
        writer.Write(value, 1);
        return Operators.Written(writer.to, writer.source);
    }

    private void Write(object? value, int level)
    {
        int before = to.Length;
        budget.Step();
        switch (value)
        {
            case null:
                to.Append("null");
                break;
            case bool flag:
                to.Append(flag ? "true" : "false");
                break;
            case BigInteger or double:
                to.Append(Number(value));
                break;
            case Text text:
                source = Operators.Joined(source, text);
                Quote(text.Value);
                break;
            case ListValue list:
                Write('[', ']', list.Items, level, item => Write(item, level + 1));
                return;
            case DictValue dict:
                IReadOnlyList<(object? Key, object? Value)> entries = dict.Entries;
                Write('{', '}', isSorted ? Operators.Sort(entries, entry => entry.Key, isDescending: false, budget) : entries, level, entry =>
                {
                    Write(entry.Key switch
                    {
                        Text text => text,
                        null => Text.Own("null"),
                        bool flag => Text.Own(flag ? "true" : "false"),
                        _ => Text.Own(Number(entry.Key)),
                    }, level + 1);
                    to.Append(keySeparator);
                    Write(entry.Value, level + 1);
                });
                return;
            case Undefined undefined:
                throw new JinjaException($"tojson: {undefined.Problem}");
            default:
                throw new JinjaException($"tojson cannot write {Words.Of(value)}");
        }

        budget.Make(to.Length - before);
    }

    private void Write<T>(char open, char close, IReadOnlyList<T> items, int level, Action<T> write)
    {
        to.Append(open);
        for (int i = 0; i < items.Count; i++)
        {
            to.Append(i > 0 ? itemSeparator : "");
            BreakLine(level);
            write(items[i]);
        }

        if (items.Count > 0)
        {
            BreakLine(level - 1);
        }

        to.Append(close);
    }

    private void BreakLine(int level)
    {
        if (indent is not null)
        {
            budget.Make(1 + (level * indent.Length));
            to.Append('\n').Insert(to.Length, indent, level);
        }
    }

    private static string Number(object? value) => value switch
    {
        BigInteger whole => PythonText.Write(whole),
        double.NaN => "NaN",
        double.PositiveInfinity => "Infinity",
        double.NegativeInfinity => "-Infinity",
        _ => PythonText.Write((double)value!),
    };

    private void Quote(string text)
    {
        to.Append('"');
        foreach (char c in text)
        {
            switch (c)
            {
                case '"' or '\\':
                    to.Append('\\').Append(c);
                    break;
                case '\n':
                    to.Append("\\n");
                    break;
                case '\r':
                    to.Append("\\r");
                    break;
                case '\t':
                    to.Append("\\t");
                    break;
                case '\f':
                    to.Append("\\f");
                    break;
                case '\b':
                    to.Append("\\b");
                    break;
                case < ' ':
                case > '~' when isAscii:
                    to.Append(CultureInfo.InvariantCulture, $"\\u{(int)c:x4}");
                    break;
                default:
                    to.Append(c);
                    break;
            }
        }

        to.Append('"');
    }
}
