using LoraTrainer.Data.ChatTemplates;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Training.Sources;

namespace LoraTrainer.Training.Config;

/// <summary>
/// Everything that one training run is told. Defaults stand in the initializers here and nowhere else; the keys of the file, their checks and
/// their documentation are in <see cref="ConfigurationKeys"/>.
/// </summary>
public sealed partial record TrainingConfig
{
    /// <summary>The model to start from: a folder on disk, or the name of a model of the hub.</summary>
    public string BaseModel { get; init; } = "";

    /// <summary>The branch, tag or commit of a base that is named.</summary>
    public string RevisionOfModel { get; init; } = Storage.HubRepository.DefaultRevision;

    /// <summary>Where the things are that are named and not on disk. No part of the configuration.</summary>
    public FetchedSources Fetched { get; init; } = FetchedSources.None;

    /// <summary>The folder of the base, wherever it came from.</summary>
    public string BaseFolder => Fetched.BaseFolder ?? BaseModel;

    /// <summary>The identity of the run; the stem of the config file unless given.</summary>
    public string RunName { get; init; } = "";

    /// <summary>The run folder; <c>outputs/RunName</c> unless given.</summary>
    public string OutputDir { get; init; } = "";

    public DeviceOptions Device { get; init; } = new();

    public AdapterOptions Adapter { get; init; } = new();

    public QuantizationOptions Quantization { get; init; } = new();

    public DataOptions Data { get; init; } = new();

    public BatchOptions Batch { get; init; } = new();

    public OptimizerOptions Optimizer { get; init; } = new();

    public ScheduleOptions Schedule { get; init; } = new();

    public EvaluationOptions Evaluation { get; init; } = new();

    public CheckpointOptions Checkpoint { get; init; } = new();

    public QuantizedCacheOptions QuantizedCache { get; init; } = new();

    public InterruptionOptions Interruption { get; init; } = new();

    public CostOptions Cost { get; init; } = new();

    /// <summary>What <c>train</c> does when the run exists already.</summary>
    public ResumeMode Resume { get; init; } = ResumeMode.Never;

    /// <summary>One checkpoint to start from, or null.</summary>
    public string? ResumeFromCheckpoint { get; init; }

    /// <summary>What happens to the machine at the end of the run; <c>none</c>: nothing.</summary>
    public FinishOptions OnFinish { get; init; } = new();

    public NonFiniteAction OnNonFinite { get; init; } = NonFiniteAction.Stop;

    /// <summary>NEFTune: noise on the embeddings while training; null: none.</summary>
    public double? NeftuneNoiseAlpha { get; init; }

    /// <summary>How often a run may leave steps out before it stops after all.</summary>
    public int MaxRollbacks { get; init; } = 3;

    public long Seed { get; init; } = 42;

    /// <summary>A line of progress and of <c>log.jsonl</c> each so many steps.</summary>
    public int LoggingSteps { get; init; } = 1;

    /// <summary>Write a TensorBoard event file too.</summary>
    public bool UseTensorBoard { get; init; }

    /// <summary>The OpenTelemetry collector that gets metrics; null: none, unless the environment names one.</summary>
    public string? OtlpEndpoint { get; init; }
}

public enum DeviceChoice
{
    Auto,
    Cpu,
    Cuda,
}

public enum GradientCheckpointing
{
    Off,
    On,
    Offload,
}

public enum EmbeddingPlacement
{
    Device,
    Host,
}

public enum LmHeadFormat
{
    Bf16,
    EightBit,
}

public enum CudaGraphs
{
    Off,
    On,
    Verify,
}

/// <summary>Where the run computes and how it spends memory for time. Nothing here changes what is learned, except <see cref="LmHead"/>.</summary>
public sealed record DeviceOptions
{
    public DeviceChoice Choice { get; init; } = DeviceChoice.Auto;

    /// <summary>CPU threads that compute; 0: one for each core the process may use.</summary>
    public int Threads { get; init; }

    /// <summary>Compute each block's activations again in the backward pass instead of keeping them.</summary>
    public GradientCheckpointing GradientCheckpointing { get; init; } = GradientCheckpointing.Off;

