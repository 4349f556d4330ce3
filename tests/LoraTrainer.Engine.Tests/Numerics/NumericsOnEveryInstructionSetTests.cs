using System.Runtime.InteropServices;
using LoraTrainer.Engine.Numerics;
using Xunit;

namespace LoraTrainer.Engine.Tests.Numerics;

public sealed class NumericsOnEveryInstructionSetTests
{
    [Fact]
    public async Task Results_WithFewerInstructionSets_AreBitEqual()
    {
        string expected = await InstructionSets.RunChild(typeof(NumericsOnEveryInstructionSetTests), nameof(Child), "");
        Assert.Equal(11, expected.Split('\n', StringSplitOptions.RemoveEmptyEntries).Length);
        foreach (string switchName in InstructionSets.Switches)
        {
            Assert.Equal(expected, await InstructionSets.RunChild(typeof(NumericsOnEveryInstructionSetTests), nameof(Child), switchName));
        }
    }

    [Fact(Explicit = true)]
    public void Child()
    {
        const int Count = 4_003;
        var random = new CounterRandom(5, 5, 5);
        float[] normal = [.. Enumerable.Range(0, Count).Select(i => random.Normal((ulong)i) * 20)];
        float[] positive = [.. normal.Select(v => v * v), 0f, float.Epsilon, float.MaxValue, float.PositiveInfinity];
        float[] dropped = new float[Count];
        random.Dropout(dropped, normal, 17, 0.9f);
        float[] filled = new float[Count];
        random.FillNormal(filled, 17);
        float[] uniform = new float[Count];
        random.FillUniform(uniform, 17);
        double[] doubles = [.. normal.SelectMany(v => new[] { DeterministicMath.Exp(v), DeterministicMath.Log(v), DeterministicMath.Pow(Math.Abs(v), 0.37), DeterministicMath.Sin(v * 1e4), DeterministicMath.Cos(v * 1e4) })];
        InstructionSets.Report(
        [
            ("normal", InstructionSets.Bytes(normal)),
            ("normal in bulk", InstructionSets.Bytes(filled)),
            ("uniform in bulk", InstructionSets.Bytes(uniform)),
            ("exp", InstructionSets.Bytes(normal.Select(VectorMath.Exp))),
            ("log", InstructionSets.Bytes(positive.Select(VectorMath.Log))),
            ("tanh", InstructionSets.Bytes(normal.Select(VectorMath.Tanh))),
            ("sigmoid", InstructionSets.Bytes(normal.Select(VectorMath.Sigmoid))),
            ("sums", InstructionSets.Bytes([VectorMath.Sum(normal), VectorMath.Dot(normal, dropped), VectorMath.SumOfSquares(normal), VectorMath.Max(normal)])),
            ("sum of squares", BitConverter.GetBytes(VectorMath.SumOfSquaresDouble(normal))),
            ("dropout", InstructionSets.Bytes(dropped)),
            ("double", MemoryMarshal.AsBytes<double>(doubles.Where(v => !double.IsNaN(v)).ToArray()).ToArray()),
        ]);
    }
}
