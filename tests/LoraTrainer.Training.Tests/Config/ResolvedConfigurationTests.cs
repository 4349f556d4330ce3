using LoraTrainer.Training.Config;
using Xunit;

namespace LoraTrainer.Training.Tests.Config;

public sealed class ResolvedConfigurationTests
{
    private const string Rich = """
        base_model: "models/odd: name # 1"
        run_name: "007"
        adapter: qlora
        lora_r: 64
        lora_target_modules: [q_proj, v_proj, "true", "1e3"]
        lora_rank_pattern: {down_proj: 4}
        loraplus_lr_ratio: 1.5
        bnb_config_kwargs: {bnb_4bit_use_double_quant: false}
        datasets:
          - path: "a b.jsonl"
            type:
              field_instruction: context
              format: "[INST] {instruction}\n\t\"quoted\" \\ é \u2028 [/INST]"
              no_input_format: ""
          - {path: c.csv, type: completion, field: body, ds_type: csv}
        test_datasets: [{path: t.jsonl, type: alpaca}]
        learning_rate: 1e-5
        adam_epsilon: 1e-10
        num_epochs: 0.1
        seed: 9007199254740993
        threads: 2
        checkpoint: {every_steps: 7, every_minutes: 0.5, uri: /mnt/x}
        interruption: {sources: [file, aws], file: /tmp/stop, grace_seconds: 2.5, aws_endpoint: "http://[fd00:ec2::254]"}
        cost: {rate: 1.10, budget: 25, tags: {team: nlp, "a b": "yes"}, max_hours: 0.1}
        """;

    public static TheoryData<string> Configurations => new(
        Rich,
        ConfigurationLoaderTests.Tiny,
        ConfigurationLoaderTests.Tiny + "lora_target_modules: '.*\\.(q|v)_proj'",
        ConfigurationLoaderTests.Tiny + "checkpoint: {interval: auto}",
        ConfigurationLoaderTests.Tiny + "interruption: {sources: none}",
        ConfigurationLoaderTests.Tiny + "interruption: {sources: signals}",
        "base_model: m\nlearning_rate: 1e-5\ndatasets: [{path: a, type: alpaca}]");

    private static TrainingConfig Load(string text, params string[] settings)
    {
        ConfigurationResult result = ConfigurationLoaderTests.Load(text, settings);
        Assert.True(result.Config is not null, string.Join('\n', result.Errors));
        return result.Config;
    }

    [Theory]
    [MemberData(nameof(Configurations))]
    public void ToYaml_ReadAgain_IsEqual(string text)
    {
        TrainingConfig config = Load(text);
        string yaml = config.ToYaml();

        ConfigurationResult again = ConfigurationLoader.LoadText(yaml, "config.resolved.yaml", []);

        Assert.True(again.Config is not null, string.Join('\n', again.Errors));
        Assert.Equal(config, again.Config);
        Assert.Equal(yaml, again.Config.ToYaml());
        Assert.Equal(config.Hash, again.Config.Hash);
        Assert.Empty(again.Notices);
    }

    [Fact]
    public void Hash_DefaultOf4BitFormatWrittenDown_IsTheSame()
    {
        TrainingConfig open = Load(ConfigurationLoaderTests.Tiny + "load_in_4bit: true"), given = Load(ConfigurationLoaderTests.Tiny + "load_in_4bit: true\nbnb_config_kwargs: {bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true}");
        Assert.NotEqual(open, given);
        Assert.Equal(open.Hash, given.Hash);
        Assert.Empty(TrainingConfig.CompareForResume(given, open));
        Assert.NotEqual(open.Hash, Load(ConfigurationLoaderTests.Tiny + "load_in_4bit: true\nbnb_config_kwargs: {bnb_4bit_quant_type: fp4}").Hash);
    }

    [Fact]
    public void Load_DamagedText_NeverThrowsAndAlwaysSaysSomething()
    {
        const string odd = "{}[]:,-&*!|>'\"%@`#?~ \t\n\0\u2028_0e.";
        Random random = new(1);
        int wrong = 0;
        for (int round = 0; round < 3000; round++)
        {
            char[] text = Rich.ToCharArray();
            for (int change = 0; change <= round % 4; change++)
            {
                text[random.Next(text.Length)] = odd[random.Next(odd.Length)];
            }

            ConfigurationResult result = ConfigurationLoaderTests.Load(new string(text));

            wrong += result.Config is null ? 1 : 0;
            Assert.True(result.Config is not null || result.Errors.Count > 0, new string(text));
            Assert.All(result.Errors, error => Assert.EndsWith(error.Message.EndsWith('?') ? "?" : ".", error.Message, StringComparison.Ordinal));
        }

        Assert.InRange(wrong, 500, 2999);
    }

    [Fact]
    public void ToYaml_Tiny_IsThisText() => Assert.StartsWith(
        "base_model: models/tiny\nrun_name: tiny\noutput_dir: outputs/tiny\nadapter: lora\nlora_model_dir: null\nlora_r: 16\nlora_alpha: 32\nlora_dropout: 0\nlora_target_modules: null\nlora_target_linear: false\nlora_modules_to_save: []\n",
        Load(ConfigurationLoaderTests.Tiny).ToYaml(), StringComparison.Ordinal);

