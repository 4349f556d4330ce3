using LoraTrainer.Data.Datasets;
using LoraTrainer.Models;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests.Config;

public sealed class ConfigurationLoaderTests
{
    /// <summary>Five lines to which tests add from line 6 on.</summary>
    internal const string Tiny = """
        base_model: models/tiny
        adapter: lora
        datasets:
          - path: data/train.jsonl
            type: alpaca

        """;

    internal static ConfigurationResult Load(string text, params string[] settings) => ConfigurationLoader.LoadText(text, "tiny.yaml", settings);

    internal static TrainingConfig LoadTiny(string more = "", params string[] settings) => Load(Tiny + more, settings).Require();

    private static string[] Errors(string text, params string[] settings) => [.. Load(text, settings).Errors.Select(error => error.Message)];

    private static string[] Notices(string text, params string[] settings) => [.. Load(text, settings).Notices.Select(notice => notice.Message)];

    [Fact]
    public void Load_SmallestConfig_HasTheDocumentedDefaults()
    {
        TrainingConfig config = LoadTiny();

        Assert.Equal(("models/tiny", "tiny", "outputs/tiny"), (config.BaseModel, config.RunName, config.OutputDir));
        Assert.Equal((16, 32.0, 2.0, true), (config.Adapter.Rank, config.Adapter.Alpha, config.Adapter.Scaling, config.Adapter.TargetsAllLinear));
        Assert.Equal((2048, ExcessLength.Drop, false), (config.Data.SequenceLen, config.Data.ExcessLength, config.Data.SamplePacking));
        Assert.Equal((2e-4, OptimizerKind.AdamW, 1.0), (config.Optimizer.LearningRate, config.Optimizer.Kind, config.Optimizer.MaxGradNorm));
        Assert.Empty(Load(Tiny).Notices);
    }

