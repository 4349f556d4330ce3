using System.Globalization;
using System.Text;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>
/// Tokens to a tree, by Jinja's grammar. Weakest first: x if y else z; or; and; not; comparisons, in, not in; + -; ~; * / // %; **; unary - +; then
/// attribute, item, call, and after these filters and tests.
/// </summary>
internal sealed class Parser
{
    /// <summary>Templates of today are below 100 KB; the bound keeps a hostile file from taking memory.</summary>
    private const int MostCharacters = 1 << 20;

    private const int MostDepth = 150;

    private readonly List<Token> tokens;

    // Names read so far, in order: whether a macro reads varargs, kwargs or caller is whether they came up in its body.
    private readonly List<string> namesRead = [];
    private int at, depth, loops;
    private bool hasGeneration;

    private Parser(List<Token> tokens) => this.tokens = tokens;

    private Token Current => tokens[at];

    private int Line => Current.Line;

    public static TemplateTree Parse(string template)
    {
        if (template.Length > MostCharacters)
        {
            throw new JinjaException(string.Create(CultureInfo.InvariantCulture, $"the template has {template.Length} characters; more than {MostCharacters} are not read"), 1);
        }

        var parser = new Parser(Lexer.Cut(template));
        IReadOnlyList<Statement> body = parser.Statements("the template", []);
        return new TemplateTree(body, parser.hasGeneration);
    }

    /// <summary>Statements up to one of the words that end the block, which is the current token then.</summary>
    private List<Statement> Statements(string block, ReadOnlySpan<string> ends)
    {
        int begin = Line;
        Deeper();
        var body = new List<Statement>();
        while (Current.Kind != TokenKind.End)
        {
            Token token = Next();
            switch (token.Kind)
            {
                case TokenKind.Data:
                    body.Add(new DataStatement(token.Line, Text.Own(token.Text)));
                    break;
                case TokenKind.PrintBegin:
                    body.Add(new PrintStatement(token.Line, Tuple()));
                    Expect(TokenKind.PrintEnd);
                    break;
                default:
                    if (Current.Kind == TokenKind.Name && ends.Contains(Current.Text))
                    {
                        depth--;
                        return body;
                    }

                    body.Add(Statement());
                    Expect(TokenKind.BlockEnd);
                    break;
            }
        }

        depth--;
        return ends.IsEmpty ? body : throw new JinjaException($"{block} that begins here has no '{ends[^1]}'", begin);
    }

    /// <summary>The rest of an opening tag, the block, and the closing word.</summary>
    private List<Statement> Block(string opening, string end)
    {
        List<Statement> body = Inner(opening, [end]);
        at++;
        return body;
    }

    private List<Statement> Inner(string opening, ReadOnlySpan<string> ends)
    {
        Skip(TokenKind.Operator, ":");
        Expect(TokenKind.BlockEnd);
        return Statements($"'{opening}'", ends);
    }

    private Statement Statement()
    {
        Token tag = Current.Kind == TokenKind.Name ? Next() : throw Unexpected("the name of a statement");
        switch (tag.Text)
        {
            case "for":
                return For(tag.Line);
            case "if":
                return If(tag.Line);
            case "set":
                return Set(tag.Line);
            case "macro":
                string name = Name();
                return new MacroStatement(tag.Line, Macro(name, Signature(), "macro"));
            case "call":
                List<(string, Expression?)> parameters = Current.Is(TokenKind.Operator, "(") ? Signature() : [];
                Expression call = Expression();
                return new CallStatement(tag.Line, call as CallExpression ?? throw new JinjaException("'call' needs the call of a macro", tag.Line), Macro("caller", parameters, "call"));
            case "filter":
                FilterExpression filter = Filter(null);
                while (Skip(TokenKind.Operator, "|"))
                {
                    filter = Filter(filter);
                }

                return new FilterStatement(tag.Line, filter, Apart("filter", "endfilter"));
            case "with":
                return With(tag.Line);
            case "generation":
                hasGeneration = true;
                return new GenerationStatement(tag.Line, Apart("generation", "endgeneration"));
            case "print":
                var parts = new List<Expression> { Expression() };
                while (Skip(TokenKind.Operator, ","))
                {
                    parts.Add(Expression());
                }

                return new PrintStatement(tag.Line, parts.Count == 1 ? parts[0] : new ConcatExpression(tag.Line, parts));
            case "break" when loops > 0:
                return new BreakStatement(tag.Line);
            case "continue" when loops > 0:
                return new ContinueStatement(tag.Line);
            case "break" or "continue":
                throw new JinjaException($"'{tag.Text}' stands outside of a loop", tag.Line);
            case "include" or "import" or "from" or "extends" or "block":
                throw new JinjaException($"'{tag.Text}' is not supported: a chat template is one file", tag.Line);
            default:
                throw new JinjaException($"'{tag.Text}' is not a statement that chat templates have here; known are for, if, set, macro, call, filter, with, generation, print, break, continue and raw", tag.Line);
        }
    }

