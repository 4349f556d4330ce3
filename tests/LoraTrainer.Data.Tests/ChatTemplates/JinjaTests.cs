using System.Text.Json;
using LoraTrainer.Data.ChatTemplates;
using Xunit;

namespace LoraTrainer.Data.Tests.ChatTemplates;

/// <summary>
/// Small templates against what Jinja2 3.1.6 makes of them (ImmutableSandboxedEnvironment, trim_blocks, lstrip_blocks, loopcontrols, and a generation tag as
/// transformers has it; scripts/make-jinja-cases.py wrote the file).
/// </summary>
public class JinjaTests(ITestOutputHelper output)
{
    [Fact]
    public void Render_SmallTemplates_EqualsJinja2()
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(AppContext.BaseDirectory, "jinja_cases.json")));
        var variables = document.RootElement.GetProperty("variables").EnumerateObject().ToDictionary(variable => variable.Name, variable => variable.Value);
        var options = new ChatTemplateOptions { Variables = variables, Clock = new FixedClock(new DateTime(2024, 7, 6, 15, 4, 5)) };
        var wrong = new List<string>();
        int texts = 0, errors = 0;
        foreach (JsonElement item in document.RootElement.GetProperty("cases").EnumerateArray())
        {
            string source = item.GetProperty("template").GetString()!;
            RenderedChat? rendered = null;
            ChatTemplateException? refusal = null;
            try
            {
                rendered = ChatTemplate.Parse("case", source).Render(ChatMessages.None, options);
            }
            catch (ChatTemplateException exception)
            {
                refusal = exception;
            }

            if (item.TryGetProperty("error", out JsonElement error))
            {
                errors++;
                if (refusal is null || (refusal.IsRaisedByTemplate && !error.GetString()!.EndsWith(refusal.Problem, StringComparison.Ordinal)))
                {
                    wrong.Add($"{source}\n  expected the error {error}\n  got {refusal?.Message ?? JsonSerializer.Serialize(rendered!.Text)}");
                }

                continue;
            }

            texts++;
            (int, int)[] spans = [.. item.GetProperty("spans").EnumerateArray().Select(span => (span[0].GetInt32(), span[1].GetInt32()))];
            if (rendered?.Text != item.GetProperty("text").GetString() || !spans.SequenceEqual(rendered!.AnswerSpans))
            {
                wrong.Add($"{source}\n  expected {item.GetProperty("text").GetString()} {string.Join(' ', spans)}\n  got      {(rendered is null ? refusal!.Message : $"{rendered.Text} {string.Join(' ', rendered.AnswerSpans)}")}");
            }
        }

        output.WriteLine($"{texts} texts, {errors} errors");
        Assert.True(texts > 150 && errors > 50, $"{texts} texts and {errors} errors were found");
        Assert.True(wrong.Count == 0, $"{wrong.Count} wrong\n{string.Join('\n', wrong)}");
    }
}