    [Theory]
    [InlineData("lora_r: 0", "lora_r must be 1..1024, got 0 (tiny.yaml:6). Typical: 8, 16, 64.")]
    [InlineData("lora_r: 9000000000000000000000", "lora_r must be 1..1024, got 9000000000000000000000 (tiny.yaml:6). Typical: 8, 16, 64.")]
    [InlineData("lora_r: 8.0", "lora_r must be a whole number (1..1024), got 8.0 (tiny.yaml:6). Typical: 8, 16, 64.")]
    [InlineData("lora_r: eight", "lora_r must be a whole number (1..1024), got eight (tiny.yaml:6). Typical: 8, 16, 64.")]
    [InlineData("lora_r: [8]", "lora_r must be a whole number (1..1024), got a list (tiny.yaml:6). Typical: 8, 16, 64.")]
    [InlineData("lora_r: '8'", "lora_r must be a whole number (1..1024), got the text \"8\" (tiny.yaml:6). Remove the quotes.")]
    [InlineData("lora_r: 010", "lora_r must be a whole number (1..1024), got 010 (tiny.yaml:6). Typical: 8, 16, 64.")]
    [InlineData("lora_r: 0x10", "lora_r must be a whole number (1..1024), got 0x10 (tiny.yaml:6). Typical: 8, 16, 64.")]
    [InlineData("sequence_len: 2_048", "sequence_len must be a whole number (8..1048576), got 2_048 (tiny.yaml:6). Write the digits without underscores.")]
    [InlineData("learning_rate: -1e-4", "learning_rate must be 0..1, got -1e-4 (tiny.yaml:6). Typical: 2e-4 for LoRA, 1e-5 for all parameters.")]
    [InlineData("learning_rate: .nan", "learning_rate must be a number (0..1), got .nan (tiny.yaml:6). Typical: 2e-4 for LoRA, 1e-5 for all parameters.")]
    [InlineData("learning_rate: 1e999", "learning_rate must be 0..1, got 1e999 (tiny.yaml:6). Typical: 2e-4 for LoRA, 1e-5 for all parameters.")]
    [InlineData("learning_rate: 2e-4x", "learning_rate must be a number (0..1), got 2e-4x (tiny.yaml:6). Typical: 2e-4 for LoRA, 1e-5 for all parameters.")]
    [InlineData("sample_packing: yes", "sample_packing must be true or false, got yes (tiny.yaml:6).")]
    [InlineData("sample_packing: 1", "sample_packing must be true or false, got 1 (tiny.yaml:6).")]
    [InlineData("device: gpu", "device must be one of auto, cpu, cuda, got gpu (tiny.yaml:6). Did you mean cuda?")]
    [InlineData("device: cuda:0", "device must be one of auto, cpu, cuda, got cuda:0 (tiny.yaml:6). Write cuda; the environment variable CUDA_VISIBLE_DEVICES chooses the GPU.")]
    [InlineData("lr_scheduler: cosin", "lr_scheduler must be one of linear, cosine, constant, constant_with_warmup, cosine_with_restarts, cosine_with_min_lr, cosine_warmup_with_min_lr, polynomial, inverse_sqrt, warmup_stable_decay, got cosin (tiny.yaml:6). Did you mean cosine?")]
    [InlineData("optimizer: lion_8bit", "optimizer must be one of adamw_torch, adamw_torch_fused, adamw_bnb_8bit, adamw_8bit, paged_adamw_32bit, paged_adamw, paged_adamw_8bit, got lion_8bit (tiny.yaml:6). adamw_torch is the usual one.")]
    [InlineData("checkpoint: 100", "checkpoint must be a mapping of keys and values, got 100 (tiny.yaml:6).")]
    [InlineData("checkpoint: {every_steps: -1}", "checkpoint.every_steps must be 0 or more, got -1 (tiny.yaml:6).")]
    [InlineData("checkpoint: {evry_steps: 5}", "Unknown key checkpoint.evry_steps (tiny.yaml:6). Did you mean every_steps?")]
    [InlineData("cost: {currency: eur}", "cost.currency must be a currency of three capital letters, got eur (tiny.yaml:6).")]
    [InlineData("cost: {rate: -1}", "cost.rate must be an amount (0 or more), got -1 (tiny.yaml:6).")]
    [InlineData("run_name: a/b", "run_name must be a name of letters, digits, dot, dash and underscore that starts with a letter or digit, got a/b (tiny.yaml:6).")]
    [InlineData("val_set_size: 1.5", "val_set_size must be below 1 for a share, or a whole number of rows, got 1.5 (tiny.yaml:6). Typical: 0, 0.02, 0.05.")]
    [InlineData("lora_rr: 8", "Unknown key lora_rr (tiny.yaml:6). Did you mean lora_r?")]
    [InlineData("sequence_length: 8", "Unknown key sequence_length (tiny.yaml:6). Did you mean sequence_len?")]
    [InlineData("laerning_rate: 8", "Unknown key laerning_rate (tiny.yaml:6). Did you mean learning_rate?")]
    [InlineData("every_steps: 5", "Unknown key every_steps (tiny.yaml:6). Did you mean checkpoint.every_steps?")]
    [InlineData("xyzzy: 5", "Unknown key xyzzy (tiny.yaml:6). docs/configuration.md lists all keys.")]
    [InlineData("adapter: lora", "adapter is given twice (tiny.yaml:2 and tiny.yaml:6). Keep one.")]
    [InlineData("seed: !!int 5", "The YAML tag tag:yaml.org,2002:int is not understood here (tiny.yaml:6). Write the plain value.")]
    [InlineData("seed: *nothing", "The alias *nothing names no anchor above it (tiny.yaml:6). Write &nothing before the value it stands for.")]
    [InlineData("cost:\n  <<: {rate: 1}", "The merge key << is not supported (tiny.yaml:7). Write the keys out.")]
    [InlineData("lora_target_modules: '('", "lora_target_modules must be a list of module names or a valid regular expression, got the text \"(\" (tiny.yaml:6). Invalid pattern '(' at offset 1. Not enough )'s. Example: [q_proj, v_proj].")]
    [InlineData("lora_target_modules: q_proj,v_proj", "lora_target_modules must be a list of module names, or a regular expression for a whole path, got q_proj,v_proj (tiny.yaml:6). Write [q_proj, v_proj].")]
    [InlineData("lora_target_modules: [q_proj, [v_proj]]", "lora_target_modules[1] must be a module name, got a list (tiny.yaml:6). Example: [q_proj, k_proj, v_proj, o_proj].")]
    [InlineData("interruption: {sources: [aws, ec2]}", "interruption.sources[1] must be one of aws, gcp, azure, file, signals, got ec2 (tiny.yaml:6).")]
    [InlineData("interruption: {sources: spot}", "interruption.sources must be auto, none, or a list of aws, gcp, azure, file, signals, got spot (tiny.yaml:6).")]
    [InlineData("interruption: {aws_endpoint: 169.254.169.254}", "interruption.aws_endpoint must be an address that starts with http:// or https://, got 169.254.169.254 (tiny.yaml:6).")]
    public void Load_WrongValue_SaysWhatWhereAndWhatNext(string line, string message) => Assert.Equal([message], Errors(Tiny + line));

