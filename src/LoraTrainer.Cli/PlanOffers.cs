using LoraTrainer.Costs.Estimates;
using LoraTrainer.Costs.Prices;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Interruptions;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.Cli;

/// <summary>A run's time on the device that its config names.</summary>
/// <param name="Device">The processor or the GPU; null where it is a GPU that is not here.</param>
/// <param name="Speed">What is known of it; null where nothing is.</param>
/// <param name="TokensPerSecond">While it trains; null likewise.</param>
/// <param name="Time">Null likewise, and where the run's tokens are not known.</param>
/// <param name="WhyNot">Why there is no time; null where there is one.</param>
internal sealed record LocalTime(string? Device, DeviceSpeed? Speed, double? TokensPerSecond, RunTime? Time, string? WhyNot);

/// <summary>What the run costs elsewhere.</summary>
/// <param name="Offers">In the order that was asked for.</param>
/// <param name="Notes">What was left out and why, a sentence each.</param>
internal sealed record OfferTable(IReadOnlyList<Offer> Offers, IReadOnlyList<string> Notes);

/// <summary>All parameters of the same model trained.</summary>
/// <param name="Bytes">That a GPU must have at least, with a micro-batch of one sequence.</param>
/// <param name="Best">The first of the offers on which it fits; null where it fits on none.</param>
internal sealed record FullTraining(long Bytes, Offer? Best);

/// <summary>Plans a run on each GPU that has a price.</summary>
internal sealed class PlanOffers(RunInputs inputs, PriceTable prices, GpuTable gpus, CalibrationFile calibration)
{
    /// <summary>Assumed where nothing else is known: what a spot machine takes until it is replaced and paid for again, beside starting and loading.</summary>
    public const double ReplacementSeconds = 180;

    // A checkpoint is written to the local disk while the steps wait: adapters and two moments in f32.
    private const double SaveBytesPerSecond = 200e6;
    private const double LeastSaveSeconds = 0.5;

    private readonly MemoryFits fits = new(inputs);
    private readonly Dictionary<string, DeviceSpeed> speeds = new(StringComparer.Ordinal);

    /// <summary>The run where it is planned for.</summary>
    /// <param name="selection">Its device.</param>
    /// <param name="driverName">The GPU's name; null for a processor, or where there is none.</param>
    public LocalTime Here(DeviceSelection selection, string? driverName)
    {
        bool isGpu = selection.Platform == Engine.Devices.DevicePlatform.Cuda;
        if (isGpu && driverName is null)
        {
            return new LocalTime(null, null, null, null, "the plan is for a GPU, and there is none here");
        }

        string device = PlannedTime.NameOf(selection, driverName);
        if (PlannedTime.SpeedOf(selection, device, gpus, calibration) is not ({ } speed, { } rates))
        {
            return new LocalTime(device, null, null, null, $"the rates of {device} are not known; a row in your gpus.csv tells them");
        }

        (double perSecond, RunTime? time) = TimeOf(inputs.Config, inputs.Work(inputs.Config, selection, inputs.Config.Batch.MicroBatchSize), rates, speed);
        return new LocalTime(device, speed, perSecond, time, time is null ? "the run's tokens are not known" : null);
    }

    /// <summary>The run in the memory of a GPU, with a smaller micro-batch or with switches where it takes those.</summary>
    /// <param name="memoryBytes">That is free.</param>
    /// <returns>The way that costs least speed, null where nothing makes it fit; and where that rounds anything otherwise, one that does not, null where there is none.</returns>
    public (MemoryFit? Fit, MemoryFit? Exact) Within(long memoryBytes) => fits.Of(memoryBytes) is { } fit ? (fit, null) : Switched(memoryBytes);

    /// <summary>Every price that is looked at.</summary>
    public OfferTable Of(OfferFilter filter)
    {
        var offers = new List<Offer>();
        var unknown = new SortedSet<string>(StringComparer.Ordinal);
        foreach (Price price in prices.Prices.Where(filter.Takes))
        {
            if (gpus.Named(price.Gpu) is { } gpu)
            {
                offers.Add(OfferFor(price, gpu, full: false));
            }
            else
            {
                unknown.Add(price.Gpu);
            }
        }

        return new OfferTable(filter.Apply(offers), [.. Notes(offers, unknown, filter)]);
    }

    /// <summary>Training all parameters on the same offers.</summary>
    public FullTraining Full(OfferFilter filter)
    {
        long bytes = fits.LeastOfFullTraining().ArenaBytes;
        IEnumerable<Offer> offers = prices.Prices.Where(filter.Takes).Select(price => gpus.Named(price.Gpu) is { } gpu ? OfferFor(price, gpu, full: true) : null).OfType<Offer>().Where(offer => offer.Fits);
        return new FullTraining(bytes, filter.Apply(offers) is [var best, ..] ? best : null);
    }

