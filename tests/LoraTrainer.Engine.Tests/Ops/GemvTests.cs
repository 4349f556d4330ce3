using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Engine.Tests.Ops;

/// <summary>The product of one row: near the sums in double precision, and bit for bit in the order that its contract names.</summary>
public sealed class GemvTests
{
    /// <summary>Whole chunks, half chunks, odd ends, blocks across the ends of rows; groups of four rows and what is left of them.</summary>
    private static readonly (int Rows, int Columns)[] Shapes =
        [(1, 1), (1, 64), (4, 128), (5, 192), (3, 576), (7, 100), (66, 8), (130, 16), (9, 33), (6, 257), (1030, 320), (2, 4096), (12, 7), (70, 1536), (5, 8256)];

    [Theory]
    [InlineData(OperandKind.F32)]
    [InlineData(OperandKind.BF16)]
    [InlineData(OperandKind.Nf4)]
    [InlineData(OperandKind.Nf4Double)]
    [InlineData(OperandKind.Fp4)]
    [InlineData(OperandKind.Fp4Double)]
    [InlineData(OperandKind.RowwiseBytes)]
    public void Forward_AnyShape_IsTheSumInItsOrder(OperandKind kind)
    {
        foreach ((int rows, int columns) in Shapes)
        {
            foreach ((float alpha, GradientMode mode) in new[] { (1f, GradientMode.Overwrite), (0.3f, GradientMode.Accumulate) })
            {
                using Device device = Open("cpu");
                WeightMatrix matrix = Matrix(device, kind, rows, columns);
                float[] x = Values(7, columns), before = Values(8, rows), weights = new float[rows * columns];
                Linear.ReadRows(weights, matrix, 0);
                Tensor y = mode == GradientMode.Accumulate ? device.Upload(before, new Shape(1, rows)) : device.Poisoned(new Shape(1, rows));
                Gemv.Forward([y], device.Upload(x, new Shape(1, columns)), [matrix], mode, alpha);
                float[] actual = y.Download();
                string what = $"{kind} {rows} x {columns}, alpha {alpha}, {mode}";

                double[] expected = new double[rows], bound = new double[rows];
                for (int row = 0; row < rows; row++)
                {
                    double kept = mode == GradientMode.Accumulate ? before[row] : 0, sum = kept, size = Math.Abs(kept);
                    for (int i = 0; i < columns; i++)
                    {
                        double term = (double)alpha * x[i] * weights[row * columns + i];
                        sum += term;
                        size += Math.Abs(term);
                    }

                    // A lane's chain, the tree over the lanes, and the roundings of alpha x, of the stored value and of its scale.
                    expected[row] = sum;
                    bound[row] = size * U * (columns / 16 + 16);
                }

                Within(expected, bound, actual, what);
                float[] inOrder = [.. Enumerable.Range(0, rows).Select(row => InOrder(matrix, weights, row, [.. x.Select(v => alpha * v)]))];
                TensorAssert.BitEqual([.. inOrder.Select((sum, row) => mode == GradientMode.Accumulate ? before[row] + sum : sum)], actual, what);
            }
        }
    }

    [Fact]
    public void Forward_OfSeveralMatrices_IsThatOfEach()
    {
        using Device device = Open("cpu", 3);
        Tensor x = device.Random(1, new Shape(1, 576));
        WeightMatrix[] matrices = [Matrix(device, OperandKind.Nf4Double, 577, 576), Matrix(device, OperandKind.BF16, 192, 576), Matrix(device, OperandKind.RowwiseBytes, 190, 576)];
        Tensor[] together = [.. matrices.Select(matrix => device.Poisoned(new Shape(1, matrix.Out)))], alone = [.. matrices.Select(matrix => device.Poisoned(new Shape(1, matrix.Out)))];
        Gemv.Forward(together, x, matrices);
        for (int i = 0; i < matrices.Length; i++)
        {
            Gemv.Forward([alone[i]], x, [matrices[i]]);
            TensorAssert.BitEqual(alone[i].Download(), together[i].Download(), $"matrix {i}");
        }
    }

    [Theory]
    [InlineData(OperandKind.F32, 5)]
    [InlineData(OperandKind.F32, 72)]
    [InlineData(OperandKind.Nf4, 192)]
    public void Forward_InfinityInOneRow_StaysInThatRow(OperandKind kind, int columns)
    {
        using Device device = Open("cpu");
        WeightMatrix matrix = Matrix(device, kind, 8, columns);
        Tensor stored = matrix is FourBitMatrix fourBit ? fourBit.Absmax : ((DenseMatrix)matrix).Values;
        float[] values = stored.Download();
        values[values.Length / 8 * 3 - 1] = float.PositiveInfinity;
        device.Upload(stored, System.Runtime.InteropServices.MemoryMarshal.AsBytes<float>(values));
        Tensor y = device.Poisoned(new Shape(1, 8));
        Gemv.Forward([y], device.Filled(0.5f, new Shape(1, columns)), [matrix]);
        float[] actual = y.Download();
        Assert.All(Enumerable.Range(0, 8), row => Assert.Equal(row != 2, float.IsFinite(actual[row])));
    }

