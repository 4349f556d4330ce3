using System.Text.Json;
using LoraTrainer.Data.Datasets;
using Xunit;

namespace LoraTrainer.Data.Tests.Datasets;

public class DatasetFormatTests
{
    [Fact]
    public void Alpaca_WithAndWithoutInput_IsTheStanfordPrompt()
    {
        var format = new DatasetFormat.Alpaca();
        DatasetRow with = format.Convert(Row("""{"instruction":"Add.","input":"1 2","output":"3"}"""));
        Assert.Equal("Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n", with.Prompt);
        Assert.Equal("3", with.Completion);
        const string without = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n";
        Assert.Equal(without, format.Convert(Row("""{"instruction":"Add.","input":"","output":"3"}""")).Prompt);
        Assert.Equal(without, format.Convert(Row("""{"instruction":"Add.","input":null,"output":"3"}""")).Prompt);
        Assert.Equal(without, format.Convert(Row("""{"instruction":"Add.","output":"3"}""")).Prompt);
    }

    /// <summary>The block of FinLoRA's published axolotl configs.</summary>
    [Fact]
    public void Custom_InstructionAndOutputFields_FillsTheFormat()
    {
        var format = new DatasetFormat.Custom
        {
            SystemPrompt = "",
            FieldSystem = "system",
            FieldInstruction = "context",
            FieldOutput = "target",
            Format = "[INST] {instruction} [/INST]",
            NoInputFormat = "[INST] {instruction} [/INST]",
        };
        DatasetRow row = format.Convert(Row("""{"context":"Is {it} {input}?","target":"yes"}"""));
        Assert.Equal("[INST] Is {it} {input}? [/INST]", row.Prompt);
        Assert.Equal("yes", row.Completion);
    }

    [Fact]
    public void Custom_SystemAndInput_ComesInOrder()
    {
        var format = new DatasetFormat.Custom { SystemPrompt = "Be {short}.", SystemFormat = "<<{system}>>", Format = "{{I}} {instruction}|{input}:", NoInputFormat = "{instruction}:" };
        Assert.Equal("<<Be {short}.>>{I} a|b:", format.Convert(Row("""{"instruction":"a","input":"b","output":"c"}""")).Prompt);
        Assert.Equal("<<Be {short}.>>a:", format.Convert(Row("""{"instruction":"a","output":"c"}""")).Prompt);
        Assert.Equal("<<own>>a:", format.Convert(Row("""{"system":"own","instruction":"a","output":"c"}""")).Prompt);
        Assert.Equal("a:", format.Convert(Row("""{"system":"","instruction":"a","output":"c"}""")).Prompt);
    }

    [Theory]
    [InlineData("{question}", "format: the placeholder {question} is not known in \"{question}\"; known here: {instruction}, {input}")]
    [InlineData("a { b", "format: the brace at character 3 has no partner in \"a { b\"; known here: {instruction}, {input}")]
    [InlineData("a } b", "format: the brace at character 3 has no partner in \"a } b\"; known here: {instruction}, {input}")]
    public void Custom_WrongFormat_IsRefusedAtOnce(string format, string message)
        => Assert.Equal(message, Assert.Throws<DatasetException>(() => new DatasetFormat.Custom { Format = format }).Message);

    [Theory]
    [InlineData("""{"text":"a"}""", "RawText { Field = text }")]
    [InlineData("""{"context":"a","target":"b","url":"c"}""", "PromptCompletion { PromptField = context, CompletionField = target }")]
    [InlineData("""{"completion":"b","prompt":"a"}""", "PromptCompletion { PromptField = prompt, CompletionField = completion }")]
    [InlineData("""{"question":"a","answer":"b"}""", "PromptCompletion { PromptField = question, CompletionField = answer }")]
    [InlineData("""{"instruction":"a","input":"","output":"b"}""", "Alpaca { }")]
    public void Recognize_KnownFields_NamesTheFormat(string json, string expected) => Assert.Equal(expected, DatasetFormat.Recognize(Row(json)).ToString());

    [Fact]
    public void Recognize_UnknownFields_SaysWhatThereIs()
        => Assert.StartsWith("data.jsonl:5 (row 4): the fields a, b do not tell the format; known are instruction/input/output,",
            Assert.Throws<DatasetException>(() => DatasetFormat.Recognize(Row("""{"a":1,"b":2}"""))).Message, StringComparison.Ordinal);

    private static SourceRow Row(string json) => new(new RowSource("/x/data.jsonl", 5, 4), JsonElement.Parse(json));
}
