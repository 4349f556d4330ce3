namespace LoraTrainer.Training.Config;

/// <summary>
/// Every key of a configuration: name, kind and bounds, the property it sets, and what the documentation says about it. The parser, the writer,
/// the hash, the comparison on resume and docs/configuration.md all come from this table.
/// </summary>
internal static class ConfigurationKeys
{
    private static readonly RealNumber Share = new("0..1", value => value is >= 0 and <= 1);
    private static readonly RealNumber BelowOne = new("0 or more, below 1", value => value is >= 0 and < 1);
    private static readonly RealNumber NotNegative = new("0 or more", value => value >= 0);
    private static readonly RealNumber Positive = new("more than 0", value => value > 0);

    // What an adapter_config.json is read with.
    private static readonly RealNumber Alpha = new("more than 0 and at most 1e9", value => value is > 0 and <= 1e9);
    private static readonly TruthValue Truth = new();
    private static readonly Text Any = new();
    private static readonly Text FieldName = new("field name", "a field name", value => value.Length > 0);
    private static readonly Text PathText = new("path", "a path", value => value.Trim().Length > 0);
    private static readonly Text CollectorAddress = new(
        "http address", "an address such as http://localhost:4318, without user and password (they belong into OTEL_EXPORTER_OTLP_HEADERS)",
        value => IsHttpAddress(value) && new Uri(value).UserInfo.Length == 0);

    private static readonly Text HttpAddress = new("http address", "an address that starts with http:// or https://", IsHttpAddress);

    private static readonly RecordOf<CustomFormat> CustomBlock = new(
        new CustomFormat(),
        Key<CustomFormat, string>("field_instruction", FieldName, c => c.FieldInstruction, (c, v) => c with { FieldInstruction = v }, "The field with the question or task.", "question"),
        Key<CustomFormat, string>("field_input", FieldName, c => c.FieldInput, (c, v) => c with { FieldInput = v }, "The field with further input; rows may lack it.", "context"),
        Key<CustomFormat, string>("field_output", FieldName, c => c.FieldOutput, (c, v) => c with { FieldOutput = v }, "The field with the answer, which is what is learned.", "answer"),
        Key<CustomFormat, string>("field_system", FieldName, c => c.FieldSystem, (c, v) => c with { FieldSystem = v }, "The field with the system prompt; rows may lack it.", "system"),
        Key<CustomFormat, string>("system_prompt", Any, c => c.SystemPrompt, (c, v) => c with { SystemPrompt = v }, "The system prompt of rows without one.", "\"Answer briefly.\""),
        Key<CustomFormat, string>("system_format", Any, c => c.SystemFormat, (c, v) => c with { SystemFormat = v }, "The text around the system prompt.", "\"<<SYS>>{system}<</SYS>>\""),
        Key<CustomFormat, string>("format", Any, c => c.Format, (c, v) => c with { Format = v }, "The prompt; {instruction}, {input} and {system} stand for the fields.", "\"[INST] {instruction} {input} [/INST]\""),
        Key<CustomFormat, string?>("no_input_format", new OptionalReference<string>(Any), c => c.NoInputFormat, (c, v) => c with { NoInputFormat = v }, "The prompt of rows without input.", "\"[INST] {instruction} [/INST]\"", defaultText: "as `format`"));

    private static readonly RecordOf<DatasetOptions> Dataset = new(
        new DatasetOptions(),
        Key<DatasetOptions, string>("path", PathText, c => c.Path, (c, v) => c with { Path = v }, "The file with the rows, relative to the current directory.", "data/train.jsonl", defaultText: "must be given"),
        Key<DatasetOptions, DatasetFormat>("type", new DatasetFormatValue(CustomBlock), c => c.Format, (c, v) => c with { Format = v }, "What a row looks like: `alpaca` (instruction, input, output), `completion` (one text), `input_output` (segments with labels), or a block that names the fields and the text around them.", "alpaca", defaultText: "what the fields of the first row suggest, which is said"),
        Key<DatasetOptions, string>("field", FieldName, c => c.Field, (c, v) => c with { Field = v }, "The field with the text, for `type: completion`.", "text", applies: c => c.Format.Kind == DatasetFormatKind.Completion),
        Key<DatasetOptions, string>("split", new Text("split name", "a split name", value => value.Length > 0), c => c.Split, (c, v) => c with { Split = v }, "The part of the data set; a file is one part, called `train`.", "train"),
        Key<DatasetOptions, DatasetFileType>("ds_type", new Choice<DatasetFileType>(("auto", DatasetFileType.Auto), ("json", DatasetFileType.Json), ("jsonl", DatasetFileType.Json), ("csv", DatasetFileType.Csv), ("text", DatasetFileType.Text), ("parquet", DatasetFileType.Parquet), ("arrow", DatasetFileType.Arrow)), c => c.FileType, (c, v) => c with { FileType = v }, "The file's format, where its extension does not say it; `json` also reads JSON lines.", "json"),
        Key<DatasetOptions, double>("weight", Positive, c => c.Weight, (c, v) => c with { Weight = v }, "How often each row is seen in an epoch, where data sets are mixed: 2 is twice, 0.5 a half of the rows, chosen by the seed.", "0.5"))
    { Foreign = ForeignKeys.OfDatasets };

    private static readonly RecordOf<FourBitOptions> BitsAndBytes = new(
        new FourBitOptions(),
        Key<FourBitOptions, FourBitType?>("bnb_4bit_quant_type", new Optional<FourBitType>(new Choice<FourBitType>(("nf4", FourBitType.Nf4), ("fp4", FourBitType.Fp4))), c => c.Type, (c, v) => c with { Type = v }, "The 16 values that 4 bits stand for. NF4 suits weights better. `fp4` not on a GPU.", "nf4", defaultText: "`nf4`, or as a base that is quantized already has it"),
        Key<FourBitOptions, bool?>("bnb_4bit_use_double_quant", new Optional<bool>(Truth), c => c.DoubleQuantization, (c, v) => c with { DoubleQuantization = v }, "Quantize the scales too; saves about 0.4 bits per weight.", "true", defaultText: "`true`, or as a base that is quantized already has it"))
    { Foreign = ForeignKeys.OfBitsAndBytes };

