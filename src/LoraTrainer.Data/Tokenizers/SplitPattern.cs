using System.Globalization;
using LoraTrainer.Data.Tokenizers.Unicode;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>
/// The regular expressions of tokenizer.json files, matched over Unicode scalars with the tables of <see cref="UnicodeTables"/> as the libraries'
/// engine (Oniguruma, Ruby syntax) does: ordered alternation, greedy quantifiers with backtracking, <c>$</c> and <c>^</c> at line ends.
/// .NET's own engine works on UTF-16 units and takes a letter beyond the basic plane for two unknown characters.
/// Anything outside the subset that tokenizers use is refused by name. A pattern that can match nothing is refused too.
/// </summary>
internal sealed class SplitPattern
{
    private readonly Instruction[] program;

    private SplitPattern(Instruction[] program) => this.program = program;

    private enum Op : byte
    {
        /// <summary>One scalar of the set.</summary>
        One,

        /// <summary>Min..max scalars of the set, as many as possible; gives back one at a time unless possessive.</summary>
        Loop,

        /// <summary>Tries <c>Target</c> after what follows has failed; skipped when the next ASCII character cannot begin what follows.</summary>
        Fork,

        Jump,

        /// <summary>Continues only where the pattern between here and <c>Target</c> does (not) match.</summary>
        Look,

        LineStart,
        LineEnd,
        Match,
    }

    private struct Instruction
    {
        public Op Op;
        public bool Flag;
        public int Target, Min, Max;
        public ScalarSet? Set;
        public ulong FirstLow, FirstHigh;
    }

    /// <summary>Memory that matching reuses; one per thread.</summary>
    public sealed class Scratch
    {
        /// <summary>Patterns of real tokenizers take a few dozen steps per character; one that takes many more is a trap.</summary>
        private const int StepsPerCharacter = 500, AlwaysAllowed = 1 << 20;

        internal (int Instruction, int Position, int Floor)[] Stack = new (int, int, int)[64];

        private long stepsLeft = AlwaysAllowed;

        /// <summary>Allows the steps for another text.</summary>
        public void Refill(int length) => stepsLeft = AlwaysAllowed + ((long)StepsPerCharacter * length);

        internal void Take(int steps)
        {
            stepsLeft -= steps;
            if (stepsLeft < 0)
            {
                throw new FormatException("its pattern tries too many ways to match this text; such a pattern is taken for damaged");
            }
        }
    }

    /// <exception cref="FormatException">The pattern uses something that is not supported; the message names it.</exception>
    public static SplitPattern Parse(string pattern)
    {
        var parser = new Parser(pattern);
        Node root = parser.ParseAll();
        if (root.MinimumLength == 0)
        {
            throw new FormatException("it can match the empty text");
        }

        var code = new List<Instruction>();
        Emit(root, code);
        code.Add(new Instruction { Op = Op.Match });
        return new SplitPattern([.. code]);
    }

    /// <summary>A pattern that matches one scalar of a set.</summary>
    public static SplitPattern Single(ScalarSet set) => new([new Instruction { Op = Op.One, Set = set }, new Instruction { Op = Op.Match }]);

    /// <summary>The leftmost match at or after <paramref name="from"/> in a text without lone surrogates; false where there is none.</summary>
    public bool Find(ReadOnlySpan<char> text, int from, Scratch scratch, out int start, out int end)
    {
        for (start = from; start < text.Length; start++)
        {
            if (start > from && char.IsLowSurrogate(text[start]))
            {
                continue;
            }

            end = Run(text, 0, start, scratch, 0);
            if (end >= 0)
            {
                return true;
            }
        }

        end = -1;
        return false;
    }