    [Theory]
    [InlineData("num_epochs: 0", "num_epochs and max_steps are both 0, so nothing would be trained (tiny.yaml:6). Set one of them, for example num_epochs: 1.")]
    [InlineData("warmup_steps: 5\nwarmup_ratio: 0.1", "warmup_steps (tiny.yaml:6) and warmup_ratio (tiny.yaml:7) are both given. Keep one.")]
    [InlineData("lr_scheduler: constant\nwarmup_steps: 5", "lr_scheduler: constant has no warm-up, but one is given (tiny.yaml:6). Use constant_with_warmup, or remove the warm-up.")]
    [InlineData("bnb_config_kwargs: {bnb_4bit_use_double_quant: true}", "bnb_config_kwargs is given, but load_in_4bit is not true (tiny.yaml:6). Add load_in_4bit: true, or remove it.")]
    [InlineData("val_set_size: 0.1\ntest_datasets: [{path: a, type: alpaca}]", "val_set_size (tiny.yaml:6) and test_datasets (tiny.yaml:7) both name a held-out set. Keep one.")]
    [InlineData("test_datasets: [{path: a, type: alpaca, field: b}]", "test_datasets[0].field belongs to type: completion only (tiny.yaml:6). Name the fields in a block under type, or remove it.")]
    [InlineData("interruption: {sources: [aws], file: stop}", "interruption.file (tiny.yaml:6) is given, but interruption.sources (tiny.yaml:6) does not watch it. Add file to the sources, or remove interruption.file.")]
    [InlineData("test_datasets: [{path: 'https://me:pw@host/x.jsonl', type: alpaca}]", "test_datasets[0].path holds a user or a password; the configuration is copied into every run, so leave it out (tiny.yaml:6).")]
    [InlineData("test_datasets: [{path: 'https://host/x.jsonl#md5=1', type: alpaca}]", "test_datasets[0].path has a '#' that is not followed by sha256= and 64 hexadecimal digits (tiny.yaml:6).")]
    [InlineData("quantized_cache: {uri: s3://bucket/p}", "quantized_cache.uri is given (tiny.yaml:6), but no quantized_cache.path. Add the folder of this machine where what comes from the store lies, for example path: /tmp/quantized.")]
    [InlineData("interruption: {sources: [file, aws]}", "interruption.sources (tiny.yaml:6) names file, but interruption.file is missing. Add it, for example file: /tmp/stop-training.")]
    public void Load_Contradiction_NamesBothSides(string lines, string message) => Assert.Equal([message], Errors(Tiny + lines));

    [Theory]
    [InlineData("embeddings: host", "embeddings: host needs an adapter, because embeddings that are trained are on the device (tiny.yaml:2). Add adapter: lora, or remove embeddings.")]
    [InlineData("lm_head: int8", "lm_head: int8 needs an adapter, because a quantized head cannot be trained itself (tiny.yaml:2). Add adapter: lora, or remove lm_head.")]
    [InlineData("load_in_4bit: true", "load_in_4bit needs an adapter, because a quantized base cannot be trained itself (tiny.yaml:2). Add adapter: qlora, or remove load_in_4bit.")]
    [InlineData("lora_r: 16", "lora_r is given, but no adapter, so all parameters would be trained (tiny.yaml:2). Add adapter: lora or adapter: qlora, or remove the lora_ and peft_ keys.")]
    [InlineData("adapter: qlora\nload_in_4bit: false", "adapter: qlora means a base in 4 bits, but load_in_4bit is false (tiny.yaml:3). Remove load_in_4bit, or use adapter: lora.")]
    [InlineData("adapter:\nload_in_8bit: true\nlearning_rate: 1e-5", "load_in_8bit needs an adapter, because a quantized base cannot be trained itself (tiny.yaml:3). Add adapter: lora, or remove load_in_8bit.")]
    [InlineData("adapter:", "learning_rate is missing: all parameters would be trained, and the default suits adapters only (tiny.yaml). Typical: 1e-5. Was adapter: lora meant?")]
    public void Load_AdapterAndBaseDisagree_SaysWhatToDo(string lines, string message) =>
        Assert.Equal([message], Errors($"base_model: m\n{lines}\ndatasets: [{{path: a, type: alpaca}}]"));