    private static readonly Choice<ScheduleCurve> Curve = new(("linear", ScheduleCurve.Linear), ("cosine", ScheduleCurve.Cosine), ("1-sqrt", ScheduleCurve.OneMinusSqrt));

    private static readonly RecordOf<ScheduleDetails> ScheduleBlock = new(
        new ScheduleDetails(),
        Key<ScheduleDetails, double?>("num_cycles", new Optional<double>(Positive), c => c.NumCycles, (c, v) => c with { NumCycles = v }, "Waves of the cosine kinds and of a cosine decay.", "2", defaultText: "1 for `cosine_with_restarts`, else 0.5: it falls once", applies: c => c.NumCycles is not null),
        Key<ScheduleDetails, double?>("power", new Optional<double>(Positive), c => c.Power, (c, v) => c with { Power = v }, "Of `polynomial`.", "2", defaultText: "1", applies: c => c.Power is not null),
        Key<ScheduleDetails, double?>("lr_end", new Optional<double>(NotNegative), c => c.LrEnd, (c, v) => c with { LrEnd = v }, "Where `polynomial` ends.", "1e-6", defaultText: "1e-7", applies: c => c.LrEnd is not null),
        Key<ScheduleDetails, double?>("min_lr", new Optional<double>(NotNegative), c => c.MinLr, (c, v) => c with { MinLr = v }, "Where `cosine_with_min_lr` and `cosine_warmup_with_min_lr` end; or `min_lr_rate`.", "2e-5", defaultText: "none", applies: c => c.MinLr is not null),
        Key<ScheduleDetails, double?>("min_lr_rate", new Optional<double>(Share), c => c.MinLrRate, (c, v) => c with { MinLrRate = v }, "The same as a share of `learning_rate`.", "0.1", defaultText: "none", applies: c => c.MinLrRate is not null),
        Key<ScheduleDetails, double?>("min_lr_ratio", new Optional<double>(Share), c => c.MinLrRatio, (c, v) => c with { MinLrRatio = v }, "Where `warmup_stable_decay` begins and ends, as a share of `learning_rate`.", "0.1", defaultText: "0", applies: c => c.MinLrRatio is not null),
        Key<ScheduleDetails, double?>("warmup_lr_rate", new Optional<double>(Share), c => c.WarmupLrRate, (c, v) => c with { WarmupLrRate = v }, "Where the warm-up of `cosine_warmup_with_min_lr` begins, as a share of `learning_rate`.", "0.1", defaultText: "one step of the warm-up", applies: c => c.WarmupLrRate is not null),
        Key<ScheduleDetails, long?>("timescale", new Optional<long>(new WholeNumber(1)), c => c.Timescale, (c, v) => c with { Timescale = (int?)v }, "Of `inverse_sqrt`: the rate falls with one over the root of (this plus the steps since the warm-up) over this.", "1000", defaultText: "the steps of the warm-up, or 10000", applies: c => c.Timescale is not null),
        Key<ScheduleDetails, long?>("num_stable_steps", new Optional<long>(new WholeNumber(0)), c => c.NumStableSteps, (c, v) => c with { NumStableSteps = (int?)v }, "Steps at the highest rate of `warmup_stable_decay`.", "800", defaultText: "what warm-up and decay leave of the run", applies: c => c.NumStableSteps is not null),
        Key<ScheduleDetails, long?>("num_decay_steps", new Optional<long>(new WholeNumber(0)), c => c.NumDecaySteps, (c, v) => c with { NumDecaySteps = (int?)v }, "Steps in which `warmup_stable_decay` falls; it needs them.", "100", defaultText: "none", applies: c => c.NumDecaySteps is not null),
        Key<ScheduleDetails, ScheduleCurve?>("warmup_type", new Optional<ScheduleCurve>(Curve), c => c.WarmupType, (c, v) => c with { WarmupType = v }, "How `warmup_stable_decay` rises.", "cosine", defaultText: "`linear`", applies: c => c.WarmupType is not null),
        Key<ScheduleDetails, ScheduleCurve?>("decay_type", new Optional<ScheduleCurve>(Curve), c => c.DecayType, (c, v) => c with { DecayType = v }, "How it falls.", "1-sqrt", defaultText: "`cosine`", applies: c => c.DecayType is not null));

    private static readonly RecordOf<CheckpointOptions> Checkpoint = new(
        new CheckpointOptions(),
        Key<CheckpointOptions, long>("every_steps", new WholeNumber(0), c => c.EverySteps, (c, v) => c with { EverySteps = (int)v }, "Save each so many steps; 0: not by steps. With `every_minutes`: whichever comes first.", "100", applies: c => c.Interval == CheckpointInterval.Fixed),
        Key<CheckpointOptions, double>("every_minutes", NotNegative, c => c.EveryMinutes, (c, v) => c with { EveryMinutes = v }, "Save each so many minutes; 0: not by time.", "10", applies: c => c.Interval == CheckpointInterval.Fixed),
        Key<CheckpointOptions, CheckpointInterval>("interval", new Choice<CheckpointInterval>(("fixed", CheckpointInterval.Fixed), ("auto", CheckpointInterval.Auto)), c => c.Interval, (c, v) => c with { Interval = v }, "`auto`: find the best interval from the measured time of a save and the observed interruptions, instead of the two keys above.", "auto"),
        Key<CheckpointOptions, long>("keep", new WholeNumber(1), c => c.Keep, (c, v) => c with { Keep = (int)v }, "How many of the newest checkpoints are kept.", "2"),
        Key<CheckpointOptions, string?>("uri", new OptionalReference<string>(PathText), c => c.Uri, (c, v) => c with { Uri = v }, "Where checkpoints go: a folder, or `s3://bucket/prefix` (docs/spot.md has its options); with `run_name` it is how another machine finds the run.", "s3://my-bucket/runs", defaultText: "`checkpoints` in `output_dir`"),
        Key<CheckpointOptions, bool>("single_writer", Truth, c => c.SingleWriter, (c, v) => c with { SingleWriter = v }, "You guarantee that no second machine writes to this run; needed on network drives.", "true"),
        Key<CheckpointOptions, double>("lease_seconds", new RealNumber("1..3600", value => value is >= 1 and <= 3600), c => c.LeaseSeconds, (c, v) => c with { LeaseSeconds = v }, "After so many seconds without a sign of life another machine may take the run over.", "30"),
        Key<CheckpointOptions, CheckpointErrorAction>("on_error", new Choice<CheckpointErrorAction>(("continue", CheckpointErrorAction.Continue), ("stop", CheckpointErrorAction.Stop)), c => c.OnError, (c, v) => c with { OnError = v }, "What a checkpoint that cannot be saved does: `continue` warns and tries the next one when it is due, `stop` ends the run.", "stop"));

