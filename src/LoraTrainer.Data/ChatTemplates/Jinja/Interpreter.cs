using System.Numerics;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>Variables of a block. What is set in a block is gone with it; what is read is looked for in the blocks around too.</summary>
internal sealed class Scope(Scope? around, RenderBudget budget)
{
    /// <summary>Memory of a scope with variables, in units of the budget.</summary>
    private const int Units = 128;

    private Dictionary<string, object?>? variables;

    public void Set(string name, object? value)
    {
        if (variables is null)
        {
            budget.Make(Units);
            variables = new Dictionary<string, object?>(StringComparer.Ordinal);
        }

        variables[name] = value;
    }

    public bool TryGet(string name, out object? value)
    {
        for (Scope? scope = this; scope is not null; scope = scope.Around)
        {
            budget.Look(1);
            if (scope.variables is not null && scope.variables.TryGetValue(name, out value))
            {
                return true;
            }
        }

        value = null;
        return false;
    }

    private Scope? Around => around;
}

/// <summary>How a statement ended.</summary>
internal enum Flow
{
    Next,
    Break,
    Continue,
}

/// <summary>What a template made of its variables.</summary>
/// <param name="Text">The text, which knows what of it came from where.</param>
/// <param name="Generations">What the model is to say, as positions of code points: start and end; in the order in which the blocks ended.</param>
internal sealed record Rendering(Text Text, IReadOnlyList<(int Start, int End)> Generations);

/// <summary>Runs a template once. All that it can reach are the variables it is given and the functions named here.</summary>
internal sealed class Interpreter
{
    private readonly DateTime now;
    private readonly TextBuilder root;
    private readonly List<(int, int)> generations = [];
    private TextBuilder output;

    private Interpreter(RenderBudget budget, DateTime now)
    {
        Budget = budget;
        this.now = now;
        root = output = new TextBuilder(budget);
    }

    public RenderBudget Budget { get; }

    /// <summary>Where the template is.</summary>
    public int Line { get; private set; }

    /// <param name="tree">The template.</param>
    /// <param name="variables">What it is given.</param>
    /// <param name="now">What strftime_now tells.</param>
    /// <param name="limits">What it may take.</param>
    public static Rendering Run(TemplateTree tree, IEnumerable<KeyValuePair<string, object?>> variables, DateTime now, RenderLimits limits)
    {
        var interpreter = new Interpreter(new RenderBudget(limits), now);
        try
        {
            var globals = new Scope(null, interpreter.Budget);
            interpreter.AddFunctions(globals);
            var given = new Scope(globals, interpreter.Budget);
            foreach ((string name, object? value) in variables)
            {
                given.Set(name, value);
            }

            interpreter.Execute(tree.Body, new Scope(given, interpreter.Budget));
            return new Rendering(interpreter.root.ToText(), interpreter.generations);
        }
        catch (JinjaException exception) when (exception.Line == 0)
        {
            throw new JinjaException(exception.Message, interpreter.Line, exception.IsRaisedByTemplate);
        }
    }

    /// <summary>value.name: a method or a member first, then an entry of that name.</summary>
    public object? Attribute(object? value, string name, bool withItems = true)
    {
        Operators.Defined(value);
        return Member(value, name, out object? member) ? member
            : withItems && Operators.TryItem(value, Text.Own(name), Budget, out object? item) ? item
            : new Undefined($"{Words.Of(value)} has no attribute '{name}'");
    }

    /// <summary>value[index]: an entry first, then a method or a member of that name.</summary>
    public object? Item(object? value, object? index)
    {
        Operators.Defined(value);
        return Operators.TryItem(value, index, Budget, out object? item) ? item
            : index is Text name && Member(value, name.Value, out object? member) ? member
            : new Undefined(index is BigInteger or Text or bool ? $"{Words.Of(value)} has no entry {(index is Text key ? $"'{key.Value}'" : Operators.ToText(index, Budget).Value)}"
                : $"{Words.Of(index)} is no place in {Words.Of(value)}");
    }

    /// <summary>What a macro or a loop prints.</summary>
    public Text Capture(IReadOnlyList<Statement> body, Scope scope)
    {
        TextBuilder around = output;
        var inner = new TextBuilder(Budget);
        output = inner;
        Execute(body, scope);
        output = around;
        return inner.ToText();
    }

