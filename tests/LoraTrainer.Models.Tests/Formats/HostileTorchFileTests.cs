using System.Buffers.Binary;
using System.Text;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests.Formats;

/// <summary>Files of torch.save that want to run something, to take all memory, or are damaged.</summary>
public sealed class HostileTorchFileTests
{
    // A shell command that would leave a trace, if anything ran it.
    private static readonly string Trace = Path.Combine(Path.GetTempPath(), "lora-trainer-pickle-was-executed");

    /// <summary>What is behind the two bytes of the version; the sentence must hold the text.</summary>
    public static TheoryData<string, byte[], string> Pickles
    {
        get
        {
            byte[] command = Encoding.ASCII.GetBytes($"touch {Trace}");
            byte[] text = [(byte)'X', .. Little(command.Length), .. command];
            static byte[] B(string latin1) => Encoding.Latin1.GetBytes(latin1);
            byte[] Cat(params object[] parts) => [.. parts.SelectMany(part => part as byte[] ?? B((string)part))];
            string view = "ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + "0X\x03\0\0\0cpuK\x06tQ";
            const string tail = "\x89" + "ccollections\nOrderedDict\n)RtR";
            var data = new TheoryData<string, byte[], string>
            {
                { "REDUCE os.system", Cat("cos\nsystem\n(", text, "tR."), "calls for 'os.system'" },
                { "REDUCE posix.system", Cat("cposix\nsystem\n(", text, "tR."), "calls for 'posix.system'" },
                { "REDUCE nt.system", Cat("cnt\nsystem\n(", text, "tR."), "calls for 'nt.system'" },
                { "REDUCE builtins.eval", Cat("cbuiltins\neval\n(", text, "tR."), "calls for 'builtins.eval'" },
                { "REDUCE builtins.exec", Cat("cbuiltins\nexec\n", text, "\x85R."), "calls for 'builtins.exec'" },
                { "REDUCE __builtin__.eval", Cat("c__builtin__\neval\n", text, "\x85R."), "calls for '__builtin__.eval'" },
                { "REDUCE builtins.getattr", Cat("cbuiltins\ngetattr\n(ctorch\nFloatStorage\n", text, "tR."), "calls for 'builtins.getattr'" },
                { "REDUCE subprocess.Popen", Cat("csubprocess\nPopen\n", text, "\x85R."), "calls for 'subprocess.Popen'" },
                { "REDUCE runpy", Cat("crunpy\n_run_code\n", text, "\x85R."), "calls for 'runpy._run_code'" },
                { "REDUCE importlib", Cat("cimportlib\nimport_module\n", text, "\x85R."), "calls for 'importlib.import_module'" },
                { "GLOBAL that is not called", Cat("cos\nsystem\n."), "calls for 'os.system'" },
                { "GLOBAL deep inside of values", Cat("}X\x01\0\0\0a]]]](cos\nsystem\nees."), "calls for 'os.system'" },
                { "GLOBAL torch.load", Cat("ctorch\nload\n", text, "\x85R."), "calls for 'torch.load'" },
                { "GLOBAL torch.storage._load_from_bytes", Cat("ctorch.storage\n_load_from_bytes\n", text, "\x85R."), "calls for 'torch.storage._load_from_bytes'" },
                { "GLOBAL _rebuild_from_type_v2", Cat("ctorch._tensor\n_rebuild_from_type_v2\n."), "calls for 'torch._tensor._rebuild_from_type_v2'" },
                { "GLOBAL with a dotted name", Cat("ccollections\nOrderedDict.__init__\n."), "calls for 'collections.OrderedDict.__init__'" },
                { "GLOBAL with the dot elsewhere", Cat("ctorch\n_utils._rebuild_tensor_v2.__globals__\n."), "calls for 'torch._utils._rebuild_tensor_v2.__globals__'" },
                { "GLOBAL with control letters", Cat("cos\x1b[2J\nsystem\n."), "calls for 'os?[2J.system'" },
                { "GLOBAL of a type that is not read", Cat("ctorch\nComplexFloatStorage\n."), "the tensors of 'torch.ComplexFloatStorage' have a type that is not read" },
                { "GLOBAL without end", Cat("cos\n", new string('x', 5000)), "a name does not end" },
                { "INST", Cat("(", text, "ios\nsystem\n."), "uses the instruction INST of 'os.system'" },
                { "OBJ", Cat("(cos\nsystem\n", text, "o."), "calls for 'os.system'" },
                { "OBJ of an allowed name", Cat("(ccollections\nOrderedDict\n", text, "o."), "uses the instruction OBJ" },
                { "NEWOBJ", Cat("ccollections\nOrderedDict\n)\x81."), "uses the instruction NEWOBJ" },
                { "NEWOBJ_EX", Cat("ccollections\nOrderedDict\n)}\x92."), "uses the instruction NEWOBJ_EX" },
                { "EXT1", Cat("\x82\x01."), "uses the instruction EXT1" },
                { "EXT2", Cat("\x83\x01\0."), "uses the instruction EXT2" },
                { "EXT4", Cat("\x84\x01\0\0\0."), "uses the instruction EXT4" },
                { "STACK_GLOBAL", Cat("X\x02\0\0\0osX\x06\0\0\0system\x93", text, "\x85R."), "uses the instruction STACK_GLOBAL of 'os.system'" },
                { "STACK_GLOBAL from the memo", Cat("X\x06\0\0\0systemq\x01X\x02\0\0\0osq\x02h\x02h\x01\x93."), "uses the instruction STACK_GLOBAL of 'os.system'" },
                { "PERSID", Cat("Pevil\n."), "uses the instruction PERSID" },
                { "BINPERSID of a text", Cat("X\x04\0\0\0evilQ."), "refers to something outside that is no storage" },
                { "BINPERSID of another kind", Cat("(X\x06\0\0\0moduleX\x02\0\0\0osX\x01\0\0\0" + "0X\x03\0\0\0cpuK\x01tQ."), "refers to something outside that is no storage" },
                { "BINPERSID with a size below 0", Cat("(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + "0X\x03\0\0\0cpuJ\xff\xff\xff\xfftQ."), "refers to something outside that is no storage" },
                { "BUILD with state", Cat("}}X\x08\0\0\0__dict__cos\nsystem\nsb."), "calls for 'os.system'" },
                { "BUILD of a list", Cat("]}b."), "gives an object a state of its own (BUILD)" },
                { "BUILD with a tuple", Cat("}N}\x86" + "b."), "gives an object a state of its own (BUILD)" },
                { "BUILD of a class", Cat("ctorch\nFloatStorage\n}b."), "gives an object a state of its own (BUILD)" },
                { "REDUCE of a text", Cat(text, ")R."), "calls a text" },
                { "REDUCE of a storage's class", Cat("ctorch\nFloatStorage\n)R."), "calls a name" },
                { "REDUCE of a tensor", Cat(view + "K\0K\x06\x85K\x01\x85" + tail + ")R."), "calls a tensor" },
                { "OrderedDict of something", Cat("ccollections\nOrderedDict\n]\x85R."), "OrderedDict is called with other arguments than a tensor has" },
                { "Parameter of a text", Cat("ctorch._utils\n_rebuild_parameter\n(", text, "\x88" + "ccollections\nOrderedDict\n)RtR."), "_rebuild_parameter is called with other arguments than a tensor has" },
                { "hooks of a tensor", Cat(view + "K\0K\x06\x85K\x01\x85\x89" + "ccollections\nOrderedDict\n)RK\x01NstR."), "_rebuild_tensor_v2 is called with other arguments than a tensor has" },
                { "strides below 0", Cat(view + "K\x05K\x06\x85J\xff\xff\xff\xff\x85" + tail + "."), "sizes and strides must be as many numbers from 0 on" },
                { "strides that are missing", Cat(view + "K\0K\x06\x85)" + tail + "."), "sizes and strides must be as many numbers from 0 on" },
                { "sizes that are texts", Cat(view + "K\0X\x01\0\0\0" + "6\x85K\x01\x85" + tail + "."), "sizes and strides must be as many numbers from 0 on" },
                { "an offset beyond the storage", Cat(view + "K\x01K\x06\x85K\x01\x85" + tail + "."), "reaches element 6 of a storage of 6" },
                { "a size beyond the storage", Cat(view + "K\0K\x03K\x03\x86K\x03K\x01\x86" + tail + "."), "reaches element 8 of a storage of 6" },
                { "sizes whose product overflows", Cat(view + "K\0" + Eight(1L << 62) + Eight(1L << 62) + "\x86K\0K\0\x86" + tail + "."), "is larger than any storage" },
                { "strides whose product overflows", Cat(view + "K\0" + Eight(1L << 40) + "\x85" + Eight(1L << 40) + "\x85" + tail + "."), "is larger than any storage" },
                { "an offset of 2^63-1", Cat(view + Eight(long.MaxValue) + "K\x01\x85K\x01\x85" + tail + "."), "is larger than any storage" },
                { "LONG1 of 255 bytes", Cat("\x8a\xff", new string('x', 255), "."), "a number has 255 bytes" },
                { "LONG4 with a size below 0", Cat("\x8b\xff\xff\xff\xff."), "uses the instruction LONG4" },
                { "BINUNICODE of 4 GB", Cat("X\xff\xff\xff\xff" + "abc."), "it ends too soon: 4294967295 bytes should come" },
                { "BINUNICODE8 of 2^63 bytes", Cat("\x8d\0\0\0\0\0\0\0\x80" + "a."), "uses the instruction BINUNICODE8" },
                { "BINBYTES", Cat("B\x01\0\0\0a."), "uses the instruction BINBYTES" },
                { "half a surrogate pair", Cat("}X\x03\0\0\0\xed\xa0\x80K\x01s."), "a text is not valid UTF-8" },
                { "a text in Latin-1", Cat("}X\x01\0\0\0\xe9K\x01s."), "a text is not valid UTF-8" },
                { "a nested pickle", Cat("}.\x80\x02" + "cos\nsystem\n", text, "\x85R."), "bytes come behind its end" },
                { "a second version", Cat("\x80\x04}."), "its version is given twice" },
                { "an instruction that does not exist", Cat("\xfe."), "there is no instruction 0xfe" },
                { "MEMOIZE", Cat("}\x94."), "uses the instruction MEMOIZE" },
                { "GET", Cat("}g0\n."), "uses the instruction GET" },
                { "BINGET of what was not kept", Cat("h\x05."), "it refers to value 5, which was not kept" },
                { "LONG_BINGET of what was not kept", Cat("j\xff\xff\xff\xff."), "it refers to value 4294967295, which was not kept" },
                { "DUP", Cat("}2."), "uses the instruction DUP" },
                { "POP", Cat("}}0."), "uses the instruction POP" },
                { "an empty stack", Cat("R."), "values are taken that are not there" },
                { "a value below a mark", Cat("}(a."), "values are taken that are not there" },
                { "TUPLE without a mark", Cat("t."), "a list of values has no beginning" },
                { "an odd number of values", Cat("}(K\x01u."), "a key has no value" },
                { "SETITEMS in a list", Cat("](K\x01K\x02u."), "values are to be set in a list" },
                { "APPEND to a dictionary", Cat("}K\x01" + "a."), "an item is to be added to a dictionary" },
                { "nothing at the end", Cat("."), "at its end there are 0 values" },
                { "two values at the end", Cat("}}."), "at its end there are 2 values" },
                { "no end", Cat("}"), "it ends too soon" },
                { "a mark at the end", Cat("}(."), "at its end there are 1 values" },
                { "a list of tensors", Cat("]."), "the file holds a list; it must hold a dictionary of tensors" },
                { "a list in itself", Cat("]q\x01h\x01" + "a."), "the file holds a list" },
                { "a dictionary in itself", Cat("}q\x01X\x01\0\0\0ah\x01s."), "'a' is a dictionary, where there must be a tensor. It is what a training saved" },
                { "a key that is a number", Cat("}K\x01K\x02s."), "a key of its dictionary is a number" },
                { "a value that is a number", Cat("}X\x01\0\0\0aK\x02s."), "'a' is a number, where there must be a tensor" },
                { "a name twice", Cat("}(X\x01\0\0\0a" + view + "K\0K\x06\x85K\x01\x85" + tail + "X\x01\0\0\0a" + view + "K\0K\x06\x85K\x01\x85" + tail + "u."), "the tensor 'a' is there twice" },
                { "a storage of two types", Cat("}(X\x01\0\0\0a" + view + "K\0K\x06\x85K\x01\x85" + tail + "X\x01\0\0\0b" + view.Replace("Float", "Half", StringComparison.Ordinal) + "K\0K\x06\x85K\x01\x85" + tail + "u."), "the storage '0' is 6 x F32 at one place and 6 x F16 at another" },
            };
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Pickles))]
    public void Read_Hostile_IsRefusedByName(string what, byte[] body, string message)
    {
        File.Delete(Trace);
        TorchFormatException exception = Assert.Throws<TorchFormatException>(() => TorchPickle.Read("x.bin", [0x80, 2, .. body]));
        Assert.True(exception.Message.StartsWith("x.bin: ", StringComparison.Ordinal) && exception.Message.Contains(message, StringComparison.Ordinal), $"{what}: {exception.Message}");
        Assert.DoesNotContain('\x1b', exception.Message);
        Assert.False(File.Exists(Trace));
    }

    [Fact]
    public void Read_OtherVersions_AreRefused()
    {
        Assert.Contains("it is of version 4; torch.save writes version 2", Refusal([0x80, 4, (byte)'}', (byte)'.']), StringComparison.Ordinal);
        Assert.Contains("it does not start with its version", Refusal("(lp0\n."u8.ToArray()), StringComparison.Ordinal);
        Assert.Contains("it does not start with its version", Refusal([]), StringComparison.Ordinal);
        Assert.Contains($"its description of the tensors has {TorchPickle.LargestBytes + 1} bytes", Refusal(new byte[TorchPickle.LargestBytes + 1]), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("}", "more than 4000000 instructions")]
    [InlineData("]", "more than 4000000 instructions")]
    [InlineData("(", "more than 4000000 instructions")]
    [InlineData("}\x85", "more than 4000000 instructions")]
    [InlineData("K\x01r\x01\0\0\0", "more than 4000000 instructions")]
    public void Read_EndlessValues_TakeLittleMemory(string repeated, string message)
    {
        byte[] unit = Encoding.Latin1.GetBytes(repeated);
        byte[] pickle = new byte[Math.Min(TorchPickle.LargestBytes, unit.Length * 4_100_000)];
        (pickle[0], pickle[1]) = (0x80, 2);
        for (int i = 2; i < pickle.Length; i++)
        {
            pickle[i] = unit[(i - 2) % unit.Length];
        }

        long before = GC.GetAllocatedBytesForCurrentThread();
        Assert.Contains(message, Refusal(pickle), StringComparison.Ordinal);
        long taken = GC.GetAllocatedBytesForCurrentThread() - before;
        Assert.InRange(taken, 0, 500L << 20);
    }

    /// <summary>Nothing but a sentence or the right tensors comes of a damaged description, with little memory.</summary>
    [Fact]
    public void Read_Mutated_NeverThrowsAnythingElse()
    {
        byte[] valid = Sample().Pickle();
        var random = new Random(5);
        int refused = 0;
        const int rounds = 4000;
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int round = 0; round < rounds; round++)
        {
            byte[] changed = Mutate(valid, random);
            try
            {
                TorchPickle.Read("x.bin", changed);
            }
            catch (TorchFormatException)
            {
                refused++;
            }
        }

        Assert.InRange(refused, rounds / 2, rounds);
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 400L << 20);
    }