    public EmbeddingPlacement Embeddings { get; init; } = EmbeddingPlacement.Device;

    public LmHeadFormat LmHead { get; init; } = LmHeadFormat.Bf16;

    /// <summary>Launch the passes of micro-batches that repeat as CUDA graphs; verify: make each of these passes both ways and compare.</summary>
    public CudaGraphs CudaGraphs { get; init; } = CudaGraphs.Off;
}

public enum AdapterKind
{
    /// <summary>No adapter: all parameters are trained.</summary>
    None,
    Lora,

    /// <summary>LoRA on a base in 4 bits.</summary>
    Qlora,
}

public enum AdapterInitialization
{
    /// <summary>A from Kaiming-uniform, B zero: PEFT's <c>true</c>.</summary>
    Default,
    Gaussian,
    Pissa,
    Olora,
}

/// <summary>What is trained on top of the base.</summary>
public sealed record AdapterOptions
{
    public AdapterKind Kind { get; init; } = AdapterKind.None;

    /// <summary>A PEFT folder whose values training starts from, or null.</summary>
    public string? StartFolder { get; init; }

    public int Rank { get; init; } = 16;

    public double Alpha { get; init; } = 32;

    public double Dropout { get; init; }

    /// <summary>Names of the linear layers that get an adapter; empty unless given.</summary>
    public EquatableList<string> TargetModules { get; init; } = [];

    /// <summary>A regular expression that a module's whole path must match, or null.</summary>
    public string? TargetPattern { get; init; }

    /// <summary>All linear layers were asked for; see <see cref="TargetsAllLinear"/>.</summary>
    public bool TargetLinear { get; init; }

    public EquatableList<string> ModulesToSave { get; init; } = [];

    /// <summary>Scale by alpha / sqrt(r) instead of alpha / r.</summary>
    public bool UseRsLora { get; init; }

    public bool UseDora { get; init; }

    public AdapterInitialization Initialization { get; init; } = AdapterInitialization.Default;

    /// <summary>LoRA+: learning rate of B over that of A, or null.</summary>
    public double? LoraPlusRatio { get; init; }

    /// <summary>LoRA+: learning rate of an embedding that is trained whole.</summary>
    public double LoraPlusEmbeddingRate { get; init; } = 1e-6;

    /// <summary>Whether what started from the base's weights is written as plain LoRA, for the base as published.</summary>
    public bool ConvertsToLora { get; init; } = true;

    /// <summary>Layer numbers that get an adapter; empty: all.</summary>
    public EquatableList<int> LayersToTransform { get; init; } = [];

    /// <summary>Another rank for the modules whose path matches the name.</summary>
    public EquatableList<KeyValuePair<string, int>> RankPattern { get; init; } = [];

    /// <summary>Another alpha for the modules whose path matches the name.</summary>
    public EquatableList<KeyValuePair<string, double>> AlphaPattern { get; init; } = [];

    /// <summary>All linear layers except the output head: asked for, or nothing else was.</summary>
    public bool TargetsAllLinear => TargetLinear || (TargetModules.Count == 0 && TargetPattern is null);

    /// <summary>The factor on B·A·x: alpha / r, or alpha / sqrt(r) with rsLoRA.</summary>
    public double Scaling => UseRsLora ? Alpha / Math.Sqrt(Rank) : Alpha / Rank;
}

public enum FourBitType
{
    Nf4,
    Fp4,
}

/// <summary>How the frozen base is kept in memory.</summary>
public sealed record QuantizationOptions
{
    public bool LoadIn4Bit { get; init; }

    public bool LoadIn8Bit { get; init; }

    public FourBitOptions FourBit { get; init; } = new();
}

/// <summary>The 4-bit format; means something only with <see cref="QuantizationOptions.LoadIn4Bit"/>.</summary>
public sealed record FourBitOptions
{
    /// <summary>Null: as a base that is quantized already has it; else <see cref="FourBitType.Nf4"/>.</summary>
    public FourBitType? Type { get; init; }

    /// <summary>Quantize the block scales too. Null: as a base that is quantized already has it; else true.</summary>
    public bool? DoubleQuantization { get; init; }
}