    /// <summary>What a loop prints that calls itself.</summary>
    public Text CaptureLoop(ForStatement node, object? over, Scope scope, int depth)
    {
        TextBuilder around = output;
        var inner = new TextBuilder(Budget);
        output = inner;
        Budget.Enter();
        Loop(node, over, scope, depth);
        Budget.Leave();
        output = around;
        return inner.ToText();
    }

    /// <summary>Goes through a loop and prints into the current output.</summary>
    /// <param name="node">The loop.</param>
    /// <param name="over">What it goes through.</param>
    /// <param name="scope">Around it.</param>
    /// <param name="depth">Of its calls of itself, from 0.</param>
    private void Loop(ForStatement node, object? over, Scope scope, int depth)
    {
        IEnumerable<object?> entries = Operators.Entries(over, Budget);
        if (node.Condition is { } condition)
        {
            entries = entries.Where(entry =>
            {
                var inner = new Scope(scope, Budget);
                Assign(node.Target, entry, inner);
                return Operators.IsTrue(Evaluate(condition, inner));
            });
        }

        var loop = new LoopValue(this, node, scope, entries, node.Condition is null ? Operators.Length(over) : null, depth);
        bool isComplete = false;
        while (loop.MoveNext())
        {
            var inner = new Scope(scope, Budget);
            inner.Set("loop", loop);
            Assign(node.Target, loop.Current, inner);
            Flow flow = Execute(node.Body, inner);

            // A turn that was left early does not count: the reference runs the else part if there was no other.
            isComplete |= flow == Flow.Next;
            if (flow == Flow.Break)
            {
                break;
            }
        }

        if (!isComplete)
        {
            Execute(node.Else, new Scope(scope, Budget));
        }
    }

    public object? Evaluate(Expression node, Scope scope)
    {
        Budget.Enter();
        Line = node.Line;
        object? value = node switch
        {
            Constant constant => constant.Value,
            NameExpression name => scope.TryGet(name.Name, out object? found) ? found : new Undefined($"'{name.Name}' is undefined"),
            AttributeExpression attribute => Attribute(attribute, scope),
            ItemExpression item => Item(item, scope),
            SliceExpression slice => Slice(slice, scope),
            CallExpression call => Call(call, scope),
            FilterExpression filter => Filter(filter, Evaluate(filter.Of!, scope), scope),
            TestExpression test => Test(test, scope),
            UnaryExpression unary => Unary(unary, scope),
            BinaryExpression binary => Binary(binary, scope),
            NotExpression not => !Operators.IsTrue(Evaluate(not.Of, scope)),
            AndExpression and => And(and, scope),
            OrExpression or => Or(or, scope),
            CompareExpression compare => Compare(compare, scope),
            ConcatExpression concat => Concat(concat, scope),
            ConditionalExpression conditional => Conditional(conditional, scope),
            ListExpression list => List(list, scope),
            DictExpression dict => Dict(dict, scope),
            _ => throw new ArgumentOutOfRangeException(nameof(node), node.GetType().Name, "no such expression"),
        };
        Budget.Leave();
        return value;
    }

    private void AddFunctions(Scope scope)
    {
        Add("raise_exception", arguments => throw new JinjaException(Operators.ToText(arguments.For("raise_exception", "message").Get(0), Budget).Value, isRaisedByTemplate: true, line: Line));
        Add("strftime_now", arguments =>
        {
            string format = arguments.For("strftime_now", "format").Text(0).Value;
            Budget.Make(20L * format.Length);
            return Text.Own(StrfTime.Format(format, now));
        });
        Add("range", arguments =>
        {
            CallArguments.Bound bound = arguments.For("range", "start", "stop", "step");
            return bound.Has(1) ? RangeValue.Between(Whole(bound.Get(0)), Whole(bound.Get(1)), Whole(bound.Get(2, BigInteger.One))) : RangeValue.Between(0, Whole(bound.Get(0)), 1);
        });
        Add("namespace", arguments =>
        {
            var made = new NamespaceValue();
            foreach ((object? key, object? value) in Entries("namespace", arguments))
            {
                made.Attributes[((Text)key!).Value] = value;
            }

            return made;
        });
        Add("dict", arguments => new DictValue(Entries("dict", arguments)));
        Add("joiner", arguments =>
        {
            Text between = arguments.For("joiner", "sep").TextOrNone(0) ?? Text.Own(", ");
            bool isUsed = false;
            return new Function((_, _) =>
            {
                bool isFirst = !isUsed;
                isUsed = true;
                return isFirst ? Text.Empty : between;
            });
        });

        void Add(string name, Func<CallArguments, object?> body) => scope.Set(name, new Function((_, arguments) => body(arguments)));

        static BigInteger Whole(object? value)
            => Operators.TryWhole(Operators.Defined(value), out BigInteger number) ? number : throw new JinjaException($"range expects whole numbers, found {Words.Of(value)}");
    }

