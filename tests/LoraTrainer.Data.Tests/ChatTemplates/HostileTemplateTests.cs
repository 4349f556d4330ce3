using System.Globalization;
using System.Text;
using LoraTrainer.Data.ChatTemplates;
using LoraTrainer.Data.ChatTemplates.Jinja;
using Xunit;

namespace LoraTrainer.Data.Tests.ChatTemplates;

/// <summary>Templates of strangers: whatever they ask for, there is a sentence or a text, in bounded time and memory.</summary>
public class HostileTemplateTests(ITestOutputHelper output)
{
    /// <summary>A hundredth of what the program allows, so that the bounds are reached soon.</summary>
    private static readonly RenderLimits Tight = new() { Work = 4_000_000, Memory = 1_000_000 };

    private static readonly ChatMessages Messages = ChatMessages.Of(("user", "Hello 🙂"), ("assistant", "Hi"), ("user", "Why?"));

    public static TheoryData<string, string> Greedy => new()
    {
        { "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "the template" },
        { "{% for a in range(100000000) %}{% endfor %}", "100000000 numbers are more than the 100000" },
        { "{% for a in range(0, 10**30, 7) %}{% endfor %}", "numbers are more than the 100000" },
        { "{{ 'a' * 10**12 }}", "made texts and lists of more than" },
        { "{{ 'a' * 10**40 }}", "made texts and lists of more than" },
        { "{{ [1] * 10**12 }}", "made texts and lists of more than" },
        { "{% set ns = namespace(s='a') %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "made texts and lists of more than" },
        { "{% set ns = namespace(s=[1]) %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "made texts and lists of more than" },
        { "{% set ns = namespace(s='a') %}{% for a in range(99) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}", "made texts and lists of more than" },
        { "{% set ns = namespace(s='a') %}{% for a in range(99) %}{% set ns.s = ns.s|replace('a', 'aa') %}{% endfor %}", "the template" },
        { "{% set ns = namespace(s='a') %}{% for a in range(99) %}{% set ns.s = ns.s|replace('', 'aa') %}{% endfor %}", "the template" },
        { "{% set ns = namespace(s='a') %}{% for a in range(99) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}", "made texts and lists of more than" },
        { "{% set ns = namespace(s='a') %}{% for a in range(99) %}{% set ns.s = '{}{}'.format(ns.s, ns.s) %}{% endfor %}", "made texts and lists of more than" },
        { "{% set ns = namespace(s='a') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "made texts and lists of more than" },
        { "{% set ns = namespace(s=[1]) %}{% for a in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}", "" },
        { "{% set ns = namespace(s=[1]) %}{% for a in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}", "the template" },
        { "{% set ns = namespace(s=[1]) %}{% for a in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}", "the template" },
        { "{% set ns = namespace(s=[1], t=[1]) %}{% for a in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}", "taken for an endless loop" },
        { "{% set ns = namespace(s=[1]) %}{% for a in range(1000) %}{% set ns.s = [ns.s] %}{% endfor %}", "100 deep within each other" },
        { "{% set ns = namespace(s={}) %}{% for a in range(1000) %}{% set ns.s = {'a': ns.s} %}{% endfor %}", "100 deep within each other" },
        { "{% set ns = namespace(s=[1]) %}{% for a in range(1000) %}{% set ns.s = ns.s|map('string') %}{% endfor %}{{ ns.s|list }}", "within each other" },
        { "{% set ns = namespace(s=[1]) %}{% for a in range(1000) %}{% set ns.s = ns.s|select %}{% endfor %}{% for x in ns.s %}{% endfor %}", "within each other" },
        { "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "a macro that calls itself without end" },
        { "{% macro f(x) %}{{ g(x + 1) }}{% endmacro %}{% macro g(x) %}{{ f(x + 1) }}{% endmacro %}{{ f(1) }}", "a macro that calls itself without end" },
        { "{% macro f(x=f()) %}{% endmacro %}{{ f() }}", "a macro that calls itself without end" },
        { "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}", "within each other" },
        { "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "within each other" },
        { "{{ 9 ** (9 ** 9) }}", "more than 4096 bits" },
        { "{{ 2 ** 5000 }}", "more than 4096 bits" },
        { "{% set ns = namespace(n=3) %}{% for a in range(100) %}{% set ns.n = ns.n * ns.n %}{% endfor %}", "more than 4096 bits" },
        { "{{ ('a' * 200000)|list|length }}", "made texts and lists of more than" },
        { "{{ (('a' * 100000) + 'b') in ('a' * 400000) }}{% for x in range(1000) %}{{ (('a' * 100000) + 'b') in ('a' * 400000) }}{% endfor %}", "the template" },
        { "{% set a = 'a' * 100000 %}{% set b = 'a' * 400000 %}{% for x in range(100000) %}{{ '' if (a + 'b') in b }}{% endfor %}", "the template" },
        { "{% for x in range(100000) %}{{ 'a'.center(100000)|length }}{% endfor %}", "the template" },
        { "{{ 'a'.center(10**9) }}", "made texts and lists of more than" },
        { "{{ 'a'.zfill(10**9) }}", "made texts and lists of more than" },
        { "{{ '%999999999d' % 1 }}", "more than three digits" },
        { "{{ [1]|batch(10**9, 1)|list|length }}", "made texts and lists of more than" },
        { "{{ ('a\\n' * 100000)|indent(10**9) }}", "the template" },
        { "{{ range(100000)|sort|list|length }}{{ range(100000)|list|unique|list|length }}", "the template" },
        { "{% set ns = namespace() %}{% for a in range(100000) %}{% for b in range(100) %}{% set ns.m = a %}{% macro m() %}{% endmacro %}{% endfor %}{% endfor %}", "the template" },
        { "{% set ns = namespace(m=0) %}{% macro start() %}{% macro g() %}{% set ns.m = start %}{% endmacro %}{{ g() }}{% endmacro %}{% for a in range(100000) %}{{ start() }}{% endfor %}", "the template" },
        { "{{ strftime_now('%c' * 100000) }}", "made texts and lists of more than" },
        { "{{ dict(a=1).__class__.__init__.__globals__ }}", "inner attribute" },
        { "{{ ''.__class__.__mro__[1].__subclasses__() }}", "inner attribute" },
        { "{{ messages['__class__']['x'] }}", "inner attribute" },
        { "{{ (messages|attr('__class__')).x }}", "inner attribute" },
        { "{{ raise_exception.__globals__.x }}", "inner attribute" },
        { "{{ '{0.__class__}'.format(1) }}", "is not supported" },
        { "{{ '{0[x]}'.format(1) }}", "is not supported" },
    };

    [Theory]
    [MemberData(nameof(Greedy))]
    public void Render_Greedy_EndsInASentence(string source, string problem)
    {
        ChatTemplateException exception = Assert.Throws<ChatTemplateException>(() => ChatTemplate.Parse("hostile", source, Tight).Render(Messages, new ChatTemplateOptions()));
        Assert.Contains(problem, exception.Message, StringComparison.Ordinal);
        Assert.StartsWith("hostile, line 1: ", exception.Message, StringComparison.Ordinal);
    }

    /// <summary>What is allowed by default ends too, and in a thread with the small stack of a pool.</summary>
    [Theory]
    [InlineData("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}")]
    [InlineData("{% set ns = namespace(s='a') %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}")]
    [InlineData("{% macro f() %}{% if true %}{% for x in [1] %}{{ '' ~ (f() + '')|trim }}{% endfor %}{% endif %}{% endmacro %}{{ f() }}")]
    public void Render_GreedyWithTheProgramsLimits_EndsInASentence(string source)
    {
        ChatTemplateException? exception = null;
        var thread = new Thread(() => exception = Assert.Throws<ChatTemplateException>(() => ChatTemplate.Parse("hostile", source).Render(Messages, new ChatTemplateOptions())), 512 * 1024);
        thread.Start();
        thread.Join();
        Assert.NotNull(exception);
    }

    [Fact]
    public void Parse_DeepOrLong_EndsInASentence()
    {
        foreach ((string open, string inner, string close) in new[] { ("(", "1", ")"), ("[", "1", "]"), ("{'a': ", "1", "}"), ("not ", "1", ""), ("-", "1", ""), ("f(", "1", ")"), ("a if b else ", "c", ""), ("x[", "1", "]") })
        {
            string deep = string.Concat(Enumerable.Repeat(open, 50_000)) + inner + string.Concat(Enumerable.Repeat(close, 50_000));
            Assert.Contains("within each other", Assert.Throws<ChatTemplateException>(() => ChatTemplate.Parse("deep", "{{ " + deep + " }}")).Message, StringComparison.Ordinal);
        }

        foreach ((string open, string close) in new[] { ("{% if 1 %}", "{% endif %}"), ("{% for x in y %}", "{% endfor %}"), ("{% set x %}", "{% endset %}"), ("{% macro f() %}", "{% endmacro %}") })
        {
            string deep = string.Concat(Enumerable.Repeat(open, 10_000)) + string.Concat(Enumerable.Repeat(close, 10_000));
            Assert.Contains("within each other", Assert.Throws<ChatTemplateException>(() => ChatTemplate.Parse("deep", deep)).Message, StringComparison.Ordinal);
        }

        // Long chains are no deep nests for the parser; running them is bounded.
        foreach (string chain in new[] { "1" + string.Concat(Enumerable.Repeat(" + 1", 100_000)), "'a'" + string.Concat(Enumerable.Repeat("|trim", 100_000)), "x" + string.Concat(Enumerable.Repeat(".a", 100_000)), string.Concat(Enumerable.Repeat("'a' ", 200_000)) })
        {
            ChatTemplate template = ChatTemplate.Parse("long", "{{ " + chain + " }}");
            Exception? end = Record.Exception(() => template.Render(Messages, new ChatTemplateOptions()));
            Assert.True(end is null or ChatTemplateException);
        }

        Assert.Contains("more than 1048576 are not read", Assert.Throws<ChatTemplateException>(() => ChatTemplate.Parse("long", new string('a', 1 << 21))).Message, StringComparison.Ordinal);
    }

    /// <summary>Templates with pieces taken out, doubled, swapped or replaced: a text or a sentence, nothing else.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void ParseAndRender_MutatedTemplates_EndInATextOrASentence(int seed)
    {
        string[] sources = [.. ChatTemplate.BuiltInNames.Concat(ChatTemplate.BuiltInNames).Concat(ChatTemplate.BuiltInNames).Select(name => ChatTemplate.BuiltIn(name).Source), .. Greedy.Select(row => row.Data.Item1)];
        string[] pieces = ["{%", "%}", "{{", "}}", "{#", "#}", "(", ")", "[", "]", "|", ".", ",", "'", "\"", "\\", "-", "not ", " in ", " is ", " if ", " else ", "range(99999)", "loop", "namespace(", "messages", "['role']", "|tojson", "|map('upper')", "|sort", "[::-1]", "{% raw %}", "{% set x = x + 1 %}", "{% endfor %}", "{% generation %}", "\u00e9", "🙂", "\0", "1e999", "0x", "**", "//", "%", "none", "undefined_thing"];
        var random = new Mix((ulong)seed);
        var options = new ChatTemplateOptions { SpecialTokens = new Dictionary<string, string> { ["bos_token"] = "<s>", ["eos_token"] = "</s>" } };
        int texts = 0, sentences = 0;
        for (int round = 0; round < 600; round++)
        {
            var source = new StringBuilder(sources[random.Below(sources.Length)]);
            for (int change = random.Below(3); change >= 0; change--)
            {
                int at = random.Below(source.Length + 1), length = Math.Min(random.Below(12), source.Length - at);
                switch (random.Below(4))
                {
                    case 0:
                        source.Remove(at, length);
                        break;
                    case 1:
                        source.Insert(at, source.ToString(at, length));
                        break;
                    case 2:
                        source.Insert(at, pieces[random.Below(pieces.Length)]);
                        break;
                    default:
                        source.Remove(at, length).Insert(at, pieces[random.Below(pieces.Length)]);
                        break;
                }
            }

            try
            {
                ChatTemplate.Parse("mutated", source.ToString(), Tight).Render(Messages, options with { AddGenerationPrompt = round % 2 == 0 });
                texts++;
            }
            catch (ChatTemplateException exception)
            {
                sentences++;
                Assert.True(exception.Line > 0 && exception.Message.Length < 2000, exception.Message);
            }
            catch (Exception exception)
            {
                Assert.Fail(string.Create(CultureInfo.InvariantCulture, $"seed {seed}, round {round}: {exception}\n{source}"));
            }
        }

        output.WriteLine($"{texts} texts, {sentences} sentences");
        Assert.True(texts > 50 && sentences > 50);
    }

    /// <summary>SplitMix64.</summary>
    private sealed class Mix(ulong state)
    {
        public int Below(int bound)
        {
            ulong z = state += 0x9E3779B97F4A7C15;
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
            return (int)((z ^ (z >> 31)) % (ulong)bound);
        }
    }
}
