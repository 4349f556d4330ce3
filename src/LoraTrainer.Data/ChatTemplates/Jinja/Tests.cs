using System.Numerics;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>Jinja's tests: what stands behind "is".</summary>
internal static class Tests
{
    private static readonly (string Name, string Operator)[] Comparisons =
    [
        ("==", "=="), ("eq", "=="), ("equalto", "=="), ("!=", "!="), ("ne", "!="), ("<", "<"), ("lt", "<"), ("lessthan", "<"),
        ("<=", "<="), ("le", "<="), (">", ">"), ("gt", ">"), ("greaterthan", ">"), (">=", ">="), ("ge", ">="), ("in", "in"),
    ];

    public static bool Check(Interpreter interpreter, string name, object? value, CallArguments arguments)
    {
        if (Array.Find(Comparisons, comparison => comparison.Name == name).Operator is { } comparison)
        {
            return Operators.Compare(comparison, value, arguments.For(name, "other").Get(0), interpreter.Budget);
        }

        if (name is "sameas" or "divisibleby")
        {
            object? other = arguments.For(name, "other").Get(0);
            return name == "sameas"
                ? ReferenceEquals(value, other) || (value is bool or BigInteger && value.Equals(other))
                : Operators.Binary("%", value, other, interpreter.Budget) is BigInteger { IsZero: true };
        }

        arguments.For(name);
        switch (name)
        {
            case "defined":
                return value is not Undefined;
            case "undefined":
                return value is Undefined;
            case "none":
                return value is null;
            case "boolean":
                return value is bool;
            case "true":
                return value is true;
            case "false":
                return value is false;
            case "integer":
                return value is BigInteger;
            case "float":
                return value is double;
            case "number":
                return value is BigInteger or double or bool;
            case "string":
                return value is Text;
            case "mapping":
                return value is DictValue;
            case "sequence":
                return value is Text or ListValue or DictValue or RangeValue or Undefined;
            case "iterable":
                return Operators.IsIterable(value);
            case "callable":
                return value is Callable;
            case "escaped":
                return value is Text { IsSafe: true };
            case "even" or "odd":
                return Operators.Binary("%", value, new BigInteger(2), interpreter.Budget) is BigInteger rest && rest.IsZero == (name == "even");
            case "lower" or "upper":
                Text text = Operators.ToText(value, interpreter.Budget);
                interpreter.Budget.Look(text.Length);
                return Methods.Is(text.Value, name == "lower" ? "islower" : "isupper");
            case "filter":
                return value is Text filter && Filters.Exists(filter.Value);
            default:
                throw new JinjaException($"the test 'is {name}' is not supported");
        }
    }
}