    /// <summary>A dictionary that may come first, then what is given by name.</summary>
    private List<(object? Key, object? Value)> Entries(string what, CallArguments arguments)
    {
        if (arguments.Positional.Count > 1 || (arguments.Positional.Count == 1 && arguments.Positional[0] is not DictValue))
        {
            throw new JinjaException($"{what} takes a dictionary, and values by name");
        }

        IReadOnlyList<(object? Key, object? Value)> first = arguments.Positional.Count == 1 ? ((DictValue)arguments.Positional[0]!).Entries : [];
        if (first.Any(entry => entry.Key is not Text))
        {
            throw new JinjaException($"{what} takes texts as names");
        }

        Budget.MakeEntries(4L * (first.Count + arguments.Keywords.Count));
        return [.. first, .. arguments.Keywords.Select(pair => ((object?)Text.Own(pair.Key), pair.Value))];
    }

    /// <summary>A member or method; false where there is none.</summary>
    private static bool Member(object? value, string name, out object? member)
    {
        switch (value)
        {
            case NamespaceValue space:
                if (name.StartsWith('_'))
                {
                    member = new Undefined($"'{name}': names of a namespace may not start with an underscore");
                    return true;
                }

                return space.Attributes.TryGetValue(name, out member);
            case LoopValue loop:
                return loop.Member(name, out member);
            case MacroValue macro when name == "name":
                member = Text.Own(macro.Name);
                return true;
            default:
                member = Methods.Find(value, name);
                return member is not null;
        }
    }

    private Flow Execute(IReadOnlyList<Statement> body, Scope scope)
    {
        Budget.Enter();
        foreach (Statement statement in body)
        {
            Budget.Step();
            Line = statement.Line;
            Flow flow = Execute(statement, scope);
            if (flow != Flow.Next)
            {
                Budget.Leave();
                return flow;
            }
        }

        Budget.Leave();
        return Flow.Next;
    }

    private Flow Execute(Statement statement, Scope scope)
    {
        switch (statement)
        {
            case DataStatement data:
                output.Append(data.Data);
                break;
            case PrintStatement print:
                output.Append(Operators.ToText(Evaluate(print.Value, scope), Budget));
                break;
            case IfStatement condition:
                return If(condition, scope);
            case ForStatement loop:
                Loop(loop, Evaluate(loop.Over, scope), scope, 0);
                break;
            case BreakStatement:
                return Flow.Break;
            case ContinueStatement:
                return Flow.Continue;
            case SetStatement set:
                Assign(set.Target, Evaluate(set.Value, scope), scope);
                break;
            case SetBlockStatement block:
                object? captured = Capture(block.Body, new Scope(scope, Budget));
                Assign(block.Target, block.Filter is null ? captured : BlockFilter(block.Filter, captured, scope), scope);
                break;
            case WithStatement with:
                return With(with, scope);
            case FilterStatement filter:
                output.Append(Operators.ToText(BlockFilter(filter.Filter, Capture(filter.Body, new Scope(scope, Budget)), scope), Budget));
                break;
            case MacroStatement macro:
                scope.Set(macro.Macro.Name, new MacroValue(macro.Macro, scope));
                break;
            case CallStatement call:
                output.Append(Operators.ToText(Call(call.Call, scope, new MacroValue(call.Caller, scope)), Budget));
                break;
            case GenerationStatement generation:
                Generate(generation, scope);
                break;
            default:
                throw new ArgumentOutOfRangeException(nameof(statement), statement.GetType().Name, "no such statement");
        }

        return Flow.Next;
    }

    /// <summary>The start is what the template itself has printed so far, also where the block is in a macro: as the reference counts.</summary>
    private void Generate(GenerationStatement generation, Scope scope)
    {
        Text text = Capture(generation.Body, new Scope(scope, Budget));
        Budget.MakeEntries(1);
        generations.Add((root.CodePoints, root.CodePoints + text.CodePoints));
        output.Append(text);
    }

    private Flow If(IfStatement node, Scope scope)
    {
        foreach ((Expression condition, IReadOnlyList<Statement> body) in node.Branches)
        {
            if (Operators.IsTrue(Evaluate(condition, scope)))
            {
                return Execute(body, scope);
            }
        }

        return Execute(node.Else, scope);
    }