    /// <summary>A block that a loop around it cannot be left from.</summary>
    private List<Statement> Apart(string opening, string end)
    {
        int around = loops;
        loops = 0;
        List<Statement> body = Block(opening, end);
        loops = around;
        return body;
    }

    private ForStatement For(int line)
    {
        Target target = Targets("in");
        Word("in");
        Expression over = Tuple(withCondition: false, "recursive");
        Expression? condition = SkipWord("if") ? Expression() : null;
        bool isRecursive = SkipWord("recursive");
        loops++;
        List<Statement> body = Inner("for", ["else", "endfor"]);
        loops--;
        return new ForStatement(line, target, over, condition, isRecursive, body, Next().Text == "else" ? Block("for", "endfor") : []);
    }

    private IfStatement If(int line)
    {
        var branches = new List<(Expression, IReadOnlyList<Statement>)>();
        while (true)
        {
            Expression condition = Tuple(withCondition: false);
            branches.Add((condition, Inner("if", ["elif", "else", "endif"])));
            switch (Next().Text)
            {
                case "else":
                    return new IfStatement(line, branches, Block("if", "endif"));
                case "endif":
                    return new IfStatement(line, branches, []);
            }
        }
    }

    private Statement Set(int line)
    {
        Target target = Targets(null, withNamespace: true);
        if (Skip(TokenKind.Operator, "="))
        {
            return new SetStatement(line, target, Tuple());
        }

        FilterExpression? filter = null;
        while (Skip(TokenKind.Operator, "|"))
        {
            filter = Filter(filter);
        }

        return new SetBlockStatement(line, target, filter, Apart("set", "endset"));
    }

    private WithStatement With(int line)
    {
        var variables = new List<(Target, Expression)>();
        while (Current.Kind != TokenKind.BlockEnd)
        {
            if (variables.Count > 0)
            {
                Operator(",");
            }

            Target target = Targets(null);
            Operator("=");
            variables.Add((target, Expression()));
        }

        return new WithStatement(line, variables, Block("with", "endwith"));
    }

    private MacroDefinition Macro(string name, List<(string, Expression?)> parameters, string word)
    {
        int begin = namesRead.Count;
        List<Statement> body = Apart(word, $"end{word}");
        HashSet<string> read = [.. namesRead.Skip(begin)];
        return new MacroDefinition(name, parameters, body, read.Contains("varargs"), read.Contains("kwargs"), read.Contains("caller"));
    }

    private List<(string Name, Expression? Default)> Signature()
    {
        Operator("(");
        var parameters = new List<(string Name, Expression? Default)>();
        while (!Current.Is(TokenKind.Operator, ")"))
        {
            if (parameters.Count > 0)
            {
                Operator(",");
            }

            int line = Line;
            string name = Name();
            Expression? fallback = Skip(TokenKind.Operator, "=") ? Expression() : null;
            if (fallback is null && parameters.Count > 0 && parameters[^1].Default is not null)
            {
                throw new JinjaException($"the parameter '{name}' has no default, but the one before it has", line);
            }

            parameters.Add((name, fallback));
        }

        at++;
        return parameters;
    }