    private Offer OfferFor(Price price, Gpu gpu, bool full)
    {
        MemoryFit? fit = full ? fits.OfFullTraining(gpu.UsableBytes) : fits.Of(gpu.UsableBytes);
        if (fit is null)
        {
            (MemoryFit? switched, MemoryFit? exact) = full ? default : Switched(gpu.UsableBytes);
            return new Offer
            {
                Price = price,
                Gpu = gpu,
                Fits = false,
                FitsWith = switched?.Switches ?? [],
                FitsExactlyWith = exact?.Switches ?? [],
                MicroBatchSize = switched?.Config.Batch.MicroBatchSize,
                ExactMicroBatchSize = exact?.Config.Batch.MicroBatchSize,
            };
        }

        int size = fit.Config.Batch.MicroBatchSize;
        if (PlannedTime.RatesOf(gpu) is not { } rates)
        {
            return new Offer { Price = price, Gpu = gpu, Fits = true, MicroBatchSize = size };
        }

        (double perSecond, RunTime? time) = TimeOf(fit.Config, fits.WorkOf(fit), rates, SpeedOf(gpu));
        return new Offer
        {
            Price = price,
            Gpu = gpu,
            Fits = true,
            MicroBatchSize = size,
            TokensPerSecond = perSecond,
            Time = time,
            Spot = price.Pricing == PricingModel.Spot ? SpotOf(fit, time, perSecond) : null,
        };
    }

    private (MemoryFit? Fit, MemoryFit? Exact) Switched(long memoryBytes)
    {
        MemoryFit? fit = fits.WithSwitches(memoryBytes), exact = fit is null ? null : fits.WithSwitches(memoryBytes, exactly: true);
        return (fit, exact is null || exact.Switches.SequenceEqual(fit!.Switches) ? null : exact);
    }

    /// <summary>What was measured on a GPU of this model, whoever rented it out.</summary>
    private DeviceSpeed SpeedOf(Gpu gpu)
    {
        if (!speeds.TryGetValue(gpu.Name, out DeviceSpeed? speed))
        {
            speed = DeviceSpeed.OfGpu([.. gpu.DriverNames.SelectMany(calibration.RowsOf)]);
            speeds.Add(gpu.Name, speed);
        }

        return speed;
    }

    private (double TokensPerSecond, RunTime? Time) TimeOf(TrainingConfig config, WorkPlan work, in DeviceRates rates, DeviceSpeed speed)
    {
        RooflineTime step = PlannedTime.StepOf(work, rates);
        double stepTokens = work.Batches.MeanTokens * work.Batches.Count / work.Steps;
        double perSecond = stepTokens / speed.Model.Seconds(step);
        return (perSecond, inputs.Steps is { } steps ? PlannedTime.Of(config, work, steps, inputs.ReadSeconds, inputs.WeightBytes, rates, speed) : null);
    }

    /// <summary>Saves as the config asks for them, or as often as loses least; interruptions as often as is assumed of spot machines.</summary>
    private SpotTerms SpotOf(MemoryFit fit, RunTime? time, double tokensPerSecond)
    {
        CheckpointOptions checkpoint = fit.Config.Checkpoint;
        TimeSpan between = SaveIntervals.MeanBetweenInterruptions(0, 0);
        TimeSpan save = TimeSpan.FromSeconds(LeastSaveSeconds + (3.0 * sizeof(float) * fit.Memory.TrainableParameters / SaveBytesPerSecond));
        double stepSeconds = fits.WorkOf(fit) is var work ? work.Batches.MeanTokens * work.Batches.Count / work.Steps / tokensPerSecond : 0;
        double fixedSeconds = Math.Min(
            checkpoint.EveryMinutes > 0 ? checkpoint.EveryMinutes * 60 : double.PositiveInfinity,
            checkpoint.EverySteps > 0 ? checkpoint.EverySteps * stepSeconds : double.PositiveInfinity);
        double interval = checkpoint.Interval == CheckpointInterval.Fixed && double.IsFinite(fixedSeconds) ? fixedSeconds : SaveIntervals.Daly(save, between).TotalSeconds;
        return new SpotTerms(
            SaveIntervals.Overhead(TimeSpan.FromSeconds(Math.Max(interval, save.TotalSeconds)), save, between),
            between.TotalHours,
            ReplacementSeconds + (time is { } known ? known.Start + known.Load : 0));
    }

    private static IEnumerable<string> Notes(IReadOnlyList<Offer> offers, SortedSet<string> unknown, OfferFilter filter)
    {
        if (unknown.Count > 0)
        {
            yield return $"{string.Join(", ", unknown)}: there are prices for {(unknown.Count == 1 ? "this GPU" : "these GPUs")}, but memory and rates are not known. A row in your gpus.csv tells them.";
        }

        string[] untimed = [.. offers.Where(offer => offer is { Fits: true, TokensPerSecond: null }).Select(offer => offer.Gpu.Name).Distinct().Order(StringComparer.Ordinal)];
        if (untimed.Length > 0)
        {
            yield return $"{string.Join(", ", untimed)}: no source was found for a rate, so the memory is planned and the time is not. A row in your gpus.csv tells it.";
        }

        if (filter.Budget is { } budget && offers.Select(offer => offer.Price.Amount.Currency).Where(currency => currency != budget.Currency).Distinct().Order(StringComparer.Ordinal).ToArray() is { Length: > 0 } others)
        {
            yield return $"--budget is in {budget.Currency}: offers in {string.Join(", ", others)} are left out, since there is no exchange rate.";
        }

        if (offers.Select(offer => offer.Price.Amount.Currency).Distinct().Count() > 1 && !filter.FastestFirst && filter.Budget is null)
        {
            yield return "Prices are in several currencies. They are not compared with each other: each currency has its own order.";
        }
    }
}
