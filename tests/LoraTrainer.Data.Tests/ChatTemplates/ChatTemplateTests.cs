using System.Text.Json;
using LoraTrainer.Data.ChatTemplates;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Data.Tests.ChatTemplates;

public class ChatTemplateTests
{
    private static readonly ChatMessages Hello = ChatMessages.Of(("user", "Hello"));

    [Fact]
    public void OfModel_FindsTheTemplateWhereModelsHaveIt()
    {
        using var folder = new TemporaryFolder();
        Assert.Null(ChatTemplate.OfModel(folder.Path));
        File.WriteAllText(folder.File("chat_template.json"), """{"chat_template":"from json"}""");
        Assert.Equal("from json", Text(ChatTemplate.OfModel(folder.Path)));
        File.WriteAllText(folder.File("tokenizer_config.json"), """{"chat_template":"from config"}""");
        Assert.Equal("from config", Text(ChatTemplate.OfModel(folder.Path)));
        File.WriteAllText(folder.File("tokenizer_config.json"), """{"chat_template":[{"name":"rag","template":"rag"},{"name":"default","template":"plain"},{"name":"tool_use","template":"{{ tools[0] }}"}]}""");
        Assert.Equal("plain", Text(ChatTemplate.OfModel(folder.Path)));
        Assert.Equal("rag", Text(ChatTemplate.OfModel(folder.Path, "rag")));
        using JsonDocument tools = JsonDocument.Parse("""["t"]""");
        Assert.Equal("t", ChatTemplate.OfModel(folder.Path)!.Render(Hello, new ChatTemplateOptions { Tools = tools.RootElement }).Text);
        ChatTemplateException none = Assert.Throws<ChatTemplateException>(() => ChatTemplate.OfModel(folder.Path, "nope"));
        Assert.EndsWith("the model has no chat template named 'nope'; it has rag, default, tool_use", none.Message, StringComparison.Ordinal);

        // The file of its own wins.
        File.WriteAllText(folder.File("chat_template.jinja"), "from jinja\n");
        Directory.CreateDirectory(folder.File("additional_chat_templates"));
        File.WriteAllText(folder.File("additional_chat_templates/other.jinja"), "other");
        Assert.Equal("from jinja", Text(ChatTemplate.OfModel(folder.Path)));
        Assert.Equal("other", Text(ChatTemplate.OfModel(folder.Path, "other")));
    }