    [Fact]
    public void Load_Empty_NamesWhatMustBeThere() => Assert.Equal(
        [
            "base_model is missing (tiny.yaml). Give the model to start from, a folder or a name of the hub, for example base_model: HuggingFaceTB/SmolLM2-135M.",
            "datasets is missing (tiny.yaml). Give at least one file, for example datasets: [{path: data/train.jsonl, type: alpaca}].",
        ],
        Errors(""));

    [Fact]
    public void Load_SeveralProblems_TellsAllInTheOrderOfTheFile() => Assert.Equal(
        ["Unknown key xyzzy (tiny.yaml:6). docs/configuration.md lists all keys.", "lora_r must be 1..1024, got 0 (tiny.yaml:7). Typical: 8, 16, 64.", "seed must be 0 or more, got -1 (tiny.yaml:8)."],
        Errors(Tiny + "xyzzy: 1\nlora_r: 0\nseed: -1"));

    [Theory]
    [InlineData("- 1", "A configuration is a mapping of keys and values, got a list (tiny.yaml:1). Example of a line: learning_rate: 2e-4.")]
    [InlineData("a: [1", "This is not valid YAML:")]
    [InlineData("a: {b: {c: {d: {e: {f: {g: {h: {i: {j: {k: {l: {m: {n: {o: {p: {q: {r: 1}}}}}}}}}}}}}}}}}}", "The configuration is nested more than 16 levels deep (tiny.yaml:1). No key needs that.")]
    [InlineData("seed: 1\n---\nseed: 2", "A second YAML document starts here (tiny.yaml:2). Write one configuration per file.")]
    public void Load_NotAConfiguration_SaysWhy(string text, string start) => Assert.Contains(Errors(text), message => message.StartsWith(start, StringComparison.Ordinal));

    [Fact]
    public void Load_AliasesThatBlowUp_AreRefusedAtOnce()
    {
        string text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
        for (int i = 1; i <= 9; i++)
        {
            text += $"a{i}: &a{i} [{string.Join(", ", Enumerable.Repeat($"*a{i - 1}", 10))}]\n";
        }

        Assert.Contains("The aliases stand for more than 20,000 values (tiny.yaml:5). Write the values out.", Errors(text));
    }

    [Fact]
    public void Load_Anchor_StandsForItsValue()
    {
        TrainingConfig config = Load("base_model: m\nadapter: lora\ndatasets: [&d {path: a, type: alpaca}]\ntest_datasets: [*d]").Require();

        Assert.Equal(config.Data.Datasets, config.Data.TestDatasets);
    }

    [Theory]
    [InlineData("2e-4", 2e-4)]
    [InlineData("1e-5", 1e-5)]
    [InlineData("1.0E-3", 1e-3)]
    [InlineData("0.0002", 2e-4)]
    [InlineData(".5", .5)]
    public void Load_Number_IsReadAsYaml12Does(string text, double value) => Assert.Equal(value, LoadTiny($"learning_rate: {text}").Optimizer.LearningRate);

    [Fact]
    public void Load_CustomBlock_NamesFieldsAndFormat()
    {
        DatasetFormatOptions format = Load("base_model: m\nadapter: lora\ndatasets:\n  - path: a\n    type:\n      field_instruction: context\n      field_output: target\n      format: \"[INST] {instruction} [/INST]\"\n").Require().Data.Datasets[0].Format;

        Assert.Equal(DatasetFormatKind.Custom, format.Kind);
        Assert.Equal(new CustomFormat { FieldInstruction = "context", FieldOutput = "target", Format = "[INST] {instruction} [/INST]" }, format.Custom);
    }

    [Fact]
    public void Load_Qlora_Implies4BitWithDoubleQuantization()
    {
        QuantizationOptions quantization = LoadTiny("", "adapter=qlora").Quantization;

        Assert.Equal(new QuantizationOptions { LoadIn4Bit = true, FourBit = new FourBitOptions() }, quantization);
        Assert.Equal(BaseFormat.Nf4DoubleQuantized, TrainedModel.FormatOf(quantization));
    }