    private static readonly RecordOf<QuantizedCacheOptions> QuantizedCache = new(
        new QuantizedCacheOptions(),
        Key<QuantizedCacheOptions, string?>("path", new OptionalReference<string>(PathText), c => c.Path, (c, v) => c with { Path = v }, "A folder of this machine where a base is kept as it was quantized: about 0.52 bytes a weight in 4 bits, 1 in 8 bits. The next start with the same base and settings reads it instead of quantizing.", "/mnt/cache/quantized", defaultText: "not kept"),
        Key<QuantizedCacheOptions, string?>("uri", new OptionalReference<string>(PathText), c => c.Uri, (c, v) => c with { Uri = v }, "The same in a store, a folder or `s3://bucket/prefix`, from which a machine with an empty disk fetches it.", "s3://my-bucket/quantized", defaultText: "none"),
        Key<QuantizedCacheOptions, double>("max_gigabytes", Positive, c => c.MaxGigabytes, (c, v) => c with { MaxGigabytes = v }, "The most that `path` may hold; what was not used for the longest time goes first. The store is not looked after.", "100"));

    private static readonly RecordOf<FinishOptions> Finish = new(
        new FinishOptions(),
        Key<FinishOptions, string?>("command", new OptionalReference<string>(new Text("command", "a command for the shell", value => value.Trim().Length > 0)), c => c.Command, (c, v) => c with { Command = v }, "Given to the shell (`sh -c`), in the current directory. A failure is told and changes nothing.", "sudo shutdown -h now", defaultText: "none"));

    private static readonly RecordOf<InterruptionOptions> Interruption = new(
        new InterruptionOptions(),
        Key<InterruptionOptions, InterruptionSources>("sources", new SourcesValue(), c => c.Sources, (c, v) => c with { Sources = v }, "What is watched besides SIGTERM. `auto`: the cloud that this machine is in, the file if one is named, and the signals of schedulers (SIGUSR1, SIGUSR2, SIGHUP). `none`: nothing.", "[aws, signals]"),
        Key<InterruptionOptions, string?>("file", new OptionalReference<string>(PathText), c => c.File, (c, v) => c with { File = v }, "The run saves and stops when this file appears. The environment variable LT_INTERRUPT_FILE goes before it.", "/tmp/stop-training", defaultText: "none"),
        Key<InterruptionOptions, double?>("grace_seconds", new Optional<double>(NotNegative), c => c.GraceSeconds, (c, v) => c with { GraceSeconds = v }, "Seconds between a notice and the end of the machine, where the notice does not say it; on Kubernetes terminationGracePeriodSeconds.", "30", defaultText: "as is known of the provider"),
        Key<InterruptionOptions, string?>("aws_endpoint", new OptionalReference<string>(HttpAddress), c => c.AwsEndpoint, (c, v) => c with { AwsEndpoint = v }, "The address of AWS's instance metadata.", "http://169.254.169.254", defaultText: "the usual one"),
        Key<InterruptionOptions, string?>("gcp_endpoint", new OptionalReference<string>(HttpAddress), c => c.GcpEndpoint, (c, v) => c with { GcpEndpoint = v }, "The address of Google Cloud's instance metadata.", "http://metadata.google.internal", defaultText: "the usual one"),
        Key<InterruptionOptions, string?>("azure_endpoint", new OptionalReference<string>(HttpAddress), c => c.AzureEndpoint, (c, v) => c with { AzureEndpoint = v }, "The address of Azure's instance metadata.", "http://169.254.169.254", defaultText: "the usual one"));

    private static readonly RecordOf<CostOptions> Cost = new(
        new CostOptions(),
        Key<CostOptions, decimal?>("rate", new Optional<decimal>(new Money()), c => c.Rate, (c, v) => c with { Rate = v }, "Price of one hour; a CPU machine counts as one GPU.", "1.29", defaultText: "the price list's, where the cloud tells what machine this is"),
        Key<CostOptions, RateUnit>("rate_per", new Choice<RateUnit>(("gpu", RateUnit.Gpu), ("machine", RateUnit.Machine)), c => c.RatePer, (c, v) => c with { RatePer = v }, "What `rate` pays for. A run has one device, so both come to the same.", "machine"),
        Key<CostOptions, string>("currency", new Text("three capital letters", "a currency of three capital letters", value => value.Length == 3 && value.All(char.IsAsciiLetterUpper)), c => c.Currency, (c, v) => c with { Currency = v }, "The currency of all amounts.", "EUR"),
        Key<CostOptions, decimal?>("budget", new Optional<decimal>(new Money()), c => c.Budget, (c, v) => c with { Budget = v }, "Save and stop before the run has cost more than this.", "25", defaultText: "none"),
        Key<CostOptions, double?>("max_hours", new Optional<double>(Positive), c => c.MaxHours, (c, v) => c with { MaxHours = v }, "Save and stop before the run has taken longer than this.", "6", defaultText: "none"),
        Key<CostOptions, double>("warn_at", Share, c => c.WarnAt, (c, v) => c with { WarnAt = v }, "Warn when this share of the budget is spent.", "0.8"),
        Key<CostOptions, BillingStart>("bill_from", new Choice<BillingStart>(("process", BillingStart.Process), ("boot", BillingStart.Boot)), c => c.BillFrom, (c, v) => c with { BillFrom = v }, "Count from the start of the program, or from that of the machine, each of its seconds once. Not in a container.", "boot"),
        Key<CostOptions, string?>("project", new OptionalReference<string>(Any), c => c.Project, (c, v) => c with { Project = v }, "The project that pays, for reports.", "search-quality", defaultText: "none"),
        Key<CostOptions, EquatableList<KeyValuePair<string, string>>>("tags", new MapOf<string>(Any, "texts"), c => c.Tags, (c, v) => c with { Tags = v }, "Your own words for reports.", "{team: nlp}"),
        Key<CostOptions, string?>("ledger", new OptionalReference<string>(PathText), c => c.Ledger, (c, v) => c with { Ledger = v }, "The file of the cost ledger.", "costs.db", defaultText: "in your data folder"));