    [Theory]
    [InlineData("""{"chat_template":5}""", "chat_template is a number; expected a text, or a list of objects with \"name\" and \"template\"")]
    [InlineData("""{"chat_template":[{"name":"a"}]}""", "an entry of the list chat_template is not an object with the texts \"name\" and \"template\"")]
    [InlineData("""{"chat_template":["a"]}""", "an entry of the list chat_template is not an object with the texts \"name\" and \"template\"")]
    [InlineData("""{"chat_template":"\ud800"}""", "chat_template is not valid Unicode (a surrogate without its partner)")]
    [InlineData("""{"chat_template":""", "not valid JSON")]
    [InlineData("""{"chat_template":"a\n{% if %}"}""", ", line 2: an expression is expected, found '%}'")]
    public void OfModel_DamagedFile_IsRefusedWithItsName(string json, string problem)
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("tokenizer_config.json"), json);
        ChatTemplateException exception = Assert.Throws<ChatTemplateException>(() => ChatTemplate.OfModel(folder.Path));
        Assert.StartsWith(folder.File("tokenizer_config.json"), exception.Message, StringComparison.Ordinal);
        Assert.Contains(problem, exception.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void BuiltIn_EveryName_IsATemplateThatMarksAnswers()
    {
        Assert.Equal(["chatml", "cohere", "gemma", "gemma3", "llama3", "mistral_v1", "mistral_v2v3", "mistral_v3_tekken", "phi_3", "qwen3", "qwen_25"], ChatTemplate.BuiltInNames);
        ChatMessages pair = ChatMessages.Of(("user", "Hello"), ("assistant", "Hi"));
        var options = new ChatTemplateOptions { SpecialTokens = new Dictionary<string, string> { ["bos_token"] = "<s>", ["eos_token"] = "</s>" } };
        foreach (string name in ChatTemplate.BuiltInNames)
        {
            ChatTemplate template = ChatTemplate.BuiltIn(name);
            RenderedChat chat = template.Render(pair, options);
            Assert.True(template.MarksAnswers, name);
            Assert.StartsWith("Hi", chat.Text[chat.AnswerSpans[0].Start..].TrimStart().Replace("<think>\n\n</think>\n\n", "", StringComparison.Ordinal), StringComparison.Ordinal);
            Assert.StartsWith(template.Render(Hello, options with { AddGenerationPrompt = true }).Text, chat.Text, StringComparison.Ordinal);
        }

        ChatTemplateException none = Assert.Throws<ChatTemplateException>(() => ChatTemplate.BuiltIn("nope"));
        Assert.Contains("built in are chatml, cohere,", none.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("chatml", "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n")]
    [InlineData("mistral_v1", "<s> [INST] S\n\na [/INST] b</s> [INST] c [/INST]")]
    [InlineData("mistral_v2v3", "<s>[INST] a[/INST] b</s>[INST] S\n\nc[/INST]")]
    [InlineData("mistral_v3_tekken", "<s>[INST]a[/INST]b</s>[INST]S\n\nc[/INST]")]
    public void BuiltIn_WithoutFixture_WritesItsFormat(string name, string expected)
    {
        var options = new ChatTemplateOptions { SpecialTokens = new Dictionary<string, string> { ["bos_token"] = "<s>", ["eos_token"] = "</s>" } };
        Assert.Equal(expected, ChatTemplate.BuiltIn(name).Render(ChatMessages.Of(("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")), options).Text);
    }

    [Theory]
    [InlineData("\n\n{{ messages[0].content + 1 }}", "case, line 3: '+' does not work on a text and a number")]
    [InlineData("{{ messages[0].nothing.more }}", "case, line 1: a dictionary has no attribute 'nothing'")]
    [InlineData("{{ nothing.more }}", "case, line 1: 'nothing' is undefined")]
    [InlineData("{{ messages.append(1) }}", "case, line 1: append would change a list; templates may not")]
    [InlineData("{{ messages.__class__.__base__ }}", "case, line 1: '__class__' is an inner attribute of Python, which templates may not reach")]
    [InlineData("{{ ('a'|safe) + 'b' }}", "case, line 1: + with a text behind |safe would escape the other text for HTML; leave |safe away, it has no meaning in a chat template")]
    [InlineData("{{ 'a'|nope }}", "case, line 1: the filter 'nope' is not supported")]
    [InlineData("{% macro f(a) %}{{ a + 1 }}{% endmacro %}\n\n{{ f('x') }}", "case, line 1: '+' does not work on a text and a number")]
    [InlineData("a\n{% for x in messages %}\n{{ raise_exception('no ' ~ x.role) }}{% endfor %}", "case, line 3: the template refuses these messages: no user")]
    public void Render_WhatFails_IsASentenceWithItsLine(string source, string message)
        => Assert.Equal(message, Assert.Throws<ChatTemplateException>(() => Text(ChatTemplate.Parse("case", source))).Message);

    [Theory]
    [InlineData("a\n{% if x %}b", "case, line 2: 'if' that begins here has no 'endif'")]
    [InlineData("{% for x in y %}{% endif %}", "case, line 1: 'endif' is not a statement")]
    [InlineData("{{ 'a", "case, line 1: the string that begins with ' has no end")]
    [InlineData("{{ (1 }}", "case, line 1: '}' stands where ')' is expected")]
    [InlineData("{% include 'x' %}", "case, line 1: 'include' is not supported: a chat template is one file")]
    [InlineData("{# a", "case, line 1: the comment that begins here has no end '#}'")]
    [InlineData("{{ 1 2 }}", "case, line 1: '}}' is expected, found '2'")]
    public void Parse_WhatIsNoTemplate_IsASentenceWithItsLine(string source, string message)
        => Assert.StartsWith(message, Assert.Throws<ChatTemplateException>(() => ChatTemplate.Parse("case", source)).Message, StringComparison.Ordinal);

    [Theory]
    [InlineData("5", "rows.jsonl:3: the messages are a number; expected a list of objects with \"role\" and \"content\"")]
    [InlineData("[5]", "rows.jsonl:3, message 1: it is a number; expected an object")]
    [InlineData("""[{"role":"user","content":"a"},{"content":"b"}]""", "rows.jsonl:3, message 2: it has no \"role\" that is a text")]
    [InlineData("""[{"role":"user","content":"\ud800"}]""", "rows.jsonl:3, message 1: a text is not valid Unicode (a surrogate without its partner)")]
    public void FromJson_WhatIsNoConversation_IsRefusedWithItsPlace(string json, string message)
    {
        using JsonDocument document = JsonDocument.Parse(json);
        Assert.Equal(message, Assert.Throws<ChatTemplateException>(() => ChatMessages.FromJson(document.RootElement, "rows.jsonl:3")).Message);
    }

    private static string Text(ChatTemplate? template) => template!.Render(Hello, new ChatTemplateOptions()).Text;
}