    private Flow With(WithStatement node, Scope scope)
    {
        var inner = new Scope(scope, Budget);
        foreach ((Target target, Expression value) in node.Variables)
        {
            Assign(target, Evaluate(value, scope), inner);
        }

        return Execute(node.Body, inner);
    }

    private void Assign(Target target, object? value, Scope scope)
    {
        switch (target)
        {
            case NameTarget name:
                scope.Set(name.Name, value);
                break;
            case NamespaceTarget place:
                Line = place.Line;
                if (!scope.TryGet(place.Name, out object? found) || found is not NamespaceValue space)
                {
                    throw new JinjaException($"'{place.Name}' is not a namespace, so '{place.Name}.{place.Attribute}' cannot be set");
                }

                Budget.MakeEntries(4);
                space.Attributes[place.Attribute] = value;
                break;
            case TupleTarget tuple:
                List<object?> parts = Operators.ToList(Operators.Defined(value), Budget);
                if (parts.Count != tuple.Items.Count)
                {
                    throw new JinjaException($"{parts.Count} values do not go into {tuple.Items.Count} names");
                }

                for (int i = 0; i < parts.Count; i++)
                {
                    Assign(tuple.Items[i], parts[i], scope);
                }

                break;
        }
    }

    private object? Attribute(AttributeExpression node, Scope scope)
    {
        object? of = Evaluate(node.Of, scope);
        Line = node.Line;
        return Attribute(of, node.Name);
    }

    private object? Item(ItemExpression node, Scope scope)
    {
        object? of = Evaluate(node.Of, scope), index = Evaluate(node.Index, scope);
        Line = node.Line;
        return Item(of, index);
    }

    private object Slice(SliceExpression node, Scope scope)
    {
        object? of = Evaluate(node.Of, scope);
        object? start = node.Start is null ? null : Evaluate(node.Start, scope);
        object? stop = node.Stop is null ? null : Evaluate(node.Stop, scope);
        object? step = node.Step is null ? null : Evaluate(node.Step, scope);
        Line = node.Line;
        return Operators.Slice(of, start, stop, step, Budget);
    }

    private object? Call(CallExpression node, Scope scope, MacroValue? caller = null)
    {
        object? callee = Evaluate(node.Callee, scope);
        CallArguments arguments = Arguments(node.Arguments, scope, caller);
        Line = node.Line;
        object? result = (Operators.Defined(callee) as Callable ?? throw new JinjaException($"{Words.Of(callee)} cannot be called")).Call(this, arguments);
        Line = node.Line;
        return result;
    }

    private object? Filter(FilterExpression node, object? value, Scope scope)
    {
        CallArguments arguments = Arguments(node.Arguments, scope);
        Line = node.Line;
        return Filters.Apply(this, node.Name, value, arguments);
    }

    /// <summary>Filters over a block: the innermost stands first.</summary>
    private object? BlockFilter(FilterExpression node, object? block, Scope scope)
        => Filter(node, node.Of is FilterExpression before ? BlockFilter(before, block, scope) : block, scope);

    private bool Test(TestExpression node, Scope scope)
    {
        object? of = Evaluate(node.Of, scope);
        CallArguments arguments = Arguments(node.Arguments, scope);
        Line = node.Line;
        return Tests.Check(this, node.Name, of, arguments);
    }

    private object Unary(UnaryExpression node, Scope scope)
    {
        object? of = Evaluate(node.Of, scope);
        Line = node.Line;
        return Operators.Negate(of, node.Operator);
    }

    private object? Binary(BinaryExpression node, Scope scope)
    {
        object? left = Evaluate(node.Left, scope), right = Evaluate(node.Right, scope);
        Line = node.Line;
        return Operators.Binary(node.Operator, left, right, Budget);
    }

    private object? And(AndExpression node, Scope scope) => Evaluate(node.Left, scope) is var left && Operators.IsTrue(left) ? Evaluate(node.Right, scope) : left;

    private object? Or(OrExpression node, Scope scope) => Evaluate(node.Left, scope) is var left && Operators.IsTrue(left) ? left : Evaluate(node.Right, scope);

    private bool Compare(CompareExpression node, Scope scope)
    {
        object? left = Evaluate(node.First, scope);
        foreach ((string comparison, Expression with) in node.Rest)
        {
            object? right = Evaluate(with, scope);
            Line = node.Line;
            if (!Operators.Compare(comparison, left, right, Budget))
            {
                return false;
            }

            left = right;
        }

        return true;
    }

