using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using LoraTrainer.Costs;
using LoraTrainer.Costs.Estimates;
using LoraTrainer.Costs.Prices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Training;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Says what a run will need, take and cost, here and elsewhere. Opens no device; a GPU is asked for its name and its free memory.</summary>
internal static class PlanVerb
{
    private const string XiaModel = "xia";

    private const string Examples = """
        Examples:
          lora-trainer plan my.yaml
          lora-trainer plan my.yaml --budget 20 --max-hours 8 --sort fastest
          lora-trainer plan my.yaml --gpu H100 --all --compare
          lora-trainer plan my.yaml --set load_in_4bit=false --set adapter=lora
          lora-trainer plan my.yaml --set base_model=shapes/8b      a folder with nothing but config.json is enough
          lora-trainer plan --model xia                             the model of Xia et al. and its published figures
          lora-trainer plan --model xia --fit rows.csv              the same, fitted to your own measurements

        The memory is that of the arena of a real run, to the byte: the same code lays it out. Without data or tokenizer, tokens and steps are not known.
        The time is computed from the operations of that code and the rates of the device, and from what earlier runs on the device took: each finished train
        adds a row to --calibration, else LT_CALIBRATION, else calibration.jsonl in your data folder. Prices and rates of GPUs are data files that yours come
        before: LT_PRICES and LT_GPUS, else prices.csv and gpus.csv in ~/.config/lora-trainer.
        Exit code: 0 also where the plan does not fit this machine.
        """;

    private static readonly Argument<string> Configuration = new("CONFIG") { Description = "The configuration, a YAML file; not for --model xia.", Arity = ArgumentArity.ZeroOrOne };
    private static readonly Option<string> Model = new("--model") { Description = "xia: the analytical model of Xia et al. instead of a plan of CONFIG.", HelpName = "NAME" };
    private static readonly Option<string> Fit = new("--fit") { Description = "With --model xia: your own measured rows, a CSV file.", HelpName = "ROWS.csv" };
    private static readonly Option<string[]> Figure = new("--figure") { Description = "With --model xia: a figure of its own instead of the published one, as often as needed: --figure gpu_gb=24 --figure seq_len=512", HelpName = "name=value" };
    private static readonly Option<string> GpuName = new("--gpu") { Description = "Only GPUs whose name contains this.", HelpName = "NAME" };
    private static readonly Option<string> Provider = new("--provider") { Description = "Only this provider.", HelpName = "NAME" };
    private static readonly Option<string> Budget = new("--budget") { Description = "Only offers that cost no more, in cost.currency.", HelpName = "AMOUNT" };
    private static readonly Option<string> MaxHours = new("--max-hours") { Description = "Only offers that take no longer.", HelpName = "HOURS" };
    private static readonly Option<string> Sort = new("--sort") { Description = "cheapest (the default) or fastest first." };
    private static readonly Option<bool> All = new("--all") { Description = "Show all offers that fit." };
    private static readonly Option<bool> Compare = new("--compare") { Description = "Draw the offers as bars." };
    private static readonly Option<string> Calibration = new("--calibration") { Description = "What earlier runs measured, a file.", HelpName = "FILE" };

    public static Verb Create()
    {
        Model.OneOf(XiaModel);
        Sort.OneOf("cheapest", "fastest");
        return new Verb("plan", "Tell memory, time and money of a run before it starts.", Examples)
        {
            Configuration, CommandLine.Set, GpuName, Provider, Budget, MaxHours, Sort, All, Compare, Calibration, Model, Fit, Figure,
        }.WithWork(context => Task.FromResult(Run(context)));
    }

    private static ExitCode Run(VerbContext context)
    {
        ParseResult arguments = context.Arguments;
        string? path = arguments.GetValue(Configuration);
        if (arguments.GetValue(Model) is not null)
        {
            return path is null
                ? XiaPlan.Run(context.Terminal, arguments.GetValue(Fit), arguments.GetValue(Figure) ?? [])
                : throw new TrainingSetupException($"--model xia plans no configuration, got {path}. Leave one of them out.");
        }

        return path is not null && arguments.GetValue(Fit) is null && arguments.GetValue(Figure) is not { Length: > 0 }
            ? Run(context, path)
            : throw new TrainingSetupException(path is null ? "plan needs a configuration: lora-trainer plan my.yaml. Only --model xia does without." : "--fit and --figure belong to --model xia.");
    }

