using System.Globalization;
using System.Text.Json;
using LoraTrainer.Data.ChatTemplates;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Data.Tests.ChatTemplates;

/// <summary>Every template folder of the reference data, every case in it: text and spans equal to the real library's, errors where it has them.</summary>
[Trait("Category", "Fixtures")]
public class ChatTemplateFixtureTests(ITestOutputHelper output)
{
    private const string TemplateError = "TemplateError: ";

    /// <summary>Templates of the program, and the folder whose template has the same output.</summary>
    private static readonly Dictionary<string, string> Twins = new()
    {
        ["cohere"] = "cohere",
        ["gemma"] = "gemma",
        ["gemma3"] = "gemma3",
        ["llama3"] = "llama3",
        ["phi_3"] = "phi3",
        ["qwen3"] = "qwen3",
        ["qwen_25"] = "qwen2_5",
    };

    public static TheoryData<string> All => [.. Fixtures.Cases("chat_templates")];

    public static TheoryData<string> BuiltIn
    {
        get
        {
            string[] names = [.. Twins.Where(pair => Fixtures.Cases("chat_templates").Contains(pair.Value)).Select(pair => pair.Key)];
            return names.Length > 0 ? [.. names] : ["(absent)"];
        }
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Render_EveryCase_EqualsTheLibrary(string name)
    {
        string folder = Fixtures.Require($"chat_templates/{name}");
        Check(ChatTemplate.Parse(name, File.ReadAllText(Path.Combine(folder, "template.jinja"))), folder, withSpans: true);
    }

    /// <summary>The program's own templates have no text in common with those of the folders, but the same output for every conversation.</summary>
    [Theory]
    [MemberData(nameof(BuiltIn))]
    public void BuiltIn_EveryCaseOfItsFamily_EqualsTheLibrary(string name)
    {
        if (name == "(absent)")
        {
            Fixtures.LeaveOut("the fixtures have no template of a family that is built in");
        }

        Check(ChatTemplate.BuiltIn(name), Fixtures.Require($"chat_templates/{Twins[name]}"), withSpans: false);
    }

    private void Check(ChatTemplate template, string folder, bool withSpans)
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, "cases.json")));
        JsonElement root = document.RootElement;
        var special = root.GetProperty("special_tokens").EnumerateObject().Where(token => token.Value.ValueKind == JsonValueKind.String).ToDictionary(token => token.Name, token => token.Value.GetString()!);
        var clock = new FixedClock(DateTime.Parse(root.GetProperty("now").GetString()!, CultureInfo.InvariantCulture));
        var wrong = new List<string>();
        int texts = 0, errors = 0, spans = 0;
        foreach (JsonElement item in root.GetProperty("cases").EnumerateArray())
        {
            string label = $"{item.GetProperty("conversation").GetString()}, {item.GetProperty("variables").GetString()}, prompt {item.GetProperty("add_generation_prompt").GetBoolean()}, tools {item.GetProperty("tools").GetBoolean()}";
            var options = new ChatTemplateOptions
            {
                SpecialTokens = special,
                Tools = item.GetProperty("tools").GetBoolean() ? root.GetProperty("tools") : null,
                AddGenerationPrompt = item.GetProperty("add_generation_prompt").GetBoolean(),
                Variables = root.GetProperty("variables").GetProperty(item.GetProperty("variables").GetString()!).EnumerateObject().ToDictionary(variable => variable.Name, variable => variable.Value),
                Clock = clock,
            };
            ChatMessages messages = ChatMessages.FromJson(root.GetProperty("conversations").GetProperty(item.GetProperty("conversation").GetString()!), label);
            RenderedChat? rendered = null;
            ChatTemplateException? refusal = null;
            try
            {
                rendered = template.Render(messages, options);
            }
            catch (ChatTemplateException exception)
            {
                refusal = exception;
            }

            if (item.TryGetProperty("error", out JsonElement error))
            {
                errors++;
                string expected = error.GetString()!;
                bool isRaised = expected.StartsWith(TemplateError, StringComparison.Ordinal);
                if (refusal is null || refusal.IsRaisedByTemplate != isRaised || (isRaised && refusal.Problem != expected[TemplateError.Length..]))
                {
                    wrong.Add($"{label}\n  expected the error {expected}\n  got {refusal?.Message ?? JsonSerializer.Serialize(rendered!.Text)}");
                }

                continue;
            }

            texts++;
            string text = item.GetProperty("rendered").GetString()!;
            if (rendered?.Text != text)
            {
                wrong.Add($"{label}\n  expected {JsonSerializer.Serialize(text)}\n  got      {(rendered is null ? refusal!.Message : JsonSerializer.Serialize(rendered.Text))}");
            }
            else if (withSpans && item.GetProperty("assistant_spans") is { ValueKind: JsonValueKind.Array } marked)
            {
                spans++;
                (int, int)[] expected = [.. marked.EnumerateArray().Select(span => (span[0].GetInt32(), span[1].GetInt32()))];
                if (!expected.SequenceEqual(rendered.AnswerSpans))
                {
                    wrong.Add($"{label}\n  expected the spans {string.Join(' ', expected)}\n  got                {string.Join(' ', rendered.AnswerSpans)}");
                }
            }
        }

        output.WriteLine($"{template.Name}: {texts} texts, {spans} of them with spans, {errors} errors");
        Assert.True(texts + errors > 0, $"{template.Name} has no case");
        Assert.True(wrong.Count == 0, $"{template.Name}: {wrong.Count} wrong of {texts + errors} cases\n{string.Join('\n', wrong.Take(5))}");
    }
}