    [Fact]
    public void Load_Set_WinsOverTheFileAndSaysItsOwnPlace()
    {
        TrainingConfig config = LoadTiny("lora_r: 4", "lora_r=8", "datasets.0.path=other.jsonl", "datasets.1={path: third.jsonl, type: completion}", "checkpoint.every_steps=5", "lora_r=12");

        Assert.Equal(12, config.Adapter.Rank);
        Assert.Equal(["other.jsonl", "third.jsonl"], config.Data.Datasets.Select(dataset => dataset.Path));
        Assert.Equal(5, config.Checkpoint.EverySteps);
    }

    [Theory]
    [InlineData("lora_r=0", "lora_r must be 1..1024, got 0 (--set lora_r). Typical: 8, 16, 64.")]
    [InlineData("lora_rank=0", "lora_r must be 1..1024, got 0 (--set lora_rank). Typical: 8, 16, 64.")]
    [InlineData("datasets.0.pth=x", "Unknown key datasets[0].pth (--set datasets.0.pth). Did you mean path?")]
    [InlineData("datasets.7.path=x", "datasets is a list, got 7 as its index (--set datasets.7.path). Count from 0: it has the items 0..0, and 1 adds one.")]
    [InlineData("datasets.first.path=x", "datasets is a list, got first as its index (--set datasets.first.path). Count from 0: it has the items 0..0, and 1 adds one.")]
    [InlineData("xyzzy=x", "Unknown key xyzzy (--set xyzzy). docs/configuration.md lists all keys.")]
    [InlineData("lora_r", "--set must be key=value, got lora_r. Example: --set learning_rate=1e-4.")]
    [InlineData("=5", "--set must be key=value, got =5. Example: --set learning_rate=1e-4.")]
    public void Load_WrongSet_IsCheckedAsTheFileIs(string setting, string message) => Assert.Equal([message], Errors(Tiny, setting));

    [Fact]
    public void Load_SetToNothing_GoesBackToTheDefault() => Assert.Equal(16, LoadTiny("lora_r: 4", "lora_r=").Adapter.Rank);

    [Theory]
    [InlineData("per_device_train_batch_size: 4", "per_device_train_batch_size is read as micro_batch_size (tiny.yaml:6).")]
    [InlineData("cutoff_len: 512", "cutoff_len is read as sequence_len (tiny.yaml:6). Longer rows are dropped here; excess_length_strategy: truncate cuts them.")]
    [InlineData("lora_target: all", "lora_target is read as lora_target_linear: true (tiny.yaml:6).")]
    [InlineData("lora_target: q_proj,v_proj", "lora_target is read as lora_target_modules: [q_proj, v_proj] (tiny.yaml:6).")]
    [InlineData("quantization_bit: 4", "quantization_bit is read as load_in_4bit: true (tiny.yaml:6).")]
    [InlineData("disable_gradient_checkpointing: true", "disable_gradient_checkpointing is read as gradient_checkpointing: false (tiny.yaml:6).")]
    [InlineData("save_steps: 50", "save_steps is read as checkpoint.every_steps (tiny.yaml:6).")]
    [InlineData("max_steps: -1", "max_steps: -1 is read as max_steps: 0 (tiny.yaml:6).")]
    [InlineData("auto_resume_from_checkpoints: true", "auto_resume_from_checkpoints is read as resume: auto (tiny.yaml:6).")]
    [InlineData("flash_attention: true", "flash_attention has no effect here (tiny.yaml:6): attention is always computed without storing the scores, and packed rows never see each other.")]
    [InlineData("wandb_anything: x", "wandb_anything has no effect here (tiny.yaml:6): the log is log.jsonl in the run folder; nothing is sent anywhere.")]
    [InlineData("bf16: auto", "bf16 has no effect here (tiny.yaml:6): the arithmetic follows the device: float32 on a CPU, bfloat16 with float32 sums on a GPU.")]
    public void Load_OtherSpelling_IsTakenWithANotice(string line, string notice)
    {
        Assert.Empty(Errors(Tiny + line));
        Assert.Equal([notice], Notices(Tiny + line));
    }

    [Fact]
    public void Load_OffKeysOfOtherTrainers_ArePassedOverInSilence()
    {
        const string lines = "wandb_project:\nfp16: false\nlora_model_dir:\nrl:\nneftune_noise_alpha:\nspecial_tokens: {}\nflash_attention: false\nlora_target:\n";

        Assert.Empty(Errors(Tiny + lines));
        Assert.Empty(Notices(Tiny + lines));
    }