/// <summary>Where a base is kept as it was quantized. Changes when a run starts and nothing of its result.</summary>
public sealed record QuantizedCacheOptions
{
    /// <summary>A folder; null: it is not kept.</summary>
    public string? Path { get; init; }

    /// <summary>A store beside it, for machines that begin with an empty disk.</summary>
    public string? Uri { get; init; }

    /// <summary>The most that the folder's entries may have, in units of 10^9 bytes.</summary>
    public double MaxGigabytes { get; init; } = 50;
}

/// <summary>What is read and how it becomes tokens.</summary>
public sealed record DataOptions
{
    public EquatableList<DatasetOptions> Datasets { get; init; } = [];

    /// <summary>The held-out set, for loss and exact match.</summary>
    public EquatableList<DatasetOptions> TestDatasets { get; init; } = [];

    /// <summary>Texts that become one token each.</summary>
    public EquatableList<string> Tokens { get; init; } = [];

    /// <summary>With added tokens the number of rows is a multiple of 32.</summary>
    public bool ResizesTo32x { get; init; }

    /// <summary>Below 1: the share of the rows held out; 1 or more: their number; 0: none.</summary>
    public double ValSetSize { get; init; }

    public int SequenceLen { get; init; } = 2048;

    /// <summary>Fill each sequence with several rows that do not see each other.</summary>
    public bool SamplePacking { get; init; }

    public ExcessLength ExcessLength { get; init; } = ExcessLength.Drop;

    /// <summary>Learn to write the prompts too.</summary>
    public bool TrainOnInputs { get; init; }

    /// <summary>Where tokenized data is kept for the next start; null: nowhere.</summary>
    public string? PreparedFolder { get; init; }

    /// <summary>Of a conversation only the last answer is learned.</summary>
    public bool MaskHistory { get; init; }

    /// <summary>tokenizer_default, tokenizer_default_fallback_NAME, jinja, or the name of a template of the program.</summary>
    public string ChatTemplate { get; init; } = "tokenizer_default_fallback_chatml";

    /// <summary>With <see cref="ChatTemplate"/> jinja: its text, or the file that holds it.</summary>
    public string? ChatTemplateJinja { get; init; }
}

public enum DatasetFormatKind
{
    /// <summary>From the fields of the first row.</summary>
    Auto,
    Alpaca,
    Completion,
    InputOutput,
    Custom,
    ChatTemplate,
}

public enum DatasetFileType
{
    /// <summary>From the file's extension.</summary>
    Auto,
    Json,
    Csv,
    Text,
    Parquet,
    Arrow,
}

/// <summary>Rows of one place.</summary>
public sealed record DatasetOptions
{
    /// <summary>A file, a folder, a pattern, an address, or the name of a data set of the hub.</summary>
    public string Path { get; init; } = "";

    /// <summary>The branch, tag or commit of a data set that is named.</summary>
    public string Revision { get; init; } = Storage.HubRepository.DefaultRevision;

    /// <summary>Which of several data sets of a repository; null: the only or default one.</summary>
    public string? Name { get; init; }

    /// <summary>Paths and patterns in the repository or folder; none: as <see cref="Split"/> says.</summary>
    public EquatableList<string> DataFiles { get; init; } = [];

    public DatasetFormatOptions Format { get; init; } = new();

    /// <summary>The field with the text; <c>completion</c> only.</summary>
    public string Field { get; init; } = "text";

    public string Split { get; init; } = "train";

    public DatasetFileType FileType { get; init; } = DatasetFileType.Auto;

    /// <summary>For rows of chat messages.</summary>
    public ConversationOptions Conversation { get; init; } = new();

    /// <summary>How often each row is seen in an epoch: 2 is twice, 0.5 a random half of the rows.</summary>
    public double Weight { get; init; } = 1;
}

/// <summary>How chat messages are read, and what of them is learned. Null: as the rows themselves suggest.</summary>
public sealed record ConversationOptions
{
    /// <summary>The field with the list of messages.</summary>
    public string? FieldMessages { get; init; }