    /// <summary>The whole file, in the order in which it is documented and written.</summary>
    public static RecordOf<TrainingConfig> Root { get; } = new(
        new TrainingConfig(),
        Key("base_model", PathText, c => c.BaseModel, (c, v) => c with { BaseModel = v }, "The model to start from: a folder with config.json, tokenizer.json and weights (docs/models.md). Nothing is downloaded.", "models/SmolLM2-135M", defaultText: "must be given"),
        Key("run_name", new Text("name", "a name of letters, digits, dot, dash and underscore that starts with a letter or digit", IsRunName), c => c.RunName, (c, v) => c with { RunName = v }, "The identity of the run.", "invoices-3", defaultText: "the config file's name without extension"),
        Key("output_dir", PathText, c => c.OutputDir, (c, v) => c with { OutputDir = v }, "The run folder: adapter, log, summary, checkpoints.", "outputs/invoices", defaultText: "`outputs/` and the run's name"),
        Key("adapter", new Choice<AdapterKind>(("lora", AdapterKind.Lora), ("qlora", AdapterKind.Qlora), ("null", AdapterKind.None)) { Hidden = ["null"] }, c => c.Adapter.Kind, (c, v) => c with { Adapter = c.Adapter with { Kind = v } }, "`lora`: train small matrices beside the frozen base. `qlora`: the same on a base in 4 bits. Empty: train all parameters.", "qlora", "Leave it empty to train all parameters.", defaultText: "empty"),
        Key("lora_model_dir", new OptionalReference<string>(PathText), c => c.Adapter.StartFolder, (c, v) => c with { Adapter = c.Adapter with { StartFolder = v } }, "An adapter (a PEFT folder, or the output_dir of a run) that training goes on from. Its rank, scaling and modules come with it.", "outputs/invoices", applies: HasAdapter),
        Key("lora_r", new WholeNumber(1, 1024), c => c.Adapter.Rank, (c, v) => c with { Adapter = c.Adapter with { Rank = (int)v } }, "Rank: the width of the adapter's matrices.", "16", "Typical: 8, 16, 64.", applies: HasAdapter),
        Key("lora_alpha", Alpha, c => c.Adapter.Alpha, (c, v) => c with { Adapter = c.Adapter with { Alpha = v } }, "The adapter's output is scaled by alpha / r.", "32", "Typical: the rank or twice the rank.", applies: HasAdapter),
        Key("lora_dropout", BelowOne, c => c.Adapter.Dropout, (c, v) => c with { Adapter = c.Adapter with { Dropout = v } }, "Share of the adapter's inputs set to zero while training.", "0.05", "Typical: 0, 0.05, 0.1.", applies: HasAdapter),
        Key<(EquatableList<string> Names, string? Pattern)>("lora_target_modules", new TargetsValue(), c => (c.Adapter.TargetModules, c.Adapter.TargetPattern), (c, v) => c with { Adapter = c.Adapter with { TargetModules = v.Names, TargetPattern = v.Pattern } }, "The linear layers that get an adapter: names, or one regular expression for the whole path.", "[q_proj, v_proj]", "Example: [q_proj, k_proj, v_proj, o_proj].", "all linear layers", HasAdapter),
        Key("lora_target_linear", Truth, c => c.Adapter.TargetLinear, (c, v) => c with { Adapter = c.Adapter with { TargetLinear = v } }, "All linear layers but the output head get an adapter. So it is too when no modules are named.", "true", applies: HasAdapter),
        Key("lora_modules_to_save", new ListOf<string>(Any, "module names"), c => c.Adapter.ModulesToSave, (c, v) => c with { Adapter = c.Adapter with { ModulesToSave = v } }, "Modules that are trained and saved whole.", "[lm_head]", applies: HasAdapter),
        Key("lora_rank_pattern", new MapOf<long>(new WholeNumber(1, 1024), "ranks"), c => Widen(c.Adapter.RankPattern), (c, v) => c with { Adapter = c.Adapter with { RankPattern = Narrow(v) } }, "Another rank for some modules.", "{down_proj: 32}", applies: HasAdapter),
        Key("lora_alpha_pattern", new MapOf<double>(Alpha, "alphas"), c => c.Adapter.AlphaPattern, (c, v) => c with { Adapter = c.Adapter with { AlphaPattern = v } }, "Another alpha for some modules.", "{down_proj: 64}", applies: HasAdapter),
        Key("peft_use_rslora", Truth, c => c.Adapter.UseRsLora, (c, v) => c with { Adapter = c.Adapter with { UseRsLora = v } }, "Scale by alpha / sqrt(r), which suits high ranks.", "true", applies: HasAdapter),
        Key("peft_use_dora", Truth, c => c.Adapter.UseDora, (c, v) => c with { Adapter = c.Adapter with { UseDora = v } }, "Train magnitude and direction apart (DoRA).", "true", applies: HasAdapter),
        Key("peft_init_lora_weights", new Choice<AdapterInitialization>(("true", AdapterInitialization.Default), ("gaussian", AdapterInitialization.Gaussian), ("pissa", AdapterInitialization.Pissa), ("olora", AdapterInitialization.Olora)), c => c.Adapter.Initialization, (c, v) => c with { Adapter = c.Adapter with { Initialization = v } }, "How the adapter's matrices start. `pissa`: from the largest singular values of each weight. `olora`: from its QR decomposition. Both are taken out of the base before it is quantized.", "true", applies: HasAdapter),
        Key("convert_to_lora", Truth, c => c.Adapter.ConvertsToLora, (c, v) => c with { Adapter = c.Adapter with { ConvertsToLora = v } }, "After a `pissa` or `olora` start, write the finished adapter as plain LoRA of twice the rank, which fits the base as published. `false`: as trained; what loads it must change the base as PEFT does.", "true", applies: c => HasAdapter(c) && c.Adapter.Initialization is AdapterInitialization.Pissa or AdapterInitialization.Olora),
        Key("peft_layers_to_transform", new ListOf<long>(new WholeNumber(0), "layer numbers"), c => [.. c.Adapter.LayersToTransform], (c, v) => c with { Adapter = c.Adapter with { LayersToTransform = [.. v.Select(layer => (int)layer)] } }, "The layers that get an adapter, counted from 0.", "[0, 1, 2]", defaultText: "all", applies: HasAdapter),
        Key("loraplus_lr_ratio", new Optional<double>(Positive), c => c.Adapter.LoraPlusRatio, (c, v) => c with { Adapter = c.Adapter with { LoraPlusRatio = v } }, "LoRA+: the learning rate of B over that of A.", "16", defaultText: "off", applies: HasAdapter),
        Key("loraplus_lr_embedding", Positive, c => c.Adapter.LoraPlusEmbeddingRate, (c, v) => c with { Adapter = c.Adapter with { LoraPlusEmbeddingRate = v } }, "LoRA+: the learning rate of an embedding in `lora_modules_to_save`.", "1e-6", applies: c => c.Adapter.LoraPlusRatio is not null),
        Key("load_in_4bit", Truth, c => c.Quantization.LoadIn4Bit, (c, v) => c with { Quantization = c.Quantization with { LoadIn4Bit = v } }, "Keep the frozen base in 4 bits: NF4 with double quantization, unless `bnb_config_kwargs` says otherwise. `adapter: qlora` implies it. A base that is quantized already stays as it is, with this key or without.", "true"),
        Key("load_in_8bit", Truth, c => c.Quantization.LoadIn8Bit, (c, v) => c with { Quantization = c.Quantization with { LoadIn8Bit = v } }, "Keep the frozen base in 8 bits with a scale for each row, made from its weights in f16. Not on a GPU. A base that is quantized already stays as it is, with this key or without.", "true"),
        Key("bnb_config_kwargs", BitsAndBytes, c => c.Quantization.FourBit, (c, v) => c with { Quantization = c.Quantization with { FourBit = v } }, "Details of the 4-bit format.", "{bnb_4bit_quant_type: nf4}", applies: c => c.Quantization.LoadIn4Bit),
        Key("quantized_cache", QuantizedCache, c => c.QuantizedCache, (c, v) => c with { QuantizedCache = v }, "Keep the base as it was quantized, for the next start (docs/checkpoints-and-resume.md).", "{path: /mnt/cache/quantized}"),
        Key("datasets", new ListOf<DatasetOptions>(Dataset, "data sets"), c => c.Data.Datasets, (c, v) => c with { Data = c.Data with { Datasets = v } }, "What is learned: one file or several, read in this order.", "[{path: data/train.jsonl, type: alpaca}]", "Example: datasets: [{path: data/train.jsonl, type: alpaca}].", "must be given"),
        Key("test_datasets", new ListOf<DatasetOptions>(Dataset, "data sets"), c => c.Data.TestDatasets, (c, v) => c with { Data = c.Data with { TestDatasets = v } }, "The held-out set, for loss and exact match; its items have the keys of `datasets`.", "[{path: data/test.jsonl, type: alpaca}]"),
        Key("val_set_size", new RealNumber("below 1 for a share, or a whole number of rows", value => value is >= 0 and < 1 || (value >= 1 && value == Math.Floor(value))), c => c.Data.ValSetSize, (c, v) => c with { Data = c.Data with { ValSetSize = v } }, "How much of `datasets` is held out: below 1 a share, from 1 on a number of rows.", "0.02", "Typical: 0, 0.02, 0.05."),
        Key("tokens", new ListOf<string>(new Text("text", "a text of one character or more", text => text.Length > 0), "texts"), c => c.Data.Tokens, (c, v) => c with { Data = c.Data with { Tokens = v } }, "Texts that become one token each. Embedding and output layer get rows for them, which start as the mean of the others; beside an adapter both must be in `lora_modules_to_save`.", "[\"<|order|>\", \"<|end|>\"]"),
        Key("resize_token_embeddings_to_32x", Truth, c => c.Data.ResizesTo32x, (c, v) => c with { Data = c.Data with { ResizesTo32x = v } }, "Fill the rows up to a multiple of 32, which suits GPUs.", "true", applies: c => c.Data.Tokens.Count > 0),
        Key("sequence_len", new WholeNumber(8, 1 << 20), c => c.Data.SequenceLen, (c, v) => c with { Data = c.Data with { SequenceLen = (int)v } }, "The longest sequence, in tokens.", "1024", "Typical: 512, 2048, 4096."),
        Key("sample_packing", Truth, c => c.Data.SamplePacking, (c, v) => c with { Data = c.Data with { SamplePacking = v } }, "Fill each sequence with several rows, which do not see each other.", "true"),
        Key("excess_length_strategy", new Choice<ExcessLength>(("drop", ExcessLength.Drop), ("truncate", ExcessLength.Truncate), ("raise", ExcessLength.Raise)), c => c.Data.ExcessLength, (c, v) => c with { Data = c.Data with { ExcessLength = v } }, "What becomes of rows longer than `sequence_len`: left out or cut, both counted and reported, or an error.", "truncate"),
        Key("train_on_inputs", Truth, c => c.Data.TrainOnInputs, (c, v) => c with { Data = c.Data with { TrainOnInputs = v } }, "Learn to write the prompts too, not only the answers.", "false"),
        Key("micro_batch_size", new WholeNumber(1, 65536), c => c.Batch.MicroBatchSize, (c, v) => c with { Batch = c.Batch with { MicroBatchSize = (int)v } }, "Sequences computed at once.", "2", "Typical: 1, 2, 4, 8."),
        Key("gradient_accumulation_steps", new WholeNumber(1, 65536), c => c.Batch.GradientAccumulationSteps, (c, v) => c with { Batch = c.Batch with { GradientAccumulationSteps = (int)v } }, "Micro-batches in one step; the result is that of one large batch.", "8", "Typical: 1, 4, 8, 16."),
        Key("num_epochs", NotNegative, c => c.Batch.NumEpochs, (c, v) => c with { Batch = c.Batch with { NumEpochs = v } }, "How many times the data is gone through.", "3", "Typical: 1, 3."),
        Key("max_steps", new WholeNumber(0), c => c.Batch.MaxSteps, (c, v) => c with { Batch = c.Batch with { MaxSteps = (int)v } }, "Stop after so many steps; 0: `num_epochs` decides.", "200"),
        Key("learning_rate", Share, c => c.Optimizer.LearningRate, (c, v) => c with { Optimizer = c.Optimizer with { LearningRate = v } }, "The highest learning rate of the run.", "2e-4", "Typical: 2e-4 for LoRA, 1e-5 for all parameters."),
        Key("optimizer", new Choice<OptimizerKind>(("adamw_torch", OptimizerKind.AdamW), ("adamw_torch_fused", OptimizerKind.AdamW), ("adamw_bnb_8bit", OptimizerKind.AdamW8Bit), ("adamw_8bit", OptimizerKind.AdamW8Bit), ("paged_adamw_32bit", OptimizerKind.PagedAdamW32Bit), ("paged_adamw", OptimizerKind.PagedAdamW32Bit), ("paged_adamw_8bit", OptimizerKind.PagedAdamW8Bit)), c => c.Optimizer.Kind, (c, v) => c with { Optimizer = c.Optimizer with { Kind = v } }, "AdamW in its kinds; `adamw_torch` and `adamw_torch_fused` are the same here. `adamw_bnb_8bit` and `adamw_8bit`, the same too, keep the moments of large tensors in 8 bits. `paged_` kinds keep them behind a file of `output_dir`, so that the system can use their memory between steps; the numbers are the same. Neither on a GPU.", "adamw_torch", "adamw_torch is the usual one."),
        Key("adam_beta1", BelowOne, c => c.Optimizer.Beta1, (c, v) => c with { Optimizer = c.Optimizer with { Beta1 = v } }, "Decay of the mean of the gradients.", "0.9"),
        Key("adam_beta2", BelowOne, c => c.Optimizer.Beta2, (c, v) => c with { Optimizer = c.Optimizer with { Beta2 = v } }, "Decay of the mean of their squares.", "0.999"),
        Key("adam_epsilon", Positive, c => c.Optimizer.Epsilon, (c, v) => c with { Optimizer = c.Optimizer with { Epsilon = v } }, "Added to the root of that mean.", "1e-8"),
        Key("weight_decay", NotNegative, c => c.Optimizer.WeightDecay, (c, v) => c with { Optimizer = c.Optimizer with { WeightDecay = v } }, "Decoupled weight decay.", "0.01"),
        Key("max_grad_norm", NotNegative, c => c.Optimizer.MaxGradNorm, (c, v) => c with { Optimizer = c.Optimizer with { MaxGradNorm = v } }, "Gradients are scaled down to this norm; 0: never.", "0.3"),
        Key("neftune_noise_alpha", new Optional<double>(Positive), c => c.NeftuneNoiseAlpha, (c, v) => c with { NeftuneNoiseAlpha = v }, "NEFTune: uniform noise of up to this over the root of (tokens of the row x hidden_size) on each embedding while training. Not on a GPU.", "5", "Typical: 5, 10, 15.", defaultText: "none", applies: c => c.NeftuneNoiseAlpha is not null),
        Key("lr_scheduler", new Choice<LearningRateSchedule>(("linear", LearningRateSchedule.Linear), ("cosine", LearningRateSchedule.Cosine), ("constant", LearningRateSchedule.Constant), ("constant_with_warmup", LearningRateSchedule.ConstantWithWarmup), ("cosine_with_restarts", LearningRateSchedule.CosineWithRestarts), ("cosine_with_min_lr", LearningRateSchedule.CosineWithMinLr), ("cosine_warmup_with_min_lr", LearningRateSchedule.CosineWarmupWithMinLr), ("polynomial", LearningRateSchedule.Polynomial), ("inverse_sqrt", LearningRateSchedule.InverseSqrt), ("warmup_stable_decay", LearningRateSchedule.WarmupStableDecay)), c => c.Schedule.Kind, (c, v) => c with { Schedule = c.Schedule with { Kind = v } }, "How the learning rate goes, as transformers' schedulers of these names have it: `training.md`.", "cosine"),
        Key("lr_scheduler_kwargs", ScheduleBlock, c => c.Schedule.Details, (c, v) => c with { Schedule = c.Schedule with { Details = v } }, "What the schedule is told besides; one that it does not read is an error.", "{num_cycles: 0.5}", defaultText: "none", applies: c => c.Schedule.Details != new ScheduleDetails()),
        Key("cosine_min_lr_ratio", new Optional<double>(Share), c => c.Schedule.CosineMinLrRatio, (c, v) => c with { Schedule = c.Schedule with { CosineMinLrRatio = v } }, "Where `lr_scheduler: cosine` ends, as a share of `learning_rate`.", "0.1", defaultText: "0", applies: c => c.Schedule.CosineMinLrRatio is not null),
        Key("warmup_steps", new RealNumber("below 1 for a share of all steps, or a whole number of steps", value => value is >= 0 and < 1 || (value is >= 1 and <= int.MaxValue && value == Math.Floor(value))), c => c.Schedule.WarmupSteps, (c, v) => c with { Schedule = c.Schedule with { WarmupSteps = v } }, "Steps in which the learning rate rises from 0; below 1 a share of all steps, rounded up.", "10"),
        Key("warmup_ratio", Share, c => c.Schedule.WarmupRatio, (c, v) => c with { Schedule = c.Schedule with { WarmupRatio = v } }, "The same as a share of all steps.", "0.03"),
        Key("seed", new WholeNumber(0, long.MaxValue), c => c.Seed, (c, v) => c with { Seed = v }, "Decides the order of the data, the adapter's start and dropout. The same seed gives the same bits.", "42"),
        Key("evaluate_before", Truth, c => c.Evaluation.Before, (c, v) => c with { Evaluation = c.Evaluation with { Before = v } }, "Evaluate the held-out set before the first step.", "false"),
        Key("evaluate_after", Truth, c => c.Evaluation.After, (c, v) => c with { Evaluation = c.Evaluation with { After = v } }, "Evaluate it after the last step.", "true"),
        Key("eval_strategy", new Choice<EvaluationStrategy>(("no", EvaluationStrategy.No), ("steps", EvaluationStrategy.Steps), ("epoch", EvaluationStrategy.Epoch)), c => c.Evaluation.Strategy, (c, v) => c with { Evaluation = c.Evaluation with { Strategy = v } }, "When the held-out loss is measured during the training: as `eval_steps` or `evals_per_epoch` says, or after each pass over the data. After the last step too. Where one of the two keys is given this one may be left out.", "epoch", defaultText: "`no`, or `steps` where one of the next two is given"),
        Key("eval_steps", new RealNumber("below 1 for a share of all steps, or a whole number of steps", value => value is >= 0 and < 1 || (value is >= 1 and <= int.MaxValue && value == Math.Floor(value))), c => c.Evaluation.Steps, (c, v) => c with { Evaluation = c.Evaluation with { Steps = v } }, "Measure it each so many steps; below 1 each such share of all steps.", "50", "Typical: 50, 0.1.", applies: c => c.Evaluation.Steps > 0),
        Key("evals_per_epoch", new WholeNumber(0), c => c.Evaluation.PerEpoch, (c, v) => c with { Evaluation = c.Evaluation with { PerEpoch = (int)v } }, "Measure it so often in each pass over the data.", "4", "Typical: 1, 4.", applies: c => c.Evaluation.PerEpoch > 0),
        Key("early_stopping_patience", new Optional<long>(new WholeNumber(1)), c => c.Evaluation.EarlyStoppingPatience, (c, v) => c with { Evaluation = c.Evaluation with { EarlyStoppingPatience = (int?)v } }, "End the training when so many evaluations in a row were no better than the best one before.", "3", "Typical: 2, 3, 5.", defaultText: "none: it never ends early", applies: c => c.Evaluation.EarlyStoppingPatience is not null),
        Key("early_stopping_threshold", NotNegative, c => c.Evaluation.EarlyStoppingThreshold, (c, v) => c with { Evaluation = c.Evaluation with { EarlyStoppingThreshold = v } }, "By how much a loss must be lower than the best one to count as better for that.", "0.001", applies: c => c.Evaluation.EarlyStoppingPatience is not null),
        Key("load_best_model_at_end", Truth, c => c.Evaluation.LoadBest, (c, v) => c with { Evaluation = c.Evaluation with { LoadBest = v } }, "`output_dir` holds the adapter with the best held-out loss, and `last/` in it the last one; else it is the last one, and `best/` has the best.", "true"),
        Key("eval_max_new_tokens", new WholeNumber(0, 65536), c => c.Evaluation.MaxNewTokens, (c, v) => c with { Evaluation = c.Evaluation with { MaxNewTokens = (int)v } }, "The longest answer that is generated for exact match; 0: loss only.", "32"),
        Key("eval_max_samples", new WholeNumber(0), c => c.Evaluation.MaxSamples, (c, v) => c with { Evaluation = c.Evaluation with { MaxSamples = (int)v } }, "Evaluate only the first so many held-out rows; 0: all.", "100"),
        Key("device", new Choice<DeviceChoice>(DeviceWords.All) { Advice = DeviceWords.AdviceOn }, c => c.Device.Choice, (c, v) => c with { Device = c.Device with { Choice = v } }, "`auto` takes a GPU if there is one, else the CPU, and says which and why. It does not turn to the CPU where the GPU's memory is too small: that is an error.", "cpu"),
        Key("threads", new WholeNumber(0, 4096), c => c.Device.Threads, (c, v) => c with { Device = c.Device with { Threads = (int)v } }, "CPU threads that compute; 0: one for each core. The number does not change the result.", "4"),
        Key("gradient_checkpointing", new Choice<GradientCheckpointing>(("false", GradientCheckpointing.Off), ("true", GradientCheckpointing.On), ("offload", GradientCheckpointing.Offload)), c => c.Device.GradientCheckpointing, (c, v) => c with { Device = c.Device with { GradientCheckpointing = v } }, "Compute activations again in the backward pass: less memory, about a third more time, the same result.", "true"),
        Key("embeddings", new Choice<EmbeddingPlacement>(("device", EmbeddingPlacement.Device), ("host", EmbeddingPlacement.Host)), c => c.Device.Embeddings, (c, v) => c with { Device = c.Device with { Embeddings = v } }, "Where the input embeddings are kept.", "host"),
        Key("lm_head", new Choice<LmHeadFormat>(("bf16", LmHeadFormat.Bf16), ("int8", LmHeadFormat.EightBit)), c => c.Device.LmHead, (c, v) => c with { Device = c.Device with { LmHead = v } }, "How the frozen output head is kept.", "int8"),
        Key("logging_steps", new WholeNumber(1), c => c.LoggingSteps, (c, v) => c with { LoggingSteps = (int)v }, "One line of progress each so many steps.", "10"),
        Key("use_tensorboard", Truth, c => c.UseTensorBoard, (c, v) => c with { UseTensorBoard = v }, "Write loss, speed, memory and cost of each step as a TensorBoard event file too, in `tensorboard/` of `output_dir`.", "true"),
        Key("otlp_endpoint", new OptionalReference<string>(CollectorAddress), c => c.OtlpEndpoint, (c, v) => c with { OtlpEndpoint = v }, "Send the same as metrics to an OpenTelemetry collector (OTLP over HTTP) every ten seconds.", "http://localhost:4318", defaultText: "none, unless OTEL_EXPORTER_OTLP_ENDPOINT is set"),
        Key("checkpoint", Checkpoint, c => c.Checkpoint, (c, v) => c with { Checkpoint = v }, "When the whole state is saved, and where.", "{every_steps: 100}"),
        Key("interruption", Interruption, c => c.Interruption, (c, v) => c with { Interruption = v }, "How the run learns that its machine is about to be taken away.", "{sources: auto, file: /tmp/stop-training}"),
        Key("resume", new Choice<ResumeMode>(("never", ResumeMode.Never), ("auto", ResumeMode.Auto), ("must", ResumeMode.Must)), c => c.Resume, (c, v) => c with { Resume = v }, "What `train` does when the run exists: `never` says so and stops, `auto` goes on with it, `must` insists that there is one.", "auto"),
        Key("resume_from_checkpoint", new OptionalReference<string>(PathText), c => c.ResumeFromCheckpoint, (c, v) => c with { ResumeFromCheckpoint = v }, "Go on from this one checkpoint.", "outputs/invoices/checkpoints/invoices/step-00000200-1-0a1b2c3d", defaultText: "none"),
        Key("on_nonfinite", new Choice<NonFiniteAction>(("stop", NonFiniteAction.Stop), ("rollback", NonFiniteAction.Rollback)), c => c.OnNonFinite, (c, v) => c with { OnNonFinite = v }, "What happens when the loss or a gradient is not a finite number: `stop` ends the run, which says where it began; `rollback` leaves the step's rows out and goes on, or back to the last checkpoint by steps where the next step is no better: `training.md`.", "stop"),
        Key("max_rollbacks", new WholeNumber(1), c => c.MaxRollbacks, (c, v) => c with { MaxRollbacks = (int)v }, "How often in a run `on_nonfinite: rollback` does that before it stops after all.", "3", applies: c => c.OnNonFinite == NonFiniteAction.Rollback),
        Key("on_finish", new FinishValue(Finish), c => c.OnFinish, (c, v) => c with { OnFinish = v }, "What is done once when the run has come to its end and everything is saved, such as shutting the machine down, and whenever a limit of `cost` has stopped it; `none`: nothing.", "{command: sudo shutdown -h now}", defaultText: "`none`"),
        Key("cost", Cost, c => c.Cost, (c, v) => c with { Cost = v }, "What the machine costs and what may be spent.", "{rate: 1.29, budget: 25}"))
    { Foreign = ForeignKeys.OfTheRoot };

