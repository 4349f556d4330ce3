using System.Buffers.Binary;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests.Formats;

public sealed class TorchFileTests
{
    /// <summary>
    /// Made by CPython 3.11's pickler, protocol 2, from an OrderedDict with an attribute, as a state dictionary is: two views of one f32 storage of 6, of which one is
    /// transposed; a parameter of three elements from the second on in a bf16 storage of 4; a scalar of the same.
    /// </summary>
    private const string PickleOfCPython =
        "800263636f6c6c656374696f6e730a4f726465726564446963740a710029527101285808000000612e776569676874710263746f7263682e5f7574696c730a5f72656275696c645f74656e736f725f76"
        + "320a71032828580700000073746f72616765710463746f7263680a466c6f617453746f726167650a71055801000000307106580300000063707571074b06747108514b004b024b038671094b034b0186"
        + "710a8968002952710b74710c52710d580c000000612e7472616e73706f736564710e6803282868046805680668074b0674710f514b004b034b028671104b014b03867111896800295271127471135271"
        + "145806000000622e62696173711563746f7263682e5f7574696c730a5f72656275696c645f706172616d657465720a711668032828680463746f7263680a42466c6f6174313653746f726167650a7117"
        + "580100000031711868074b04747119514b014b0385711a4b0185711b8868002952711c74711d52711e8868002952711f87712052712158060000007363616c617271226803282868046817681868074b"
        + "04747123514b00292989680029527124747125527126757d712758090000005f6d657461646174617128680029527129285800000000712a7d712b580700000076657273696f6e712c4b017358010000"
        + "0061712d7d712e682c4b02737573622e";

    [Fact]
    public void Open_PickleOfCPython_GivesItsTensors()
    {
        var writer = new TorchWriter();
        writer.AddStorage(Floats(1, 2, 3, 4, 5, 6));
        writer.AddStorage([0x80, 0x3f, 0, 0x40, 0x40, 0x40, 0x80, 0x40]);
        using var folder = new TemporaryFolder();
        using TorchFile file = Open(folder, TorchWriter.Zip(writer.Records(Convert.FromHexString(PickleOfCPython))));
        Assert.Equal(["a.weight F32 (2, 3)", "a.transposed F32 (3, 2)", "b.bias BF16 (3)", "scalar BF16 ()"], file.Entries.Select(entry => $"{entry.Name} {entry}"));
        Assert.Equal(Floats(1, 2, 3, 4, 5, 6), Read(file, "a.weight"));
        Assert.Equal(Floats(1, 4, 2, 5, 3, 6), Read(file, "a.transposed"));
        Assert.Equal([0, 0x40, 0x40, 0x40, 0x80, 0x40], Read(file, "b.bias"));
        Assert.Equal([0x80, 0x3f], Read(file, "scalar"));
        Assert.Null(file.Find("_metadata"));
    }

