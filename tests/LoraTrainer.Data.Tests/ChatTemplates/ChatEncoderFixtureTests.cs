using System.Text.Json;
using LoraTrainer.Data.ChatTemplates;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Data.Tests.ChatTemplates;

/// <summary>What is scored of the conversations of the reference data, found out by decoding it.</summary>
[Trait("Category", "Fixtures")]
public class ChatEncoderFixtureTests(ITestOutputHelper output)
{
    public static TheoryData<string> All => [.. Fixtures.Cases("chat_templates")];

    /// <summary>Templates with and without marks of what the model says, and otherwise the same text.</summary>
    public static TheoryData<string> Twins
    {
        get
        {
            string[] names = [.. Fixtures.Cases("chat_templates").Where(name => Fixtures.Cases("chat_templates").Contains($"{name}_training"))];
            return names.Length > 0 ? [.. names] : ["(absent)"];
        }
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Encode_EveryConversation_ScoresWhatTheAssistantSaysAndItsEnd(string name)
    {
        string folder = Fixtures.Require($"chat_templates/{name}");
        ChatTemplate template = ChatTemplate.Parse(name, File.ReadAllText(Path.Combine(folder, "template.jinja")));
        Tokenizer tokenizer = SpecialTokenizer.Load(Fixtures.Golden("tokenizers/llama3_style"));
        var encoder = new ChatEncoder(template, tokenizer);
        int chats = 0, turns = 0, refused = 0, unended = 0;
        foreach ((string label, ChatMessages messages, ChatTemplateOptions given) in Conversations(folder))
        {
            EncodedChat chat;
            try
            {
                chat = encoder.Encode(messages, new ChatEncodingOptions { Template = given });
            }
            catch (ChatTemplateException)
            {
                refused++;
                continue;
            }

            chats++;
            Assert.Equal(chat.Text, tokenizer.Decode(chat.Tokens, skipSpecialTokens: false));
            Assert.Equal(chat.Tokens.Length, chat.IsSupervised.Length);
            for (int i = 0; i < messages.Count; i++)
            {
                if (messages.Role(i) != "assistant" || chat.MissingMessages.Contains(i) || messages.TextOf(i).Length == 0)
                {
                    continue;
                }

                // Templates cut thoughts out and trim.
                string said = messages.TextOf(i).Split("</think>")[^1].Trim();
                string scored = Scored(chat, tokenizer, i);
                turns++;
                Assert.True(scored.Contains(said, StringComparison.Ordinal), $"{label}: message {i + 1} says {JsonSerializer.Serialize(said)}, scored is {JsonSerializer.Serialize(scored)}");
                bool isEnded = chat.Turns.Any(turn => turn.Message == i && turn.EndOfTurn is { } end && chat.IsSupervised[end]);
                Assert.True(isEnded || chat.TurnsWithoutEnd.Contains(i), $"{label}: no end of message {i + 1} is scored, and nothing says so: {JsonSerializer.Serialize(scored)}");
                unended += isEnded ? 0 : 1;
            }

            // Nothing of anybody else is: what is scored outside of the assistant's turns is nothing, and in a turn there is one message.
            var inTurns = new bool[chat.Tokens.Length];
            foreach (EncodedTurn turn in chat.Turns)
            {
                Assert.Equal("assistant", messages.Role(turn.Message));
                inTurns.AsSpan(turn.Start..turn.End).Fill(true);
                string words = tokenizer.Decode(chat.Tokens.AsSpan(turn.Start..turn.End), skipSpecialTokens: false);
                foreach (string marker in new[] { "<|user|>", "<|USER_TOKEN|>", "<｜User｜>", "<start_of_turn>", "<|im_start|>", "<|start_header_id|>" })
                {
                    Assert.DoesNotContain(marker, words, StringComparison.Ordinal);
                }
            }

            Assert.Equal(chat.IsSupervised, inTurns);
        }

        output.WriteLine($"{name}: {chats} conversations, {turns} turns, {unended} of them without an end, {refused} refused");

        // These answer until somebody else speaks.
        Assert.True(unended == 0 || name.StartsWith("glm", StringComparison.Ordinal), $"{name}: {unended} of {turns} turns have no end");
        Assert.True(turns > 0, $"{name}: no turn");
    }

    /// <summary>Turns that had to be found are scored as those that the template marks, but for white space around them and what a template puts behind the last turn.</summary>
    [Theory]
    [MemberData(nameof(Twins))]
    public void Encode_WithAndWithoutMarks_ScoresTheSame(string name)
    {
        string folder = Fixtures.Require($"chat_templates/{name}"), marked = Fixtures.Require($"chat_templates/{name}_training");
        Tokenizer tokenizer = SpecialTokenizer.Load(Fixtures.Golden("tokenizers/llama3_style"));
        var found = new ChatEncoder(ChatTemplate.Parse(name, File.ReadAllText(Path.Combine(folder, "template.jinja"))), tokenizer);
        var told = new ChatEncoder(ChatTemplate.Parse(name, File.ReadAllText(Path.Combine(marked, "template.jinja"))), tokenizer);
        int same = 0;
        foreach ((string label, ChatMessages messages, ChatTemplateOptions given) in Conversations(folder))
        {
            var options = new ChatEncodingOptions { Template = given };
            EncodedChat a, b;
            try
            {
                a = found.Encode(messages, options);
                b = told.Encode(messages, options);
            }
            catch (ChatTemplateException)
            {
                continue;
            }

            if (a.Text != b.Text)
            {
                continue;
            }

            // An answer without a word is nowhere to be found; only the template's marks tell of it.
            bool[] isSilent = new bool[b.Tokens.Length];
            foreach (EncodedTurn turn in b.Turns.Where(turn => messages.TextOf(turn.Message).Length == 0))
            {
                isSilent.AsSpan(turn.Start..turn.End).Fill(true);
            }

            same++;
            Assert.Equal(b.Tokens, a.Tokens);
            for (int i = 0; i < a.Tokens.Length; i++)
            {
                string token = tokenizer.Decode([a.Tokens[i]], skipSpecialTokens: false);
                bool mayDiffer = isSilent[i] || string.IsNullOrWhiteSpace(token) || token is "<EOS>" || (name == "deepseekv3" && token is "<｜Assistant｜>" or "<｜tool▁outputs▁end｜>" or "<｜tool▁calls▁begin｜>" or "<｜tool▁call▁begin｜>");
                Assert.True(a.IsSupervised[i] == b.IsSupervised[i] || (b.IsSupervised[i] && mayDiffer), $"{label}: token {i} ({JsonSerializer.Serialize(token)}) is scored by one only\n{Show(a, tokenizer)}\n{Show(b, tokenizer)}");
            }
        }

        output.WriteLine($"{name}: {same} conversations");
        Assert.True(same > 0, $"{name}: no conversation has the same text in both");
    }

    private static string Scored(EncodedChat chat, Tokenizer tokenizer, int message)
        => string.Concat(chat.Turns.Where(turn => turn.Message == message).Select(turn => tokenizer.Decode([.. Enumerable.Range(turn.Start, turn.End - turn.Start).Where(i => chat.IsSupervised[i]).Select(i => chat.Tokens[i])], skipSpecialTokens: false)));

    private static string Show(EncodedChat chat, Tokenizer tokenizer)
        => string.Concat(chat.Tokens.Select((id, i) => chat.IsSupervised[i] ? $"[{tokenizer.Decode([id], skipSpecialTokens: false)}]" : tokenizer.Decode([id], skipSpecialTokens: false))).Replace("\n", "\\n", StringComparison.Ordinal);

    private static IEnumerable<(string Label, ChatMessages Messages, ChatTemplateOptions Options)> Conversations(string folder)
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, "cases.json")));
        JsonElement root = document.RootElement.Clone();
        foreach (JsonProperty conversation in root.GetProperty("conversations").EnumerateObject())
        {
            foreach (bool withTools in new[] { false, true })
            {
                ChatMessages messages = ChatMessages.FromJson(conversation.Value, conversation.Name);
                yield return ($"{conversation.Name}, tools {withTools}", messages, new ChatTemplateOptions { Tools = withTools ? root.GetProperty("tools") : null, Clock = new FixedClock(new DateTime(2024, 7, 26)) });
            }
        }
    }
}
