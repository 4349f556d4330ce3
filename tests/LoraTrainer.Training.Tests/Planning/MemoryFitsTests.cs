using LoraTrainer.Engine.Devices;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;
using Xunit;

namespace LoraTrainer.Training.Tests.Planning;

public sealed class MemoryFitsTests : IDisposable
{
    private readonly TemporaryFolder folder = new();

    public MemoryFitsTests()
    {
        TinyRun.WriteBase(folder.File("base"));
        TinyRun.WriteData(folder.File("train.jsonl"), rows: 43);
    }

    public void Dispose() => folder.Dispose();

    /// <summary>Against the steps themselves, cut as the trainer cuts them.</summary>
    [Theory]
    [InlineData(false, 1)]
    [InlineData(false, 3)]
    [InlineData(true, 2)]
    [InlineData(true, 8)]
    public void Cut_IsWhatTheTrainerDoes(bool packed, int microBatchSize)
    {
        TrainingConfig config = Config(("sample_packing", packed ? "true" : "false"), ("micro_batch_size", microBatchSize), ("gradient_accumulation_steps", 2));
        using RunInputs inputs = RunInputs.Read(config, SilentObserver.Instance, TestContext.Current.CancellationToken);
        TrainingData data = inputs.Data!;
        MicroBatches cut = inputs.Cut(microBatchSize)!.Value;
        long tokens = 0, batches = 0;
        double squares = 0;
        for (int step = 0; step < data.Order.TotalSteps; step++)
        {
            IReadOnlyList<int[]> bins = data.Order.BinsOf(step);
            batches += (bins.Count + microBatchSize - 1) / microBatchSize;
            foreach (int row in bins.SelectMany(bin => bin))
            {
                tokens += data.Train.Length(row);
                squares += Math.Pow(data.Train.Length(row), 2);
            }
        }

        Assert.Equal(LargestMicroBatch.Of(config, data).Tokens, cut.LargestTokens);
        Assert.Equal((batches, tokens), (cut.Count, inputs.Tokens!.Value));
        Assert.Equal((double)tokens / batches, cut.MeanTokens, 9);
        Assert.Equal(squares / tokens, StepBins.Of(data).DocumentTokens, 9);
        Assert.Equal(data.Order.TotalSteps, inputs.Steps);
    }

    /// <summary>The largest that fits: it does, and the next one does not. The global batch stays.</summary>
    [Fact]
    public void Of_FindsTheLargestMicroBatch()
    {
        using RunInputs inputs = RunInputs.Read(Config(), SilentObserver.Instance, TestContext.Current.CancellationToken);
        var fits = new MemoryFits(inputs);
        long[] sizes = [1, 2, 4, 8];
        long[] bytes = [.. sizes.Select(size => inputs.Memory(inputs.Config, fits.Device, inputs.Cut((int)size)!.Value.LargestTokens).ArenaBytes)];
        Assert.Equal(bytes.Order(), bytes);
        for (int i = 0; i < sizes.Length; i++)
        {
            MemoryFit fit = fits.Of(bytes[i])!;
            Assert.Equal((sizes[i], 8 / sizes[i], bytes[i]), (fit.Config.Batch.MicroBatchSize, fit.Config.Batch.GradientAccumulationSteps, fit.Memory.ArenaBytes));
            Assert.Equal(i == 0 ? null : (int?)sizes[i - 1], fits.Of(bytes[i] - 1)?.Config.Batch.MicroBatchSize);
        }

        Assert.Equal(8, fits.Of(long.MaxValue / 8)!.Config.Batch.MicroBatchSize);
        Assert.Equal(2, inputs.Config.Batch.MicroBatchSize);
    }

    /// <summary>For every amount of memory that decides: what is found fits, and nothing that costs less speed does.</summary>
    [Fact]
    public void WithSwitches_TakesThoseThatCostLeastSpeed()
    {
        TinyRun.WriteBase(folder.File("base"), shape: TinyRun.Shape with { TieWordEmbeddings = false, NumHiddenLayers = 6 });
        using RunInputs inputs = RunInputs.Read(Config(("lora_r", 32)), SilentObserver.Instance, TestContext.Current.CancellationToken);
        var fits = new MemoryFits(inputs);
        int tokens = inputs.Cut(1)!.Value.LargestTokens;
        IReadOnlyList<IReadOnlyList<MemorySwitch>> sets = MemorySwitches.Sets(inputs.Config, inputs.Shape);
        long[] bytes = [.. sets.Select(set => inputs.Memory(set.Aggregate(inputs.Config, (config, one) => one.Apply(config)), fits.Device, tokens).Memory.DeviceBytes)];
        Assert.Equal(2 * 2 * 2 * 2 * 3 - 1, sets.Count);
        Assert.Equal(sets.Select(Slowdown).Order(), sets.Select(Slowdown));
        foreach (long memory in bytes.SelectMany(least => (long[])[least, least - 1]).Distinct())
        {
            foreach (bool exactly in (bool[])[false, true])
            {
                int first = Array.FindIndex([.. bytes.Zip(sets)], pair => pair.First <= memory && (!exactly || pair.Second.All(one => one.IsExact)));
                MemoryFit? fit = fits.WithSwitches(memory, exactly);
                Assert.Equal(first < 0 ? null : sets[first].Select(one => one.Words), fit?.Switches);
                Assert.True(fit is null || (fit.Memory.Memory.DeviceBytes <= memory && fit.Config.Batch.GlobalBatchSize == inputs.Config.Batch.GlobalBatchSize));
            }
        }

        Assert.Contains(bytes, memory => fits.WithSwitches(memory)!.Switches is ["embeddings: host"]);
        Assert.Equal(5, fits.WithSwitches(bytes.Min())!.Switches.Count);
        Assert.Contains("gradient_checkpointing: offload", fits.WithSwitches(bytes.Min())!.Switches);
        Assert.True(fits.LeastOfFullTraining().ArenaBytes > bytes.Max());

        static double Slowdown(IReadOnlyList<MemorySwitch> set) => set.Sum(one => one.Slowdown);
    }

