using System.Text.Json;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>The verb chat with its input in a pipe.</summary>
public sealed class ChatTests
{
    [Fact]
    public async Task Chat_WithARun_AnswersAsGenerateDoes_WithAndWithoutTheAdapter()
    {
        using var folder = new TinyFolder();
        Ending train = await folder.RunAsync("train", "tiny.yaml", "--set", "max_steps=4");
        Assert.True(train.ExitCode == 0, train.ToString());
        string[] length = ["--max-new-tokens", "8", "--json"];
        Ending chat = await Ending.RunWithInputAsync(
            folder.Path, "abc\n/adapter off\n/reset\nabc\n\"\"\"\nde\nf\n\"\"\"\n/nonsense\n/system no\n//abc\n/exit\nnever\n", ["chat", "out", .. length]);
        Assert.True(chat.ExitCode == 0, chat.ToString());
        using JsonDocument document = JsonDocument.Parse(chat.Output);
        JsonElement[] turns = [.. document.RootElement.GetProperty("turns").EnumerateArray()];
        Assert.Equal(["abc", "abc", "de\nf", "/abc"], turns.Select(turn => turn.GetProperty("user").GetString()!));
        Assert.Equal([true, false, false, false], turns.Select(turn => turn.GetProperty("adapter").GetBoolean()));
        Assert.Equal(Text(await folder.RunAsync(["generate", "out", "--prompt", "abc=", .. length])), turns[0].GetProperty("assistant").GetString());
        Assert.Equal(Text(await folder.RunAsync(["generate", "base", "--prompt", "abc=", .. length])), turns[1].GetProperty("assistant").GetString());
        Assert.Contains("There is no command /nonsense", chat.Error, StringComparison.Ordinal);
        Assert.Contains("as the rows of the run's training", chat.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Chat_SingleTurns_DoNotSeeEachOther_AndATemplateIsNamed()
    {
        using var folder = new TinyFolder();
        File.WriteAllText(folder.PathOf("base/chat_template.jinja"), "{% for m in messages %}{{ m.content }}{% endfor %}");
        string[] arguments = ["chat", "base", "--max-new-tokens", "8"];
        Ending alone = await Ending.RunWithInputAsync(folder.Path, "abc\nabc\n", [.. arguments, "--single-turn", "--json"]), together = await Ending.RunWithInputAsync(folder.Path, "abc\nabc\n", [.. arguments, "--json"]);
        Assert.True(alone.ExitCode == 0, alone.ToString());
        string[] first = Answers(alone), second = Answers(together);
        Assert.Equal(first[0], first[1]);
        Assert.Equal(first[0], second[0]);
        Assert.NotEqual(second[0], second[1]);
        Assert.Contains("by the chat template base/chat_template.jinja", alone.Error, StringComparison.Ordinal);
        Ending text = await Ending.RunWithInputAsync(folder.Path, "abc\n/adapter on\n", arguments);
        Assert.Equal(first[0] + "\n", text.Output);
        Assert.Contains("There is no adapter", text.Error, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("A conversation of 1 token has no room", "chat", "base", "--context", "1")]
    [InlineData("has no room for answers", "chat", "base", "--context", "100", "--max-new-tokens", "100")]
    [InlineData("There is no place for a system text, since messages become prompts in the format plain (the text as it is). Leave --system out, or put the text into the message.", "chat", "base", "--system", "x")]
    [InlineData("--format must be one of plain, alpaca, template", "chat", "base", "--format", "chatml")]
    [InlineData("there is no such folder", "chat", "nowhere")]
    public async Task WrongInput_IsASentence(string sentence, params string[] arguments)
    {
        using var folder = new TinyFolder();
        Ending run = await Ending.RunWithInputAsync(folder.Path, "abc\n", arguments);
        Assert.True(run.ExitCode == 2, run.ToString());
        Assert.Contains(sentence, run.Error, StringComparison.Ordinal);
        Assert.Equal("", run.Output);
    }

    private static string[] Answers(Ending chat)
    {
        using JsonDocument document = JsonDocument.Parse(chat.Output);
        return [.. document.RootElement.GetProperty("turns").EnumerateArray().Select(turn => turn.GetProperty("assistant").GetString()!)];
    }

    private static string Text(Ending ending)
    {
        using JsonDocument document = JsonDocument.Parse(ending.Output);
        return document.RootElement.GetProperty("text").GetString()!;
    }
}