    /// <summary>Where a match of the program from <paramref name="pc"/> at <paramref name="position"/> ends, or -1.</summary>
    private int Run(ReadOnlySpan<char> text, int pc, int position, Scratch scratch, int stackBase)
    {
        int depth = stackBase;
        Instruction[] code = program;
        while (true)
        {
            ref Instruction instruction = ref code[pc];
            bool failed = false;
            switch (instruction.Op)
            {
                case Op.One:
                    if (position < text.Length && instruction.Set!.Contains(UnicodeTables.ScalarAt(text, position, out int one)))
                    {
                        position += one;
                        pc++;
                    }
                    else
                    {
                        failed = true;
                    }

                    break;

                case Op.Loop:
                    ScalarSet set = instruction.Set!;
                    int count = 0, floor = position;
                    while (count < instruction.Max && position < text.Length)
                    {
                        int unit = text[position], length = 1;
                        if (unit >= 0xD800)
                        {
                            unit = UnicodeTables.ScalarAt(text, position, out length);
                        }

                        if (!set.Contains(unit))
                        {
                            break;
                        }

                        position += length;
                        if (++count == instruction.Min)
                        {
                            floor = position;
                        }
                    }

                    scratch.Take(count);
                    if (count < instruction.Min)
                    {
                        failed = true;
                        break;
                    }

                    pc++;
                    if (count > instruction.Min && !instruction.Flag)
                    {
                        Push(scratch, depth++, (pc, position, floor));
                    }

                    break;

                case Op.Fork:
                    if (position < text.Length && text[position] < 128
                        && ((text[position] < 64 ? instruction.FirstLow >> text[position] : instruction.FirstHigh >> (text[position] - 64)) & 1) == 0)
                    {
                        pc = instruction.Target;
                        break;
                    }

                    Push(scratch, depth++, (instruction.Target, position, position));
                    pc++;
                    break;

                case Op.Jump:
                    pc = instruction.Target;
                    break;

                case Op.Look:
                    if (Run(text, pc + 1, position, scratch, depth) >= 0 == instruction.Flag)
                    {
                        pc = instruction.Target;
                    }
                    else
                    {
                        failed = true;
                    }

                    break;

                case Op.LineStart:
                    failed = position != 0 && text[position - 1] != '\n';
                    pc++;
                    break;

                case Op.LineEnd:
                    failed = position != text.Length && text[position] != '\n';
                    pc++;
                    break;

                default:
                    return position;
            }

            if (failed)
            {
                scratch.Take(1);
                if (depth == stackBase)
                {
                    return -1;
                }

                ref (int Instruction, int Position, int Floor) top = ref scratch.Stack[depth - 1];
                pc = top.Instruction;
                position = top.Position;
                if (position > top.Floor)
                {
                    UnicodeTables.ScalarBefore(text, position, out int length);
                    position -= length;
                    top.Position = position;
                }

                if (position <= top.Floor)
                {
                    depth--;
                }
            }
        }
    }

    private static void Push(Scratch scratch, int depth, (int, int, int) entry)
    {
        if (depth == scratch.Stack.Length)
        {
            Array.Resize(ref scratch.Stack, 2 * depth);
        }

        scratch.Stack[depth] = entry;
    }

    private static void Emit(Node node, List<Instruction> code)
    {
        switch (node)
        {
            case SetNode one:
                code.Add(new Instruction { Op = Op.One, Set = one.Set });
                break;
            case SequenceNode sequence:
                sequence.Items.ForEach(item => Emit(item, code));
                break;
            case AnchorNode anchor:
                code.Add(new Instruction { Op = anchor.AtEnd ? Op.LineEnd : Op.LineStart });
                break;
            case LookNode look:
                int at = code.Count;
                code.Add(default);
                Emit(look.Body, code);
                code.Add(new Instruction { Op = Op.Match });
                code[at] = new Instruction { Op = Op.Look, Flag = look.Positive, Target = code.Count };
                break;
            case ChoiceNode choice:
                var jumps = new List<int>();
                for (int i = 0; i < choice.Alternatives.Count; i++)
                {
                    bool last = i == choice.Alternatives.Count - 1;
                    int fork = code.Count;
                    if (!last)
                    {
                        code.Add(default);
                    }

                    Emit(choice.Alternatives[i], code);
                    if (!last)
                    {
                        jumps.Add(code.Count);
                        code.Add(default);
                        code[fork] = ForkTo(code.Count, choice.Alternatives[i]);
                    }
                }

                jumps.ForEach(jump => code[jump] = new Instruction { Op = Op.Jump, Target = code.Count });
                break;
            case RepeatNode { Body: SetNode body } loop:
                code.Add(new Instruction { Op = Op.Loop, Set = body.Set, Min = loop.Min, Max = loop.Max, Flag = loop.Possessive });
                break;
            case RepeatNode { Min: 0, Max: 1, Possessive: false } optional:
                int begin = code.Count;
                code.Add(default);
                Emit(optional.Body, code);
                code[begin] = ForkTo(code.Count, optional.Body);
                break;
            default:
                throw new FormatException("it repeats a group other than with ?");
        }
    }

