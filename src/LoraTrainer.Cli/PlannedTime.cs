using System.Globalization;
using LoraTrainer.Costs.Estimates;
using LoraTrainer.Costs.Prices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.Cli;

/// <summary>Where planned work meets the speeds of devices: the plan knows operations and bytes, the estimates know rates.</summary>
internal static class PlannedTime
{
    private const string CpuInfo = "/proc/cpuinfo";

    /// <summary>How rows of measurements name a processor: with another one, other threads or another instruction set a run takes another time.</summary>
    /// <param name="threads">That compute.</param>
    public static string ProcessorName(int threads)
    {
        var facts = new Dictionary<string, string>(StringComparer.Ordinal);
        if (File.Exists(CpuInfo))
        {
            foreach (string[] parts in File.ReadLines(CpuInfo).TakeWhile(line => line.Length > 0).Select(line => line.Split(':', 2, StringSplitOptions.TrimEntries)))
            {
                facts.TryAdd(parts[0], parts.Length > 1 ? parts[1] : "");
            }
        }

        string model = facts.TryGetValue("model name", out string? name)
            ? $"{name} (family {facts.GetValueOrDefault("cpu family", "?")} model {facts.GetValueOrDefault("model", "?")} stepping {facts.GetValueOrDefault("stepping", "?")})"
            : System.Runtime.InteropServices.RuntimeInformation.ProcessArchitecture.ToString();
        return string.Create(CultureInfo.InvariantCulture, $"{model}, {Quantities.Count(threads, "thread")}, {CpuDevice.InstructionSet}");
    }

    /// <summary>The yardstick of a processor.</summary>
    public static DeviceRates ProcessorRates(int threads) => new(UsualSpeeds.ProcessorThread.FlopsPerSecond * threads, UsualSpeeds.ProcessorThread.BytesPerSecond * threads);

    /// <summary>The rates of a GPU; null where no source says them.</summary>
    public static DeviceRates? RatesOf(Gpu gpu) => gpu is { Bf16Teraflops: { } flops, GigabytesPerSecond: { } bytes } ? new DeviceRates((double)flops * 1e12, (double)bytes * 1e9) : null;

    /// <summary>The least time of some operations.</summary>
    public static RooflineTime Of(IEnumerable<DeviceWork> work, in DeviceRates rates)
    {
        double products = 0, attention = 0, expansion = 0, memory = 0, operations = 0;
        foreach (DeviceWork item in work)
        {
            double seconds = rates.Seconds(item.Flops, item.Bytes) * item.Count;
            operations += item.Count;
            switch (item.Kind)
            {
                case WorkKind.Product:
                    products += seconds;
                    break;
                case WorkKind.Attention:
                    attention += seconds;
                    break;
                case WorkKind.Expansion:
                    expansion += seconds;
                    break;
                default:
                    memory += rates.Seconds(0, item.Bytes) * item.Count;
                    break;
            }
        }

        return new RooflineTime(products, attention, expansion, memory, operations);
    }

    /// <summary>The least time of a mean optimizer step.</summary>
    public static RooflineTime StepOf(WorkPlan work, in DeviceRates rates) => (Of(work.MicroBatch, rates) * ((double)work.Batches.Count / work.Steps)) + Of(work.Update, rates);

    /// <summary>
    /// The least time of all evaluations. A model that is not trained yet seldom ends an answer before it is cut off; one that is gives answers about as
    /// long as those that are expected.
    /// </summary>
    public static RooflineTime EvaluationOf(WorkPlan work, EvaluationOptions options, in DeviceRates rates)
    {
        if (work.Evaluation is not { } evaluation)
        {
            return default;
        }

        RooflineTime loss = Of(evaluation.Loss, rates), always = loss + (Of(evaluation.Prompt, rates) * evaluation.Rows), token = Of(evaluation.Token, rates) * evaluation.Rows;
        RooflineTime before = always + (token * evaluation.LongestAnswer), after = always + (token * evaluation.ExpectedAnswer);

        // The one after the last step is the loss of the one after the training too.
        int during = Math.Max(0, work.EvaluationsDuring - (options.After ? 1 : 0));
        return (options.Before ? before : default) + (options.After ? after : default) + (loss * during);
    }