    private static ExitCode Run(VerbContext context, string path)
    {
        Terminal terminal = context.Terminal;
        ConfigurationResult result = ConfigurationLoader.LoadFile(path, context.Settings);
        terminal.Remarks(result);

        // What this build cannot run yet can be planned all the same.
        foreach (ConfigurationIssue issue in result.Errors.Where(issue => issue.Kind == ConfigurationIssueKind.NotSupportedYet))
        {
            terminal.Warn(issue.Message);
        }

        bool plannable = result.Config is not null && result.Errors.All(issue => issue.Kind == ConfigurationIssueKind.NotSupportedYet);
        TrainingConfig config = plannable ? result.Config! : result.Require();
        OfferFilter filter = FilterOf(context.Arguments, config);
        PriceTable prices = PriceTable.Load(UserFiles.Prices(null));
        GpuTable gpus = GpuTable.Load(UserFiles.Gpus(null));
        RequireKnown(GpuName, filter.Gpu, [.. prices.Prices.Select(price => price.Gpu), .. gpus.Gpus.Select(gpu => gpu.Name)], isPart: true);
        RequireKnown(Provider, filter.Provider, [.. prices.Prices.Select(price => price.Provider)], isPart: false);
        using RunInputs inputs = RunInputs.Read(config, new PlanObserver(terminal), context.Signals.Listen("Planning stops."));
        RunPlan plan = RunPlan.Of(inputs);
        foreach (string notice in inputs.Notices.Concat(TrainedModel.WithoutEffect(config, plan.Device.Platform)))
        {
            terminal.Note(notice);
        }

        CudaDeviceInfo? gpu = plan.Device.Platform == DevicePlatform.Cuda ? CudaDevice.Describe().Device : null;
        long? available = plan.Device.Platform == DevicePlatform.Cuda ? gpu?.FreeMemoryBytes : GC.GetGCMemoryInfo().TotalAvailableMemoryBytes;
        var offers = new PlanOffers(inputs, prices, gpus, new CalibrationFile(CalibrationFile.Locate(context.Arguments.GetValue(Calibration)), terminal.Warn));
        LocalTime here = offers.Here(plan.Device, gpu?.Name);
        Money? cost = here.Time is { } time && config.Cost.Rate is { } rate ? new Money(rate, config.Cost.Currency) * (decimal)Math.Min(time.Hours, 1e12) : null;
        OfferTable table = offers.Of(filter);
        FullTraining full = offers.Full(filter);
        IReadOnlyList<TuningService> services = TuningService.Shipped;
        DateOnly today = DateOnly.FromDateTime(TimeProvider.System.GetUtcNow().UtcDateTime);
        bool? fits = Fits(plan, available);
        (MemoryFit? Fit, MemoryFit? Exact) smaller = plan.Device.Platform == DevicePlatform.Cuda && fits == false ? offers.Within(available!.Value) : default;
        terminal.Result(Words(inputs, plan, ThisMachine(inputs, plan, available, fits, smaller), PlanPage.Lines(here, cost, config.Cost)));
        if (context.Arguments.GetValue(Compare))
        {
            PlanPage.Draw(terminal, table, services, inputs.TokensOrFull, filter);
        }
        else
        {
            terminal.Result(Environment.NewLine + PlanPage.Words(table, filter, context.Arguments.GetValue(All), today));
            terminal.Result(Environment.NewLine + PlanPage.Beside(inputs.TokensOrFull, services, config.Adapter.Kind == AdapterKind.None ? null : full));
        }

        terminal.Json(json =>
        {
            json.WriteStartObject();
            Write(json, inputs, plan, available, fits, smaller);
            PlanPage.Write(json, here, cost, table, inputs.TokensOrFull, services, full);
            json.WriteEndObject();
        });
        return ExitCode.Done;
    }

