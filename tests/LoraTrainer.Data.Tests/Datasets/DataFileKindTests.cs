using System.IO.Compression;
using System.Text;
using LoraTrainer.Data.Datasets;
using LoraTrainer.TestSupport;
using Parquet;
using Parquet.Serialization;
using Xunit;

namespace LoraTrainer.Data.Tests.Datasets;

/// <summary>Each kind of file, packed and not, whole and damaged.</summary>
public sealed class DataFileKindTests : IDisposable
{
    private readonly TemporaryFolder folder = new();
    private readonly List<string> faults = [];

    public void Dispose() => folder.Dispose();

    [Theory]
    [InlineData("a.csv", "q,a\n1,2\n", "1:q=1,a=2")]
    [InlineData("a.csv", "\uFEFFq,a\r\n\"x, \"\"y\"\"\",\"l1\r\nl2\"\r\n\r\n,\"\"\r\n3,ä", "1:q=x, \"y\",a=l1\r\nl2 2:q=,a= 3:q=3,a=ä")]
    [InlineData("a.csv", "q;a\n1,5;2\n", "1:q=1,5,a=2")]
    [InlineData("a.csv", "text\n\"one; two\"\nthree; four\n", "1:text=one; two 2:text=three; four")]
    [InlineData("a.csv", "q,a\n1,\"\"\"\"\n", "1:q=1,a=\"")]
    [InlineData("a.csv", "q,a\n1,5\" screen\n", "1:q=1,a=5\" screen")]
    [InlineData("a.tsv", "q,1\ta\n1\t2,5\n", "1:q,1=1,a=2,5")]
    [InlineData("a.csv", "q,a\n", "")]
    [InlineData("a.csv", "", "")]
    [InlineData("a.txt", "one\ntwo\n\n \n  three\r\n", "1:text=one\ntwo 2:text=  three")]
    [InlineData("a.txt", "\n\n", "")]
    [InlineData("a.md", "# Title\n\nText\n", "1:text=# Title\n\nText\n")]
    [InlineData("a.md", " \n", "")]
    [InlineData("a.ndjson", "{\"t\":\"x\"}\n", "1:t=x")]
    [InlineData("noname", " [{\"t\":\"x\"}]", "1:t=x")]
    public void Read_EachKind_GivesItsRows(string name, string content, string expected)
    {
        Assert.Equal(expected, Told(Written(name, Encoding.UTF8.GetBytes(content))));
        Assert.Equal(expected, Told(Written(name + ".gz", Packed(content, stream => new GZipStream(stream, CompressionLevel.Fastest, leaveOpen: true)))));
        Assert.Equal(expected, Told(Written(name + ".zst", Packed(content, stream => new ZstdSharp.CompressionStream(stream, leaveOpen: true)))));
        Assert.Empty(faults);
    }

    [Theory]
    [InlineData("q,a\n1,2,3\n4\n5,6\n", "2 (row 1): 3 fields, but the header has 2|3 (row 2): 1 field, but the header has 2")]
    [InlineData("q,a\n\"x\"y,2\n5,6\n", "2 (row 1): text behind the closing quote of field 1; quotes inside a quoted field are doubled")]
    public void Read_FaultyTableRow_IsLeftOutWithItsLine(string content, string reasons)
    {
        Assert.EndsWith("q=5,a=6", Told(Written("a.csv", Encoding.UTF8.GetBytes(content))), StringComparison.Ordinal);
        Assert.Equal(reasons.Split('|').Select(reason => $"a.csv:{reason}"), faults);
    }

    [Fact]
    public void Read_BrokenUtf8InATable_IsFaulty()
    {
        Assert.Equal("2:q=3,a=4", Told(Written("a.csv", [.. "q,a\n1,"u8, 0xFF, .. "\n3,4\n"u8])));
        Assert.Equal("a.csv:2 (row 1): field 'a': not valid UTF-8 at byte 1", Assert.Single(faults));
    }

    [Theory]
    [InlineData("a.csv", "q,a\n1,2\n\"never closed,2\n3,4\n", "the double quote that opens a field at line 3 is never closed")]
    [InlineData("a.csv", "q,q\n1,2\n", "the header names the field 'q' twice")]
    [InlineData("a.csv", "q,,\n1,2,3\n", "the header, which names the fields, has two empty names")]
    [InlineData("a.bin", "hello", "neither its name nor its first bytes say what kind of file this is")]
    [InlineData("a.jsonl", "PK\u0003\u0004", "is a ZIP file")]
    [InlineData("a.parquet", "PAR1 and no more", "not a Parquet file that can be read")]
    [InlineData("a.parquet", "", "not a Parquet file that can be read")]
    [InlineData("a.json", "[{\"t\":\"1\"},", "not a JSON array of objects")]
    public void Read_WhatCannotBeRead_SaysWhy(string name, string content, string reason)
        => Assert.Contains(reason, Assert.Throws<DatasetException>(() => Told(Written(name, Encoding.UTF8.GetBytes(content)))).Message, StringComparison.Ordinal);

