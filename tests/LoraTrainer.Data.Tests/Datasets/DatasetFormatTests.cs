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
        DatasetRow.Answered with = Answered(format, Row("""{"instruction":"Add.","input":"1 2","output":"3"}"""));
        Assert.Equal("Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n", with.Prompt);
        Assert.Equal("3", with.Completion);
        const string without = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n";
        Assert.Equal(without, Answered(format, Row("""{"instruction":"Add.","input":"","output":"3"}""")).Prompt);
        Assert.Equal(without, Answered(format, Row("""{"instruction":"Add.","input":null,"output":"3"}""")).Prompt);
        Assert.Equal(without, Answered(format, Row("""{"instruction":"Add.","output":"3"}""")).Prompt);
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
        DatasetRow.Answered row = Answered(format, Row("""{"context":"Is {it} {input}?","target":"yes"}"""));
        Assert.Equal("[INST] Is {it} {input}? [/INST]", row.Prompt);
        Assert.Equal("yes", row.Completion);
    }

    [Fact]
    public void Custom_SystemAndInput_ComesInOrder()
    {
        var format = new DatasetFormat.Custom { SystemPrompt = "Be {short}.", SystemFormat = "<<{system}>>", Format = "{{I}} {instruction}|{input}:", NoInputFormat = "{instruction}:" };
        Assert.Equal("<<Be {short}.>>{I} a|b:", Answered(format, Row("""{"instruction":"a","input":"b","output":"c"}""")).Prompt);
        Assert.Equal("<<Be {short}.>>a:", Answered(format, Row("""{"instruction":"a","output":"c"}""")).Prompt);
        Assert.Equal("<<own>>a:", Answered(format, Row("""{"system":"own","instruction":"a","output":"c"}""")).Prompt);
        Assert.Equal("a:", Answered(format, Row("""{"system":"","instruction":"a","output":"c"}""")).Prompt);
    }

    [Theory]
    [InlineData("{question}", "format: the placeholder {question} is not known in \"{question}\"; known here: {instruction}, {input}")]
    [InlineData("a { b", "format: the brace at character 3 has no partner in \"a { b\"; known here: {instruction}, {input}")]
    [InlineData("a } b", "format: the brace at character 3 has no partner in \"a } b\"; known here: {instruction}, {input}")]
    public void Custom_WrongFormat_IsRefusedAtOnce(string format, string message)
        => Assert.Equal(message, Assert.Throws<DatasetException>(() => new DatasetFormat.Custom { Format = format }).Message);

    [Theory]
    [InlineData("""{"text":"a"}""", "text (field text, all of it learned)")]
    [InlineData("""{"context":"a","target":"b","url":"c"}""", "prompt and completion (fields context, target)")]
    [InlineData("""{"completion":"b","prompt":"a"}""", "prompt and completion (fields prompt, completion)")]
    [InlineData("""{"question":"a","answer":"b"}""", "prompt and completion (fields question, answer)")]
    [InlineData("""{"instruction":"a","response":"b"}""", "prompt and completion (fields instruction, response)")]
    [InlineData("""{"instruction":"a","context":"","response":"b"}""", "alpaca (fields instruction, context, response)")]
    [InlineData("""{"instruction":"a","input":"","output":"b"}""", "alpaca (fields instruction, input, output)")]
    [InlineData("""{"segments":[]}""", "segments (field segments: text, label)")]
    public void Recognize_KnownFields_NamesTheFormat(string json, string expected) => Assert.Equal(expected, DatasetFormat.Recognize(Row(json)).Name);

    [Theory]
    [InlineData("""{"id":1,"chat":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}""", "the fields id, chat do not tell what a row is. Its field 'chat' is a list of messages: name it messages, or set type: chat_template and field_messages: chat in the data set's block of a configuration.")]
    [InlineData("""{"talk":"[{\"from\":\"human\",\"value\":\"q\"}]"}""", "the fields talk do not tell what a row is. Its field 'talk' is a list of messages: name it messages, or set type: chat_template and field_messages: talk")]
    [InlineData("""{"role":"user","content":"q"}""", "the fields role, content do not tell what a row is. It is one message of a chat: put the messages of each conversation into one row, {\"messages\": [...]}.")]
    [InlineData("""{"a":1,"b":2}""", "the fields a, b do not tell what a row is. Known are instruction, input, output (alpaca); one of prompt,")]
    [InlineData("""{"prompt":"a","chosen":"b","rejected":"c"}""", "these are preference pairs (chosen, rejected)")]
    public void Recognize_OtherFields_SaysWhatThereIs(string json, string expected)
        => Assert.StartsWith("data.jsonl:5 (row 4): " + expected, Assert.Throws<DatasetException>(() => DatasetFormat.Recognize(Row(json))).Message, StringComparison.Ordinal);

    /// <summary>One message that is wrong does not hide the next; of many the first are told.</summary>
    [Theory]
    [InlineData("""[{"content":"a"},{"role":"user","content":"b"},{"role":"assistant","content":"c","weight":0.5}]""", "message 1 does not say who speaks; it has: content; message 3: 'weight' must be true, false, 0 or 1, got 0.5; a message is learned or not")]
    [InlineData("""[{"role":"user","content":"a"},1,{"role":"user"},2,3,4,5]""", "message 2 is a number; expected an object with a role and a content; message 3 (user) says nothing; it has: role; message 4 is a number; expected an object with a role and a content")]
    public void ConvertOrFault_SeveralWrongMessages_TellsThem(string messages, string reason)
        => Assert.Equal(reason, Assert.IsType<DatasetRow.Faulty>(new ConversationFormat().ConvertOrFault(Row($$"""{"messages":{{messages}}}"""))).Reason);

    /// <summary>JSON in a text in JSON can be deeper than the parser takes, though neither is by itself.</summary>
    [Fact]
    public void ConvertOrFault_JsonInATextThatIsTooDeep_IsFaulty()
    {
        string deep = string.Concat(Enumerable.Repeat("[", 62)) + string.Concat(Enumerable.Repeat("]", 62)), call = JsonSerializer.Serialize($$"""{"name":"f","arguments":{{deep}}}""");
        DatasetRow row = new ConversationFormat().ConvertOrFault(Row($$"""{"conversations":[{"from":"function_call","value":{{call}}}]}"""));
        Assert.Equal("the lists and objects in it are nested too deeply", Assert.IsType<DatasetRow.Faulty>(row).Reason);
    }

    [Fact]
    public void FieldNames_OfThousandsOfLongOnes_FitASentence()
    {
        string fields = string.Join(',', Enumerable.Range(0, 5000).Select(i => $"\"{new string('n', 5000)}{i}\":0"));
        string names = Row($"{{{fields}}}").FieldNames;
        Assert.StartsWith(new string('n', 100) + "..., ", names, StringComparison.Ordinal);
        Assert.InRange(names.Length, 100, 4000);
    }

    [Fact]
    public void InputOutput_Segments_KeepTheirLabels()
    {
        DatasetRow row = new DatasetFormat.InputOutput().Convert(Row("""{"segments":[{"label":false,"text":"<s>Q"},{"label":true,"text":"A</s>"}]}"""));
        Assert.Equal([new("<s>Q", false), new("A</s>", true)], Assert.IsType<DatasetRow.Segmented>(row).Pieces);
    }

    [Theory]
    [InlineData("""{"text":"a"}""", "no list 'segments'; the row has: text")]
    [InlineData("""{"segments":[{"label":true,"text":"a"},{"text":"b"}]}""", """segment 2 is not {"label": true or false, "text": "..."}""")]
    [InlineData("""{"segments":[{"label":true,"text":[{"role":"user"}]}]}""", "field 'text' is not a text but a list of messages. Put all messages of a row into one list, messages")]
    [InlineData("""{"segments":[{"label":true,"text":1}]}""", "field 'text' is not a text but a number")]
    public void ConvertOrFault_RowThatLacksSomething_IsFaultyAndSaysWhy(string json, string reason)
        => Assert.Equal(new DatasetRow.Faulty(Row(json).Source, reason), new DatasetFormat.InputOutput().ConvertOrFault(Row(json)));

    private static DatasetRow.Answered Answered(DatasetFormat format, SourceRow row) => Assert.IsType<DatasetRow.Answered>(format.Convert(row));

    private static SourceRow Row(string json) => new(new RowSource("/x/data.jsonl", 5, 4), JsonElement.Parse(json));
}
