using System.Globalization;

namespace LoraTrainer.Training.Config;

/// <summary>Spellings of LLaMA-Factory and Hugging Face for keys that exist here, some with another way to write the value.</summary>
internal static class KeyAliases
{
    private static readonly Dictionary<string, Alias> Table = new(StringComparer.Ordinal)
    {
        // Hugging Face's TrainingArguments, TRL and PEFT.
        ["model_name_or_path"] = To("base_model"),
        ["per_device_train_batch_size"] = To("micro_batch_size"),
        ["num_train_epochs"] = To("num_epochs"),
        ["epochs"] = To("num_epochs"),
        ["lr_scheduler_type"] = To("lr_scheduler"),
        ["optim"] = To("optimizer"),
        ["lr"] = To("learning_rate"),
        ["max_length"] = To("sequence_len"),
        ["max_seq_length"] = To("sequence_len"),
        ["max_seq_len"] = To("sequence_len"),
        ["packing"] = To("sample_packing"),
        ["r"] = To("lora_r"),
        ["target_modules"] = To("lora_target_modules"),
        ["modules_to_save"] = To("lora_modules_to_save"),
        ["rank_pattern"] = To("lora_rank_pattern"),
        ["alpha_pattern"] = To("lora_alpha_pattern"),
        ["use_rslora"] = To("peft_use_rslora"),
        ["use_dora"] = To("peft_use_dora"),
        ["init_lora_weights"] = To("peft_init_lora_weights"),
        ["layers_to_transform"] = To("peft_layers_to_transform"),
        ["save_steps"] = To("checkpoint.every_steps"),
        ["save_total_limit"] = To("checkpoint.keep"),
        ["bnb_4bit_quant_type"] = To("bnb_config_kwargs.bnb_4bit_quant_type"),
        ["bnb_4bit_use_double_quant"] = To("bnb_config_kwargs.bnb_4bit_use_double_quant"),
        ["use_bnb_nested_quant"] = To("bnb_config_kwargs.bnb_4bit_use_double_quant"),
        ["clip_grad_norm"] = To("max_grad_norm"),
        ["log_every_n_steps"] = To("logging_steps"),
        ["gradient_accumulation"] = To("gradient_accumulation_steps"),
        ["evaluation_strategy"] = To("eval_strategy"),

        // LLaMA-Factory.
        ["lora_rank"] = To("lora_r"),
        ["additional_target"] = To("lora_modules_to_save", Words),
        ["lora_target"] = new("lora_target_modules", LoraTarget),
        ["cutoff_len"] = To("sequence_len"),
        ["val_size"] = To("val_set_size"),
        ["train_on_prompt"] = To("train_on_inputs"),
        ["neat_packing"] = To("sample_packing"),
        ["quantization_type"] = To("bnb_config_kwargs.bnb_4bit_quant_type"),
        ["double_quantization"] = To("bnb_config_kwargs.bnb_4bit_use_double_quant"),
        ["quantization_bit"] = new("load_in_4bit", QuantizationBit),
        ["finetuning_type"] = new("adapter", FinetuningType),
        ["disable_gradient_checkpointing"] = new("gradient_checkpointing", Opposite("gradient_checkpointing")),
        ["early_stopping_steps"] = To("early_stopping_patience"),
        ["pissa_init"] = new("peft_init_lora_weights", Pissa),
        ["adapter_name_or_path"] = To("lora_model_dir"),
        ["pissa_convert"] = To("convert_to_lora"),

        // axolotl.
        ["noisy_embedding_alpha"] = To("neftune_noise_alpha"),
        ["auto_resume_from_checkpoints"] = new("resume", AutoResume),
    };

    private static readonly Dictionary<string, string> Values = new(StringComparer.Ordinal)
    {
        // "key=value" that another trainer writes for the same thing.
        ["lora_target_modules=all-linear"] = "lora_target_linear=true",
        ["max_steps=-1"] = "max_steps=0",
        ["optimizer=adamw"] = "optimizer=adamw_torch",
        ["optimizer=adamw_hf"] = "optimizer=adamw_torch",
        ["optimizer=AdamW"] = "optimizer=adamw_torch",
        ["gradient_checkpointing=unsloth"] = "gradient_checkpointing=offload",
        ["adapter=none"] = "adapter=null",
        ["adapter=full"] = "adapter=null",
    };

    /// <summary>Names of <c>sequence_len</c> in trainers that cut what is longer.</summary>
    private static readonly HashSet<string> CutsLongRows = ["cutoff_len", "max_length", "max_seq_length"];

