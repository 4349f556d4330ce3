using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using Xunit;

namespace LoraTrainer.Training.Tests.Config;

/// <summary>The page and the files that users read say what the parser does.</summary>
public sealed class ConfigurationDocumentationTests
{
    private const string Marker = "<!-- The rest of this page is written from the table of keys; LT_UPDATE_DOCS=1 with this project's tests writes it anew. -->\n";

    private static string PagePath => Path.Combine(Fixtures.RepositoryRoot, "docs", "configuration.md");

    [Fact]
    public void Page_Tables_AreThoseOfTheParser()
    {
        string page = File.ReadAllText(PagePath);
        int start = page.IndexOf(Marker, StringComparison.Ordinal);
        Assert.True(start >= 0, $"{PagePath} has lost its marker line");
        string expected = page[..start] + Marker + "\n" + ConfigurationReference.ToMarkdown();
        if (Environment.GetEnvironmentVariable("LT_UPDATE_DOCS") == "1")
        {
            File.WriteAllText(PagePath, expected);
            return;
        }

        Assert.Equal(expected, page);
    }

    [Fact]
    public void Key_Example_IsReadByTheParser()
    {
        foreach ((string path, ConfigurationKey key) in ConfigurationKeys.All.Where(key => !key.Path.Contains("[]", StringComparison.Ordinal)))
        {
            string[] settings = path switch
            {
                "test_datasets" or "warmup_ratio" => [$"{path}={key.Example}"],
                "cost.budget" => ["cost.rate=1", $"{path}={key.Example}"],

                // Its folder is not here: so it is with a run that goes on elsewhere, whose configuration has the adapter's settings.
                "lora_model_dir" => [$"{path}={key.Example}", "lora_r=16", "lora_target_modules=[q_proj]"],
                "tokens" => ["lora_modules_to_save=[embed_tokens, lm_head]", $"{path}={key.Example}"],
                "quantized_cache.uri" => ["quantized_cache.path=/tmp/quantized", $"{path}={key.Example}"],
                "bnb_config_kwargs" => ["adapter=qlora", $"{path}={key.Example}"],
                "chat_template_jinja" => ["chat_template=jinja", $"{path}={key.Example}"],
                "max_rollbacks" => ["on_nonfinite=rollback", "checkpoint.every_steps=5", $"{path}={key.Example}"],
                "early_stopping_patience" or "load_best_model_at_end" => ["val_set_size=3", "evals_per_epoch=2", $"{path}={key.Example}"],
                "early_stopping_threshold" => ["val_set_size=3", "evals_per_epoch=2", "early_stopping_patience=2", $"{path}={key.Example}"],
                "lr_scheduler_kwargs.power" or "lr_scheduler_kwargs.lr_end" => ["lr_scheduler=polynomial", $"{path}={key.Example}"],
                "lr_scheduler_kwargs.min_lr" or "lr_scheduler_kwargs.min_lr_rate" => ["lr_scheduler=cosine_with_min_lr", $"{path}={key.Example}"],
                "lr_scheduler_kwargs.warmup_lr_rate" => ["lr_scheduler=cosine_warmup_with_min_lr", "lr_scheduler_kwargs.min_lr=0", $"{path}={key.Example}"],
                "lr_scheduler_kwargs.timescale" => ["lr_scheduler=inverse_sqrt", $"{path}={key.Example}"],
                "lr_scheduler_kwargs.num_cycles" => [$"{path}={key.Example}"],
                _ when path.StartsWith("lr_scheduler_kwargs.", StringComparison.Ordinal) => ["lr_scheduler=warmup_stable_decay", "lr_scheduler_kwargs.num_decay_steps=5", $"{path}={key.Example}"],
                _ when path.StartsWith("bnb_config_kwargs", StringComparison.Ordinal) => ["adapter=qlora", $"{path}={key.Example}"],
                _ => [$"{path}={key.Example}"],
            };
            ConfigurationResult result = ConfigurationLoaderTests.Load(ConfigurationLoaderTests.Tiny, settings);

            Assert.True(result.Config is not null, $"the documented example of {path} is refused: {string.Join(' ', result.Errors)}");
        }
    }

    [Fact]
    public void Key_Texts_AreWholeSentences() => Assert.All(ConfigurationKeys.All, key =>
    {
        Assert.EndsWith(".", key.Key.Meaning, StringComparison.Ordinal);
        Assert.True(key.Key.Typical.Length == 0 || key.Key.Typical.EndsWith('.'), key.Path);
    });

    [Fact]
    public void Configs_EveryFile_IsValid()
    {
        string[] files = [.. Directory.EnumerateFiles(Path.Combine(Fixtures.RepositoryRoot, "configs"), "*", SearchOption.AllDirectories).Order(StringComparer.Ordinal)];

        // A new file is counted here, so that none can be passed over.
        Assert.Equal(3, files.Length);
        Assert.All(files, file => Assert.Equal(".yaml", Path.GetExtension(file)));
        Assert.All(files, file => Assert.Empty(ConfigurationLoader.LoadFile(file, []).Errors));
    }

    [Fact]
    public void FinLoraExample_LoadsWithABaseAndData()
    {
        string file = Fixtures.RequireData("finlora/axolotl_example_config.yml");
        ConfigurationResult result = ConfigurationLoader.LoadFile(file, ["base_model=models/tiny", "datasets.0.path=data/train.jsonl"]);

        Assert.NotNull(result.Config);
        Assert.All(result.Errors, error => Assert.Equal(ConfigurationIssueKind.NotSupportedYet, error.Kind));
        Assert.Equal(OptimizerKind.AdamW8Bit, result.Config.Optimizer.Kind);
        Assert.Equal(("context", "target"), (result.Config.Data.Datasets[0].Format.Custom!.FieldInstruction, result.Config.Data.Datasets[0].Format.Custom!.FieldOutput));
        Assert.Empty(ConfigurationLoader.LoadFile(file, ["base_model=models/tiny", "datasets.0.path=data/train.jsonl", "load_in_8bit=false", "load_in_4bit=true", "optimizer=adamw_torch"]).Errors);
    }
}