    private static Instruction ForkTo(int target, Node preferred)
    {
        (ulong low, ulong high) = preferred.MinimumLength > 0 ? preferred.First : (ulong.MaxValue, ulong.MaxValue);
        return new Instruction { Op = Op.Fork, Target = target, FirstLow = low, FirstHigh = high };
    }

    private abstract record Node
    {
        /// <summary>0 where it can match nothing.</summary>
        public abstract int MinimumLength { get; }

        /// <summary>The ASCII characters it can begin with (only meaningful where it cannot match nothing).</summary>
        public abstract (ulong Low, ulong High) First { get; }
    }

    private sealed record SetNode(ScalarSet Set) : Node
    {
        public override int MinimumLength => 1;

        public override (ulong, ulong) First => (Set.AsciiLow, Set.AsciiHigh);
    }

    private sealed record SequenceNode(List<Node> Items) : Node
    {
        public override int MinimumLength => Items.Sum(item => item.MinimumLength);

        public override (ulong, ulong) First
        {
            get
            {
                ulong low = 0, high = 0;
                foreach (Node item in Items)
                {
                    low |= item.First.Low;
                    high |= item.First.High;
                    if (item.MinimumLength > 0)
                    {
                        break;
                    }
                }

                return (low, high);
            }
        }
    }

    private sealed record ChoiceNode(List<Node> Alternatives) : Node
    {
        public override int MinimumLength => Alternatives.Min(item => item.MinimumLength);

        public override (ulong, ulong) First => Alternatives.Aggregate((0UL, 0UL), (all, item) => (all.Item1 | item.First.Low, all.Item2 | item.First.High));
    }

    private sealed record RepeatNode(Node Body, int Min, int Max, bool Possessive) : Node
    {
        public override int MinimumLength => Min * Body.MinimumLength;

        public override (ulong, ulong) First => Body.First;
    }

    private sealed record LookNode(Node Body, bool Positive) : Node
    {
        public override int MinimumLength => 0;

        public override (ulong, ulong) First => (0, 0);
    }

    private sealed record AnchorNode(bool AtEnd) : Node
    {
        public override int MinimumLength => 0;

        public override (ulong, ulong) First => (0, 0);
    }

    private sealed class Parser(string pattern)
    {
        private const int DeepestGroup = 50;
        private int at;
        private int groups;

        public Node ParseAll()
        {
            Node node = ParseChoice(ignoreCase: false);
            return at == pattern.Length ? node : throw new FormatException($"there is a ')' without '(' at character {at}");
        }

        private Node ParseChoice(bool ignoreCase)
        {
            var alternatives = new List<Node> { ParseSequence(ignoreCase) };
            while (Accept('|'))
            {
                alternatives.Add(ParseSequence(ignoreCase));
            }

            return alternatives.Count == 1 ? alternatives[0] : new ChoiceNode(alternatives);
        }

        private SequenceNode ParseSequence(bool ignoreCase)
        {
            var items = new List<Node>();
            while (at < pattern.Length && pattern[at] is not ('|' or ')'))
            {
                items.Add(ParseQuantified(ignoreCase));
            }

            return new SequenceNode(items);
        }