    /// <summary>Of the keys role and content to the fields of a message.</summary>
    public EquatableList<KeyValuePair<string, string>> PropertyMappings { get; init; } = [];

    /// <summary>Of roles to the names that stand for them.</summary>
    public EquatableList<KeyValuePair<string, EquatableList<string>>> Roles { get; init; } = [];

    public EquatableList<string> RolesToTrain { get; init; } = ["assistant"];

    public EndOfTurnTraining TrainOnEos { get; init; } = EndOfTurnTraining.Turn;

    /// <summary>The field of a message that says whether it is learned.</summary>
    public string? FieldTraining { get; init; }

    public string FieldTools { get; init; } = "tools";

    public string FieldSystem { get; init; } = "system";

    public bool DropsSystem { get; init; }

    /// <summary>The chat template of this data set; null: that of the run.</summary>
    public string? Template { get; init; }

    /// <summary>With <see cref="Template"/> jinja: its text, or the file that holds it.</summary>
    public string? TemplateJinja { get; init; }
}

/// <summary>How a row becomes a prompt and an answer.</summary>
public sealed record DatasetFormatOptions
{
    public DatasetFormatKind Kind { get; init; } = DatasetFormatKind.Auto;

    /// <summary>The custom block; null unless <see cref="Kind"/> is <see cref="DatasetFormatKind.Custom"/>.</summary>
    public CustomFormat? Custom { get; init; }
}

/// <summary>axolotl's custom block: which fields, and the text around them. The placeholders are {instruction}, {input} and {system}.</summary>
public sealed record CustomFormat
{
    public string FieldInstruction { get; init; } = "instruction";

    public string FieldInput { get; init; } = "input";

    public string FieldOutput { get; init; } = "output";

    public string FieldSystem { get; init; } = "system";

    /// <summary>Used for rows whose system field is absent or empty.</summary>
    public string SystemPrompt { get; init; } = "";

    /// <summary>The text around the system prompt.</summary>
    public string SystemFormat { get; init; } = "{system}";

    public string Format { get; init; } = "{instruction} {input}";

    /// <summary>For rows without input; null: <see cref="Format"/>.</summary>
    public string? NoInputFormat { get; init; }
}

/// <summary>How many rows make a step and how many steps make a run.</summary>
public sealed record BatchOptions
{
    public int MicroBatchSize { get; init; } = 1;

    public int GradientAccumulationSteps { get; init; } = 1;

    public double NumEpochs { get; init; } = 1;

    /// <summary>0: no limit but <see cref="NumEpochs"/>.</summary>
    public int MaxSteps { get; init; }

    /// <summary>Sequences in one optimizer step.</summary>
    public long GlobalBatchSize => (long)MicroBatchSize * GradientAccumulationSteps;
}

public enum OptimizerKind
{
    AdamW,
    AdamW8Bit,
    PagedAdamW32Bit,
    PagedAdamW8Bit,
}

public sealed record OptimizerOptions
{
    public OptimizerKind Kind { get; init; } = OptimizerKind.AdamW;

    /// <summary>The moments of large tensors are kept in eight bits.</summary>
    public bool IsEightBit => Kind is OptimizerKind.AdamW8Bit or OptimizerKind.PagedAdamW8Bit;

    /// <summary>The moments lie behind a file of the run folder.</summary>
    public bool IsPaged => Kind is OptimizerKind.PagedAdamW32Bit or OptimizerKind.PagedAdamW8Bit;

    public double LearningRate { get; init; } = 2e-4;

    public double Beta1 { get; init; } = 0.9;

    public double Beta2 { get; init; } = 0.999;

    public double Epsilon { get; init; } = 1e-8;

    public double WeightDecay { get; init; }

    /// <summary>0: no clipping.</summary>
    public double MaxGradNorm { get; init; } = 1;
}

public enum LearningRateSchedule
{
    Linear,
    Cosine,
    Constant,
    ConstantWithWarmup,
    CosineWithRestarts,
    CosineWithMinLr,
    CosineWarmupWithMinLr,
    Polynomial,
    InverseSqrt,
    WarmupStableDecay,
}