    /// <summary>What is offered is what a config may have: each set is written into one, which is read without a complaint and planned the same.</summary>
    [Theory]
    [InlineData(true, "load_in_4bit", 7)]
    [InlineData(false, "load_in_4bit", 31)]
    [InlineData(false, "load_in_8bit", 31)]
    public void Sets_AreConfigsThatCanBeWritten(bool isTied, string quantization, int count)
    {
        TinyRun.WriteBase(folder.File("base"), shape: TinyRun.Shape with { TieWordEmbeddings = isTied });
        (string, object?)[] details = quantization == "load_in_4bit" ? [("bnb_config_kwargs", "{bnb_4bit_use_double_quant: false}")] : [];
        (string, object?)[] quantized = [(quantization, "true"), .. details, ("gradient_checkpointing", "true"), ("optimizer", "paged_adamw_32bit")];
        using RunInputs inputs = RunInputs.Read(Config(quantized), SilentObserver.Instance, TestContext.Current.CancellationToken);
        IReadOnlyList<IReadOnlyList<MemorySwitch>> sets = MemorySwitches.Sets(inputs.Config, inputs.Shape);
        Assert.Equal(count, sets.Count);
        DeviceSelection gpu = new(DevicePlatform.Cuda, 1, null);
        foreach (IReadOnlyList<MemorySwitch> set in sets)
        {
            TrainingConfig written = ConfigurationLoader.LoadText(TinyRun.Config(folder.Path, quantized), "tiny.yaml", [.. set.SelectMany(one => one.Keys).Select(key => key.Replace(": ", "=", StringComparison.Ordinal))]).Require();
            TrainingConfig applied = set.Aggregate(inputs.Config, (config, one) => one.Apply(config));
            Assert.Equal(inputs.Memory(applied, gpu, 64).Memory, inputs.Memory(written, gpu, 64).Memory);
        }
    }

    /// <summary>The work of a whole step does not depend on how it is cut, as far as tokens go; what each micro-batch does once, does.</summary>
    [Fact]
    public void Work_OfLargerMicroBatches_IsTheSameFlopsInFewerOperations()
    {
        using RunInputs inputs = RunInputs.Read(Config(), SilentObserver.Instance, TestContext.Current.CancellationToken);
        DeviceSelection cpu = new(DevicePlatform.Cpu, 1, null);
        (double Flops, double Operations) Step(int size)
        {
            WorkPlan work = inputs.Work(inputs.Config, cpu, size);
            double perStep = (double)work.Batches.Count / work.Steps;
            return (work.MicroBatch.Where(item => item.Kind == WorkKind.Product).Sum(item => item.Flops * item.Count) * perStep, work.MicroBatch.Sum(item => item.Count) * perStep);
        }

        (double flops, double operations) = Step(1);
        (double flopsOfFour, double operationsOfFour) = Step(4);
        Assert.InRange(flopsOfFour / flops, 0.95, 1.05);
        Assert.InRange(operations / operationsOfFour, 3, 4.5);
    }

    [Fact]
    public void WithoutData_SequencesAreFull_AndHoursNeedMaxSteps()
    {
        File.Delete(folder.File("train.jsonl"));
        using RunInputs unknown = RunInputs.Read(Config(), SilentObserver.Instance, TestContext.Current.CancellationToken);
        using RunInputs counted = RunInputs.Read(Config(("max_steps", 5)), SilentObserver.Instance, TestContext.Current.CancellationToken);

        Assert.Null(unknown.Tokens);
        Assert.Null(unknown.TokensOrFull);
        Assert.Equal(new MicroBatches(2, 128, 4, 128), unknown.Cut(2));
        Assert.Null(counted.Tokens);
        Assert.Equal(5 * 8 * 64, counted.TokensOrFull);
        Assert.Null(unknown.Cut(int.MaxValue));
    }

    private TrainingConfig Config(params (string Key, object? Value)[] changes) => ConfigurationLoader.LoadText(TinyRun.Config(folder.Path, changes), "tiny.yaml", []).Require();
}