    [Theory]
    [InlineData("rl: dpo", "rl would change the training and is not supported, got dpo (tiny.yaml:6). Only supervised fine-tuning is supported: remove it, or train with the tool that has it.")]
    [InlineData("fp16: true", "fp16 would change the training and is not supported, got true (tiny.yaml:6). Only float32 and bfloat16 are used; remove fp16.")]
    [InlineData("stage: dpo", "stage must be sft, got dpo (tiny.yaml:6). Only supervised fine-tuning is supported.")]
    [InlineData("template: llama3", "template would change the training and is not supported, got llama3 (tiny.yaml:6). Write the prompt as format in a block under datasets[].type instead, with the model's own markers.")]
    [InlineData("special_tokens: {eos_token: x}", "special_tokens.eos_token would change the training and is not supported, got x (tiny.yaml:6). The tokenizer's own special tokens are used; remove it.")]
    [InlineData("shuffle_merged_datasets: false", "shuffle_merged_datasets would change the training and is not supported, got false (tiny.yaml:6). Rows are shuffled with seed each epoch; remove it.")]
    [InlineData("quantization_bit: 2", "quantization_bit cannot be read as load_in_4bit, got 2 (tiny.yaml:6). Write load_in_4bit as docs/configuration.md shows it.")]
    [InlineData("lora_r: 8\nlora_rank: 4", "lora_rank (tiny.yaml:7) and lora_r (tiny.yaml:6) mean the same. Keep one.")]
    public void Load_KeyThatWouldChangeTheTraining_IsRefused(string lines, string message) => Assert.Equal([message], Errors(Tiny + lines));

    [Theory]
    [InlineData("test_datasets: [{path: a, type: alpaca, ds_type: arrow}]", "This file format is not supported yet, got test_datasets[0].ds_type: arrow (tiny.yaml:6). Convert the file to Parquet or JSON lines.")]
    public void Load_FeatureThatIsToCome_IsReadButNotUsable(string line, string message)
    {
        ConfigurationResult result = Load(Tiny + line);

        Assert.Equal([message], result.Errors.Select(error => error.Message));
        Assert.All(result.Errors, error => Assert.Equal(ConfigurationIssueKind.NotSupportedYet, error.Kind));
        Assert.NotNull(result.Config);
        Assert.Equal([message], Assert.Throws<ConfigurationException>(result.Require).Errors.Select(error => error.Message));
    }

    /// <summary>What such a key says may be what happens anyway; --show writes it.</summary>
    [Theory]
    [InlineData("checkpoint: {lease_seconds: 30.0, single_writer: true}")]
    [InlineData("cost: {rate: 2, rate_per: machine, warn_at: 0.80, bill_from: process, project: null, tags: {}}")]
    [InlineData("test_datasets: [{path: a.json, type: alpaca, ds_type: jsonl, split: train}]")]
    [InlineData("test_datasets: [{path: org/name, type: alpaca, split: test_sft, revision: refs/convert/parquet, name: en, data_files: data/*.csv, ds_type: csv}]")]
    [InlineData("test_datasets: [{path: 's3://bucket/a/*.jsonl?region=eu-west-1', type: alpaca, data_files: [a.csv, b/*.csv]}]")]
    [InlineData("revision_of_model: 0123456789abcdef0123456789abcdef01234567")]
    public void Load_FeatureThatIsToCome_AskedForWhatHappensAnyway_IsFine(string line) => Assert.Empty(Errors(Tiny + line));

    [Fact]
    public void FeatureState_EveryRow_NamesAKnownKey() =>
        Assert.All(FeatureState.Keys, key => Assert.Contains(key, ConfigurationKeys.All.Select(known => known.Path)));

    [Fact]
    public void LoadFile_MissingFile_SaysWhereItLooked()
    {
        using TemporaryFolder folder = new();
        string path = folder.File("none.yaml");

        ConfigurationException exception = Assert.Throws<ConfigurationException>(() => ConfigurationLoader.LoadFile(path, []));

        Assert.Equal($"There is no configuration file {path}. Check the name; relative paths start at {Directory.GetCurrentDirectory()}.", exception.Message);
    }

    [Fact]
    public void LoadFile_Folder_SaysSo()
    {
        using TemporaryFolder folder = new();

        ConfigurationException exception = Assert.Throws<ConfigurationException>(() => ConfigurationLoader.LoadFile(folder.Path, []));

        Assert.Equal($"{folder.Path} is a folder, not a configuration file. Give the YAML file in it.", exception.Message);
    }
}