/// <summary>How the learning rate changes over the run.</summary>
public sealed record ScheduleOptions
{
    public LearningRateSchedule Kind { get; init; } = LearningRateSchedule.Cosine;

    /// <summary>Below 1 a share of all steps, from 1 on their number.</summary>
    public double WarmupSteps { get; init; }

    /// <summary>Share of all steps.</summary>
    public double WarmupRatio { get; init; }

    /// <summary>The rate at the end of a cosine over the highest one; null: it falls to 0.</summary>
    public double? CosineMinLrRatio { get; init; }

    public ScheduleDetails Details { get; init; } = new();
}

/// <summary>The form of a stage of <see cref="LearningRateSchedule.WarmupStableDecay"/>.</summary>
public enum ScheduleCurve
{
    Linear,
    Cosine,
    OneMinusSqrt,
}

/// <summary>What some schedules are told besides; null: the schedule's own default. Each schedule reads its own, see <see cref="Optimizers.Schedule"/>.</summary>
public sealed record ScheduleDetails
{
    /// <summary>Waves of the cosine; 0.5 falls once.</summary>
    public double? NumCycles { get; init; }

    public double? Power { get; init; }

    /// <summary>The learning rate behind the last step.</summary>
    public double? LrEnd { get; init; }

    /// <summary>The lowest learning rate.</summary>
    public double? MinLr { get; init; }

    /// <summary>The same over the highest one.</summary>
    public double? MinLrRate { get; init; }

    /// <summary>The same, as <see cref="LearningRateSchedule.WarmupStableDecay"/> calls it; the warm-up starts there too.</summary>
    public double? MinLrRatio { get; init; }

    /// <summary>Where the warm-up starts, over the highest rate.</summary>
    public double? WarmupLrRate { get; init; }

    /// <summary>Steps in which the rate falls to the root of a half.</summary>
    public int? Timescale { get; init; }

    public int? NumStableSteps { get; init; }

    public int? NumDecaySteps { get; init; }

    public ScheduleCurve? WarmupType { get; init; }

    public ScheduleCurve? DecayType { get; init; }
}

/// <summary>When the held-out loss is measured during the training.</summary>
public enum EvaluationStrategy
{
    No,

    /// <summary>As <see cref="EvaluationOptions.Steps"/> or <see cref="EvaluationOptions.PerEpoch"/> says.</summary>
    Steps,

    /// <summary>At the end of each pass over the data.</summary>
    Epoch,
}

public sealed record EvaluationOptions
{
    public bool Before { get; init; } = true;

    public bool After { get; init; } = true;

    /// <summary>During the training; <see cref="EvaluationStrategy.Steps"/> where <see cref="Steps"/> or <see cref="PerEpoch"/> is given and nothing else.</summary>
    public EvaluationStrategy Strategy { get; init; } = EvaluationStrategy.No;

    /// <summary>Each so many steps; below 1 that share of all steps; 0: not given.</summary>
    public double Steps { get; init; }

    /// <summary>So often in each pass over the data; 0: not given.</summary>
    public int PerEpoch { get; init; }

    /// <summary>Evaluations without a better loss after which the training ends; null: it never ends early.</summary>
    public int? EarlyStoppingPatience { get; init; }

    /// <summary>By how much a loss must be lower than the best one to count as better for that.</summary>
    public double EarlyStoppingThreshold { get; init; }

    /// <summary>What the run writes is the best of what was evaluated, not the last.</summary>
    public bool LoadBest { get; init; }

    /// <summary>What is learned, or what is written at the end, depends on evaluations.</summary>
    public bool DecidesTheResult => EarlyStoppingPatience is not null || LoadBest;

    /// <summary>Longest answer that is generated for exact match; 0: no generation, loss only.</summary>
    public int MaxNewTokens { get; init; } = 64;

    /// <summary>Held-out rows that are evaluated, from the first on; 0: all.</summary>
    public int MaxSamples { get; init; }
}

/// <summary>What is done on the machine when a run has come to its end and everything of it is safe.</summary>
public sealed record FinishOptions
{
    /// <summary>For the shell; null: nothing.</summary>
    public string? Command { get; init; }
}

public enum ResumeMode
{
    Never,
    Auto,
    Must,
}