        private Node ParseQuantified(bool ignoreCase)
        {
            Node atom = ParseAtom(ignoreCase);
            while (at < pattern.Length)
            {
                int min, max;
                bool counted = false;
                switch (pattern[at])
                {
                    case '?':
                        (min, max) = (0, 1);
                        break;
                    case '*':
                        (min, max) = (0, int.MaxValue);
                        break;
                    case '+':
                        (min, max) = (1, int.MaxValue);
                        break;
                    case '{':
                        (min, max) = ParseCounts();
                        counted = true;
                        break;
                    default:
                        return atom;
                }

                at++;
                if (at < pattern.Length && pattern[at] == '?')
                {
                    throw new FormatException($"lazy quantifiers are not supported (at character {at})");
                }

                // In Ruby's syntax {1,3}+ is a repeated repetition, while ++ is possessive.
                bool possessive = !counted && Accept('+');
                if (atom is RepeatNode or LookNode or AnchorNode)
                {
                    throw new FormatException($"a quantifier after a quantifier, a lookahead or an anchor is not supported (at character {at})");
                }

                atom = new RepeatNode(atom, min, max, possessive);
            }

            return atom;
        }

        private (int Min, int Max) ParseCounts()
        {
            int close = pattern.IndexOf('}', at);
            string[] parts = close < 0 ? [] : pattern[(at + 1)..close].Split(',');
            if (parts.Length is not (1 or 2) || !int.TryParse(parts[0], NumberStyles.None, CultureInfo.InvariantCulture, out int min))
            {
                throw new FormatException($"'{{' at character {at} does not begin a count like {{1,3}}");
            }

            int max = min;
            if (parts.Length == 2)
            {
                max = int.MaxValue;
                if (parts[1].Length > 0 && !int.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out max))
                {
                    throw new FormatException($"'{{' at character {at} does not begin a count like {{1,3}}");
                }
            }

            if (max < min || max == 0 || min > 1000)
            {
                throw new FormatException($"the count at character {at} is out of range");
            }

            at = close;
            return (min, max);
        }

        private Node ParseAtom(bool ignoreCase)
        {
            switch (pattern[at])
            {
                case '(':
                    return ParseGroup(ignoreCase);
                case '[':
                    return new SetNode(ParseClass(ignoreCase));
                case '$':
                    at++;
                    return new AnchorNode(AtEnd: true);
                case '^':
                    at++;
                    return new AnchorNode(AtEnd: false);
                case '.':
                    at++;
                    var any = new ScalarSet();
                    any.AddRange('\n', '\n');
                    return new SetNode(any.Freeze(negate: true));
                case '*' or '+' or '?' or '{':
                    throw new FormatException($"the quantifier at character {at} has nothing to repeat");
                default:
                    var set = new ScalarSet();
                    if (ParseItem(set) is { } scalar)
                    {
                        AddScalar(set, scalar, ignoreCase);
                    }

                    return new SetNode(set.Freeze());
            }
        }

        private Node ParseGroup(bool ignoreCase)
        {
            int open = at++;
            if (++groups > DeepestGroup)
            {
                throw new FormatException($"it has more than {DeepestGroup} groups");
            }

            bool? look = null;
            if (Accept('?'))
            {
                if (Accept('!'))
                {
                    look = false;
                }
                else if (Accept('='))
                {
                    look = true;
                }
                else if (Accept('i'))
                {
                    ignoreCase = true;
                    Expect(':', open);
                }
                else
                {
                    Expect(':', open);
                }
            }

            Node body = ParseChoice(ignoreCase);
            Expect(')', open);
            return look is { } positive ? new LookNode(body, positive) : body;
        }

        private ScalarSet ParseClass(bool ignoreCase)
        {
            int open = at++;
            bool negate = Accept('^');
            var set = new ScalarSet();
            for (bool first = true; ; first = false)
            {
                if (at >= pattern.Length)
                {
                    throw new FormatException($"'[' at character {open} is not closed");
                }

                if (pattern[at] == ']' && !first)
                {
                    at++;
                    return set.Freeze(negate);
                }

                if (pattern[at] == '[' || pattern.AsSpan(at).StartsWith("&&"))
                {
                    throw new FormatException($"nested classes and intersections are not supported (at character {at})");
                }

                if (ParseItem(set) is not { } low)
                {
                    continue;
                }

                if (at + 1 < pattern.Length && pattern[at] == '-' && pattern[at + 1] != ']')
                {
                    at++;
                    int high = ParseItem(set) is { } end && end >= low ? end : throw new FormatException($"the range that ends at character {at} is not one");
                    if (ignoreCase)
                    {
                        throw new FormatException($"a range that ignores case is not supported (at character {at})");
                    }

                    set.AddRange(low, high);
                }
                else
                {
                    AddScalar(set, low, ignoreCase);
                }
            }
        }