    private static OfferFilter FilterOf(ParseResult arguments, TrainingConfig config) => new()
    {
        Gpu = arguments.GetValue(GpuName),
        Provider = arguments.GetValue(Provider),
        Budget = Number(arguments, Budget, "an amount such as 20 or 12.50") is { } amount ? new Money(amount, config.Cost.Currency) : null,
        MaxHours = (double?)Number(arguments, MaxHours, "hours such as 8 or 0.5"),
        FastestFirst = arguments.GetValue(Sort) == "fastest",
    };

    /// <summary>A name that no price and no GPU has would pass for an offer that is too dear.</summary>
    private static void RequireKnown(Option<string> option, string? given, IReadOnlyList<string> names, bool isPart)
    {
        if (given is null || names.Any(name => isPart ? name.Contains(given, StringComparison.OrdinalIgnoreCase) : string.Equals(name, given, StringComparison.OrdinalIgnoreCase)))
        {
            return;
        }

        // Of H100-SXM and H100-PCIe both, H100 is what a slip was meant to be.
        string[] known = [.. names.Distinct(StringComparer.OrdinalIgnoreCase).Order(StringComparer.OrdinalIgnoreCase)];
        string meant = Suggestions.Nearest(given, isPart ? known.Concat(known.Select(name => name.Split('-')[0])) : known) is { } near ? $" Did you mean {near}?" : "";
        throw new TrainingSetupException($"{option.Name} must be {(isPart ? "a GPU or a part of its name" : "a provider")}, got '{given}'.{meant} Known are {string.Join(", ", known)}.");
    }

    private static decimal? Number(ParseResult arguments, Option<string> option, string expected) => arguments.GetValue(option) is not { } text ? null
        : decimal.TryParse(text, NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out decimal number) && number > 0 ? number
        : throw new TrainingSetupException($"{option.Name} must be above 0, got '{text}'. Expected {expected}.");