    /// <summary>Names to set, alone or with commas between them.</summary>
    private Target Targets(string? endWord, bool withNamespace = false)
    {
        int line = Line;
        Deeper();
        var targets = new List<Target>();
        bool isTuple = false;
        while (!(Current.Kind is TokenKind.BlockEnd || Current.Is(TokenKind.Operator, ")") || (endWord is not null && Current.Is(TokenKind.Name, endWord))))
        {
            if (Skip(TokenKind.Operator, "("))
            {
                targets.Add(Targets(null, withNamespace));
                Operator(")");
            }
            else
            {
                int nameLine = Line;
                string name = Name();
                targets.Add(withNamespace && Skip(TokenKind.Operator, ".") ? new NamespaceTarget(nameLine, name, Name()) : new NameTarget(nameLine, Assignable(name, nameLine)));
            }

            if (!Skip(TokenKind.Operator, ","))
            {
                break;
            }

            isTuple = true;
        }

        depth--;
        return targets.Count == 0 ? throw Unexpected("a name to set") : isTuple ? new TupleTarget(line, targets) : targets[0];
    }

    private static string Assignable(string name, int line) => name is "true" or "false" or "none" or "True" or "False" or "None"
        ? throw new JinjaException($"'{name}' cannot be set", line)
        : name;

    /// <summary>An expression, or several with commas between them.</summary>
    private Expression Tuple(bool withCondition = true, string? endWord = null, bool isInBrackets = false)
    {
        int line = Line;
        var items = new List<Expression>();
        bool isTuple = false;
        while (!(Current.Kind is TokenKind.PrintEnd or TokenKind.BlockEnd || Current.Is(TokenKind.Operator, ")") || (endWord is not null && Current.Is(TokenKind.Name, endWord))))
        {
            items.Add(withCondition ? Expression() : Or());
            if (!Skip(TokenKind.Operator, ","))
            {
                break;
            }

            isTuple = true;
        }

        return isTuple || (items.Count == 0 && isInBrackets) ? new ListExpression(line, items, IsTuple: true) : items.Count == 1 ? items[0] : throw Unexpected("an expression");
    }

    private Expression Expression()
    {
        Deeper();
        Expression result = Or();
        while (SkipWord("if"))
        {
            int line = Line;
            Expression condition = Or();
            result = new ConditionalExpression(line, condition, result, SkipWord("else") ? Expression() : null);
        }

        depth--;
        return result;
    }

    private Expression Or()
    {
        Expression left = And();
        while (Current.Is(TokenKind.Name, "or"))
        {
            int line = Next().Line;
            left = new OrExpression(line, left, And());
        }

        return left;
    }

    private Expression And()
    {
        Expression left = Not();
        while (Current.Is(TokenKind.Name, "and"))
        {
            int line = Next().Line;
            left = new AndExpression(line, left, Not());
        }

        return left;
    }

    private Expression Not()
    {
        if (!Current.Is(TokenKind.Name, "not"))
        {
            return Compare();
        }

        Deeper();
        int line = Next().Line;
        var result = new NotExpression(line, Not());
        depth--;
        return result;
    }

    private Expression Compare()
    {
        int line = Line;
        Expression first = Sum();
        var rest = new List<(string, Expression)>();
        while (true)
        {
            if (Current.Kind == TokenKind.Operator && Current.Text is "==" or "!=" or "<" or "<=" or ">" or ">=")
            {
                string comparison = Next().Text;
                rest.Add((comparison, Sum()));
            }
            else if (SkipWord("in"))
            {
                rest.Add(("in", Sum()));
            }
            else if (Current.Is(TokenKind.Name, "not") && tokens[at + 1].Is(TokenKind.Name, "in"))
            {
                at += 2;
                rest.Add(("not in", Sum()));
            }
            else
            {
                return rest.Count == 0 ? first : new CompareExpression(line, first, rest);
            }
        }
    }

    private Expression Sum()
    {
        Expression left = Concat();
        while (Current.Kind == TokenKind.Operator && Current.Text is "+" or "-")
        {
            Token sign = Next();
            left = new BinaryExpression(sign.Line, sign.Text, left, Concat());
        }

        return left;
    }

    private Expression Concat()
    {
        int line = Line;
        Expression first = Product();
        if (!Current.Is(TokenKind.Operator, "~"))
        {
            return first;
        }

        var parts = new List<Expression> { first };
        while (Skip(TokenKind.Operator, "~"))
        {
            parts.Add(Product());
        }

        return new ConcatExpression(line, parts);
    }

