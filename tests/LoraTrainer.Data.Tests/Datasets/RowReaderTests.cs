using System.Text;
using LoraTrainer.Data.Datasets;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Data.Tests.Datasets;

public class RowReaderTests
{
    [Theory]
    [InlineData("{\"t\":\"a\"}\n{\"t\":\"b\"}\n", "1:1:a 2:2:b")]
    [InlineData("{\"t\":\"a\"}\r\n{\"t\":\"b\"}", "1:1:a 2:2:b")]
    [InlineData("\uFEFF{\"t\":\"a\"}\n", "1:1:a")]
    [InlineData("\n\n  \n{\"t\":\"a\"}\n\t\n{\"t\":\"b\"}\n\n", "4:1:a 6:2:b")]
    [InlineData("[{\"t\":\"a\"},{\"t\":\"b\"}]", "1:1:a 1:2:b")]
    [InlineData("\uFEFF [\n {\"t\":\"a\"},\n\n {\n\"t\":\"b\"}\n]\n\n", "2:1:a 4:2:b")]
    [InlineData("[]", "")]
    [InlineData("", "")]
    [InlineData("\n\n", "")]
    public void Read_WellFormed_GivesLinesAndRows(string content, string expected)
        => Assert.Equal(expected, string.Join(' ', Read(content).Select(row => $"{row.Source.Line}:{row.Source.Row}:{row.Text("t")}")));

    [Theory]
    [InlineData("{\"t\":\"a\"}\n{\"t\":\n", "data.jsonl:2 (row 2): not a JSON object on one line:")]
    [InlineData("{\"t\":\"a\n", "data.jsonl:1 (row 1): not a JSON object on one line: a JSON Lines file has one whole object a line, and here an object goes over several or is cut off.")]
    [InlineData("{\"t\":\"a\"} x\n", "data.jsonl:1 (row 1): not a JSON object on one line:")]
    [InlineData("{\"t\":\"a\"}\n\n17\n", "data.jsonl:3 (row 2): expected an object with named fields, found a number")]
    [InlineData("{\n\"t\":\"a\"}\n", "data.jsonl:1 (row 1): not a JSON object on one line:")]
    [InlineData("[{\"t\":\"a\"}\n,\n3]", "data.jsonl:3 (row 2): expected an object with named fields, found a number")]
    [InlineData("{\"t\":\"a\"}\n[{\"role\":\"user\",\"content\":\"q\"}]\n", "data.jsonl:2 (row 2): expected an object with named fields, found a list of messages. Give it a name: {\"messages\": [...]}")]
    [InlineData("[[{\"role\":\"user\",\"content\":\"q\"}]]", "data.jsonl:1 (row 1): expected an object with named fields, found a list of messages. Give it a name: {\"messages\": [...]}")]
    [InlineData("[{\"t\":\"a\"}]\n[{\"t\":\"b\"}]\n", "data.jsonl:2 (row 2): not a JSON array of objects: something follows behind the array's end. If each line is a list of messages, give it a name: {\"messages\": [...]}")]
    [InlineData("[{\"t\":\"a\"}] x", "data.jsonl:1 (row 2): not a JSON array of objects:")]
    [InlineData("[{\"t\":\"a\"}", "data.jsonl:1 (row 2): not a JSON array of objects: it ends before its last object or list is closed, at byte ")]
    [InlineData("[{\"t\":\"a\"},]", "data.jsonl:1 (row 2): not a JSON array of objects:")]
    public void Read_Damaged_SaysWhere(string content, string start)
        => Assert.StartsWith(start, Failure(Encoding.UTF8.GetBytes(content)), StringComparison.Ordinal);

    [Fact]
    public void Read_InvalidUtf8_SaysWhichByte()
    {
        byte[] line = [.. "{\"t\":\"ok\"}\n{\"t\":\"a"u8, 0xC3, 0x28, .. "\"}\n"u8];
        Assert.Equal("data.jsonl:2 (row 2): not valid UTF-8 at byte 8", Failure(line));
        byte[] array = [.. "[{\"t\":\"a"u8, 0xFF, .. "\"}]"u8];
        Assert.Equal("data.jsonl:1 (row 1): not valid UTF-8 at byte 8", Failure(array));
    }

    [Fact]
    public void Read_HugeLineAmongSmallOnes_IsWhole()
    {
        string huge = new('é', 3_000_000);
        List<SourceRow> rows = Read($"{{\"t\":\"a\"}}\n{{\"t\":\"{huge}\"}}\n{{\"t\":\"b\"}}");
        Assert.Equal(["a", huge, "b"], rows.Select(row => row.Text("t")));
        Assert.Equal([1, 2, 3], rows.Select(row => row.Source.Line));
    }

    /// <summary>Lines of all lengths around the size of the read buffer.</summary>
    [Fact]
    public void Read_ManyLengths_LosesNothing()
    {
        string[] texts = [.. Enumerable.Range(0, 300).Select(i => new string((char)('a' + (i % 26)), i * 997 % 5000)), new('x', 65525), new('y', 65526), new('z', 65527), "end"];
        Assert.Equal(texts, Read(string.Concat(texts.Select(text => $"{{\"t\":\"{text}\"}}\n"))).Select(row => row.Text("t")));
    }