    private static string Words(RunInputs inputs, RunPlan plan, string thisMachine, IEnumerable<(string Name, string Value)> time)
    {
        CultureInfo culture = CultureInfo.InvariantCulture;
        TrainingConfig config = inputs.Config;
        MemoryPlan memory = plan.Memory;
        var lines = new List<(string Name, string Value)>
        {
            ("device", $"{Word(plan.Device.Platform)} ({plan.Device.Reason ?? "as the configuration says"})"),
            ("parameters", string.Create(culture, $"{memory.Parameters:#,0}{(config.Adapter.Kind == AdapterKind.None ? ", all of them trained" : $", frozen; {memory.TrainableParameters:#,0} more are trained")}")),
            ("memory", $"{Quantities.Bytes(memory.ArenaBytes)} for micro-batches of {Quantities.Count(plan.MicroBatchTokens, "token")}"),
        };
        lines.AddRange(memory.ByKind.Where(item => item.Value > 0).Select(item => ($"  {MemoryAdvice.Name(item.Key)}", Quantities.Bytes(item.Value))));
        bool isGpu = plan.Device.Platform == DevicePlatform.Cuda;
        if (isGpu)
        {
            lines.Add(("driver", $"up to {Quantities.Bytes(Gpu.DriverBytes)} of the GPU beside that, for its context and libraries{(config.Device.CudaGraphs == CudaGraphs.Off ? "" : "; what graphs take is not known, and without room for one the run goes on without it")}"));
        }

        if (memory.HostBytes > 0)
        {
            lines.Add(("on the host", $"{Quantities.Bytes(memory.HostBytes)} of page-locked memory, which the GPU reads"));
        }

        if (memory.PagedBytes > 0)
        {
            lines.Add(isGpu
                ? ("paged", $"{Quantities.Bytes(memory.PagedBytes)} of moments in managed memory, on the GPU while it updates")
                : ("on disk", $"{Quantities.Bytes(memory.PagedBytes)} of paged moments in {config.OutputDir}, while it trains"));
        }

        lines.Add(("this machine", thisMachine));
        lines.Add(("work", string.Create(culture, $"{memory.FlopsPerToken / 1e9:0.00} GFLOP a token, forward and backward")));
        lines.Add(("tokens", inputs.Tokens is { } tokens ? tokens.ToString("#,0", culture) : "not known"));
        lines.Add(("steps", inputs.Steps is { } steps ? steps.ToString("#,0", culture) : "not known"));
        lines.AddRange(time);
        int width = lines.Max(line => line.Name.Length) + 2;
        return string.Join(Environment.NewLine, lines.Select(line => line.Name.PadRight(width) + line.Value));
    }

    /// <summary>As it is configured; null where it is not known how much is free. On a CPU weights stream in through the same memory, on a GPU through the host's.</summary>
    private static bool? Fits(RunPlan plan, long? available) =>
        available is { } bytes ? (plan.Device.Platform == DevicePlatform.Cuda ? plan.Memory.Memory.DeviceBytes : plan.Memory.ArenaBytes + plan.HostBytes) <= bytes : null;

    private static string ThisMachine(RunInputs inputs, RunPlan plan, long? available, bool? fits, (MemoryFit? Fit, MemoryFit? Exact) smaller)
    {
        if (available is not { } bytes)
        {
            return "not compared: the memory is that of a GPU, and none here tells how much is free";
        }

        bool isGpu = plan.Device.Platform == DevicePlatform.Cuda;
        string has = isGpu ? $"{Quantities.Bytes(bytes)} of the GPU are free" : $"it has {Quantities.Bytes(bytes)}";
        return fits == true ? $"fits: {has}"
            : $"too small: {has}. {(smaller.Fit is { } fit ? PlanPage.Ways(fit, smaller.Exact) : $"Try {MemoryAdvice.Smaller(inputs.Config, inputs.Shape, isGpu)}")}{(isGpu ? "; device: cpu computes on the processor" : "")}";
    }

    private static string Word(DevicePlatform platform) => platform == DevicePlatform.Cuda ? "cuda" : "cpu";

    private static void Write(Utf8JsonWriter json, RunInputs inputs, RunPlan plan, long? available, bool? fits, (MemoryFit? Fit, MemoryFit? Exact) smaller)
    {
        json.WriteStartObject("device");
        json.WriteString("platform", Word(plan.Device.Platform));
        json.WriteString("reason", plan.Device.Reason);
        json.WriteNumberOrNull("available_bytes", available);
        json.WriteBooleanOrNull("fits", fits);
        PlanPage.WriteWays(json, smaller.Fit, smaller.Exact);
        json.WriteEndObject();
        json.WriteNumber("parameters", plan.Memory.Parameters);
        json.WriteNumber("trainable_parameters", plan.Memory.TrainableParameters);
        json.WriteStartObject("memory");
        json.WriteNumber("device_bytes", plan.Memory.ArenaBytes);
        json.WriteNumberOrNull("driver_bytes", plan.Device.Platform == DevicePlatform.Cuda ? Gpu.DriverBytes : null);
        json.WriteNumber("host_bytes", plan.HostBytes);
        json.WriteNumber("mapped_bytes", plan.Memory.PagedBytes);
        RunSummary.WriteByKind(json, plan.Memory.ByKind);
        json.WriteEndObject();
        json.WriteNumber("flops_per_token", plan.Memory.FlopsPerToken);
        json.WriteNumberOrNull("tokens", inputs.Tokens);
        json.WriteNumberOrNull("steps", inputs.Steps);
    }

    /// <summary>Passes on what the data tell; progress is not shown.</summary>
    private sealed class PlanObserver(Terminal terminal) : ITrainingObserver
    {
        public void OnProgress(in TrainingProgress progress)
        {
        }

        public void OnNotice(string sentence) => terminal.Note(sentence);

        public void OnWarning(string sentence) => terminal.Warn(sentence);

        public void OnEvaluation(EvaluationPoint point, bool isBest)
        {
        }

        public void OnSample(string prompt, string expected, string generated)
        {
        }
    }
}