public enum NonFiniteAction
{
    Stop,
    Rollback,
}

public enum CheckpointInterval
{
    /// <summary>As <see cref="CheckpointOptions.EverySteps"/> and <see cref="CheckpointOptions.EveryMinutes"/> say.</summary>
    Fixed,

    /// <summary>From the measured time of a save and the observed interruptions.</summary>
    Auto,
}

/// <summary>When the whole state is saved, where, and how many are kept.</summary>
public sealed record CheckpointOptions
{
    /// <summary>0: not by steps.</summary>
    public int EverySteps { get; init; }

    /// <summary>0: not by time.</summary>
    public double EveryMinutes { get; init; } = 10;

    public CheckpointInterval Interval { get; init; } = CheckpointInterval.Fixed;

    /// <summary>The newest so many are kept, and the best.</summary>
    public int Keep { get; init; } = 2;

    /// <summary>Null: <c>checkpoints</c> in the run folder.</summary>
    public string? Uri { get; init; }

    /// <summary>The user guarantees that no second machine writes to this run.</summary>
    public bool SingleWriter { get; init; }

    /// <summary>After so many seconds without a renewal another machine may take the run over.</summary>
    public double LeaseSeconds { get; init; } = 30;

    public CheckpointErrorAction OnError { get; init; } = CheckpointErrorAction.Continue;
}

/// <summary>What a checkpoint that cannot be saved does to the run.</summary>
public enum CheckpointErrorAction
{
    /// <summary>A warning; the next one is tried when it is due. At the end of the run it is an error all the same.</summary>
    Continue,

    /// <summary>The run ends with an error.</summary>
    Stop,
}

/// <summary>What is watched for the notice that the machine goes away.</summary>
[Flags]
public enum InterruptionSources
{
    None = 0,

    /// <summary>AWS's instance metadata: spot interruptions and rebalance recommendations.</summary>
    Aws = 1,

    /// <summary>Google Cloud's instance metadata: preemption and host maintenance.</summary>
    Gcp = 2,

    /// <summary>Azure's scheduled events.</summary>
    Azure = 4,

    /// <summary>The file <see cref="InterruptionOptions.File"/>.</summary>
    File = 8,

    /// <summary>What schedulers send besides SIGTERM: SIGUSR1, SIGUSR2, SIGHUP.</summary>
    Signals = 16,

    /// <summary>The signals, the file if one is named, and the cloud that this machine is in.</summary>
    Auto = 32,
}

/// <summary>How the run learns that its machine is about to be taken away. SIGTERM and Ctrl-C always count.</summary>
public sealed record InterruptionOptions
{
    public InterruptionSources Sources { get; init; } = InterruptionSources.Auto;

    /// <summary>The run stops in good order when this file is there; null: no file.</summary>
    public string? File { get; init; }

    /// <summary>Seconds between a notice and the end; null: what is known of the provider.</summary>
    public double? GraceSeconds { get; init; }

    /// <summary>Null: the usual address. The same goes for the other two.</summary>
    public string? AwsEndpoint { get; init; }

    public string? GcpEndpoint { get; init; }

    public string? AzureEndpoint { get; init; }
}

public enum RateUnit
{
    Gpu,
    Machine,
}

public enum BillingStart
{
    Process,
    Boot,
}

/// <summary>What the machine costs and what may be spent.</summary>
public sealed record CostOptions
{
    /// <summary>Price of one hour; null: not known.</summary>
    public decimal? Rate { get; init; }

    public RateUnit RatePer { get; init; } = RateUnit.Gpu;

    public string Currency { get; init; } = "USD";

    public decimal? Budget { get; init; }

    public double? MaxHours { get; init; }

    /// <summary>Share of the budget at which a warning is given.</summary>
    public double WarnAt { get; init; } = 0.8;

    public BillingStart BillFrom { get; init; } = BillingStart.Process;

    public string? Project { get; init; }

    public EquatableList<KeyValuePair<string, string>> Tags { get; init; } = [];

    /// <summary>The ledger's file; null: in the user's data folder.</summary>
    public string? Ledger { get; init; }
}