    private Text Concat(ConcatExpression node, Scope scope)
    {
        var builder = new TextBuilder(Budget);
        foreach (Expression part in node.Parts)
        {
            object? value = Evaluate(part, scope);
            Line = node.Line;
            builder.Append(Operators.ToText(value, Budget));
        }

        return builder.ToText();
    }

    private object? Conditional(ConditionalExpression node, Scope scope)
        => Operators.IsTrue(Evaluate(node.Condition, scope)) ? Evaluate(node.Then, scope)
            : node.Else is null ? new Undefined("the inline 'if' has no 'else', and its condition is false")
            : Evaluate(node.Else, scope);

    private ListValue List(ListExpression node, Scope scope)
    {
        Budget.MakeEntries(2 + node.Items.Count);
        var items = new List<object?>(node.Items.Count);
        foreach (Expression item in node.Items)
        {
            items.Add(Evaluate(item, scope));
        }

        return new ListValue(items, node.IsTuple);
    }

    private DictValue Dict(DictExpression node, Scope scope)
    {
        Budget.MakeEntries(8 + (4L * node.Entries.Count));
        var entries = new List<(object?, object?)>(node.Entries.Count);
        foreach ((Expression key, Expression value) in node.Entries)
        {
            entries.Add((Operators.Defined(Evaluate(key, scope)), Evaluate(value, scope)));
        }

        Line = node.Line;
        return new DictValue(entries);
    }

    private CallArguments Arguments(ArgumentList list, Scope scope, MacroValue? caller = null)
    {
        if (list == ArgumentList.None && caller is null)
        {
            return CallArguments.None;
        }

        var positional = new List<object?>(list.Positional.Count);
        foreach (Expression argument in list.Positional)
        {
            positional.Add(Evaluate(argument, scope));
        }

        if (list.Spread is not null)
        {
            positional.AddRange(Operators.ToList(Operators.Defined(Evaluate(list.Spread, scope)), Budget));
        }

        var keywords = new Dictionary<string, object?>(StringComparer.Ordinal);
        foreach ((string name, Expression value) in list.Keywords)
        {
            Add(name, Evaluate(value, scope));
        }

        if (list.SpreadKeywords is not null)
        {
            var more = Operators.Defined(Evaluate(list.SpreadKeywords, scope)) as DictValue ?? throw new JinjaException("** needs a dictionary");
            Budget.MakeEntries(4L * more.Entries.Count);
            foreach ((object? key, object? value) in more.Entries)
            {
                Add((key as Text ?? throw new JinjaException("** needs a dictionary whose keys are texts")).Value, value);
            }
        }

        if (caller is not null)
        {
            Add("caller", caller);
        }

        return new CallArguments(positional, keywords);

        void Add(string name, object? value)
        {
            if (!keywords.TryAdd(name, value))
            {
                throw new JinjaException($"the argument '{name}' is given twice");
            }
        }
    }
}

/// <summary>A macro, with the variables that it sees: those of the block in which it stands, as they are when it is called.</summary>
internal sealed class MacroValue(MacroDefinition definition, Scope around) : Callable
{
    public string Name => definition.Name;

    public override object? Call(Interpreter interpreter, CallArguments arguments)
    {
        IReadOnlyList<(string Name, Expression? Default)> parameters = definition.Parameters;
        var scope = new Scope(around, interpreter.Budget);
        if (arguments.Positional.Count > parameters.Count && !definition.TakesMore)
        {
            throw new JinjaException($"the macro '{Name}' takes at most {parameters.Count} arguments, got {arguments.Positional.Count}");
        }

        var left = new Dictionary<string, object?>(arguments.Keywords, StringComparer.Ordinal);
        object? caller = new Undefined($"the macro '{Name}' was not called by a 'call' block");
        if (definition.TakesCaller && left.Remove("caller", out object? given))
        {
            caller = given;
        }

        var missing = new List<(string Name, Expression? Default)>();
        for (int i = 0; i < parameters.Count; i++)
        {
            string name = parameters[i].Name;
            bool isNamed = left.Remove(name, out object? named);
            if (i < arguments.Positional.Count)
            {
                scope.Set(name, !isNamed ? arguments.Positional[i] : throw new JinjaException($"the macro '{Name}' got its argument '{name}' twice"));
            }
            else if (isNamed)
            {
                scope.Set(name, named);
            }
            else
            {
                missing.Add(parameters[i]);
            }
        }

        if (left.Count > 0 && !definition.TakesMoreKeywords)
        {
            throw new JinjaException($"the macro '{Name}' has no argument '{left.Keys.First()}'");
        }

        foreach ((string name, Expression? fallback) in missing)
        {
            scope.Set(name, fallback is null ? new Undefined($"the macro '{Name}' was not given its argument '{name}'") : interpreter.Evaluate(fallback, scope));
        }

        if (definition.TakesCaller)
        {
            scope.Set("caller", caller);
        }

        if (definition.TakesMore)
        {
            scope.Set("varargs", new ListValue([.. arguments.Positional.Skip(parameters.Count)], isTuple: true));
        }

        if (definition.TakesMoreKeywords)
        {
            scope.Set("kwargs", new DictValue(left.Select(pair => ((object?)Text.Own(pair.Key), pair.Value))));
        }

        return interpreter.Capture(definition.Body, scope);
    }
}