    [Fact]
    public void Hash_OfTheSameMeaning_IsTheSame()
    {
        string hash = Load(ConfigurationLoaderTests.Tiny).Hash;

        Assert.Matches("^[0-9a-f]{64}$", hash);
        Assert.Equal(hash, Load(ConfigurationLoaderTests.Tiny + "lora_rank: 16\nflash_attention: true").Hash);
    }

    [Theory]
    [InlineData("output_dir=x")]
    [InlineData("threads=1")]
    [InlineData("logging_steps=5")]
    [InlineData("checkpoint.every_steps=5")]
    [InlineData("cost.rate=1")]
    [InlineData("interruption.sources=none")]
    [InlineData("resume=auto")]
    [InlineData("device=cpu")]
    [InlineData("gradient_checkpointing=true")]
    [InlineData("test_datasets=[{path: a, type: alpaca}]")]
    [InlineData("base_model=elsewhere/tiny")]
    [InlineData("datasets.0.path=elsewhere.jsonl")]
    public void Change_WithoutEffectOnTheResult_KeepsTheHashAndIsAllowed(string setting)
    {
        TrainingConfig before = Load(ConfigurationLoaderTests.Tiny);
        TrainingConfig after = Load(ConfigurationLoaderTests.Tiny, setting);

        Assert.Equal(before.Hash, after.Hash);
        Assert.NotEmpty(TrainingConfig.CompareForResume(before, after));
        Assert.All(TrainingConfig.CompareForResume(before, after), difference => Assert.Equal(ResumeEffect.Allowed, difference.Effect));
    }

    [Theory]
    [InlineData("learning_rate=1e-4", "learning_rate", "0.0002", "0.0001", ResumeEffect.NeedsForce)]
    [InlineData("max_steps=10", "max_steps", "0", "10", ResumeEffect.NeedsForce)]
    [InlineData("lora_dropout=0.1", "lora_dropout", "0", "0.1", ResumeEffect.NeedsForce)]
    [InlineData("lora_r=8", "lora_r", "16", "8", ResumeEffect.Refused)]
    [InlineData("seed=1", "seed", "42", "1", ResumeEffect.Refused)]
    [InlineData("sequence_len=64", "sequence_len", "2048", "64", ResumeEffect.Refused)]
    [InlineData("lora_target_modules=[q_proj]", "lora_target_modules", "null", "[q_proj]", ResumeEffect.Refused)]
    [InlineData("datasets.0.type=completion", "datasets[0].type", "alpaca", "completion", ResumeEffect.Refused)]
    [InlineData("micro_batch_size=2", "micro_batch_size", "1", "2", ResumeEffect.Refused)]
    public void Change_OfTheResult_ChangesTheHashAndSaysHow(string setting, string key, string old, string @new, ResumeEffect effect)
    {
        TrainingConfig before = Load(ConfigurationLoaderTests.Tiny);
        TrainingConfig after = Load(ConfigurationLoaderTests.Tiny, setting);

        Assert.NotEqual(before.Hash, after.Hash);
        Assert.Equal(new ConfigurationDifference(key, old, @new, effect), TrainingConfig.CompareForResume(before, after)[0]);
    }

    [Fact]
    public void Change_OfMicroBatchWithTheSameBatch_IsAllowed()
    {
        TrainingConfig before = Load(ConfigurationLoaderTests.Tiny, "micro_batch_size=4", "gradient_accumulation_steps=2");
        TrainingConfig after = Load(ConfigurationLoaderTests.Tiny, "micro_batch_size=1", "gradient_accumulation_steps=8");

        Assert.Equal(before.Hash, after.Hash);
        Assert.Equal([ResumeEffect.Allowed, ResumeEffect.Allowed], TrainingConfig.CompareForResume(before, after).Select(difference => difference.Effect));
    }

    [Fact]
    public void Compare_EqualConfigurations_FindsNothing() =>
        Assert.Empty(TrainingConfig.CompareForResume(Load(Rich), Load(Rich)));

    [Fact]
    public void Lists_OfKeys_NameOnlyKnownKeysAndNoneTwice()
    {
        string[] named = [.. ResolvedConfiguration.WithoutEffectOnResult, .. ResolvedConfiguration.OfEvaluation, .. ResolvedConfiguration.ComparedByContent, .. ResolvedConfiguration.BatchShape, .. ResolvedConfiguration.ChangeableByForce];

        Assert.Equal(named.Length, named.Distinct().Count());
        Assert.All(named, name => Assert.Contains(name, ConfigurationKeys.All.Select(key => key.Path)));
    }

    [Fact]
    public void Keys_OfOtherTrainers_AreNotKeysHere()
    {
        string[] own = [.. ConfigurationKeys.Root.Keys.Select(key => key.Name)];

        Assert.Empty(own.Intersect(ForeignKeys.OfTheRoot.Names));
        Assert.Empty(own.Intersect(KeyAliases.Names));
        Assert.Empty(KeyAliases.Names.Intersect(ForeignKeys.OfTheRoot.Names));
    }
}
