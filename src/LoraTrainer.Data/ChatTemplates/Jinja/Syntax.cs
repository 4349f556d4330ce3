namespace LoraTrainer.Data.ChatTemplates.Jinja;

// What a template says, as a tree that never changes. Lines count from 1.

internal abstract record Expression(int Line);

internal sealed record Constant(int Line, object? Value) : Expression(Line);

internal sealed record NameExpression(int Line, string Name) : Expression(Line);

internal sealed record AttributeExpression(int Line, Expression Of, string Name) : Expression(Line);

internal sealed record ItemExpression(int Line, Expression Of, Expression Index) : Expression(Line);

/// <summary>Of[Start:Stop:Step]; null where nothing is written.</summary>
internal sealed record SliceExpression(int Line, Expression Of, Expression? Start, Expression? Stop, Expression? Step) : Expression(Line);

internal sealed record CallExpression(int Line, Expression Callee, ArgumentList Arguments) : Expression(Line);

/// <summary>Of is null where the filter stands over a block.</summary>
internal sealed record FilterExpression(int Line, Expression? Of, string Name, ArgumentList Arguments) : Expression(Line);

internal sealed record TestExpression(int Line, Expression Of, string Name, ArgumentList Arguments) : Expression(Line);

internal sealed record UnaryExpression(int Line, char Operator, Expression Of) : Expression(Line);

internal sealed record BinaryExpression(int Line, string Operator, Expression Left, Expression Right) : Expression(Line);

internal sealed record NotExpression(int Line, Expression Of) : Expression(Line);

internal sealed record AndExpression(int Line, Expression Left, Expression Right) : Expression(Line);

internal sealed record OrExpression(int Line, Expression Left, Expression Right) : Expression(Line);

/// <summary>first op second op third ..., each compared with its neighbour.</summary>
internal sealed record CompareExpression(int Line, Expression First, IReadOnlyList<(string Operator, Expression With)> Rest) : Expression(Line);

/// <summary>Parts joined by ~.</summary>
internal sealed record ConcatExpression(int Line, IReadOnlyList<Expression> Parts) : Expression(Line);

internal sealed record ConditionalExpression(int Line, Expression Condition, Expression Then, Expression? Else) : Expression(Line);

internal sealed record ListExpression(int Line, IReadOnlyList<Expression> Items, bool IsTuple) : Expression(Line);

internal sealed record DictExpression(int Line, IReadOnlyList<(Expression Key, Expression Value)> Entries) : Expression(Line);

/// <summary>Of a call, a filter or a test.</summary>
/// <param name="Positional">In order.</param>
/// <param name="Keywords">By name.</param>
/// <param name="Spread">*expression: more positional ones.</param>
/// <param name="SpreadKeywords">**expression: more by name.</param>
internal sealed record ArgumentList(IReadOnlyList<Expression> Positional, IReadOnlyList<(string Name, Expression Value)> Keywords, Expression? Spread, Expression? SpreadKeywords)
{
    public static ArgumentList None { get; } = new([], [], null, null);
}

/// <summary>Where a value goes.</summary>
internal abstract record Target(int Line);

internal sealed record NameTarget(int Line, string Name) : Target(Line);

internal sealed record NamespaceTarget(int Line, string Name, string Attribute) : Target(Line);

internal sealed record TupleTarget(int Line, IReadOnlyList<Target> Items) : Target(Line);

internal abstract record Statement(int Line);

internal sealed record DataStatement(int Line, Text Data) : Statement(Line);

internal sealed record PrintStatement(int Line, Expression Value) : Statement(Line);

internal sealed record IfStatement(int Line, IReadOnlyList<(Expression Condition, IReadOnlyList<Statement> Body)> Branches, IReadOnlyList<Statement> Else) : Statement(Line);

internal sealed record ForStatement(int Line, Target Target, Expression Over, Expression? Condition, bool IsRecursive, IReadOnlyList<Statement> Body, IReadOnlyList<Statement> Else) : Statement(Line);

internal sealed record BreakStatement(int Line) : Statement(Line);

internal sealed record ContinueStatement(int Line) : Statement(Line);

internal sealed record SetStatement(int Line, Target Target, Expression Value) : Statement(Line);

internal sealed record SetBlockStatement(int Line, Target Target, FilterExpression? Filter, IReadOnlyList<Statement> Body) : Statement(Line);

internal sealed record WithStatement(int Line, IReadOnlyList<(Target Target, Expression Value)> Variables, IReadOnlyList<Statement> Body) : Statement(Line);

internal sealed record FilterStatement(int Line, FilterExpression Filter, IReadOnlyList<Statement> Body) : Statement(Line);

internal sealed record MacroStatement(int Line, MacroDefinition Macro) : Statement(Line);

/// <summary>A macro is called with a block that it can call back.</summary>
internal sealed record CallStatement(int Line, CallExpression Call, MacroDefinition Caller) : Statement(Line);

/// <summary>What stands in it the model is to say.</summary>
internal sealed record GenerationStatement(int Line, IReadOnlyList<Statement> Body) : Statement(Line);

/// <summary>A macro, or the block of a call.</summary>
/// <param name="Name">For sentences.</param>
/// <param name="Parameters">In order, each with its default or null.</param>
/// <param name="Body">What it prints.</param>
/// <param name="TakesMore">It reads varargs: it may get more arguments than it names.</param>
/// <param name="TakesMoreKeywords">It reads kwargs.</param>
/// <param name="TakesCaller">It reads caller: it may be called with a block.</param>
internal sealed record MacroDefinition(
    string Name, IReadOnlyList<(string Name, Expression? Default)> Parameters, IReadOnlyList<Statement> Body, bool TakesMore, bool TakesMoreKeywords, bool TakesCaller);

/// <summary>A whole template.</summary>
/// <param name="Body">Its statements.</param>
/// <param name="HasGeneration">Whether it says anywhere what the model is to say.</param>
internal sealed record TemplateTree(IReadOnlyList<Statement> Body, bool HasGeneration);