/// <summary>The variable "loop" of a turn. It looks ahead only where it is asked what comes next, as the reference does.</summary>
internal sealed class LoopValue : Callable
{
    private static readonly object Nothing = new();

    private readonly Interpreter interpreter;
    private readonly ForStatement node;
    private readonly Scope around;
    private readonly IEnumerator<object?> remaining;
    private readonly int depth;
    private readonly Queue<object?> ahead = [];
    private object? previous = Nothing, lastChanged = Nothing;
    private int index = -1;
    private int? length;

    /// <param name="interpreter">Runs the loop.</param>
    /// <param name="node">The loop.</param>
    /// <param name="around">The variables around it.</param>
    /// <param name="entries">What it goes through.</param>
    /// <param name="length">How many they are, where that is known.</param>
    /// <param name="depth">Of its calls of itself, from 0.</param>
    public LoopValue(Interpreter interpreter, ForStatement node, Scope around, IEnumerable<object?> entries, int? length, int depth)
    {
        this.interpreter = interpreter;
        this.node = node;
        this.around = around;
        this.length = length;
        this.depth = depth;
        remaining = entries.GetEnumerator();
    }

    public object? Current { get; private set; } = Nothing;

    public bool MoveNext()
    {
        if (!Peek(out object? next))
        {
            return false;
        }

        ahead.Dequeue();
        previous = Current;
        Current = next;
        index++;
        return true;
    }

    public bool Member(string name, out object? member)
    {
        member = name switch
        {
            "index0" => new BigInteger(index),
            "index" => new BigInteger(index + 1),
            "revindex0" => new BigInteger(Length() - index - 1),
            "revindex" => new BigInteger(Length() - index),
            "length" => new BigInteger(Length()),
            "first" => index == 0,
            "last" => !Peek(out _),
            "depth0" => new BigInteger(depth),
            "depth" => new BigInteger(depth + 1),
            "previtem" => index == 0 ? new Undefined("the first turn of a loop has no previous item") : previous,
            "nextitem" => Peek(out object? next) ? next : new Undefined("the last turn of a loop has no next item"),
            "cycle" => new Function((_, arguments) => arguments.Positional is { Count: > 0 } values ? values[index % values.Count] : throw new JinjaException("loop.cycle needs values")),
            "changed" => new Function((running, arguments) => HasChanged(new ListValue(arguments.Positional, isTuple: true), running.Budget)),
            _ => null,
        };
        return member is not null || name is "previtem" or "nextitem";
    }

    /// <summary>loop(entries): the loop once more, over others, where it says that it is recursive.</summary>
    public override object? Call(Interpreter running, CallArguments arguments)
    {
        if (!node.IsRecursive)
        {
            throw new JinjaException("the loop cannot be called: it is not marked as recursive");
        }

        object? over = arguments.For("loop", "entries").Get(0);
        return running.CaptureLoop(node, over, around, depth + 1);
    }

    private int Length()
    {
        if (length is { } known)
        {
            return known;
        }

        while (remaining.MoveNext())
        {
            interpreter.Budget.MakeEntries(1);
            ahead.Enqueue(remaining.Current);
        }

        return (length = index + 1 + ahead.Count).Value;
    }

    private bool Peek(out object? next)
    {
        if (ahead.Count == 0 && remaining.MoveNext())
        {
            ahead.Enqueue(remaining.Current);
        }

        return ahead.TryPeek(out next);
    }

    private object HasChanged(ListValue values, RenderBudget budget)
    {
        bool isSame = lastChanged is ListValue last && Operators.AreEqual(last, values, budget);
        lastChanged = values;
        return !isSame;
    }
}
