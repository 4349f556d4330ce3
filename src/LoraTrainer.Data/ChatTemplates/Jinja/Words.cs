using System.Numerics;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>Kinds of values in words for people.</summary>
internal static class Words
{
    public static string Of(object? value) => value switch
    {
        null => "none",
        bool => "a truth value",
        BigInteger or double => "a number",
        Text => "a text",
        ListValue list => list.IsTuple ? "a tuple" : "a list",
        DictValue => "a dictionary",
        DictView => "the entries of a dictionary",
        RangeValue => "a range of numbers",
        GeneratorValue => "entries that a filter is yet to make (put |list behind it)",
        Undefined => "something undefined",
        NamespaceValue => "a namespace",
        LoopValue => "a loop",
        Callable => "a macro or function",
        _ => throw new ArgumentOutOfRangeException(nameof(value), value.GetType().Name, "not a value of templates"),
    };
}
