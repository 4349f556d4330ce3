using System.Buffers.Binary;
using System.Globalization;
using System.Text;

namespace LoraTrainer.Models.Formats;

/// <summary>A block of numbers that tensors are views of.</summary>
/// <param name="Key">The name of its record.</param>
/// <param name="DType">Of an element.</param>
/// <param name="Elements">How many.</param>
internal sealed record TorchStorage(string Key, SafetensorsDType DType, long Elements);

/// <summary>A tensor: element (i, j, ...) is the storage's element Offset + i*Strides[0] + j*Strides[1] + ...</summary>
internal sealed record TorchView(TorchStorage Storage, long Offset, long[] Shape, long[] Strides);

/// <summary>
/// Reads the pickle in which torch.save describes a dictionary of tensors, and executes nothing: of the pickle machine (CPython, pickletools.py) it has the
/// instructions that write down plain data, and the only names that may be called are the four that put tensors together (torch/_utils.py). Everything else is
/// refused by name. There is no recursion, and memory is at most a small multiple of the pickle's length.
/// </summary>
internal ref struct TorchPickle
{
    /// <summary>A tensor takes about 200 bytes; this is enough for a hundred thousand.</summary>
    public const int LargestBytes = 32 << 20;

    /// <summary>A tensor takes about 40; each may cost a hundred bytes of memory.</summary>
    private const int MostInstructions = 4_000_000;

    private const int MaximumAxes = 64;
    private const int LongestName = 256;
    private const string DoNotUse = "No weights need that, and other programs may run code when they load such a file: do not use it.";

    private static readonly Dictionary<string, SafetensorsDType> Storages = new(StringComparer.Ordinal)
    {
        ["torch.FloatStorage"] = SafetensorsDType.F32,
        ["torch.HalfStorage"] = SafetensorsDType.F16,
        ["torch.BFloat16Storage"] = SafetensorsDType.BF16,
        ["torch.DoubleStorage"] = SafetensorsDType.F64,
        ["torch.LongStorage"] = SafetensorsDType.I64,
        ["torch.IntStorage"] = SafetensorsDType.I32,
        ["torch.ShortStorage"] = SafetensorsDType.I16,
        ["torch.CharStorage"] = SafetensorsDType.I8,
        ["torch.ByteStorage"] = SafetensorsDType.U8,
        ["torch.BoolStorage"] = SafetensorsDType.Bool,
    };

    // Those that are refused; the ones that are read have their case below.
    private static readonly Dictionary<byte, string> RefusedInstructions = new()
    {
        [(byte)'0'] = "POP", [(byte)'1'] = "POP_MARK", [(byte)'2'] = "DUP", [(byte)'F'] = "FLOAT", [(byte)'I'] = "INT", [(byte)'L'] = "LONG", [(byte)'P'] = "PERSID", [(byte)'S'] = "STRING",
        [(byte)'T'] = "BINSTRING", [(byte)'U'] = "SHORT_BINSTRING", [(byte)'V'] = "UNICODE", [(byte)'d'] = "DICT", [(byte)'g'] = "GET", [(byte)'i'] = "INST", [(byte)'l'] = "LIST", [(byte)'o'] = "OBJ",
        [(byte)'p'] = "PUT", [(byte)'B'] = "BINBYTES", [(byte)'C'] = "SHORT_BINBYTES", [0x81] = "NEWOBJ", [0x82] = "EXT1", [0x83] = "EXT2", [0x84] = "EXT4", [0x8b] = "LONG4",
        [0x8c] = "SHORT_BINUNICODE", [0x8d] = "BINUNICODE8", [0x8e] = "BINBYTES8", [0x8f] = "EMPTY_SET", [0x90] = "ADDITEMS", [0x91] = "FROZENSET", [0x92] = "NEWOBJ_EX", [0x93] = "STACK_GLOBAL",
        [0x94] = "MEMOIZE", [0x95] = "FRAME", [0x96] = "BYTEARRAY8", [0x97] = "NEXT_BUFFER", [0x98] = "READONLY_BUFFER",
    };

    private static readonly UTF8Encoding StrictUtf8 = new(encoderShouldEmitUTF8Identifier: false, throwOnInvalidBytes: true);

    private readonly string path;
    private readonly ReadOnlySpan<byte> pickle;
    private readonly List<object?> stack = [];
    private readonly List<int> marks = [];
    private readonly Dictionary<uint, object?> memo = [];
    private readonly Dictionary<string, TorchStorage> storages = new(StringComparer.Ordinal);
    private int position;
    private int instruction;

    private TorchPickle(string path, ReadOnlySpan<byte> pickle)
    {
        this.path = path;
        this.pickle = pickle;
    }

    /// <summary>Names that may be called, and what they stand for.</summary>
    private enum Callable
    {
        OrderedDict,
        RebuildTensor,
        RebuildParameter,
    }

    /// <summary>The tensors of the dictionary, in its order.</summary>
    /// <param name="path">For messages.</param>
    /// <param name="pickle">The record data.pkl.</param>
    /// <exception cref="TorchFormatException">It is damaged, or asks for more than tensors.</exception>
    public static IReadOnlyList<(string Name, TorchView View)> Read(string path, ReadOnlySpan<byte> pickle)
    {
        if (pickle.Length > LargestBytes)
        {
            throw new TorchFormatException($"{path}: its description of the tensors has {pickle.Length} bytes; at most {LargestBytes} are accepted. It is no model, or it is damaged; fetch it again.");
        }

        return new TorchPickle(path, pickle).Run();
    }

    private List<(string Name, TorchView View)> Run()
    {
        if (pickle.Length < 2 || pickle[0] != 0x80)
        {
            throw Wrong("it does not start with its version");
        }

        if (pickle[1] != 2)
        {
            throw Wrong($"it is of version {pickle[1]}; torch.save writes version 2 unless it is told otherwise. Save the model again with pickle_protocol=2, or get its safetensors files");
        }

        position = 2;
        for (int count = 0; ; count++)
        {
            instruction = position;
            if (count == MostInstructions)
            {
                throw Wrong($"it has more than {MostInstructions} instructions, far more than any model needs");
            }

            byte code = Byte();
            if (code == (byte)'.')
            {
                break;
            }

            Execute(code);
        }

        if (position != pickle.Length)
        {
            throw Wrong($"{pickle.Length - position} bytes come behind its end");
        }

        if (stack.Count != 1 || marks.Count != 0)
        {
            throw Wrong($"at its end there are {stack.Count} values, where there must be one");
        }

        return Tensors(stack[0]);
    }

    private void Execute(byte code)
    {
        switch (code)
        {
            case (byte)'(':
                marks.Add(stack.Count);
                break;
            case (byte)'}':
                stack.Add(new Map());
                break;
            case (byte)']':
                stack.Add(new List<object?>());
                break;
            case (byte)')':
                stack.Add(Array.Empty<object?>());
                break;
            case (byte)'N':
                stack.Add(null);
                break;
            case 0x88 or 0x89:
                stack.Add(code == 0x88);
                break;
            case (byte)'K':
                stack.Add((long)Byte());
                break;
            case (byte)'M':
                stack.Add((long)BinaryPrimitives.ReadUInt16LittleEndian(Bytes(2)));
                break;
            case (byte)'J':
                stack.Add((long)BinaryPrimitives.ReadInt32LittleEndian(Bytes(4)));
                break;
            case 0x8a:
                stack.Add(LongNumber(Bytes(Byte())));
                break;
            case (byte)'G':
                stack.Add(BinaryPrimitives.ReadDoubleBigEndian(Bytes(8)));
                break;
            case (byte)'X':
                stack.Add(Text());
                break;
            case (byte)'t':
                stack.Add(AboveMark());
                break;
            case >= 0x85 and <= 0x87:
                stack.Add(Take(code - 0x84));
                break;
            case (byte)'a':
                object? item = Pop();
                List("an item is to be added").Add(item);
                break;
            case (byte)'e':
                object?[] items = AboveMark();
                List("items are to be added").AddRange(items);
                break;
            case (byte)'s':
                object?[] pair = Take(2);
                Dictionary("a value is to be set").Add(pair);
                break;
            case (byte)'u':
                object?[] pairs = AboveMark();
                Dictionary("values are to be set").Add(pairs.Length % 2 == 0 ? pairs : throw Wrong("a key has no value"));
                break;
            case (byte)'q':
                memo[Byte()] = Top();
                break;
            case (byte)'r':
                memo[BinaryPrimitives.ReadUInt32LittleEndian(Bytes(4))] = Top();
                break;
            case (byte)'h':
                stack.Add(Remembered(Byte()));
                break;
            case (byte)'j':
                stack.Add(Remembered(BinaryPrimitives.ReadUInt32LittleEndian(Bytes(4))));
                break;
            case (byte)'c':
                stack.Add(Global());
                break;
            case (byte)'R':
                object? arguments = Pop();
                stack.Add(Call(Pop(), arguments));
                break;
            case (byte)'b':
                // A state dictionary carries the versions of its modules as an attribute, which nothing here needs.
                if (Pop() is not Map || Top() is not Map)
                {
                    throw Refused("gives an object a state of its own (BUILD)");
                }

                break;
            case (byte)'Q':
                stack.Add(Storage(Pop()));
                break;
            default:
                throw RefusedInstruction(code);
        }
    }

    private readonly TorchFormatException RefusedInstruction(byte code)
    {
        if (!RefusedInstructions.TryGetValue(code, out string? name))
        {
            return Wrong(code == 0x80 ? "its version is given twice" : $"there is no instruction 0x{code:x2}");
        }

        // What it would have called, for the sentence.
        string called = code == (byte)'i' && TryLines() is { } inst ? $" of '{inst}'"
            : code == 0x93 && stack is [.., string module, string member] ? $" of '{SafetensorsFile.Shorten(module)}.{SafetensorsFile.Shorten(member)}'"
            : code is 0x81 or 0x92 or (byte)'o' ? ", which makes an object" : "";
        return Refused($"uses the instruction {name}{called}");
    }

    /// <summary>The two lines behind an instruction as one name; null where they are not there.</summary>
    private readonly string? TryLines()
    {
        ReadOnlySpan<byte> rest = pickle[position..];
        int first = rest[..Math.Min(rest.Length, LongestName)].IndexOf((byte)'\n');
        if (first < 0)
        {
            return null;
        }

        ReadOnlySpan<byte> behind = rest[(first + 1)..];
        int second = behind[..Math.Min(behind.Length, LongestName)].IndexOf((byte)'\n');
        return second < 0 ? null : SafetensorsFile.Shorten($"{Encoding.UTF8.GetString(rest[..first])}.{Encoding.UTF8.GetString(behind[..second])}");
    }

    private object Global()
    {
        string name = TryLines() ?? throw Wrong("a name does not end");
        for (int lines = 0; lines < 2; position++)
        {
            lines += pickle[position] == (byte)'\n' ? 1 : 0;
        }

        return name switch
        {
            "collections.OrderedDict" => Callable.OrderedDict,
            "torch._utils._rebuild_tensor_v2" => Callable.RebuildTensor,
            "torch._utils._rebuild_parameter" => Callable.RebuildParameter,
            _ when Storages.TryGetValue(name, out SafetensorsDType dtype) => dtype,
            _ when name.StartsWith("torch.", StringComparison.Ordinal) && name.EndsWith("Storage", StringComparison.Ordinal) => throw new TorchFormatException(
                $"{path}: the tensors of '{name}' have a type that is not read. Convert the model to float32, float16 or bfloat16."),
            _ => throw Refused($"calls for '{name}'"),
        };
    }

    private readonly object Call(object? function, object? arguments)
    {
        if (function is not Callable callable || arguments is not object?[] given)
        {
            throw Refused($"calls {Kind(function)}");
        }

        switch (callable)
        {
            case Callable.OrderedDict when given.Length == 0:
                return new Map();
            case Callable.RebuildParameter when given is [TorchView parameter, bool, Map]:
                return parameter;
            case Callable.RebuildTensor when given is [TorchStorage storage, long offset, object?[] shape, object?[] strides, bool, Map { Count: 0 }, ..] && given.Length is 6 or 7:
                return View(storage, offset, shape, strides);
            default:
                throw Wrong($"{callable switch { Callable.OrderedDict => "OrderedDict", Callable.RebuildParameter => "_rebuild_parameter", _ => "_rebuild_tensor_v2" }} is called with other arguments than a tensor has");
        }
    }

    private readonly TorchView View(TorchStorage storage, long offset, object?[] shape, object?[] strides)
    {
        if (shape.Length != strides.Length || shape.Length > MaximumAxes || shape.Concat(strides).Append(offset).Any(number => number is not (long and >= 0L)))
        {
            throw Wrong($"a tensor's sizes and strides must be as many numbers from 0 on, at most {MaximumAxes}");
        }

        long[] sizes = [.. shape.Cast<long>()], steps = [.. strides.Cast<long>()];
        Int128 last = offset, elements = 1;
        for (int axis = 0; axis < sizes.Length; axis++)
        {
            // Each factor is below 2^63 and the sum is looked at every time, so 127 bits hold it.
            last += (Int128)Math.Max(sizes[axis] - 1, 0) * steps[axis];
            elements *= sizes[axis];
            if (last >= long.MaxValue || elements >= long.MaxValue / 16)
            {
                throw Wrong($"a tensor of the sizes {SafetensorsEntry.DescribeShape(sizes)} and strides {SafetensorsEntry.DescribeShape(steps)} is larger than any storage");
            }
        }

        return elements == 0 || last < storage.Elements
            ? new TorchView(storage, offset, sizes, steps)
            : throw Wrong($"a tensor of the sizes {SafetensorsEntry.DescribeShape(sizes)} and strides {SafetensorsEntry.DescribeShape(steps)} reaches element {last} of a storage of {storage.Elements}");
    }

    private readonly TorchStorage Storage(object? id)
    {
        if (id is not object?[] parts || parts is not ["storage", SafetensorsDType dtype, string key, string, long elements and >= 0L])
        {
            throw Refused("refers to something outside that is no storage");
        }

        var storage = new TorchStorage(key, dtype, elements);
        return storages.TryAdd(key, storage) || storages[key] == storage
            ? storages[key]
            : throw Wrong($"the storage '{SafetensorsFile.Shorten(key)}' is {storages[key].Elements} x {storages[key].DType.Name()} at one place and {elements} x {dtype.Name()} at another");
    }

    private readonly List<(string Name, TorchView View)> Tensors(object? top)
    {
        if (top is not Map map)
        {
            throw new TorchFormatException($"{path}: the file holds {Kind(top)}; it must hold a dictionary of tensors. It is no file of weights; get the model's own.");
        }

        var tensors = new List<(string Name, TorchView View)>();
        var names = new HashSet<string>(StringComparer.Ordinal);
        foreach ((object? key, object? value) in map.Pairs)
        {
            string name = key as string ?? throw new TorchFormatException($"{path}: a key of its dictionary is {Kind(key)}; it must be a tensor's name. It is no file of weights; get the model's own.");
            if (value is not TorchView view)
            {
                throw new TorchFormatException(
                    $"{path}: '{SafetensorsFile.Shorten(name)}' is {Kind(value)}, where there must be a tensor. {(value is Map ? "It is what a training saved, with more in it than weights; save the model's state_dict alone." : "It is no file of weights; get the model's own.")}");
            }

            tensors.Add(names.Add(name) ? (name, view) : throw Wrong($"the tensor '{SafetensorsFile.Shorten(name)}' is there twice"));
        }

        return tensors;
    }

    private readonly long LongNumber(ReadOnlySpan<byte> bytes)
    {
        if (bytes.Length > sizeof(long))
        {
            throw Wrong($"a number has {bytes.Length} bytes; no size of a tensor needs more than {sizeof(long)}");
        }

        long value = bytes.Length > 0 && bytes[^1] >= 0x80 ? -1 : 0;
        for (int i = bytes.Length - 1; i >= 0; i--)
        {
            value = value << 8 | bytes[i];
        }

        return value;
    }

    private string Text()
    {
        uint length = BinaryPrimitives.ReadUInt32LittleEndian(Bytes(4));
        try
        {
            return StrictUtf8.GetString(Bytes(length));
        }
        catch (DecoderFallbackException)
        {
            throw Wrong("a text is not valid UTF-8");
        }
    }

    private byte Byte() => Bytes(1)[0];

    private ReadOnlySpan<byte> Bytes(long count)
    {
        if (count > pickle.Length - position)
        {
            throw Wrong($"it ends too soon: {count} bytes should come at byte {position}");
        }

        ReadOnlySpan<byte> bytes = pickle.Slice(position, (int)count);
        position += (int)count;
        return bytes;
    }

    /// <summary>The values above the last mark, which goes too.</summary>
    private readonly object?[] AboveMark()
    {
        if (marks.Count == 0)
        {
            throw Wrong("a list of values has no beginning");
        }

        int mark = marks[^1];
        marks.RemoveAt(marks.Count - 1);
        return Take(stack.Count - mark, mark);
    }

    private readonly object?[] Take(int count) => Take(count, LowestFree);

    private readonly object?[] Take(int count, int lowest)
    {
        if (stack.Count - count < lowest)
        {
            throw Wrong("values are taken that are not there");
        }

        object?[] values = new object?[count];
        stack.CopyTo(stack.Count - count, values, 0, count);
        stack.RemoveRange(stack.Count - count, count);
        return values;
    }

    private readonly object? Pop() => Take(1)[0];

    private readonly object? Top() => stack.Count > LowestFree ? stack[^1] : throw Wrong("a value is used that is not there");

    /// <summary>What is below the last mark cannot be taken one by one.</summary>
    private readonly int LowestFree => marks.Count > 0 ? marks[^1] : 0;

    private readonly object? Remembered(uint index) => memo.TryGetValue(index, out object? value) ? value : throw Wrong($"it refers to value {index}, which was not kept");

    private readonly List<object?> List(string use) => Top() as List<object?> ?? throw Wrong($"{use} to {Kind(Top())}");

    private readonly Map Dictionary(string use) => Top() as Map ?? throw Wrong($"{use} in {Kind(Top())}");

    private readonly TorchFormatException Wrong(string what) => new(string.Create(
        CultureInfo.InvariantCulture, $"{path}: the description of its tensors (data.pkl) is damaged at byte {instruction}: {what}. Fetch the file again."));

    private readonly TorchFormatException Refused(string what) => new(string.Create(CultureInfo.InvariantCulture, $"{path}: at byte {instruction} its description of the tensors (data.pkl) {what}. {DoNotUse}"));

    private static string Kind(object? value) => value switch
    {
        null => "None",
        Map => "a dictionary",
        TorchView => "a tensor",
        TorchStorage => "a storage",
        string => "a text",
        bool => "a truth value",
        long or double => "a number",
        object?[] => "a tuple",
        List<object?> => "a list",
        _ => "a name",
    };

    /// <summary>A dictionary, as its pairs came.</summary>
    private sealed class Map
    {
        // Most stay empty.
        private List<(object? Key, object? Value)>? pairs;

        public int Count => pairs?.Count ?? 0;

        public IReadOnlyList<(object? Key, object? Value)> Pairs => pairs ?? [];

        public void Add(object?[] keysAndValues)
        {
            for (int i = 0; i < keysAndValues.Length; i += 2)
            {
                (pairs ??= []).Add((keysAndValues[i], keysAndValues[i + 1]));
            }
        }
    }
}