    /// <summary>Faulty rows are told with their places, and the reading goes on.</summary>
    [Theory]
    [InlineData("{\"t\":\"a\"}\n{oops\n17\n{\"t\":\"b\"}\n", "a b", "2 (row 2): not a JSON object on one line|3 (row 3): expected an object with named fields, found a number")]
    [InlineData("{\n\"t\":\"a\"\n}\n{\"t\":\"b\"}\n{oops\n", "b", "1 (row 1): not a JSON object on one line: a JSON Lines|2 (row 2): not a JSON object on one line, but as it seems a part of one that begins on a line above|3 (row 3): not a JSON object on one line, but as it seems a part|5 (row 5): not a JSON object on one line: 'o'")]
    [InlineData("[{\"t\":\"a\"},\n5,\n{\"t\":\"b\"}]", "a b", "2 (row 2): expected an object with named fields, found a number")]
    public void Read_WithFaults_GoesOn(string content, string texts, string starts)
    {
        using var folder = new TemporaryFolder();
        string file = folder.File("data.jsonl");
        File.WriteAllText(file, content);
        SourceRow[] rows = [.. RowReader.Read(file)];
        Assert.Equal(texts, string.Join(' ', rows.Where(row => row.Fault is null).Select(row => row.Text("t"))));
        string[] faults = [.. rows.Where(row => row.Fault is not null).Select(row => $"{row.Source}: {row.Fault}")];
        Assert.Equal(starts.Split('|').Length, faults.Length);
        Assert.All(faults.Zip(starts.Split('|')), pair => Assert.StartsWith($"data.jsonl:{pair.Second}", pair.First, StringComparison.Ordinal));
    }

    /// <summary>A line that is longer than any row is left out without being held, and what follows is read.</summary>
    [Fact]
    public void Read_EndlessLine_IsFaultyAndLeftOut()
    {
        using var folder = new TemporaryFolder();
        string file = folder.File("data.jsonl.gz");
        using (var zip = new System.IO.Compression.GZipStream(File.Create(file), System.IO.Compression.CompressionLevel.Fastest))
        {
            zip.Write("{\"t\":\"a\"}\n"u8);
            byte[] block = new byte[1 << 20];
            block.AsSpan().Fill((byte)'x');
            for (int i = 0; i < 80; i++)
            {
                zip.Write(block);
            }

            zip.Write("\n{\"t\":\"b\"}\n"u8);
        }

        SourceRow[] rows = [.. RowReader.Read(file)];
        Assert.Equal("a|longer than 64 MiB, which is no row|b", string.Join('|', rows.Select(row => row.Fault ?? row.Text("t"))));
        Assert.Equal("data.jsonl.gz:2 (row 2)", rows[1].Source.ToString());
    }

    /// <summary>Elements of all lengths around the size of the read buffer.</summary>
    [Fact]
    public void Read_ArrayInPieces_LosesNothing()
    {
        string[] texts = [.. Enumerable.Range(0, 300).Select(i => new string((char)('a' + (i % 26)), i * 997 % 5000)), new('x', 65525), new('y', 65526), new('é', 400_000), "end"];
        List<SourceRow> rows = Read($"[\n{string.Join(",\n", texts.Select(text => $"{{\"t\":\"{text}\",\"n\":[1.5,{{}}]}}"))}\n]\n");
        Assert.Equal(texts, rows.Select(row => row.Text("t")));
        Assert.Equal(Enumerable.Range(2, texts.Length), rows.Select(row => row.Source.Line));
    }

    [Fact]
    public void Text_MissingOrWrong_IsASentence()
    {
        SourceRow row = Read("{\"context\":\"a\",\"answer\":7,\"bad\":\"\\ud800\"}")[0];
        Assert.Equal("data.jsonl:1 (row 1): no field 'target'; the row has: context, answer, bad", Assert.Throws<DatasetException>(() => row.Text("target")).Message);
        Assert.Equal("data.jsonl:1 (row 1): field 'answer' is not a text but a number", Assert.Throws<DatasetException>(() => row.Text("answer")).Message);
        Assert.Equal("data.jsonl:1 (row 1): field 'bad' is not valid Unicode (a surrogate without its partner)", Assert.Throws<DatasetException>(() => row.Text("bad")).Message);
        Assert.Equal("", row.OptionalText("nothing"));
    }

    [Fact]
    public void Read_NoFile_SaysSo() => Assert.Equal("/nowhere/x.jsonl: no such file", Assert.Throws<DatasetException>(() => RowReader.Read("/nowhere/x.jsonl")).Message);

    /// <summary>What is wrong with the first faulty row, or with the file.</summary>
    private static string Failure(byte[] content)
    {
        try
        {
            SourceRow faulty = Read(content).First(row => row.Fault is not null);
            return $"{faulty.Source}: {faulty.Fault}";
        }
        catch (DatasetException exception)
        {
            return exception.Message;
        }
    }

    private static List<SourceRow> Read(string content) => Read(Encoding.UTF8.GetBytes(content));

    private static List<SourceRow> Read(byte[] content)
    {
        using var folder = new TemporaryFolder();
        string file = folder.File("data.jsonl");
        File.WriteAllBytes(file, content);
        return [.. RowReader.Read(file)];
    }
}