    /// <summary>A file that was cut off must not read as one that ends early.</summary>
    [Theory]
    [InlineData(".gz", 4)]
    [InlineData(".gz", 200)]
    [InlineData(".zst", 4)]
    [InlineData(".zst", 200)]
    public void Read_CutCompression_IsAnError(string ending, int missing)
    {
        string content = string.Concat(Enumerable.Range(0, 3000).Select(i => $"{{\"t\":\"{i * 7919}\"}}\n"));
        byte[] packed = Packed(content, stream => ending == ".gz" ? new GZipStream(stream, CompressionLevel.Fastest, leaveOpen: true) : new ZstdSharp.CompressionStream(stream, leaveOpen: true));
        DatasetException failure = Assert.Throws<DatasetException>(() => Told(Written("a.jsonl" + ending, packed[..^missing])));
        Assert.Contains("the compressed data are damaged or cut off", failure.Message, StringComparison.Ordinal);
    }

    /// <summary>An empty name behind the last comma counts too.</summary>
    [Fact]
    public void Read_HeaderOfTooManyNames_IsRefused()
    {
        string names = string.Join(',', Enumerable.Range(0, 10_000));
        Assert.Equal("", Told(Written("full.csv", Encoding.UTF8.GetBytes(names + "\n"))));
        Assert.Contains("is more than 10000 columns", Assert.Throws<DatasetException>(() => Told(Written("more.csv", Encoding.UTF8.GetBytes(names + ",\n")))).Message, StringComparison.Ordinal);
    }

