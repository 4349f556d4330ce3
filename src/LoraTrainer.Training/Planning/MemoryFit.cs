using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Planning;

/// <summary>A way to run a training within some memory.</summary>
/// <param name="Config">The run's config with the switches and the micro-batch size that fit; the global batch is the same.</param>
/// <param name="Memory">What it takes.</param>
/// <param name="Switches">What differs from the run's config beside the micro-batch size, as it is written there; empty: nothing.</param>
public sealed record MemoryFit(TrainingConfig Config, MemoryPlan Memory, IReadOnlyList<string> Switches);

/// <summary>
/// Finds how a run fits into the memory of other GPUs, by really planning each way. Plans are kept: GPUs are many, and what they are asked for is the same.
/// </summary>
/// <param name="inputs">Of the run.</param>
public sealed class MemoryFits(RunInputs inputs)
{
    private readonly DeviceSelection gpu = DeviceSelection.ForPlan(DeviceChoice.Cuda, inputs.Config.Device.Threads);
    private readonly Dictionary<(TrainingConfig Config, int Tokens), MemoryPlan> plans = [];
    private readonly Dictionary<TrainingConfig, WorkPlan> works = [];
    private IReadOnlyList<IReadOnlyList<MemorySwitch>>? switchSets;

    /// <summary>The GPU that is planned for.</summary>
    public DeviceSelection Device => gpu;

    /// <summary>The run as it is, with the largest micro-batch that fits and divides the global batch; null where none does.</summary>
    /// <param name="memoryBytes">Of the device.</param>
    public MemoryFit? Of(long memoryBytes) => Largest(inputs.Config, memoryBytes, []);

    /// <summary>All parameters trained, without adapter and quantization; null where it does not fit.</summary>
    /// <param name="memoryBytes">Of the device.</param>
    public MemoryFit? OfFullTraining(long memoryBytes) => Largest(Full, memoryBytes, ["adapter: none"]);

    /// <summary>The least that training all parameters needs, with a micro-batch of one sequence.</summary>
    public MemoryPlan LeastOfFullTraining() => Plan(Full, inputs.Cut(1)!.Value.LargestTokens);

    /// <summary>The run with those switches that make it fit and cost least speed; null where none do.</summary>
    /// <param name="memoryBytes">Of the device.</param>
    /// <param name="exactly">Only with switches that leave every bit of the result as it is.</param>
    public MemoryFit? WithSwitches(long memoryBytes, bool exactly = false)
    {
        if (inputs.Cut(1) is not { LargestTokens: var tokens })
        {
            return null;
        }

        switchSets ??= MemorySwitches.Sets(inputs.Config, inputs.Shape);
        foreach (IReadOnlyList<MemorySwitch> set in switchSets.Where(set => !exactly || set.All(one => one.IsExact)))
        {
            TrainingConfig config = set.Aggregate(inputs.Config, (config, one) => one.Apply(config));
            if (Plan(config, tokens).Memory.DeviceBytes <= memoryBytes)
            {
                return Largest(config, memoryBytes, [.. set.SelectMany(one => one.Keys)]);
            }
        }

        return null;
    }

    /// <summary>The work of a run that fits.</summary>
    public WorkPlan WorkOf(MemoryFit fit)
    {
        if (!works.TryGetValue(fit.Config, out WorkPlan? work))
        {
            work = inputs.Work(fit.Config, gpu, fit.Config.Batch.MicroBatchSize);
            works.Add(fit.Config, work);
        }

        return work;
    }

    /// <summary>With plain AdamW, whatever the run has: what full training is usually compared by.</summary>
    private TrainingConfig Full => inputs.Config with
    {
        Adapter = inputs.Config.Adapter with { Kind = AdapterKind.None },
        Quantization = new QuantizationOptions(),
        Optimizer = inputs.Config.Optimizer with { Kind = OptimizerKind.AdamW },
    };

    /// <summary>Memory grows with the micro-batch, so halving finds the largest that fits.</summary>
    private MemoryFit? Largest(TrainingConfig config, long memoryBytes, IReadOnlyList<string> switches)
    {
        long[] sizes = [.. Divisors(config.Batch.GlobalBatchSize)];
        int least = -1, above = sizes.Length;
        MemoryPlan? best = null;
        while (above - least > 1)
        {
            int middle = (least + above) / 2;
            MemoryPlan? plan = inputs.Cut((int)sizes[middle]) is { } batches ? Plan(config, batches.LargestTokens) : null;
            if (plan?.Memory.DeviceBytes <= memoryBytes)
            {
                best = plan;
                least = middle;
            }
            else
            {
                above = middle;
            }
        }

        return best is null ? null : new MemoryFit(
            config with { Batch = config.Batch with { MicroBatchSize = (int)sizes[least], GradientAccumulationSteps = (int)(config.Batch.GlobalBatchSize / sizes[least]) } }, best, switches);
    }

    private MemoryPlan Plan(TrainingConfig config, int tokens)
    {
        if (!plans.TryGetValue((config, tokens), out MemoryPlan? plan))
        {
            plan = inputs.Memory(config, gpu, tokens);
            plans.Add((config, tokens), plan);
        }

        return plan;
    }

    /// <summary>Ascending.</summary>
    private static IEnumerable<long> Divisors(long number)
    {
        var large = new Stack<long>();
        for (long divisor = 1; divisor * divisor <= number; divisor++)
        {
            if (number % divisor == 0)
            {
                yield return divisor;
                if (divisor != number / divisor)
                {
                    large.Push(number / divisor);
                }
            }
        }

        foreach (long divisor in large)
        {
            yield return divisor;
        }
    }
}
