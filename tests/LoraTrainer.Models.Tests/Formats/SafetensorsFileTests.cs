using System.Buffers.Binary;
using System.Globalization;
using System.Text;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests.Formats;

public class SafetensorsFileTests
{
    private const string Again = " The file is damaged; fetch it again.";

    [Theory]
    // 2: the JSON
    [InlineData("", 0, "the header does not start with '{'. It is not a safetensors file, or it is damaged; fetch it again.")]
    [InlineData(" {}", 0, "the header does not start with '{'. It is not a safetensors file, or it is damaged; fetch it again.")]
    [InlineData("{", 0, "the header is not valid JSON (byte 1 of line 1)." + Again)]
    [InlineData("{} x", 0, "the header is not valid JSON (byte 3 of line 1)." + Again)]
    [InlineData("{\"a\":{\"b\":[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]}}", 0, "the header is not valid JSON (byte 24 of line 1)." + Again)]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "the header has the key 'a' twice, so it is not clear which one counts. The program that wrote the file did not follow the format.")]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "tensor 'a' has the field 'dtype' twice, so it is not clear which one counts." + Again)]
    [InlineData("{\"a\":{\"x\":{\"y\":1,\"y\":2},\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "tensor 'a' has the field 'y' twice, so it is not clear which one counts." + Again)]
    [InlineData("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "__metadata__ has the key 'a' twice, so it is not clear which one counts. The program that wrote the file did not follow the format.")]
    [InlineData("{\"\\ud800\":{}}", 0, "a key of the header holds an escape that is half a character (a lone surrogate)." + Again)]
    // 3: the fields
    [InlineData("{\"a\":1}", 0, "tensor 'a' is a number; it must be an object with dtype, shape and data_offsets." + Again)]
    [InlineData("{\"a\":{\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "tensor 'a' has no dtype; each tensor needs dtype, shape and data_offsets." + Again)]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]}}", 0, "tensor 'a' has no shape; each tensor needs dtype, shape and data_offsets." + Again)]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"shape\":[0]}}", 0, "tensor 'a' has no data_offsets; each tensor needs dtype, shape and data_offsets." + Again)]
    [InlineData("{\"a\":{\"dtype\":\"F33\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "tensor 'a' has the dtype 'F33'; known are BOOL, F4, F6_E2M3, F6_E3M2, U8, I8, F8_E5M2, F8_E4M3, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ, I16, U16, F16, BF16, I32, U32, F32, C64, F64, I64, U64." + Again)]
    [InlineData("{\"a\":{\"dtype\":8,\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "tensor 'a' has as dtype a number; it must be a string such as \"F32\"." + Again)]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"shape\":0,\"data_offsets\":[0,0]}}", 0, "tensor 'a' has as shape a number; it must be an array of whole numbers." + Again)]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,0]}}", 0, "tensor 'a' has in shape a number that is no whole number from 0 to 2^63-1." + Again)]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}", 1, "tensor 'a' has in shape a number that is no whole number from 0 to 2^63-1." + Again)]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"shape\":[[1]],\"data_offsets\":[0,1]}}", 1, "tensor 'a' has in shape an array that is no whole number from 0 to 2^63-1." + Again)]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,18446744073709551615]}}", 1, "tensor 'a' has in data_offsets a number that is no whole number from 0 to 2^63-1." + Again)]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, "tensor 'a' has 1 data_offsets; it must have two, begin and end." + Again)]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}", 1, "tensor 'a' has data_offsets [1, 0]; the end must not be before the begin." + Again)]
    [InlineData("{\"__metadata__\":1}", 0, "__metadata__ is a number; it must be an object of strings. The program that wrote the file did not follow the format.")]
    [InlineData("{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ 'a' is a number; every value there must be a string. The program that wrote the file did not follow the format.")]
    // 4: holes and overlaps
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2, "tensor 'a' starts at byte 1 of the data, but the tensors before it end at byte 0; the format allows no hole." + Again)]
    [InlineData("{\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]},\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 3, "tensor 'b' starts at byte 1 of the data, but the tensors before it end at byte 2; the format allows no overlap." + Again)]
    // 5: sizes
    [InlineData("{\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[64],\"data_offsets\":[0,128]}}", 128, "tensor 'model.norm.weight' says F32 (64) = 256 bytes, but its data_offsets span 128 bytes." + Again)]
    [InlineData("{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,1]}}", 1, "tensor 'a' says F32 (4294967296, 4294967296), whose size is no whole number of bytes below 2^60." + Again)]
    [InlineData("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "tensor 'a' says F4 (3), whose size is no whole number of bytes below 2^60." + Again)]
    // 6: the end
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 1, "the tensors end at byte 2 of the data, but the file has 1 bytes of data. The file was cut short; fetch it again.")]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 3, "the tensors end at byte 2 of the data, but the file has 3 bytes of data." + Again)]
    [InlineData("{}", 1, "the tensors end at byte 0 of the data, but the file has 1 bytes of data." + Again)]
    public void Open_BrokenRule_SaysWhatAndWhere(string header, int dataBytes, string message)
    {
        using var folder = new TemporaryFolder();
        AssertRefused(folder, FileOf(Encoding.UTF8.GetBytes(header), dataBytes), message);
    }

    [Fact]
    public void Open_BrokenLength_SaysWhatAndWhere()
    {
        using var folder = new TemporaryFolder();
        AssertRefused(folder, new byte[7], "the file has 7 bytes; a safetensors file starts with the 8-byte length of its header." + Again);
        byte[] file = FileOf("{}"u8, 0);
        BinaryPrimitives.WriteUInt64LittleEndian(file, 3);
        AssertRefused(folder, file, "the header should have 3 bytes, but the file ends after 2 of them." + Again);
        BinaryPrimitives.WriteUInt64LittleEndian(file, ulong.MaxValue);
        AssertRefused(folder, file, "the first 8 bytes give the header 18446744073709551615 bytes; the format allows at most 100000000. It is not a safetensors file, or it is damaged; fetch it again.");
        AssertRefused(folder, FileOf([(byte)'{', 0xFF, (byte)'}'], 0), "the header is not valid UTF-8." + Again);
    }

    [Fact]
    public void Open_TooManyAxes_SaysSo()
    {
        using var folder = new TemporaryFolder();
        string axes = string.Join(',', Enumerable.Repeat('1', 65));
        AssertRefused(folder, FileOf(Encoding.UTF8.GetBytes($"{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{axes}],\"data_offsets\":[0,1]}}}}"), 1), "tensor 'a' has in shape more than 64 numbers, the most axes a tensor can have." + Again);
    }

    [Fact]
    public void Open_LegalOddities_AreRead()
    {
        using var folder = new TemporaryFolder();
        const string header = "{\"s\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8],\"extra\":[{\"a\":1},{\"a\":[2]}]},\"e\":{\"data_offsets\":[0,0],\"shape\":[3,0],\"dtype\":\"F6_E2M3\"},\"q\":{\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[8,9]}}   ";
        File.WriteAllBytes(folder.File("m"), FileOf(Encoding.UTF8.GetBytes(header), 9));
        using SafetensorsFile file = SafetensorsFile.Open(folder.File("m"));
        Assert.Equal(["e:F6_E2M3 (3, 0):0+0", "s:F64 ():0+8", "q:F4 (2):8+1"], file.Entries.Select(entry => $"{entry.Name}:{entry}:{entry.ByteOffset}+{entry.ByteLength}"));
        byte[] bytes = new byte[3];
        file.ReadInto(file.Find("s")!, 5, bytes);
        Assert.Equal(new byte[] { 5, 6, 7 }, bytes);
        Assert.Throws<ArgumentOutOfRangeException>(() => file.ReadInto(file.Find("s")!, 6, new byte[3]));
        Assert.Throws<ArgumentOutOfRangeException>(() => file.ReadInto(file.Find("s")!, -1, new byte[3]));
        Assert.Null(file.Find("absent"));
    }

    [Fact]
    public void ReadInto_FileShrunk_SaysSo()
    {
        using var folder = new TemporaryFolder();
        string path = folder.File("m");
        byte[] bytes = FileOf("{\"a\":{\"dtype\":\"U8\",\"shape\":[10],\"data_offsets\":[0,10]}}"u8, 10);
        File.WriteAllBytes(path, bytes);
        using SafetensorsFile file = SafetensorsFile.Open(path);
        using (var shrink = new FileStream(path, FileMode.Open, FileAccess.Write, FileShare.ReadWrite))
        {
            shrink.SetLength(bytes.Length - 4);
        }

        var refused = Assert.Throws<SafetensorsFormatException>(() => file.ReadInto(file.Entries[0], 0, new byte[10]));
        Assert.Equal($"{path}: tensor 'a' should lie at bytes {bytes.Length - 10} to {bytes.Length}, but the file now ends at byte {bytes.Length - 4}. It was changed while it was open; fetch it again.", refused.Message);
    }

    /// <summary>Seeded damage of a valid file: it is refused with the format's own exception, or what is read is what the header names. Memory stays near the file's size.</summary>
    [Fact]
    public void Open_MutatedFiles_AreRefusedOrReadAsNamed()
    {
        const int rounds = 6000;
        using var folder = new TemporaryFolder();
        string path = folder.File("m");
        byte[] valid = FileOf("{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},\"b\":{\"dtype\":\"BF16\",\"shape\":[5],\"data_offsets\":[24,34]},\"c\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[34,35]}} "u8, 35);
        ulong state = 20260101;
        int refused = 0, read = 0;
        for (int round = 0; round < rounds; round++)
        {
            byte[] file = Mutate(valid, ref state);
            File.WriteAllBytes(path, file);
            long before = GC.GetAllocatedBytesForCurrentThread();
            try
            {
                using SafetensorsFile opened = SafetensorsFile.Open(path);
                int start = 8 + (int)BinaryPrimitives.ReadInt64LittleEndian(file);
                foreach (SafetensorsEntry entry in opened.Entries)
                {
                    byte[] bytes = new byte[entry.ByteLength];
                    opened.ReadInto(entry, 0, bytes);
                    Assert.True(file.AsSpan(start + (int)entry.ByteOffset, bytes.Length).SequenceEqual(bytes));
                }

                Assert.Equal(file.Length - start, opened.Entries.Sum(entry => entry.ByteLength));
                read++;
            }
            catch (SafetensorsFormatException exception)
            {
                Assert.StartsWith(path + ": ", exception.Message, StringComparison.Ordinal);
                Assert.EndsWith(".", exception.Message, StringComparison.Ordinal);
                refused++;
            }

            long allocated = GC.GetAllocatedBytesForCurrentThread() - before;
            Assert.True(allocated < 1 << 20, string.Create(CultureInfo.InvariantCulture, $"round {round}: {allocated} bytes allocated for a file of {file.Length}"));
        }

        Assert.True(refused > rounds / 2 && read > rounds / 20, $"{refused} refused, {read} read");
    }

    private static byte[] Mutate(byte[] valid, ref ulong state)
    {
        byte[] file = (byte[])valid.Clone();
        int changes = 1 + Next(ref state, 3);
        for (int i = 0; i < changes; i++)
        {
            int header = valid.Length - 8 - 35;
            switch (Next(ref state, 7))
            {
                case 0:
                    file[Next(ref state, file.Length)] = (byte)Next(ref state, 256);
                    break;
                case 1:
                    file[8 + Next(ref state, header) % (file.Length - 8)] ^= (byte)(1 << Next(ref state, 8));
                    break;
                case 2:
                    file[8 + Next(ref state, header) % (file.Length - 8)] = (byte)"0123456789{}[]\",:\\- "[Next(ref state, 20)];
                    break;
                case 3:
                    BinaryPrimitives.WriteInt64LittleEndian(file, header + Next(ref state, 9) - 4);
                    break;
                case 4:
                    file = file[..(10 + Next(ref state, Math.Max(1, file.Length - 10)))];
                    break;
                case 5:
                    file = [.. file, .. new byte[1 + Next(ref state, 16)]];
                    break;
                default:
                    // Data only: stays valid, unless another change broke it.
                    file[^1] ^= 0xFF;
                    break;
            }
        }

        return file;
    }

    private static int Next(ref ulong state, int below)
    {
        state = unchecked((state * 6364136223846793005) + 1442695040888963407);
        return (int)((state >> 33) % (ulong)below);
    }

    private static void AssertRefused(TemporaryFolder folder, byte[] file, string message)
    {
        string path = folder.File("model.safetensors");
        File.WriteAllBytes(path, file);
        Assert.Equal($"{path}: {message}", Assert.Throws<SafetensorsFormatException>(() => SafetensorsFile.Open(path)).Message);
    }

    private static byte[] FileOf(ReadOnlySpan<byte> header, int dataBytes)
    {
        byte[] file = new byte[8 + header.Length + dataBytes];
        BinaryPrimitives.WriteInt64LittleEndian(file, header.Length);
        header.CopyTo(file.AsSpan(8));
        for (int i = 0; i < dataBytes; i++)
        {
            file[8 + header.Length + i] = (byte)i;
        }

        return file;
    }
}