    private Expression Product()
    {
        Expression left = Power();
        while (Current.Kind == TokenKind.Operator && Current.Text is "*" or "/" or "//" or "%")
        {
            Token sign = Next();
            left = new BinaryExpression(sign.Line, sign.Text, left, Power());
        }

        return left;
    }

    private Expression Power()
    {
        Expression left = Unary();
        while (Current.Is(TokenKind.Operator, "**"))
        {
            int line = Next().Line;
            left = new BinaryExpression(line, "**", left, Unary());
        }

        return left;
    }

    private Expression Unary(bool withFilters = true)
    {
        Deeper();
        Expression result;
        if (Current.Kind == TokenKind.Operator && Current.Text is "-" or "+")
        {
            Token sign = Next();
            result = new UnaryExpression(sign.Line, sign.Text[0], Unary(withFilters: false));
        }
        else
        {
            result = Primary();
        }

        result = Postfix(result);
        if (withFilters)
        {
            result = Filters(result);
        }

        depth--;
        return result;
    }

    private Expression Primary()
    {
        Token token = Current;
        switch (token.Kind)
        {
            case TokenKind.Name:
                at++;
                if (token.Text is "true" or "True" or "false" or "False")
                {
                    return new Constant(token.Line, token.Text is "true" or "True");
                }

                if (token.Text is "none" or "None")
                {
                    return new Constant(token.Line, null);
                }

                namesRead.Add(token.Text);
                return new NameExpression(token.Line, token.Text);
            case TokenKind.String:
                at++;
                var text = new StringBuilder(token.Text);
                while (Current.Kind == TokenKind.String)
                {
                    text.Append(Next().Text);
                }

                return new Constant(token.Line, Text.Own(text.ToString()));
            case TokenKind.Integer or TokenKind.Float:
                at++;
                return new Constant(token.Line, token.Number);
            case TokenKind.Operator when token.Text == "(":
                at++;
                Expression inner = Tuple(isInBrackets: true);
                Operator(")");
                return inner;
            case TokenKind.Operator when token.Text == "[":
                at++;
                var items = new List<Expression>();
                while (!Current.Is(TokenKind.Operator, "]"))
                {
                    items.Add(Expression());
                    if (!Skip(TokenKind.Operator, ","))
                    {
                        break;
                    }
                }

                Operator("]");
                return new ListExpression(token.Line, items, IsTuple: false);
            case TokenKind.Operator when token.Text == "{":
                at++;
                var entries = new List<(Expression, Expression)>();
                while (!Current.Is(TokenKind.Operator, "}"))
                {
                    Expression key = Expression();
                    Operator(":");
                    entries.Add((key, Expression()));
                    if (!Skip(TokenKind.Operator, ","))
                    {
                        break;
                    }
                }

                Operator("}");
                return new DictExpression(token.Line, entries);
            default:
                throw Unexpected("an expression");
        }
    }

    private Expression Postfix(Expression of)
    {
        while (true)
        {
            if (Skip(TokenKind.Operator, "."))
            {
                Token name = Next();
                of = name.Kind switch
                {
                    TokenKind.Name => new AttributeExpression(name.Line, of, name.Text),
                    TokenKind.Integer => new ItemExpression(name.Line, of, new Constant(name.Line, name.Number)),
                    _ => throw new JinjaException($"a name or a number is expected behind '.', found {name.Describe()}", name.Line),
                };
            }
            else if (Current.Is(TokenKind.Operator, "["))
            {
                int line = Next().Line;
                of = Subscript(of, line);
                Operator("]");
            }
            else if (Current.Is(TokenKind.Operator, "("))
            {
                int line = Line;
                of = new CallExpression(line, of, Arguments());
            }
            else
            {
                return of;
            }
        }
    }

    private Expression Subscript(Expression of, int line)
    {
        Expression? start = Current.Is(TokenKind.Operator, ":") ? null : Expression();
        if (!Skip(TokenKind.Operator, ":"))
        {
            return new ItemExpression(line, of, start!);
        }

        Expression? stop = Current.Kind == TokenKind.Operator && Current.Text is ":" or "]" ? null : Expression();
        Expression? step = Skip(TokenKind.Operator, ":") && !Current.Is(TokenKind.Operator, "]") ? Expression() : null;
        return new SliceExpression(line, of, start, stop, step);
    }

