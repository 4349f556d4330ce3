using System.Runtime.InteropServices;
using System.Text;
using LoraTrainer.Engine.Quantization;

namespace LoraTrainer.Models.Formats;

/// <summary>
/// A matrix that was quantized before, as the tensors of a file hold it; what these say is checked. Elements are read by whoever needs them. The spelling is that
/// of bitsandbytes (nn/modules.py and functional.py, QuantState.as_dict): beside <c>P.weight</c> lie its scales and what else is needed to read it.
/// </summary>
internal abstract record StoredMatrix(int Out, int In)
{
    /// <summary>The end of the name of the tensor that holds bitsandbytes' 4-bit state; behind it comes the type.</summary>
    private const string StateSuffix = ".quant_state.bitsandbytes__";

    private static readonly string[] CodeNames = [FourBitCode.Nf4.Name, FourBitCode.Fp4.Name];

    // A state that is written has about 170 bytes.
    private const int LargestStateBytes = 1 << 14;
    private const int Blocksize = 64;
    private const int NestedBlocksize = 256;

    /// <summary>How it was quantized.</summary>
    public abstract BaseFormat Format { get; }

    /// <summary>The tensors that it consists of, those of its description included.</summary>
    public abstract IEnumerable<string> TensorNames { get; }

    /// <summary>The quantized matrix of that name; null where <paramref name="find"/> has none, whether or not it has a plain one.</summary>
    /// <param name="find">Gives the tensor of a name.</param>
    /// <param name="name">Such as model.layers.0.mlp.up_proj.weight.</param>
    /// <param name="rows">Out, as it must be.</param>
    /// <param name="columns">In, as it must be.</param>
    /// <exception cref="ModelFormatException">The tensors contradict each other or what is expected. The sentence names tensors, not files.</exception>
    public static StoredMatrix? Find(Func<string, ModelTensor?> find, string name, int rows, int columns)
    {
        string[] types = [.. CodeNames.Where(type => find(name + StateSuffix + type) is not null)];
        if (types.Length > 1)
        {
            throw new ModelFormatException($"tensor '{name}' has two descriptions, of nf4 and of fp4; there must be one.");
        }

        string module = name[..name.LastIndexOf('.')];
        return types.Length == 1 ? StoredFourBit.Read(find, name, types[0], rows, columns)
            : find(module + StoredInt8.StatisticsSuffix) is not null || find(module + StoredInt8.ScalesSuffix) is not null ? StoredInt8.Read(find, name, rows, columns)
            : null;
    }

    /// <summary>The tensor, of that type and shape.</summary>
    private protected static ModelTensor Require(Func<string, ModelTensor?> find, string name, SafetensorsDType dtype, params long[] shape)
    {
        ModelTensor tensor = find(name) ?? throw new ModelFormatException($"tensor '{name}' {SafetensorsEntry.DescribeShape(shape)} is missing.");
        return tensor.Entry.DType == dtype && tensor.Entry.Shape.SequenceEqual(shape)
            ? tensor
            : throw new ModelFormatException($"tensor '{name}' is {tensor.Entry}; it must be {SafetensorsEntry.Describe(dtype, shape)}.");
    }

    /// <summary>The elements of a small tensor, all of them finite.</summary>
    private protected static float[] Floats(ModelTensor tensor)
    {
        float[] values = new float[tensor.Entry.ByteLength / sizeof(float)];
        tensor.ReadInto(0, MemoryMarshal.AsBytes(values.AsSpan()));
        return Array.FindIndex(values, value => !float.IsFinite(value)) is var bad and >= 0
            ? throw new ModelFormatException($"tensor '{tensor.Entry.Name}' holds {values[bad]} at element {bad}; it must be finite.")
            : values;
    }

    /// <summary>4 bits a weight: see <see cref="FourBitMatrix"/>.</summary>
    /// <param name="Code">What the codes stand for.</param>
    /// <param name="Out">Rows.</param>
    /// <param name="In">Columns.</param>
    /// <param name="Packed">ceil(Out*In/2) bytes, whatever type the file gives them.</param>
    /// <param name="Absmax">A scale for each 64 weights: F32, or U8 where they are quantized too.</param>
    /// <param name="Nested">What turns quantized scales back; null where they are not.</param>
    internal sealed record StoredFourBit(FourBitCode Code, int Out, int In, ModelTensor Packed, ModelTensor Absmax, NestedScales? Nested) : StoredMatrix(Out, In)
    {
        public override BaseFormat Format => (Code == FourBitCode.Nf4, Nested is null) switch
        {
            (true, true) => BaseFormat.Nf4,
            (true, false) => BaseFormat.Nf4DoubleQuantized,
            (false, true) => BaseFormat.Fp4,
            (false, false) => BaseFormat.Fp4DoubleQuantized,
        };

