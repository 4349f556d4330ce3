using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests.Evaluation;

public sealed class ConversationTests : IDisposable
{
    private const int Limit = 600;

    private static readonly SamplingOptions Options = new() { MaxNewTokens = 10 };

    private readonly TemporaryFolder folder = new();
    private readonly Tokenizer tokenizer;
    private readonly TextModel model;

    public ConversationTests()
    {
        TinyRun.WriteBase(folder.File("base"), shape: TinyRun.Shape with { MaxPositionEmbeddings = 1024 });
        var source = new TextModelSource(folder.File("base"), null, BaseFormat.AsStored);
        tokenizer = TextModel.LoadTokenizer(source);
        model = TextModel.Load(source, new DeviceSelection(DevicePlatform.Cpu, 2, null), tokenizer, measured => Conversation.Measure(measured, Limit), "", _ => { });
    }

    public void Dispose()
    {
        model.Dispose();
        folder.Dispose();
    }

    /// <summary>What is kept of earlier turns must be what reading all of it again would give. The third prompt is longer than what passes through the model at once.</summary>
    [Fact]
    public void Say_OverKeptKeysAndValues_IsWhatTheWholeTextGives()
    {
        var conversation = new Conversation(model, ChatFormat.Parse("plain", ""), Limit);
        var text = new List<int>(tokenizer.PrefixIds);
        foreach (string prompt in new[] { "abc ", "and then? ", new string('x', 530) })
        {
            text.AddRange(tokenizer.Encode(prompt, addSpecialTokens: false));
            List<int> expected = Alone(text);
            var pieces = new List<string>();
            (string answer, int tokens) = conversation.Say(prompt, "", Options, pieces.Add, _ => Assert.Fail("nothing had to be forgotten"), TestContext.Current.CancellationToken);
            Assert.Equal(tokenizer.Decode([.. expected], skipSpecialTokens: true), answer);
            Assert.Equal(answer, string.Concat(pieces));
            Assert.Equal(expected.Count, tokens);
            text.AddRange(expected);
            text.Add(tokenizer.EosId!.Value);
            Assert.Equal(text.Count, conversation.TokenCount);
        }
    }

    [Fact]
    public void Say_WhereTheTextGrowsTooLong_ForgetsTheOldestTurns()
    {
        var conversation = new Conversation(model, ChatFormat.Parse("plain", ""), 100);
        var forgotten = new List<int>();
        string first = new('a', 40), second = new('b', 20), third = new('c', 60);
        conversation.Say(first, "", Options, _ => { }, forgotten.Add, TestContext.Current.CancellationToken);
        (string answer, int tokens) = conversation.Say(second, "", Options, _ => { }, forgotten.Add, TestContext.Current.CancellationToken);
        Assert.Empty(forgotten);
        (string last, _) = conversation.Say(third, "", Options, _ => { }, forgotten.Add, TestContext.Current.CancellationToken);
        Assert.Equal(tokens + 20 + 1 + 60 + 11 + 1 <= 100 ? [1] : new[] { 2 }, forgotten);
        int[] known = forgotten[0] == 1
            ? [.. tokenizer.Encode(second, addSpecialTokens: false), .. tokenizer.Encode(answer, addSpecialTokens: false), tokenizer.EosId!.Value, .. tokenizer.Encode(third, addSpecialTokens: false)]
            : tokenizer.Encode(third, addSpecialTokens: false);
        Assert.Equal(tokenizer.Decode([.. Alone([.. tokenizer.PrefixIds, .. known])], skipSpecialTokens: true), last);

        TrainingSetupException refusal = Assert.Throws<TrainingSetupException>(() => conversation.Say(new string('d', 95), "", Options, _ => { }, forgotten.Add, TestContext.Current.CancellationToken));
        Assert.Contains("does not fit into the 100 of this conversation", refusal.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Format_IsThatOfTheTraining()
    {
        var custom = new TrainingConfig
        {
            Data = new DataOptions { Datasets = [new DatasetOptions { Format = new DatasetFormatOptions { Kind = DatasetFormatKind.Custom, Custom = new CustomFormat { FieldInstruction = "q", FieldOutput = "a", SystemFormat = "[{system}] ", Format = "Q: {instruction} A:" } } }] },
        };
        ChatFormat format = ChatFormat.OfRun(custom);
        Assert.True(format.TakesSystem);
        Assert.Equal("Q: why? A:", format.Prompt("why?", ""));
        Assert.Equal("[Be kind] Q: why? A:", format.Prompt("why?", "Be kind"));
        Assert.Equal("why?", ChatFormat.Parse("plain", "--format").Prompt("why?", ""));
        Assert.EndsWith("### Instruction:\nwhy?\n\n### Response:\n", ChatFormat.Parse("alpaca", "--format").Prompt("why?", ""), StringComparison.Ordinal);
        Assert.StartsWith("--format template: there is no chat template in ", Assert.Throws<TrainingSetupException>(() => ChatFormat.Parse("template", "--format", folder.File("base"))).Message, StringComparison.Ordinal);
    }

    /// <summary>The whole conversation goes through the template each time; what the model knows of it already stays.</summary>
    [Fact]
    public void Template_RendersTheConversation_AndTheAnswerIsWhatTheWholeTextGives()
    {
        File.WriteAllText(folder.File("base/chat_template.jinja"), "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% else %};{% endif %}{% endfor %}{% if add_generation_prompt %}a:{% endif %}");
        ChatFormat format = ChatFormat.OfModel(folder.File("base"));
        Assert.True(format.TakesSystem);
        Assert.Equal([tokenizer.EosId!.Value], format.StopTokens(tokenizer));
        var conversation = new Conversation(model, format, Limit);
        string text = "s:kind;";
        foreach (string message in new[] { "abc", "more" })
        {
            text += $"u:{message};a:";
            List<int> expected = Alone([.. tokenizer.Encode(text, addSpecialTokens: false)]);
            (string answer, _) = conversation.Say(message, "kind", Options, _ => { }, _ => { }, TestContext.Current.CancellationToken);
            Assert.Equal(tokenizer.Decode([.. expected], skipSpecialTokens: true), answer);
            text += answer + tokenizer.SpecialTokens.Eos;
        }
    }

    private List<int> Alone(List<int> text)
    {
        using var device = new CpuDevice(2, ModelFixture.ArenaBytes);
        using Models.Formats.ModelFolder weights = Models.Formats.ModelFolder.Open(folder.File("base"));
        CausalLanguageModel fresh = ModelLoader.LoadFrozen(ModelConfig.Parse(folder.File("base")), weights, device, BaseFormat.AsStored);
        return new TextGenerator(fresh, model.StopTokens).Generate(text.ToArray(), Options, cancellation: TestContext.Current.CancellationToken);
    }
}