    public static IEnumerable<string> Names => Table.Keys;

    /// <summary>What the key and value are called here, as (dotted path, value); the pair itself when nothing is to be translated; null after an error.</summary>
    public static (string Path, ConfigurationNode Value)? Translate(string key, ConfigurationNode value, ConfigurationLocation where, IssueCollector issues)
    {
        (string Path, ConfigurationNode Value)? translated = (key, value);
        if (Table.TryGetValue(key, out Alias? alias))
        {
            translated = alias.Convert(value) is { } node ? (alias.Path, node) : null;
            translated = alias.Redirect?.Invoke(value) ?? translated;
            if (translated is null)
            {
                issues.Wrong(key, where, $"{key} cannot be read as {alias.Path}, got {value.Describe()} ({where}). Write {alias.Path} as docs/configuration.md shows it.");
                return null;
            }
        }

        if (translated.Value.Value is { Kind: NodeKind.Scalar } scalar && Values.TryGetValue($"{translated.Value.Path}={scalar.Text}", out string? pair))
        {
            int equals = pair.IndexOf('=', StringComparison.Ordinal);
            translated = (pair[..equals], ConfigurationNode.Scalar(pair[(equals + 1)..], true, value.Location));
        }

        // A value that stays what it is needs no remark beyond the name; nothing at all needs none.
        if (!value.IsNull && (translated.Value.Path != key || translated.Value.Value != value))
        {
            string meaning = translated.Value.Path + (translated.Value.Value == value ? "" : ": " + ConfigurationYaml.WriteInline(translated.Value.Value));
            issues.Notice(key, where, $"{key}{(translated.Value.Path == key ? ": " + value.Describe() : "")} is read as {meaning} ({where}).{(CutsLongRows.Contains(key) ? " Longer rows are dropped here; excess_length_strategy: truncate cuts them." : "")}");
        }

        return translated;
    }

    private static Alias To(string path) => new(path, value => value);

    private static Alias To(string path, Func<ConfigurationNode, ConfigurationNode?> convert) => new(path, convert);

    /// <summary>A list, or its items in one text with commas between.</summary>
    private static ConfigurationNode? Words(ConfigurationNode value) => value.Kind != NodeKind.Scalar || value.IsNull ? value : ConfigurationNode.Sequence(
        [.. value.Text.Split(',', StringSplitOptions.TrimEntries | StringSplitOptions.RemoveEmptyEntries).Select(word => ConfigurationNode.Scalar(word, true, value.Location))],
        value.Location);

    private static ConfigurationNode? LoraTarget(ConfigurationNode value) =>
        value is { Kind: NodeKind.Scalar, Text: "all" } ? ConfigurationNode.Scalar("all-linear", true, value.Location) : Words(value);

    private static ConfigurationNode? FinetuningType(ConfigurationNode value) => value.Text switch
    {
        "lora" => value,
        "full" => ConfigurationNode.Scalar("null", true, value.Location),
        _ => value.IsNull ? value : null,
    };

    private static ConfigurationNode? Pissa(ConfigurationNode value) =>
        ConfigurationNode.Scalar(value.IsTrue ? "pissa" : "true", true, value.Location);

    private static ConfigurationNode? AutoResume(ConfigurationNode value) =>
        value.IsNull ? value : value.IsTrue || value.IsFalse ? ConfigurationNode.Scalar(value.IsTrue ? "auto" : "never", true, value.Location) : null;

    private static Func<ConfigurationNode, ConfigurationNode?> Opposite(string key) => value =>
        value.IsNull ? value : value.IsTrue || value.IsFalse ? ConfigurationNode.Scalar(value.IsTrue ? "false" : "true", true, value.Location) : null;

    private static ConfigurationNode? QuantizationBit(ConfigurationNode value) =>
        value.IsNull ? value : value.Text is "4" or "8" ? ConfigurationNode.Scalar("true", true, value.Location) : null;

    /// <param name="Path">The key here, dotted.</param>
    /// <param name="Convert">The value as it is written here; null when it has no counterpart.</param>
    private sealed record Alias(string Path, Func<ConfigurationNode, ConfigurationNode?> Convert)
    {
        /// <summary>Some values belong to another key.</summary>
        public Func<ConfigurationNode, (string Path, ConfigurationNode Value)?>? Redirect { get; } = Path != "load_in_4bit" ? null : value =>
            value.Text == 8.ToString(CultureInfo.InvariantCulture) ? ("load_in_8bit", ConfigurationNode.Scalar("true", true, value.Location)) : null;
    }
}
