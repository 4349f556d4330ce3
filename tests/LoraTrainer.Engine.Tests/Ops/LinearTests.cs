using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Engine.Tests.Ops;

/// <summary>What the products of a linear layer accept, and products on columns of a wider matrix. The products themselves: GemmTests.</summary>
public sealed class LinearTests
{
    public static TheoryData<string, int, int, int> Shapes
    {
        get
        {
            var data = new TheoryData<string, int, int, int>();
            foreach ((int n, int rank, int width) in new[] { (1, 1, 1), (1, 16, 64), (7, 4, 9), (64, 8, 100), (301, 16, 520), (70, 40, 33) })
            {
                data.Add("cpu", n, rank, width);
            }

            return data;
        }
    }

    /// <summary>Columns between others, which are NaN where they are read and keep their content where these are written.</summary>
    [Theory]
    [MemberData(nameof(Shapes))]
    public void Products_OfColumns_HaveTheBitsOfProductsOfACopy(string deviceName, int n, int rank, int width)
    {
        using Device device = Open(deviceName);
        const int before = 3, after = 2;
        var columns = new MatrixColumns(device.Poisoned(new Shape(n, before + rank + after)), before, rank);
        Tensor alone = device.Random(1, new Shape(n, rank)), wide = device.Random(2, new Shape(n, width));
        var matrix = new DenseMatrix(device.Random(3, new Shape(width, rank)));
        Columns.Scatter(columns.Whole, alone, before);

        foreach (GradientMode mode in (GradientMode[])[GradientMode.Overwrite, GradientMode.Accumulate])
        {
            Tensor expected = device.Random(4, new Shape(n, width)), actual = device.Random(4, new Shape(n, width));
            Linear.Forward(expected, alone, matrix, mode, 0.3f);
            Linear.Forward(actual, columns, matrix, mode, 0.3f);
            Assert.Equal(expected.Download(), actual.Download());
        }

        Tensor dExpected = device.Random(5, new Shape(width, rank)), dActual = device.Random(5, new Shape(width, rank));
        Linear.BackwardWeight(dExpected, wide, alone, 0.3f);
        Linear.BackwardWeight(dActual, wide, columns, 0.3f);
        Assert.Equal(dExpected.Download(), dActual.Download());

        foreach (GradientMode mode in (GradientMode[])[GradientMode.Accumulate, GradientMode.Overwrite])
        {
            Linear.BackwardInput(alone, wide, matrix, mode, 0.3f);
            Linear.BackwardInput(columns, wide, matrix, mode, 0.3f);
            Tensor own = device.Poisoned(new Shape(n, rank));
            Columns.Gather(own, columns.Whole, before);
            Assert.Equal(alone.Download(), own.Download());
        }

        float[] whole = columns.Whole.Download();
        Assert.All(Enumerable.Range(0, whole.Length).Where(i => i % (before + rank + after) is var column && (column < before || column >= before + rank)), i => Assert.True(float.IsNaN(whole[i]), $"[{i}]"));
    }

    [Fact]
    public void Products_OfColumnsThatDoNotFit_AreRefused()
    {
        using Device device = Open("cpu");
        Tensor whole = device.Random(1, new Shape(5, 12)), wide = device.Random(2, new Shape(5, 9)), weight = device.Random(3, new Shape(9, 4));
        var matrix = new DenseMatrix(weight);
        Throws("Linear.Forward: input must be F32 (5, 4), got 3 columns of F32 (5, 12).", () => Linear.Forward(wide, new MatrixColumns(whole, 2, 3), matrix));
        Throws("Linear.Forward: input must be F32 (5, 4), got F32 (5, 12).", () => Linear.Forward(wide, whole, matrix));
        Throws("Linear.Forward: input must be a matrix of F32, got nothing.", () => Linear.Forward(wide, Tensor.None, matrix));
        Throws("Linear.Forward: input must be a matrix of F32, got F32 (60).", () => Linear.Forward(wide, whole.Reshape(new Shape(60)), matrix));
        Throws("Linear.BackwardInput: dInput must be F32 (5, 4), got 5 columns of F32 (5, 12).", () => Linear.BackwardInput(new MatrixColumns(whole, 0, 5), wide, matrix));
        Throws("Linear.BackwardWeight: dWeight must be F32 (9, 5), got F32 (9, 4).", () => Linear.BackwardWeight(weight, wide, new MatrixColumns(whole, 0, 5)));
        Throws(
            "Linear.BackwardInput: dInput may not share memory with dOutput.",
            () => Linear.BackwardInput(new MatrixColumns(whole, 0, 4), whole.Slice(3, new Shape(5, 9)), matrix));
        Throws(
            "Linear.BackwardInput: with a quantized matrix dInput must be a matrix of its own, got 4 columns of (5, 12).",
            () => Linear.BackwardInput(new MatrixColumns(whole, 0, 4), wide, Int8Matrix.Allocate(device, 9, 4)));
        Throws("Columns 9 to 13 lie outside a tensor of (5, 12).", () => _ = new MatrixColumns(whole, 9, 4));
        Throws("Columns -1 to 3 lie outside a tensor of (5, 12).", () => _ = new MatrixColumns(whole, -1, 4));
        Throws("Columns 0 to 4 lie outside a tensor of (60).", () => _ = new MatrixColumns(whole.Reshape(new Shape(60)), 0, 4));
    }

    [Fact]
    public void Columns_OfAMatrix_KnowTheirPlace()
    {
        using Device device = Open("cpu");
        Tensor whole = device.Random(1, new Shape(5, 12));
        var columns = new MatrixColumns(whole, 3, 4);
        Assert.Equal((5, 3, 4, false, 80), (columns.Rows, columns.First, columns.Count, columns.IsAll, columns.SizeBytes));
        MatrixColumns all = whole;
        Assert.Equal((5, 0, 12, true, whole.SizeBytes), (all.Rows, all.First, all.Count, all.IsAll, all.SizeBytes));
    }
}