    [Theory]
    [InlineData(OperandKind.F32)]
    [InlineData(OperandKind.BF16)]
    [InlineData(OperandKind.Nf4)]
    [InlineData(OperandKind.Nf4Double)]
    [InlineData(OperandKind.RowwiseBytes)]
    public void Forward_WritesNothingBehindItsWorkspace(OperandKind kind)
    {
        foreach (int columns in new[] { 64, 192, 100, 8256 })
        {
            using Device device = Open("cpu", 3);
            WeightMatrix matrix = Matrix(device, kind, 66, columns);
            Tensor x = device.Random(1, new Shape(1, columns)), y = device.Poisoned(new Shape(1, 66));

            // Nothing but the product raises the mark from here on.
            device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(device.Arena.HighWaterBytes - device.Arena.UsedBytes + 1));
            Gemv.Forward([y], x, [matrix]);
            int above = (int)(device.Arena.HighWaterBytes - device.Arena.UsedBytes), behind = 1 << 20;
            Write(0xA5);
            Gemv.Forward([y], x, [matrix]);
            Assert.DoesNotContain(Free()[above..], value => value != 0xA5);

            // What lies free on top of the stack, the workspace and a megabyte behind it.
            byte[] Free()
            {
                using ArenaFrame frame = device.Arena.Frame();
                return device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(above + behind)).DownloadBytes();
            }

            void Write(byte value)
            {
                using ArenaFrame frame = device.Arena.Frame();
                device.Upload(device.Arena.Allocate(MemoryKind.Workspace, DType.U8, new Shape(above + behind)), [.. Enumerable.Repeat(value, above + behind)]);
            }
        }
    }

    [Fact]
    public void Forward_OfWrongShapes_SaysSo()
    {
        using Device device = Open("cpu");
        WeightMatrix matrix = Matrix(device, OperandKind.F32, 4, 8);
        Assert.Throws<ShapeMismatchException>(() => Gemv.Forward([device.Poisoned(new Shape(1, 4))], device.Poisoned(new Shape(2, 8)), [matrix]));
        Assert.Throws<ShapeMismatchException>(() => Gemv.Forward([device.Poisoned(new Shape(1, 4))], device.Poisoned(new Shape(1, 9)), [matrix]));
        Assert.Throws<ShapeMismatchException>(() => Gemv.Forward([device.Poisoned(new Shape(1, 5))], device.Poisoned(new Shape(1, 8)), [matrix]));
    }

    /// <summary>A random matrix in a kind of storage.</summary>
    internal static WeightMatrix Matrix(Device device, OperandKind kind, int rows, int columns)
    {
        var shape = new Shape(rows, columns);
        float[] values = Values((uint)(rows + columns), shape.ElementCount);
        switch (kind)
        {
            case OperandKind.F32:
                return new DenseMatrix(device.Upload(values, shape));
            case OperandKind.BF16:
                return new DenseMatrix(device.BF16(values, shape));
            case OperandKind.RowwiseBytes:
                var bytes = new Int8Quantizer(device, rows, columns);
                bytes.Add(values);
                return bytes.Finish();
            default:
                var codes = new FourBitQuantizer(device, kind is OperandKind.Fp4 or OperandKind.Fp4Double ? FourBitCode.Fp4 : FourBitCode.Nf4, rows, columns, kind is OperandKind.Nf4Double or OperandKind.Fp4Double);
                codes.Add(values);
                return codes.Finish();
        }
    }

    /// <summary>One element of the result, in the order that the contract names, without vectors.</summary>
    private static unsafe float InOrder(WeightMatrix matrix, float[] weights, int row, float[] x)
    {
        int columns = matrix.In;
        float[] lanes = new float[16];
        bool inBlocks = matrix is FourBitMatrix && columns % 64 == 0;
        if (inBlocks)
        {
            GemmOperand operand = Linear.Operand(matrix, transposed: false);
            for (int chunk = 0; chunk < columns; chunk += 128)
            {
                bool isHalf = columns - chunk == 64;
                for (int lane = 0; lane < (isHalf ? 8 : 16); lane++)
                {
                    float chain = 0;
                    for (int slot = 0; slot < 8; slot++)
                    {
                        // The lower bits of a byte are its odd element.
                        int i = chunk + lane * 8 + (slot ^ 1);
                        int code = operand.Blocks.Packed[((long)row * columns + i) / 2] >> (i % 2 == 0 ? 4 : 0) & 15;
                        chain = MathF.FusedMultiplyAdd(operand.Blocks.Code[code], x[i], chain);
                    }

                    float scale = operand.Blocks.Absmax(((long)row * columns + chunk + lane * 8) / 64);
                    int target = isHalf && row % 2 == 1 ? lane + 8 : lane;
                    lanes[target] = isHalf ? lanes[target] + chain * scale : MathF.FusedMultiplyAdd(chain, scale, lanes[target]);
                }
            }
        }
        else
        {
            // Blocks that run across the ends of rows are expanded first; the others are continued element by element.
            int perWord = matrix switch { Int8Matrix => 4, DenseMatrix { Values.DType: DType.BF16 } => 2, _ => 1 };
            for (int i = 0; i < columns; i++)
            {
                int lane = i / perWord % 16;
                float weight = matrix is Int8Matrix ? Code((Int8Matrix)matrix, row * columns + i) : weights[row * columns + i];
                lanes[lane] = MathF.FusedMultiplyAdd(weight, x[i], lanes[lane]);
            }
        }

        for (int half = 8; half > 0; half /= 2)
        {
            for (int lane = 0; lane < half; lane++)
            {
                lanes[lane] += lanes[lane + half];
            }
        }

        return matrix is Int8Matrix rows ? lanes[0] * rows.Scales.Download()[row] : lanes[0];

        static float Code(Int8Matrix matrix, int index)
        {
            GemmOperand operand = Linear.Operand(matrix, transposed: false);
            return ((sbyte*)operand.StoredAt(0))[index];
        }
    }
}