        public override IEnumerable<string> TensorNames
        {
            get
            {
                string name = Packed.Entry.Name;
                string[] names = [name, name + ".absmax", name + ".quant_map", name + StateSuffix + Code.Name];
                return Nested is null ? names : [.. names, name + ".nested_absmax", name + ".nested_quant_map"];
            }
        }

        public static StoredFourBit Read(Func<string, ModelTensor?> find, string name, string type, int rows, int columns)
        {
            State state = State.Read(find(name + StateSuffix + type)!.Value, type, rows, columns);
            long elements = (long)rows * columns, blocks = (elements + Blocksize - 1) / Blocksize;
            FourBitCode code = type == FourBitCode.Nf4.Name ? FourBitCode.Nf4 : FourBitCode.Fp4;
            ModelTensor map = Require(find, name + ".quant_map", SafetensorsDType.F32, code.Table.Length);

            // By value: the table of fp4 may write the second of its zeros as -0.
            if (!Floats(map).SequenceEqual(code.Table.ToArray()))
            {
                throw new ModelFormatException($"tensor '{map.Entry.Name}' is not the table of {type}; another one is not supported.");
            }

            ModelTensor packed = find(name) ?? throw new ModelFormatException($"tensor '{name}' is missing; its description is there.");
            if (packed.Entry.ByteLength != (elements + 1) / 2 || packed.Entry.Shape.Length != 2 || !packed.Entry.Shape.Contains(1))
            {
                throw new ModelFormatException($"tensor '{name}' is {packed.Entry}; {rows} x {columns} weights in 4 bits are {(elements + 1) / 2} bytes, of shape ({(elements + 1) / 2}, 1) where they are U8.");
            }

            if (state.NestedOffset is not { } offset)
            {
                return new StoredFourBit(code, rows, columns, packed, Require(find, name + ".absmax", SafetensorsDType.F32, blocks), null);
            }

            ModelTensor absmax = Require(find, name + ".absmax", SafetensorsDType.U8, blocks);
            ModelTensor nestedAbsmax = Require(find, name + ".nested_absmax", SafetensorsDType.F32, (blocks + NestedBlocksize - 1) / NestedBlocksize);
            ModelTensor nestedMap = Require(find, name + ".nested_quant_map", SafetensorsDType.F32, NestedBlocksize);
            float largest = Floats(nestedMap).Max(MathF.Abs) * Floats(nestedAbsmax).Max(MathF.Abs) + MathF.Abs(offset);
            return float.IsFinite(largest)
                ? new StoredFourBit(code, rows, columns, packed, absmax, new NestedScales(nestedAbsmax, nestedMap, offset))
                : throw new ModelFormatException($"tensor '{absmax.Entry.Name}': with nested_absmax, nested_quant_map and nested_offset its scales would not be finite.");
        }
    }

    /// <summary>Scales that are quantized themselves: scale = map[code] * absmax + offset, in blocks of 256.</summary>
    internal sealed record NestedScales(ModelTensor Absmax, ModelTensor Map, float Offset);

    /// <summary>8 bits a weight: see <see cref="Int8Matrix"/>.</summary>
    /// <param name="Out">Rows.</param>
    /// <param name="In">Columns.</param>
    /// <param name="Codes">(Out, In) I8.</param>
    /// <param name="Scales">(Out) F32.</param>
    /// <param name="Divisor">By which <paramref name="Scales"/> are divided: 127 in files of bitsandbytes, which keep the largest weight of a row.</param>
    internal sealed record StoredInt8(int Out, int In, ModelTensor Codes, ModelTensor Scales, float Divisor) : StoredMatrix(Out, In)
    {
        /// <summary>Behind the module's name: the largest weight of each row, as bitsandbytes keeps it.</summary>
        public const string StatisticsSuffix = ".SCB";

        /// <summary>Behind the module's name: the factor of each row, as it is used.</summary>
        public const string ScalesSuffix = ".scale";

        private const string FormatSuffix = ".weight_format";

