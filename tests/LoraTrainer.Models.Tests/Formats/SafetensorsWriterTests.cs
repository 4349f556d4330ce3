using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests.Formats;

public class SafetensorsWriterTests
{
    public static TheoryData<string> FixtureFiles
    {
        get
        {
            var files = new TheoryData<string>();
            if (Fixtures.Root is null)
            {
                files.Add("(absent)");
                return files;
            }

            foreach (string path in Directory.EnumerateFiles(Fixtures.Root, "*.safetensors", SearchOption.AllDirectories).Order(StringComparer.Ordinal))
            {
                files.Add(Path.GetRelativePath(Fixtures.Root, path));
            }

            return files;
        }
    }

    /// <summary>Every file of the reference library, read and written again, must be the same file.</summary>
    [Theory]
    [Trait("Category", "Fixtures")]
    [MemberData(nameof(FixtureFiles))]
    public void Save_FileOfTheReferenceLibrary_IsByteEqual(string relative)
    {
        string path = Fixtures.Require(relative);
        using var folder = new TemporaryFolder();
        using (SafetensorsFile file = SafetensorsFile.Open(path))
        {
            Assert.NotEmpty(file.Entries);
            var writer = new SafetensorsWriter(file.Metadata);
            foreach (SafetensorsEntry entry in file.Entries.Reverse())
            {
                writer.Add(entry.Name, entry.DType, entry.Shape, (offset, destination) => file.ReadInto(entry, offset, destination));
            }

            writer.Save(folder.File("copy"));
        }

        Assert.True(File.ReadAllBytes(path).AsSpan().SequenceEqual(File.ReadAllBytes(folder.File("copy"))), $"{relative}: the copy differs");
    }

    [Fact]
    public void Save_AnyOrder_GivesTheSameBytes()
    {
        using var folder = new TemporaryFolder();
        Action<SafetensorsWriter>[] adds =
        [
            writer => writer.Add("b", SafetensorsDType.U8, [3], new byte[] { 1, 2, 3 }),
            writer => writer.Add("a", SafetensorsDType.BF16, [1, 2], new byte[] { 4, 5, 6, 7 }),
            writer => writer.Add("Z\"\\\u0001\n\u00e9<\U0001F600", SafetensorsDType.F32, [], new byte[] { 8, 9, 10, 11 }),
            writer => writer.Add("empty", SafetensorsDType.I64, [0, 7], Array.Empty<byte>()),
        ];
        var forward = new SafetensorsWriter();
        var backward = new SafetensorsWriter();
        Array.ForEach(adds, add => add(forward));
        foreach (Action<SafetensorsWriter> add in adds.Reverse())
        {
            add(backward);
        }

        forward.Save(folder.File("forward"));
        backward.Save(folder.File("backward"));
        byte[] bytes = File.ReadAllBytes(folder.File("forward"));
        Assert.Equal(bytes, File.ReadAllBytes(folder.File("backward")));
        const string header = "{\"__metadata__\":{\"format\":\"pt\"},\"empty\":{\"dtype\":\"I64\",\"shape\":[0,7],\"data_offsets\":[0,0]},"
            + "\"Z\\\"\\\\\\u0001\\n\u00e9<\U0001F600\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
            + "\"a\":{\"dtype\":\"BF16\",\"shape\":[1,2],\"data_offsets\":[4,8]},\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[8,11]}}";
        string written = System.Text.Encoding.UTF8.GetString(bytes.AsSpan(8, (int)BitConverter.ToInt64(bytes)));
        Assert.Equal(header, written.TrimEnd(' '));
        Assert.Equal(0, BitConverter.ToInt64(bytes) % 8);
        Assert.Equal(new byte[] { 8, 9, 10, 11, 4, 5, 6, 7, 1, 2, 3 }, bytes[^11..]);
        Assert.Equal(2, Directory.GetFileSystemEntries(folder.Path).Length);
        using SafetensorsFile file = SafetensorsFile.Open(folder.File("forward"));
        Assert.Equal("pt", file.Metadata["format"]);
        Assert.Equal(["empty", "Z\"\\\u0001\n\u00e9<\U0001F600", "a", "b"], file.Entries.Select(entry => entry.Name));
    }

    [Fact]
    public void Save_LargerThanOnePiece_AsksForEveryByteOnce()
    {
        using var folder = new TemporaryFolder();
        const int length = (5 << 19) + 3;
        long asked = 0;
        var writer = new SafetensorsWriter();
        writer.Add("x", SafetensorsDType.U8, [length], (offset, destination) =>
        {
            Assert.Equal(asked, offset);
            asked += destination.Length;
            for (int i = 0; i < destination.Length; i++)
            {
                destination[i] = (byte)((offset + i) % 251);
            }
        });
        writer.Save(folder.File("x"));
        Assert.Equal(length, asked);
        using SafetensorsFile file = SafetensorsFile.Open(folder.File("x"));
        byte[] read = new byte[1000];
        file.ReadInto(file.Entries[0], length - 1000, read);
        Assert.All(read.Index(), item => Assert.Equal((length - 1000 + item.Index) % 251, item.Item));
    }

    [Fact]
    public void Save_CallbackFails_LeavesTheOldFile()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("x"), "old");
        var writer = new SafetensorsWriter();
        writer.Add("x", SafetensorsDType.U8, [1], (_, _) => throw new InvalidDataException("no"));
        Assert.Throws<InvalidDataException>(() => writer.Save(folder.File("x")));
        Assert.Equal("old", File.ReadAllText(folder.File("x")));
        Assert.Single(Directory.GetFileSystemEntries(folder.Path));
    }

    [Fact]
    public void Add_WrongSizeOrName_IsRefused()
    {
        var writer = new SafetensorsWriter();
        Assert.StartsWith("tensor 'x': F32 (2) needs 8 bytes, got 4", Assert.Throws<ArgumentException>(() => writer.Add("x", SafetensorsDType.F32, [2], new byte[4])).Message, StringComparison.Ordinal);
        writer.Add("x", SafetensorsDType.U8, [1], new byte[1]);
        Assert.Throws<ArgumentException>(() => writer.Add("x", SafetensorsDType.U8, [1], new byte[1]));
        Assert.Throws<ArgumentException>(() => writer.Add("__metadata__", SafetensorsDType.U8, [1], new byte[1]));
        Assert.Throws<ArgumentException>(() => writer.Add("half", SafetensorsDType.F4, [3], (_, _) => { }));
    }
}
