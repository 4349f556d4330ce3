using System.Text;
using LoraTrainer.Data.Datasets;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Data.Tests.Datasets;

public class MutatedRowsTests
{
    private const string Rows = """
        {"messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":"b","weight":1,"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}],"tools":"[{\"name\":\"f\"}]"}
        {"conversations":[{"from":"human","value":"q\ud83d\ude00"},{"from":"function_call","value":"{\"name\":\"f\",\"arguments\":{\"x\":[1,2]}}"},{"from":"observation","value":"3"},{"from":"gpt","value":"\u00e9"}],"system":"s"}
        {"instruction":"i","input":null,"output":"o"}
        {"segments":[{"label":false,"text":"x"},{"label":true,"text":"y"}]}
        """;

    /// <summary>Bytes changed, cut out and put in at random: each row is good or faulty, or the file is refused; nothing else happens.</summary>
    [Theory]
    [InlineData(".jsonl")]
    [InlineData(".json")]
    [InlineData(".csv")]
    public void Read_MutatedFile_GivesRowsOrFaults(string ending)
    {
        using var folder = new TemporaryFolder();
        string path = folder.File("rows" + ending);
        byte[] original = Encoding.UTF8.GetBytes(ending == ".json" ? $"[{Rows.ReplaceLineEndings(",")}]" : ending == ".csv" ? "instruction,output\n\"a \"\"b\"\"\",\"c\nd\"\ne,f\n" : Rows);
        var random = new Random(11);
        DatasetFormat[] formats = [new ConversationFormat(), new DatasetFormat.Alpaca(), new DatasetFormat.InputOutput(), new DatasetFormat.RawText("output")];
        int rows = 0;
        for (int i = 0; i < 1500; i++)
        {
            List<byte> bytes = [.. original];
            for (int change = random.Next(1, 6); change > 0; change--)
            {
                int at = random.Next(bytes.Count);
                switch (random.Next(4))
                {
                    case 0:
                        bytes[at] = (byte)random.Next(256);
                        break;
                    case 1:
                        bytes.RemoveRange(at, Math.Min(random.Next(1, 20), bytes.Count - at));
                        break;
                    case 2:
                        bytes.InsertRange(at, bytes.GetRange(random.Next(bytes.Count), 1));
                        break;
                    default:
                        bytes.InsertRange(at, Encoding.UTF8.GetBytes(new[] { "[", "{\"a\":", "\\ud800", "\"", "null", "1e999", "\0" }[random.Next(7)]));
                        break;
                }

                if (bytes.Count == 0)
                {
                    bytes.Add((byte)'{');
                }
            }

            File.WriteAllBytes(path, [.. bytes]);
            try
            {
                foreach (SourceRow row in RowReader.Read(path))
                {
                    rows++;
                    foreach (DatasetFormat format in formats)
                    {
                        Assert.NotNull(format.ConvertOrFault(row));
                    }
                }
            }
            catch (DatasetException exception)
            {
                Assert.Contains("rows" + ending, exception.Message, StringComparison.Ordinal);
            }
        }

        Assert.True(rows > 1000, $"only {rows} rows were read");
    }
}