    /// <summary>All keys with their whole path; <c>datasets[].path</c> stands for the path of each item.</summary>
    public static IReadOnlyList<(string Path, ConfigurationKey Key)> All { get; } = [.. Root.Keys.SelectMany(key => Walk(key.Name, key))];

    private static IEnumerable<(string Path, ConfigurationKey Key)> Walk(string path, ConfigurationKey key) =>
        key.InnerKeys.SelectMany(inner => Walk($"{path}{inner.Prefix}{inner.Key.Name}", inner.Key)).Prepend((path, key));

    private static bool HasAdapter(TrainingConfig config) => config.Adapter.Kind != AdapterKind.None;

    private static bool IsRunName(string name) => name.Length is > 0 and <= 128 && char.IsAsciiLetterOrDigit(name[0])
        && name.All(character => char.IsAsciiLetterOrDigit(character) || character is '.' or '-' or '_');

    private static bool IsHttpAddress(string text) =>
        Uri.TryCreate(text, UriKind.Absolute, out Uri? uri) && uri is { Scheme: "http" or "https", Host.Length: > 0, Query.Length: 0, Fragment.Length: 0 };

    private static EquatableList<KeyValuePair<string, long>> Widen(EquatableList<KeyValuePair<string, int>> pairs) =>
        [.. pairs.Select(pair => KeyValuePair.Create(pair.Key, (long)pair.Value))];

    private static EquatableList<KeyValuePair<string, int>> Narrow(EquatableList<KeyValuePair<string, long>> pairs) =>
        [.. pairs.Select(pair => KeyValuePair.Create(pair.Key, (int)pair.Value))];

    private static ConfigurationKey<TrainingConfig, T> Key<T>(
        string name, ValueKind<T> kind, Func<TrainingConfig, T> get, Func<TrainingConfig, T, TrainingConfig> set, string meaning, string example,
        string typical = "", string? defaultText = null, Func<TrainingConfig, bool>? applies = null) =>
        Key<TrainingConfig, T>(name, kind, get, set, meaning, example, typical, defaultText, applies);

    private static ConfigurationKey<TOwner, T> Key<TOwner, T>(
        string name, ValueKind<T> kind, Func<TOwner, T> get, Func<TOwner, T, TOwner> set, string meaning, string example,
        string typical = "", string? defaultText = null, Func<TOwner, bool>? applies = null)
        where TOwner : new() =>
        new(name, kind, get, set, meaning, example, typical) { DefaultText = defaultText, AppliesTo = applies ?? (_ => true) };
}