    private Expression Filters(Expression of)
    {
        while (true)
        {
            if (Skip(TokenKind.Operator, "|"))
            {
                of = Filter(of);
            }
            else if (Current.Is(TokenKind.Name, "is"))
            {
                of = Test(of);
            }
            else if (Current.Is(TokenKind.Operator, "("))
            {
                int line = Line;
                of = new CallExpression(line, of, Arguments());
            }
            else
            {
                return of;
            }
        }
    }

    private FilterExpression Filter(Expression? of)
    {
        int line = Line;
        string name = Name();
        return new FilterExpression(line, of, name, Current.Is(TokenKind.Operator, "(") ? Arguments() : ArgumentList.None);
    }

    private Expression Test(Expression of)
    {
        int line = Next().Line;
        bool isNegated = SkipWord("not");
        string name = Name();
        ArgumentList arguments = ArgumentList.None;
        if (Current.Is(TokenKind.Operator, "("))
        {
            arguments = Arguments();
        }
        else if (Current.Kind is TokenKind.String or TokenKind.Integer or TokenKind.Float || (Current.Kind == TokenKind.Operator && Current.Text is "[" or "{")
            || (Current.Kind == TokenKind.Name && Current.Text is not ("else" or "or" or "and")))
        {
            if (Current.Is(TokenKind.Name, "is"))
            {
                throw new JinjaException("one 'is' cannot follow another; use brackets", Line);
            }

            arguments = new ArgumentList([Postfix(Primary())], [], null, null);
        }

        var test = new TestExpression(line, of, name, arguments);
        return isNegated ? new NotExpression(line, test) : test;
    }

    private ArgumentList Arguments()
    {
        int line = Line;
        Operator("(");
        var positional = new List<Expression>();
        var keywords = new List<(string, Expression)>();
        Expression? spread = null, spreadKeywords = null;
        while (!Current.Is(TokenKind.Operator, ")"))
        {
            if (Skip(TokenKind.Operator, "*"))
            {
                spread = spread is null && spreadKeywords is null ? Expression() : throw Wrong();
            }
            else if (Skip(TokenKind.Operator, "**"))
            {
                spreadKeywords = spreadKeywords is null ? Expression() : throw Wrong();
            }
            else if (Current.Kind == TokenKind.Name && tokens[at + 1].Is(TokenKind.Operator, "="))
            {
                string name = spreadKeywords is null ? Next().Text : throw Wrong();
                at++;
                keywords.Add((name, Expression()));
            }
            else
            {
                positional.Add(spread is null && spreadKeywords is null && keywords.Count == 0 ? Expression() : throw Wrong());
            }

            if (!Skip(TokenKind.Operator, ","))
            {
                break;
            }
        }

        Operator(")");
        return new ArgumentList(positional, keywords, spread, spreadKeywords);

        JinjaException Wrong() => new("the arguments of this call are in the wrong order: positional, then by name, then *, then **", line);
    }

    private void Deeper()
    {
        if (++depth > MostDepth)
        {
            throw new JinjaException($"more than {MostDepth} blocks and expressions are within each other", Line);
        }
    }

    private Token Next() => tokens[at].Kind == TokenKind.End ? tokens[at] : tokens[at++];

    private bool Skip(TokenKind kind, string text)
    {
        bool found = Current.Is(kind, text);
        at += found ? 1 : 0;
        return found;
    }

    private bool SkipWord(string word) => Skip(TokenKind.Name, word);

    private string Name() => Current.Kind == TokenKind.Name ? Next().Text : throw Unexpected("a name");

    private void Word(string word)
    {
        if (!SkipWord(word))
        {
            throw Unexpected($"'{word}'");
        }
    }

    private void Operator(string text)
    {
        if (!Skip(TokenKind.Operator, text))
        {
            throw Unexpected($"'{text}'");
        }
    }

    private void Expect(TokenKind kind)
    {
        if (Current.Kind != kind)
        {
            throw Unexpected(kind == TokenKind.PrintEnd ? "'}}'" : "'%}'");
        }

        at++;
    }

    private JinjaException Unexpected(string expected) => new($"{expected} is expected, found {Current.Describe()}", Line);
}