        private void AddScalar(ScalarSet set, int scalar, bool ignoreCase)
        {
            if (!ignoreCase)
            {
                set.AddRange(scalar, scalar);
            }
            else if (scalar < 128)
            {
                set.AddIgnoringCase(scalar);
            }
            else
            {
                throw new FormatException($"ignoring the case of other than ASCII letters is not supported (at character {at})");
            }
        }

        /// <summary>One literal scalar, which is returned, or an escaped class, which is added to the set.</summary>
        private int? ParseItem(ScalarSet set)
        {
            if (pattern[at] != '\\')
            {
                int scalar = UnicodeTables.ScalarAt(pattern, at, out int length);
                at += length;
                return scalar;
            }

            if (++at >= pattern.Length)
            {
                throw new FormatException("it ends in a backslash");
            }

            char escape = pattern[at++];
            switch (escape)
            {
                case 'r':
                    return '\r';
                case 'n':
                    return '\n';
                case 't':
                    return '\t';
                case 'f':
                    return '\f';
                case 'v':
                    return '\v';
                case 's' or 'S':
                    set.AddWhiteSpace(complement: escape == 'S');
                    return null;
                case 'w' or 'W':
                    set.AddWord(complement: escape == 'W');
                    return null;
                case 'd' or 'D':
                    set.AddCategories(UnicodeTables.CategoryMask("Nd")!.Value, complement: escape == 'D');
                    return null;
                case 'p' or 'P':
                    ParseProperty(set, escape == 'P');
                    return null;
                case 'x' or 'u':
                    return ParseHexadecimal(escape);
                default:
                    return !char.IsAsciiLetterOrDigit(escape) && escape < 128
                        ? escape
                        : throw new FormatException($"the escape \\{escape} is not supported (at character {at - 2})");
            }
        }

        private void ParseProperty(ScalarSet set, bool complement)
        {
            int close = at < pattern.Length && pattern[at] == '{' ? pattern.IndexOf('}', at) : -1;
            if (close < 0)
            {
                throw new FormatException($"\\p at character {at - 2} has no {{name}}");
            }

            string name = pattern[(at + 1)..close];
            at = close + 1;
            if (name.StartsWith('^'))
            {
                complement = !complement;
                name = name[1..];
            }

            uint mask = UnicodeTables.CategoryMask(name) ?? throw new FormatException($"the property \\p{{{name}}} is not supported: only general categories are");
            set.AddCategories(mask, complement);
        }

        private int ParseHexadecimal(char escape)
        {
            int from = at, length = escape == 'x' ? 2 : 4;
            if (escape == 'x' && at < pattern.Length && pattern[at] == '{')
            {
                from = at + 1;
                length = pattern.IndexOf('}', at) - from;
                at++;
            }

            if (length is < 1 or > 6 || from + length > pattern.Length
                || !int.TryParse(pattern.AsSpan(from, length), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out int value) || value > 0x10FFFF)
            {
                throw new FormatException($"the escape \\{escape} at character {from - 2} names no character");
            }

            at += length + (from > 0 && pattern[from - 1] == '{' ? 1 : 0);
            return value;
        }

        private bool Accept(char wanted)
        {
            if (at < pattern.Length && pattern[at] == wanted)
            {
                at++;
                return true;
            }

            return false;
        }

        private void Expect(char wanted, int open)
        {
            if (!Accept(wanted))
            {
                throw new FormatException(wanted == ')'
                    ? $"'(' at character {open} is not closed"
                    : $"the group '{pattern[open..Math.Min(pattern.Length, at + 1)]}' at character {open} is not supported: only (?:, (?i:, (?! and (?= are");
            }
        }
    }
}
