using LoraTrainer.Engine.Devices;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Evaluation;
using Xunit;

namespace LoraTrainer.Training.Tests.Evaluation;

public sealed class TextGeneratorPlanTests
{
    /// <summary>With many threads and wide layers the workspace of a single token may be larger than that of a short prompt.</summary>
    [Theory]
    [InlineData(1, 1, 160)]
    [InlineData(1, 2, 160)]
    [InlineData(2, 5, 28672)]
    [InlineData(2, 5, 28700)]
    [InlineData(40, 5, 28672)]
    public void Measure_ForManyThreads_IsWhatGeneratingTakes(int promptTokens, int newTokens, int intermediateSize)
    {
        ModelConfig shape = TinyRun.Shape with { IntermediateSize = intermediateSize };
        using var planned = new MeasureDevice(threadCount: 96);
        using var run = new MeasureDevice(threadCount: 96);
        TextGenerator.Measure(ModelLoader.LoadFrozen(shape, null, planned, BaseFormat.Nf4DoubleQuantized), promptTokens, newTokens);
        new TextGenerator(ModelLoader.LoadFrozen(shape, null, run, BaseFormat.Nf4DoubleQuantized), []).Generate(new int[promptTokens], new SamplingOptions { MaxNewTokens = newTokens }, cancellation: TestContext.Current.CancellationToken);
        Assert.Equal(run.Arena.HighWaterBytes, planned.Arena.HighWaterBytes);
    }
}