        public override BaseFormat Format => BaseFormat.EightBit;

        public override IEnumerable<string> TensorNames
        {
            get
            {
                string name = Codes.Entry.Name;
                return [name, Scales.Entry.Name, name[..name.LastIndexOf('.')] + FormatSuffix];
            }
        }

        public static StoredInt8 Read(Func<string, ModelTensor?> find, string name, int rows, int columns)
        {
            string module = name[..name.LastIndexOf('.')];
            if (find(module + FormatSuffix) is { } format)
            {
                byte[] layout = new byte[1];
                if (format.Entry.DType != SafetensorsDType.U8 || format.Entry.ByteLength != 1)
                {
                    throw new ModelFormatException($"tensor '{format.Entry.Name}' is {format.Entry}; it must be one U8.");
                }

                format.ReadInto(0, layout);
                if (layout[0] != 0)
                {
                    throw new ModelFormatException($"tensor '{format.Entry.Name}' is {layout[0]}, an order of bytes that is made for a certain GPU; only 0, rows, is read. Save the model again with a recent bitsandbytes.");
                }
            }

            bool isStatistics = find(module + StatisticsSuffix) is not null;
            return new StoredInt8(
                rows, columns, Require(find, name, SafetensorsDType.I8, rows, columns), Require(find, module + (isStatistics ? StatisticsSuffix : ScalesSuffix), SafetensorsDType.F32, rows), isStatistics ? 127 : 1);
        }
    }

    /// <summary>The JSON text that describes a matrix in 4 bits.</summary>
    private sealed record State(float? NestedOffset)
    {
        public static State Read(ModelTensor tensor, string type, int rows, int columns)
        {
            SafetensorsEntry entry = tensor.Entry;
            if (entry.DType != SafetensorsDType.U8 || entry.ByteLength > LargestStateBytes)
            {
                throw new ModelFormatException($"tensor '{entry.Name}' is {entry}; it must be U8, the bytes of a JSON text of at most {LargestStateBytes}.");
            }

            byte[] text = new byte[entry.ByteLength];
            tensor.ReadInto(0, text);
            JsonFields json = JsonFields.Parse($"tensor '{entry.Name}'", text);
            Require("quant_type", json.Text("quant_type") == type, type);
            Require("blocksize", json.OptionalInteger("blocksize", 1, int.MaxValue) == Blocksize, $"{Blocksize}; other sizes of a block are not supported");
            Require("shape", json.Integers("shape", 0, int.MaxValue) is [var given, var second] && given == rows && second == columns, $"[{rows}, {columns}], as config.json makes it");
            Require("dtype", json.Text("dtype") is "float32" or "float16" or "bfloat16", "float32, float16 or bfloat16");
            if (!json.HasValue("nested_blocksize") && !json.HasValue("nested_offset"))
            {
                return new State((float?)null);
            }

            Require("nested_blocksize", json.OptionalInteger("nested_blocksize", 1, int.MaxValue) == NestedBlocksize, $"{NestedBlocksize}");
            Require("nested_dtype", json.Text("nested_dtype") == "float32", "float32");
            Require("nested_offset", json.HasValue("nested_offset"), "a number");
            return new State((float)json.Number("nested_offset", 0, float.MinValue, float.MaxValue));

            void Require(string field, bool holds, string expected)
            {
                if (!holds)
                {
                    throw json.Has(field) ? json.Wrong(field, expected) : json.Error(field, $"is missing; it must be {expected}.");
                }
            }
        }
    }

    /// <summary>The bytes that describe a matrix in 4 bits, as Python's json module writes them.</summary>
    /// <param name="matrix">The matrix.</param>
    /// <param name="dtype">Of its weights before they were quantized: float32, float16 or bfloat16.</param>
    internal static (string Suffix, byte[] Text) Describe(FourBitMatrix matrix, string dtype)
    {
        string nested = matrix.IsDoubleQuantized ? $", \"nested_blocksize\": {NestedBlocksize}, \"nested_dtype\": \"float32\", \"nested_offset\": {PythonJson.Float(matrix.Offset)}" : "";
        string text = $"{{\"quant_type\": \"{matrix.Code.Name}\", \"blocksize\": {Blocksize}, \"dtype\": \"{dtype}\", \"shape\": [{matrix.Out}, {matrix.In}]{nested}}}";
        return (StateSuffix + matrix.Code.Name, Encoding.UTF8.GetBytes(text));
    }
}