    /// <summary>How measurements name a device.</summary>
    /// <param name="selection">The device.</param>
    /// <param name="driverName">The GPU's name; null for a processor.</param>
    public static string NameOf(DeviceSelection selection, string? driverName) => driverName ?? ProcessorName(selection.Threads);

    /// <summary>What is known of a device's speed, and its yardstick; null where its rates are not known.</summary>
    /// <param name="selection">The device.</param>
    /// <param name="name">As <see cref="NameOf"/> has it.</param>
    /// <param name="gpus">Known GPUs.</param>
    /// <param name="calibration">What was measured.</param>
    public static (DeviceSpeed Speed, DeviceRates Rates)? SpeedOf(DeviceSelection selection, string name, GpuTable gpus, CalibrationFile calibration)
    {
        bool isGpu = selection.Platform == DevicePlatform.Cuda;
        DeviceRates? known = !isGpu ? ProcessorRates(selection.Threads) : gpus.OfDriver(name) is { } gpu ? RatesOf(gpu) : null;
        return known is { } rates ? (isGpu ? DeviceSpeed.OfGpu(calibration.RowsOf(name)) : DeviceSpeed.OfProcessor(calibration.RowsOf(name)), rates) : null;
    }

    /// <summary>The time of a run of so many steps.</summary>
    public static RunTime Of(TrainingConfig config, WorkPlan work, int steps, double readSeconds, double weightBytes, in DeviceRates rates, DeviceSpeed speed) =>
        speed.TimeOf(StepOf(work, rates) * steps, new RunWork(readSeconds, weightBytes, config.Quantization.LoadIn4Bit, EvaluationOf(work, config.Evaluation, rates)));

    /// <summary>Hours that a run which is about to begin is expected to take; null where its device's rates are not known.</summary>
    /// <param name="config">The run's.</param>
    /// <param name="expected">Its work.</param>
    /// <param name="gpus">Known GPUs.</param>
    /// <param name="calibration">What was measured.</param>
    public static double? HoursOf(TrainingConfig config, ExpectedRun expected, GpuTable gpus, CalibrationFile calibration)
    {
        string? gpu = expected.Device.Platform == DevicePlatform.Cuda && CudaDevice.TryDescribe(out CudaDeviceInfo? info, out _) ? info.Name : null;
        return SpeedOf(expected.Device, NameOf(expected.Device, gpu), gpus, calibration) is ({ } speed, { } rates)
            ? Of(config, expected.Work, expected.Work.Steps, expected.ReadSeconds, expected.WeightBytes, rates, speed).Hours
            : null;
    }

    /// <summary>What a finished run tells later plans; null where its device's rates are not known.</summary>
    /// <param name="config">The run's.</param>
    /// <param name="measured">What it measured.</param>
    /// <param name="gpus">Known GPUs.</param>
    public static CalibrationRow? RowOf(TrainingConfig config, RunMeasurement measured, GpuTable gpus)
    {
        bool isGpu = measured.Device == DevicePlatform.Cuda;
        string? gpuName = isGpu && CudaDevice.TryDescribe(out CudaDeviceInfo? info, out _) ? info.Name : null;
        DeviceRates? known = !isGpu ? ProcessorRates(measured.Threads) : gpuName is not null && gpus.OfDriver(gpuName) is { } gpu ? RatesOf(gpu) : null;
        if (known is not { } rates)
        {
            return null;
        }

        double Phase(TrainingPhase phase) => measured.PhaseSeconds.GetValueOrDefault(phase);
        return new CalibrationRow
        {
            Device = gpuName ?? ProcessorName(measured.Threads),
            Measured = TimeProvider.System.GetUtcNow(),
            Step = StepOf(measured.Work, rates),
            StepSeconds = measured.SecondsPerToken * measured.StepTokens,
            StepTokens = measured.StepTokens,
            Steps = measured.Steps,
            LoadBytes = measured.WeightBytes,
            LoadSeconds = Phase(TrainingPhase.Loading) + Phase(TrainingPhase.Quantizing),
            IsQuantized = config.Quantization.LoadIn4Bit,
            Evaluation = measured.IsWhole ? EvaluationOf(measured.Work, config.Evaluation, rates) : default,
            EvaluationSeconds = measured.IsWhole ? Phase(TrainingPhase.Evaluating) : 0,
        };
    }
}