    [Fact]
    public void Open_MutatedFile_NeverThrowsAnythingElse()
    {
        byte[] valid = Sample().ToBytes();
        using var folder = new TemporaryFolder();
        string path = folder.File("x.bin");
        var random = new Random(6);
        int refused = 0;
        const int rounds = 600;
        byte[] buffer = new byte[1024];
        for (int round = 0; round < rounds; round++)
        {
            File.WriteAllBytes(path, Mutate(valid, random));
            try
            {
                using TorchFile file = TorchFile.Open(path);
                foreach (SafetensorsEntry entry in file.Entries.Where(entry => entry.ByteLength <= buffer.Length))
                {
                    file.ReadInto(entry, 0, buffer.AsSpan(0, (int)entry.ByteLength));
                }
            }
            catch (TorchFormatException)
            {
                refused++;
            }
        }

        Assert.InRange(refused, rounds / 3, rounds);
    }

    [Fact]
    public void Open_CutAnywhere_IsRefused()
    {
        byte[] valid = Sample().ToBytes();
        using var folder = new TemporaryFolder();
        for (int length = 0; length < valid.Length; length += length < 60 ? 1 : 13)
        {
            Refusal(folder, valid[..length]);
        }
    }

    [Fact]
    public void Open_ZipThatLies_IsRefused()
    {
        TorchWriter sample = Sample();
        byte[] pickle = sample.Pickle(), valid = TorchWriter.Zip(sample.Records(pickle));
        int directory = Find(valid, [0x50, 0x4b, 1, 2]), end64 = Find(valid, [0x50, 0x4b, 6, 6]), end = Find(valid, [0x50, 0x4b, 5, 6]), second = Find(valid, [0x50, 0x4b, 1, 2], directory + 1);
        byte[] wide = TorchWriter.Zip(sample.Records(pickle), wide: true);
        int wideEnd = Find(wide, [0x50, 0x4b, 6, 6]), locator = Find(wide, [0x50, 0x4b, 6, 7]), extra = Find(wide, [1, 0, 24, 0]);
        using var folder = new TemporaryFolder();
        Refused(valid, directory + 10, [8, 0], "is compressed (method 8,");
        Refused(valid, directory + 24, [0xff, 0xff, 0xff, 0x7f], "is compressed (method 0,");
        Refused(valid, directory + 8, [1, 0], "is encrypted");
        Refused(valid, directory + 42, [0xff, 0xff, 0, 0], "should start at byte 65535, where there is no room for it");
        Refused(valid, directory + 42, [3, 0, 0, 0], "should start at byte 3, but there is no header of one");
        Refused(valid, second + 42, [0, 0, 0, 0], "starts at byte 0, inside of another one");
        Refused(valid, directory + 20, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "does not say how large it is");
        Refused(valid, directory + 20, [0, 3, 0, 0, 0, 3, 0, 0], "inside of another one");
        Refused(valid, second + 20, [0, 0xff, 0xff, 0x7f, 0, 0xff, 0xff, 0x7f], "but the records end at byte");
        Refused(valid, directory + 28, [0xff, 0xff], "its table of contents ends too soon");
        Refused(valid, end + 10, [0xfe, 0xff], "its table of contents should have 65534 records");
        Refused(valid, end + 12, [0xff, 0xff, 0xff, 0x7f], "which cannot be in a file of");
        Refused(valid, end + 16, [0xff, 0xff, 0xff, 0x7f], "which cannot be in a file of");
        Refused(valid, end + 4, [1, 0], "it is one part of a zip file of several");
        Refused(valid, end + 20, [1, 0], "the zip file has no end");
        Refused(wide, wideEnd + 32, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], "its table of contents should have 9223372036854775807 records");
        Refused(wide, wideEnd + 40, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "its table of contents should have");
        Refused(wide, wideEnd + 48, [0, 0, 0, 0, 0, 0, 0, 0x40], "its table of contents should have");
        Refused(wide, locator + 8, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], "(zip64) is not where it should be");
        Refused(wide, locator, [0], "(zip64) is not where it should be");
        Refused(wide, extra + 4, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], "9223372036854775807 bytes from byte");
        Refused(wide, extra + 20, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "at byte -1");
        Assert.True(end64 > directory);

        // A description of another storage than there is.
        (string Name, byte[] Content)[] records = [.. sample.Records(pickle)];
        Assert.Contains("which is not in the file", Refusal(folder, TorchWriter.Zip(records.Where(record => record.Name != "archive/data/1"))), StringComparison.Ordinal);
        Assert.Contains("elements of type F32 are said to be in it", Refusal(folder, TorchWriter.Zip(records.Select(record => record.Name == "archive/data/0" ? (record.Name, record.Content[..^1]) : record))), StringComparison.Ordinal);
        Assert.Contains("elements of type F32 are said to be in it", Refusal(folder, TorchWriter.Zip(records.Select(record => record.Name == "archive/data/0" ? (record.Name, record.Content[..^4]) : record))), StringComparison.Ordinal);
        Assert.Contains("there are two records of the name 'archive/data/0'", Refusal(folder, TorchWriter.Zip(records.Append(records.Single(record => record.Name == "archive/data/0")))), StringComparison.Ordinal);
        return;

        void Refused(byte[] file, int at, byte[] bytes, string message)
        {
            byte[] changed = [.. file];
            bytes.CopyTo(changed, at);
            Assert.Contains(message, Refusal(folder, changed), StringComparison.Ordinal);
        }
    }

    [Fact]
    public void Open_ScatteredTensorThatIsHuge_IsReadInPieces()
    {
        // An expanded scalar: as many elements as are wished for, of one that is there.
        var writer = new TorchWriter();
        writer.Add("x", new TorchWriter.View(writer.AddStorage([1, 2, 3, 4]), SafetensorsDType.U8, 4, 2, [1L << 50], [0]));
        using var folder = new TemporaryFolder();
        File.WriteAllBytes(folder.File("x.bin"), writer.ToBytes());
        using TorchFile file = TorchFile.Open(folder.File("x.bin"));
        byte[] bytes = new byte[10];
        file.ReadInto(file.Find("x")!, (1L << 50) - 10, bytes);
        Assert.All(bytes, value => Assert.Equal(3, value));
    }

    private static TorchWriter Sample()
    {
        var writer = new TorchWriter();
        writer.Add("a.weight", SafetensorsDType.F32, [2, 3], new byte[24]);
        writer.AddTransposed("b.weight", SafetensorsDType.F16, 3, 2, new byte[12]);
        writer.Add("c", new TorchWriter.View("1", SafetensorsDType.F16, 6, 1, [5], [1], IsParameter: true));
        return writer;
    }

    private static byte[] Mutate(byte[] valid, Random random)
    {
        List<byte> bytes = [.. valid];
        for (int change = random.Next(1, 5); change > 0 && bytes.Count > 0; change--)
        {
            int at = random.Next(bytes.Count), count = Math.Min(random.Next(1, 9), bytes.Count - at);
            switch (random.Next(6))
            {
                case 0:
                    bytes[at] = (byte)random.Next(256);
                    break;
                case 1:
                    bytes[at] ^= (byte)(1 << random.Next(8));
                    break;
                case 2:
                    bytes.RemoveRange(at, count);
                    break;
                case 3:
                    bytes.InsertRange(random.Next(bytes.Count), bytes.GetRange(at, count));
                    break;
                case 4:
                    bytes[at] = random.Next(2) == 0 ? (byte)0xff : (byte)0;
                    break;
                default:
                    bytes.RemoveRange(at, random.Next(8) == 0 ? bytes.Count - at : 0);
                    break;
            }
        }

        return [.. bytes];
    }

    private static string Refusal(byte[] pickle) => Assert.Throws<TorchFormatException>(() => TorchPickle.Read("x.bin", pickle)).Message;

    private static string Refusal(TemporaryFolder folder, byte[] content)
    {
        File.WriteAllBytes(folder.File("x.bin"), content);
        return Assert.Throws<TorchFormatException>(() => TorchFile.Open(folder.File("x.bin"))).Message;
    }

    private static int Find(byte[] file, byte[] what, int from = 0) => file.AsSpan(from).IndexOf(what) is var at and >= 0 ? from + at : throw new InvalidOperationException("not there");

    private static byte[] Little(int value)
    {
        byte[] bytes = new byte[4];
        BinaryPrimitives.WriteInt32LittleEndian(bytes, value);
        return bytes;
    }

    private static string Eight(long value)
    {
        byte[] bytes = new byte[8];
        BinaryPrimitives.WriteInt64LittleEndian(bytes, value);
        return "\x8a\x08" + Encoding.Latin1.GetString(bytes);
    }
}