    /// <summary>A field takes more memory than the comma behind it, and packed commas take none.</summary>
    [Theory]
    [InlineData("")]
    [InlineData("q,a\n1,2\n")]
    public void Read_RowOfCommas_TakesNoMoreMemoryThanItsBytes(string before)
    {
        string file = Written("a.csv.gz", Packed(before + new string(',', 60 << 20) + "\n", stream => new GZipStream(stream, CompressionLevel.Fastest, leaveOpen: true)));
        long held = GC.GetAllocatedBytesForCurrentThread();
        if (before.Length == 0)
        {
            Assert.Contains("the header, which names the fields, is more than 10000 columns", Assert.Throws<DatasetException>(() => Told(file)).Message, StringComparison.Ordinal);
        }
        else
        {
            Assert.Equal("1:q=1,a=2", Told(file));
            Assert.Equal("a.csv.gz:3 (row 2): more than 10000 columns", Assert.Single(faults));
        }

        // The window doubles up to 64 MiB.
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - held, 0, 140 << 20);
    }

    [Fact]
    public async Task Read_Parquet_PutsNestedRowsTogether()
    {
        string file = folder.File("a.parquet");
        Row[] rows =
        [
            new() { Instruction = "é", Number = -7, Score = 0.5, Tags = ["a", "b"], Messages = [new() { Role = "user", Content = "hi" }, new() { Role = "assistant" }], Meta = new() { Role = "m" }, Named = new() { ["k"] = "v", ["l"] = null }, Flag = true },
            new() { Tags = [], Messages = [], Named = [] },
            new() { Instruction = "", Tags = ["", null], Messages = [new() { Content = "x" }, null, new() { Role = "r", Content = "y" }], Bytes = [0xC3, 0xA9] },
            new() { Messages = [new() { Parts = [["p", "q"], [], ["r"]] }] },
        ];
        await ParquetSerializer.SerializeAsync(rows, file, new ParquetOptions { RowGroupSize = 3, CompressionMethod = CompressionMethod.Zstd }, cancellationToken: TestContext.Current.CancellationToken);
        List<SourceRow> read = [.. RowReader.Read(file)];
        Assert.Equal(
            [
                """{"Instruction":"é","Number":-7,"Score":0.5,"Tags":["a","b"],"Messages":[{"Role":"user","Content":"hi","Parts":null},{"Role":"assistant","Content":null,"Parts":null}],"Meta":{"Role":"m","Content":null,"Parts":null},"Named":{"k":"v","l":null},"Bytes":null,"Flag":true}""",
                """{"Instruction":null,"Number":0,"Score":null,"Tags":[],"Messages":[],"Meta":null,"Named":{},"Bytes":null,"Flag":false}""",
                """{"Instruction":"","Number":0,"Score":null,"Tags":["",null],"Messages":[{"Role":null,"Content":"x","Parts":null},null,{"Role":"r","Content":"y","Parts":null}],"Meta":null,"Named":null,"Bytes":"é","Flag":false}""",
                """{"Instruction":null,"Number":0,"Score":null,"Tags":null,"Messages":[{"Role":null,"Content":null,"Parts":[["p","q"],[],["r"]]}],"Meta":null,"Named":null,"Bytes":null,"Flag":false}""",
            ],
            read.Select(row => row.Fields.GetRawText()));
        Assert.Equal(["a.parquet (row 1)", "a.parquet (row 4)"], [read[0].Source.ToString(), read[3].Source.ToString()]);
        Assert.Empty(faults);
    }

    /// <summary>A flipped byte anywhere is an error or a changed row, and no other exception.</summary>
    [Fact]
    public async Task Read_DamagedParquet_IsAClearErrorOrRows()
    {
        string file = folder.File("a.parquet");
        await ParquetSerializer.SerializeAsync(Enumerable.Range(0, 20).Select(i => new Row { Instruction = $"i{i}", Tags = ["a", $"{i}"] }), file, cancellationToken: TestContext.Current.CancellationToken);
        byte[] whole = await File.ReadAllBytesAsync(file, TestContext.Current.CancellationToken);
        int errors = 0;
        for (int at = 0; at < whole.Length; at += 5)
        {
            byte[] damaged = [.. whole];
            damaged[at] ^= 0x55;
            try
            {
                _ = RowReader.Read(Written("b.parquet", damaged)).Count();
            }
            catch (DatasetException)
            {
                errors++;
            }
        }

        Assert.InRange(errors, 10, whole.Length);
    }

    [Fact]
    public void Read_FolderAndPattern_TakeTheFilesInOrder()
    {
        Directory.CreateDirectory(folder.File("d/more"));
        Written("d/b.jsonl", "{\"t\":\"b\"}\n"u8.ToArray());
        Written("d/a.json", "[{\"t\":\"a\"}]"u8.ToArray());
        Written("d/more/c.csv", "t\nc\n"u8.ToArray());
        Written("d/README.md", "# About"u8.ToArray());
        Written("d/LICENSE.txt", "Do."u8.ToArray());
        Written("d/dataset_info.json", "{}"u8.ToArray());
        Written("d/.hidden.jsonl", "{\"t\":\"x\"}"u8.ToArray());

        Assert.Equal("1:t=a 1:t=b 1:t=c", Told(folder.File("d")));
        Assert.Equal("1:t=a 1:t=b", Told(folder.File("d/[ab].json*")));
        Assert.Equal("1:t=c", Told(folder.File("d/**/*.csv")));
        Assert.Equal("1:t=a 1:t=b 1:t=c", Told(folder.File("d/**/[a-c].*")));
        Assert.Contains("no file matches", Assert.Throws<DatasetException>(() => RowReader.Read(folder.File("d/*.parquet"))).Message, StringComparison.Ordinal);
        Directory.CreateDirectory(folder.File("empty"));
        Assert.Contains("no data file in this folder", Assert.Throws<DatasetException>(() => RowReader.Read(folder.File("empty"))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Read_FolderOfTextsOnly_ReadsThem()
    {
        Directory.CreateDirectory(folder.File("texts"));
        Written("texts/a.txt", "one\n\ntwo"u8.ToArray());
        Written("texts/b.md", "# B"u8.ToArray());
        Written("texts/README.md", "# About"u8.ToArray());
        Assert.Equal("1:text=one 2:text=two 1:text=# B", Told(folder.File("texts")));
    }

    private static byte[] Packed(string content, Func<Stream, Stream> packer)
    {
        using var packed = new MemoryStream();
        using (Stream stream = packer(packed))
        {
            stream.Write(Encoding.UTF8.GetBytes(content));
        }

        return packed.ToArray();
    }

    private string Written(string name, byte[] content)
    {
        string file = folder.File(name);
        File.WriteAllBytes(file, content);
        return file;
    }

    private string Told(string path) => string.Join(' ', RowReader.Read(path).Where(IsRow)
        .Select(row => $"{row.Source.Row}:{string.Join(',', row.Fields.EnumerateObject().Select(field => $"{field.Name}={field.Value.GetString()}"))}"));

    private bool IsRow(SourceRow row)
    {
        if (row.Fault is { } fault)
        {
            faults.Add($"{row.Source}: {fault}");
        }

        return row.Fault is null;
    }

    private sealed class Row
    {
        public string? Instruction { get; set; }

        public int Number { get; set; }

        public double? Score { get; set; }

        public List<string?>? Tags { get; set; }

        public List<Message?>? Messages { get; set; }

        public Message? Meta { get; set; }

        public Dictionary<string, string?>? Named { get; set; }

        public byte[]? Bytes { get; set; }

        public bool Flag { get; set; }
    }

    private sealed class Message
    {
        public string? Role { get; set; }

        public string? Content { get; set; }

        public List<List<string>>? Parts { get; set; }
    }
}