    public static TheoryData<SafetensorsDType, int[], long[], long> Views
    {
        get
        {
            var data = new TheoryData<SafetensorsDType, int[], long[], long>();
            foreach (SafetensorsDType dtype in new[] { SafetensorsDType.F32, SafetensorsDType.F16, SafetensorsDType.BF16, SafetensorsDType.F64, SafetensorsDType.I64, SafetensorsDType.I32, SafetensorsDType.I16, SafetensorsDType.I8, SafetensorsDType.U8, SafetensorsDType.Bool })
            {
                data.Add(dtype, [4, 6], [6, 1], 0);
                data.Add(dtype, [6, 4], [1, 6], 0);
            }

            data.Add(SafetensorsDType.F32, [3, 4], [8, 2], 1);
            data.Add(SafetensorsDType.F32, [2, 3, 4], [1, 8, 2], 0);
            data.Add(SafetensorsDType.F32, [5, 1, 3], [3, 77, 1], 2);
            data.Add(SafetensorsDType.F32, [3, 5], [0, 1], 4);
            data.Add(SafetensorsDType.F32, [7], [0], 23);
            data.Add(SafetensorsDType.F32, [], [], 5);
            data.Add(SafetensorsDType.F32, [2, 0, 3], [0, 3, 1], 0);
            data.Add(SafetensorsDType.F32, [2, 2, 2, 3], [1, 3, 6, 9], 0);
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Views))]
    public void ReadInto_AnyView_IsInOrderInAnyPieces(SafetensorsDType dtype, int[] shape, long[] strides, long offset)
    {
        int size = dtype.Bits() / 8, elements = shape.Aggregate(1, (product, extent) => product * extent);
        byte[] storage = new byte[32 * size];
        new Random(1).NextBytes(storage);
        byte[] expected = new byte[elements * size];
        for (int i = 0; i < elements; i++)
        {
            long at = offset;
            for (int axis = shape.Length - 1, rest = i; axis >= 0; axis--)
            {
                (rest, int place) = Math.DivRem(rest, shape[axis]);
                at += place * strides[axis];
            }

            storage.AsSpan((int)at * size, size).CopyTo(expected.AsSpan(i * size));
        }

        var writer = new TorchWriter();
        writer.Add("other", SafetensorsDType.U8, [3], [1, 2, 3]);
        writer.Add("t", new TorchWriter.View(writer.AddStorage(storage), dtype, 32, offset, [.. shape.Select(extent => (long)extent)], strides, IsParameter: true));
        using var folder = new TemporaryFolder();
        using TorchFile file = Open(folder, writer.ToBytes());
        Assert.Equal(expected, Read(file, "t"));
        SafetensorsEntry entry = file.Find("t")!;
        foreach (int piece in new[] { 1, 2, 5, 100 })
        {
            byte[] actual = new byte[expected.Length];
            for (int done = 0; done < elements; done += piece)
            {
                int count = Math.Min(piece, elements - done) * size;
                file.ReadInto(entry, done * size, actual.AsSpan(done * size, count));
            }

            Assert.Equal(expected, actual);
        }

        Assert.Throws<ArgumentOutOfRangeException>(() => file.ReadInto(entry, 0, new byte[expected.Length + size]));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Open_ManyTensorsAndZip64_FindsAll(bool wide)
    {
        var writer = new TorchWriter();
        for (int i = 0; i < 300; i++)
        {
            writer.Add($"layers.{i}", SafetensorsDType.U8, [1, 2], [(byte)i, 7]);
        }

        using var folder = new TemporaryFolder();
        using TorchFile file = Open(folder, TorchWriter.Zip(writer.Records(writer.Pickle()), wide));
        Assert.Equal(300, file.Entries.Count);
        Assert.Equal([43, 7], Read(file, "layers.299"));
    }

    [Fact]
    public void Open_SharedStorage_IsReadTwice()
    {
        var writer = new TorchWriter();
        string key = writer.AddStorage([1, 2, 3, 4]);
        writer.Add("a", new TorchWriter.View(key, SafetensorsDType.U8, 4, 0, [4], [1]));
        writer.Add("b", new TorchWriter.View(key, SafetensorsDType.U8, 4, 1, [2], [2]));
        using var folder = new TemporaryFolder();
        using TorchFile file = Open(folder, writer.ToBytes());
        Assert.Equal([1, 2, 3, 4], Read(file, "a"));
        Assert.Equal([2, 4], Read(file, "b"));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ModelFolder_TorchFiles_GiveTheSameModel(bool isSharded)
    {
        using var folder = new TemporaryFolder();
        TinyRun.WriteBase(folder.Path);
        Dictionary<string, byte[]> expected = Tensors(folder.Path);
        TorchWriter[] writers = [.. Enumerable.Range(0, isSharded ? 3 : 1).Select(_ => new TorchWriter())];
        string FileOf(int index) => isSharded ? $"pytorch_model-0000{index + 1}-of-00003.bin" : "pytorch_model.bin";
        var map = new SortedDictionary<string, string>(StringComparer.Ordinal);
        foreach ((string name, byte[] bytes) in expected)
        {
            int index = map.Count % writers.Length;
            long[] shape = ModelConfig.Parse(folder.Path).ExpectedTensors().Single(tensor => tensor.Name == name).Shape;
            if (shape.Length == 2 && map.Count % 2 == 0)
            {
                writers[index].AddTransposed(name, SafetensorsDType.BF16, shape[0], shape[1], bytes);
            }
            else
            {
                writers[index].Add(name, SafetensorsDType.BF16, shape, bytes);
            }

            map.Add(name, FileOf(index));
        }

        for (int i = 0; i < writers.Length; i++)
        {
            writers[i].Save(folder.File(FileOf(i)));
        }

        if (isSharded)
        {
            File.WriteAllText(folder.File("pytorch_model.bin.index.json"), $"{{\"metadata\": {{}}, \"weight_map\": {System.Text.Json.JsonSerializer.Serialize(map)}}}");
        }

        // As long as both are there, safetensors it is.
        Assert.EndsWith("model.safetensors", SingleFile(folder.Path), StringComparison.Ordinal);
        File.Delete(folder.File("model.safetensors"));
        Assert.True(ModelFolder.HasWeights(folder.Path));
        Dictionary<string, byte[]> actual = Tensors(folder.Path);
        Assert.Equal(expected.Keys.Order(StringComparer.Ordinal), actual.Keys.Order(StringComparer.Ordinal));
        Assert.All(expected, pair => Assert.Equal(pair.Value, actual[pair.Key]));
        using ModelFolder files = ModelFolder.Open(folder.Path);
        Assert.Empty(ModelConfig.Parse(folder.Path).CheckTensors(files).Notices);
        Assert.Equal(writers.Length, files.Files.Count);
    }

    [Fact]
    public void Open_OtherFormats_AreNamed()
    {
        using var folder = new TemporaryFolder();
        string legacy = Refusal(folder, [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e, 0x80, 0x02]);
        Assert.Equal(
            $"{folder.File("x.bin")}: the file is several pickles behind each other, the format of torch.save before release 1.6, which is not read. Get the model's safetensors files, or save it again with a recent torch and transformers (save_pretrained).",
            legacy);
        byte[] tar = new byte[1024];
        "ustar"u8.CopyTo(tar.AsSpan(257));
        Assert.Contains("the file is a tar archive, the format of torch.save before release 1.6", Refusal(folder, tar), StringComparison.Ordinal);
        Assert.Contains("a pointer of Git LFS, not the weights", Refusal(folder, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"u8.ToArray()), StringComparison.Ordinal);
        Assert.Contains("does not start as torch.save's zip files do", Refusal(folder, []), StringComparison.Ordinal);
        Assert.Contains("does not start as torch.save's zip files do", Refusal(folder, "{}"u8.ToArray()), StringComparison.Ordinal);
        var writer = new TorchWriter();
        writer.Add("a", SafetensorsDType.U8, [1], [1]);
        (string, byte[])[] records = [.. writer.Records(writer.Pickle())];
        Assert.Contains("the file is a program (TorchScript), not weights alone", Refusal(folder, TorchWriter.Zip(records.Append(("archive/code/x.py", [])))), StringComparison.Ordinal);
        Assert.Contains("in another order than little-endian", Refusal(folder, TorchWriter.Zip(records.Where(record => record.Item1 != "archive/byteorder").Append(("archive/byteorder", "big"u8.ToArray())))), StringComparison.Ordinal);
        Assert.Contains("has 2 records data.pkl in a folder; torch.save writes one", Refusal(folder, TorchWriter.Zip(records.Append(("other/data.pkl", [])))), StringComparison.Ordinal);
        Assert.Contains("has 0 records data.pkl", Refusal(folder, TorchWriter.Zip([("data.pkl", [])])), StringComparison.Ordinal);
    }

    private static string SingleFile(string folder)
    {
        using ModelFolder files = ModelFolder.Open(folder);
        return files.Files.Single().Path;
    }

    private static Dictionary<string, byte[]> Tensors(string folder)
    {
        using ModelFolder files = ModelFolder.Open(folder);
        return files.Tensors.ToDictionary(pair => pair.Key, pair =>
        {
            byte[] bytes = new byte[pair.Value.Entry.ByteLength];
            pair.Value.ReadInto(0, bytes);
            return bytes;
        });
    }

    private static byte[] Floats(params float[] values)
    {
        byte[] bytes = new byte[values.Length * sizeof(float)];
        for (int i = 0; i < values.Length; i++)
        {
            BinaryPrimitives.WriteSingleLittleEndian(bytes.AsSpan(i * sizeof(float)), values[i]);
        }

        return bytes;
    }

    private static byte[] Read(TorchFile file, string name)
    {
        SafetensorsEntry entry = file.Find(name)!;
        byte[] bytes = new byte[entry.ByteLength];
        file.ReadInto(entry, 0, bytes);
        return bytes;
    }

    private static TorchFile Open(TemporaryFolder folder, byte[] content)
    {
        File.WriteAllBytes(folder.File("x.bin"), content);
        return TorchFile.Open(folder.File("x.bin"));
    }

    private static string Refusal(TemporaryFolder folder, byte[] content) => Assert.Throws<TorchFormatException>(() => Open(folder, content)).Message;
}
