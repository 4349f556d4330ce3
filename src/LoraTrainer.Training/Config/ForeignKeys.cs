namespace LoraTrainer.Training.Config;

/// <summary>
/// Keys of other trainers that have no key here. Those without effect on the result are taken with a notice; those that would change the training
/// are refused with what to do instead. A value that asks for nothing (empty, false) is passed over in silence.
/// </summary>
internal sealed class ForeignKeys
{
    private readonly Dictionary<string, ForeignKey> keys = new(StringComparer.Ordinal);
    private readonly List<(string Prefix, ForeignKey Key)> prefixes = [];

    private ForeignKeys()
    {
    }

    private enum Effect
    {
        /// <summary>Nothing that is learned depends on it.</summary>
        None,

        /// <summary>Ignoring it would train something else.</summary>
        ChangesTraining,
    }

    public static ForeignKeys None { get; } = new();

    public static ForeignKeys OfBitsAndBytes { get; } = new ForeignKeys()
        .WithoutEffect("the arithmetic follows the device: float32 on a CPU, bfloat16 with float32 sums on a GPU", "bnb_4bit_compute_dtype")
        .WithoutEffect("it is a storage detail of another library", "bnb_4bit_quant_storage", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight")
        .WithoutEffect("load_in_4bit and load_in_8bit beside bnb_config_kwargs decide", "load_in_4bit", "load_in_8bit")
        .Changes("Leave it out: 8-bit weights are rounded row by row, without outliers.", "llm_int8_threshold")
        .Changes("Leave it out: all linear layers but the output head are quantized.", "llm_int8_skip_modules");

    public static ForeignKeys OfDatasets { get; } = new ForeignKeys()
        .WithoutEffect("no code from a model or data set is ever run", "trust_remote_code")
        .WithoutEffect("data is prepared in one pass", "preprocess_shards", "num_proc", "streaming")
        .Changes("Write data_files: [\"FOLDER/**\"].", "data_dir")
        .Changes("Cut the file to the rows you mean.", "shards", "shards_idx", "max_samples")
        .Changes("Write chat_template instead.", "conversation")
        .Changes("Write message_property_mappings: {role: ..., content: ...}.", "message_field_role", "message_field_content")
        .Changes("Write roles: {user: [...], assistant: [...]}.", "field_human", "field_model")
        .Changes("Write train_on_eos, which is about all tokens that end a turn.", "train_on_eot")
        .Changes("Whole messages are learned or not: write message_field_training.", "message_field_training_detail")
        .Changes("Write a block under type: {field_instruction: ..., field_output: ...}.", "field_instruction", "field_input", "field_output", "field_system", "format", "no_input_format", "system_prompt");

    public static ForeignKeys OfTheRoot { get; } = new ForeignKeys()
        .WithoutEffect("the model's own config.json decides its family", "model_type", "tokenizer_type", "base_model_ignore_patterns", "is_llama_derived_model", "is_mistral_derived_model", "is_qwen_derived_model", "is_falcon_derived_model", "type_of_model", "cls_model_config")
        .WithoutEffect("no code from a model or data set is ever run", "trust_remote_code")
        .WithoutEffect("the tokenizer is read by this program itself", "tokenizer_use_fast", "tokenizer_legacy", "tokenizer_use_mistral_common", "use_fast_tokenizer")
        .WithoutEffect("the arithmetic follows the device: float32 on a CPU, bfloat16 with float32 sums on a GPU", "bf16", "bfloat16", "tf32", "fp32", "pure_bf16", "torch_dtype", "upcast_layernorm", "bf16_full_eval", "amp", "float32", "low_cpu_mem_usage", "dtype")
        .WithoutEffect("attention is always computed without storing the scores, and packed rows never see each other", "flash_attention", "flash_attn", "sdp_attention", "xformers_attention", "eager_attention", "flex_attention", "sage_attention", "attn_implementation", "flash_attn_cross_entropy", "flash_attn_rms_norm", "flash_attn_fuse_qkv", "flash_attn_fuse_mlp", "flash_attention_2", "s2_attention")
        .WithoutEffect("the operations are fused here as they are", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "torch_compile", "torch_compile_backend", "torch_compile_mode", "enable_liger_kernel", "use_unsloth", "use_unsloth_gc", "unsloth_lora_mlp", "unsloth_lora_qkv", "unsloth_lora_o", "unsloth_cross_entropy_loss", "liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_swiglu", "liger_layer_norm", "liger_cross_entropy", "liger_fused_linear_cross_entropy", "cut_cross_entropy", "chunked_cross_entropy", "use_kernels", "use_liger_kernel", "plugins")
        .WithoutEffect("there is no padding anywhere", "pad_to_sequence_len", "pad_to_multiple_of", "data_collator", "padding_side", "dataset_padding", "pad_token")
        .WithoutEffect("the same packing is used wherever it is on", "eval_sample_packing", "sample_packing_group_size", "sample_packing_bin_size", "sample_packing_sequentially", "multipack_real_batches", "batch_flattening", "sample_packing_eff_est", "padding_free")
        .Changes("Put the system text into the rows.", "default_system_message")
        .WithoutEffect("the chat template decides", "tool_format", "enable_thinking")
        .WithoutEffect("recomputation is always block by block", "gradient_checkpointing_kwargs", "use_reentrant_gc", "activation_offloading_kwargs")
        .WithoutEffect("one process trains on one device", "deepspeed", "local_rank", "world_size", "ddp", "device_map", "max_memory", "gpu_memory_limit", "lora_on_cpu", "ddp_timeout", "nproc_per_node", "include_tokens_per_second", "include_tkps", "include_num_input_tokens_seen", "torch_empty_cache_steps", "gc_steps", "heartbeat", "ray_num_workers", "use_ray", "resources_per_worker", "ddp_find_unused_parameters", "log_on_each_node")
        .WithoutEffectByPrefix("one process trains on one device", "ddp_", "fsdp", "accelerator_", "ray_")
        .WithoutEffect("the log is log.jsonl in the run folder; nothing is sent anywhere", "report_to", "use_wandb", "use_mlflow", "use_comet", "use_trackio", "plot_loss", "log_level", "logging_dir", "logging_strategy", "logging_first_step", "logging_nan_inf_filter", "log_peak_memory_stats", "project", "experiment_name", "disable_tqdm", "debug", "strict", "profile_steps", "profiler_steps", "otel_metrics_enabled", "save_first_step_log", "ray_run_name")
        .WithoutEffectByPrefix("the log is log.jsonl in the run folder; nothing is sent anywhere", "wandb_", "mlflow_", "comet_", "swanlab_", "trackio_", "tensorboard_", "neptune_")
        .WithoutEffect("nothing is sent to a hub", "push_to_hub", "push_dataset_to_hub", "hf_use_auth_token", "use_auth_token", "hf_hub_token", "ms_hub_token", "om_hub_token")
        .WithoutEffectByPrefix("nothing is sent to a hub", "hub_")
        .WithoutEffect("data is prepared in one pass and kept by its content", "tokenized_path", "overwrite_cache", "preprocessing_num_workers", "preprocessing_batch_size", "dataset_processes", "dataset_num_proc", "dataset_keep_in_memory", "dataset_shard_num", "dataset_shard_idx", "skip_prepare_dataset", "streaming", "streaming_multipack_buffer_size", "buffer_size", "data_seed", "cache_dir", "data_shared_file_system", "remove_unused_columns", "group_by_modality_length")
        .WithoutEffectByPrefix("data is prepared in one pass and kept by its content", "dataloader_")
        .WithoutEffect("safetensors is the only format written, and the adapter is always saved", "save_safetensors", "save_only_model", "save_strategy", "save_adapter_weights_only", "save_merged_model", "save_on_each_node", "enable_jit_checkpoint", "dynamic_checkpoint")
        .WithoutEffect("checkpoints are made as checkpoint.every_steps and checkpoint.every_minutes say", "saves_per_epoch", "save_first_step", "enable_async_checkpointing")
        .WithoutEffect("an existing run is never overwritten", "overwrite_output_dir")
        .WithoutEffect("the held-out set is evaluated as evaluate_before, evaluate_after and eval_strategy say", "do_eval", "eval_on_start", "eval_causal_lm_metrics", "do_causal_lm_eval", "do_bench_eval", "eval_table_size", "eval_max_table_size", "compute_accuracy", "prediction_loss_only", "eval_accumulation_steps", "predict_with_generate", "do_predict", "bench_dataset")
        .WithoutEffect("evaluation chooses its own batch", "eval_batch_size", "per_device_eval_batch_size")
        .WithoutEffect("PiSSA's start is computed to the last digit", "pissa_iter")
        .WithoutEffect("training is what train does", "do_train", "train")
        .WithoutEffect("a rise of the loss is shown, and a loss that is not a number stops the run", "loss_watchdog_threshold", "loss_watchdog_patience")
        .WithoutEffect("files are not fetched through it", "hf_endpoint", "mirror", "use_modelscope", "ci", "axolotl_config_path", "axolotl_version")
        .WithoutEffect("the adapter is what is saved; it can be merged later", "merge_lora", "merge_method", "export_dir", "export_size", "export_device", "export_legacy_format")
        .Changes("Only float32 and bfloat16 are used; remove fp16.", "fp16", "float16", "fp8", "fp16_full_eval", "fp8_enable_fsdp_float8_all_gather")
        .Changes("Only supervised fine-tuning is supported: remove it, or train with the tool that has it.", "rl", "rl_beta", "dpo_beta", "pref_beta", "pref_loss", "pref_ftx", "reward_model", "process_reward_model", "kto_desirable_weight", "kto_undesirable_weight", "orpo_alpha", "ppo_epochs", "ref_model", "trl", "rpo_alpha", "simpo_gamma", "cpo_alpha", "dpo_use_weighting", "dpo_label_smoothing", "beta", "ebft", "process_reward")
        .ChangesByPrefix("Only supervised fine-tuning is supported: remove it, or train with the tool that has it.", "grpo_", "kto_", "ppo_", "reward_", "dpo_", "ref_model_")
        .Changes("Only supervised fine-tuning of text is supported.", "is_multimodal", "processor_type", "image_size", "image_resize_algorithm", "image_max_pixels", "video_max_pixels", "freeze_vision_tower", "freeze_multi_modal_projector", "media_dir")
        .Changes("Merge that adapter into its base first, and give the result as base_model.", "peft_model_id", "create_new_adapter")
        .Changes("Download the revision you mean and give its folder as base_model.", "model_revision", "revision")
        .Changes("Give a base_model folder that holds the config and tokenizer you mean.", "base_model_config", "tokenizer_config", "tokenizer_name", "tokenizer_name_or_path", "overrides_of_model_config", "overrides_of_model_kwargs", "model_config", "config_name")
        .Changes("Write datasets: [{path: ..., type: ...}] instead.", "dataset", "dataset_dir", "dataset_name", "train_file", "dataset_text_field", "data_path", "dataset_config_name", "dataset_path", "train_dataset", "mix_strategy", "interleave_probs", "dataset_format")
        .Changes("Write test_datasets: [{path: ..., type: ...}] instead.", "eval_dataset", "eval_dataset_name", "validation_file", "test_file", "dataset_val", "eval_num_beams", "eval_on_each_dataset")
        .Changes("Write the prompt as format in a block under datasets[].type instead, with the model's own markers.", "template", "prompt_template", "default_system", "replace_jinja_template")
        .Changes("Cut the file to the rows you mean, or use max_steps.", "max_samples", "max_train_samples", "max_eval_samples", "num_samples")
        .Changes("Say micro_batch_size and gradient_accumulation_steps; their product is the batch of one step.", "batch_size", "global_batch_size", "train_batch_size", "auto_find_batch_size", "eff_batch_size")
        .Changes("Rows are shuffled with seed each epoch; remove it.", "group_by_length", "curriculum_sampling", "length_group", "disable_shuffling")
        .ChangesEvenIfFalse("Rows are shuffled with seed each epoch; remove it.", "shuffle_merged_datasets", "shuffle_before_merging_datasets", "shuffle")
        .Changes("Remove repeated rows from the file.", "dataset_exact_deduplication", "deduplicate")
        .Changes("Only AdamW is supported, with the keys documented here; remove it.", "optim_args", "optim_target_modules", "adam_epsilon2", "adam_beta3", "adam_beta0", "lr_groups", "embedding_lr", "embedding_lr_scale", "use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon", "lisa_step_interval", "lisa_n_layers", "lisa_layers_attribute", "torchdistx_path", "dion_lr", "use_llama_pro", "embedding_learning_rate")
        .ChangesByPrefix("Only AdamW is supported; remove it.", "galore_", "apollo_", "badam_", "muon_", "dion_", "q_galore", "lisa_")
        .Changes("Use lr_scheduler, lr_scheduler_kwargs and cosine_min_lr_ratio as docs/training.md shows them.", "cosine_constant_lr_ratio", "lr_quadratic_warmup", "lr_div_factor", "log_sweep_min_lr", "log_sweep_max_lr", "one_cycle", "relora_warmup_steps", "min_lr")
        .Changes("The first evaluation is when it is due for the first time; remove it.", "eval_delay")
        .Changes("Plain LoRA is what this program trains; remove it.", "relora", "relora_steps", "relora_prune_ratio", "jagged_restart_steps", "peft", "loftq_config", "lora_fan_in_fan_out", "lora_bias", "bias", "lora_target_parameters", "peft_trainable_token_indices", "peft_layer_replication", "exclude_modules", "layers_pattern", "lora_exclude_modules", "oft_rank", "oft_block_size", "freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules", "llama_pro", "num_layer_trainable", "finetuning_args", "peft_autocast_adapter_dtype", "train_modules")
        .Changes("Name the parts to train with an adapter and lora_target_modules.", "unfrozen_parameters", "spectrum_top_fraction", "freeze", "mod_lora")
        .Changes("The model is trained as it is; remove it, or change its config.json.", "rope_scaling", "rope_theta", "model_max_length", "shift_attn", "mixture_of_depths", "llama4_linearized_experts", "moe_aux_loss_coef", "router_aux_loss_coef", "use_mla", "resize_vocab", "added_tokens_overrides", "new_special_tokens_config", "add_tokens", "add_special_tokens", "new_tokens", "shrink_embeddings", "expand_embeddings", "reinit_weights", "mean_resizing_embeddings", "fix_untrained_tokens", "attn_dropout")
        .Changes("The base is quantized to 4 bits here; give a model that is not quantized.", "gptq", "gptq_disable_exllama", "awq", "hqq", "quantization", "qat", "model_quantization_config", "model_quantization_config_kwargs", "aqlm", "export_quantization_bit")
        .Changes("The loss is the mean over supervised tokens; remove it.", "label_smoothing_factor", "label_smoothing", "average_tokens_across_devices", "dft_loss", "use_dft_loss", "use_asft_loss", "use_eaft_loss", "loss_type", "label_names", "kd_trainer", "kd_alpha", "kd_ce_alpha", "kd_temperature", "eaft_alpha")
        .ChangesByPrefix("Distillation is not supported; remove it.", "kd_")
        .Changes("Masking other than train_on_inputs is not supported; remove it.", "train_on_completions", "assistant_only_loss", "train_on_responses_only")
        .Changes("Write it into the data set's block.", "train_on_eos", "train_on_eot", "roles_to_train")
        .WithoutEffect("the chat template shows which tokens end a turn", "eot_tokens")
        .Changes("Only one device trains; remove it.", "tensor_parallel_size", "sequence_parallel_degree", "context_parallel_size", "expert_parallel_size", "dp_shard_size", "dp_replicate_size", "pipeline_parallel_size", "heads_k_stride")
        .Changes("Only AdamW's own decoupled weight decay is used; remove it.", "weight_decay_exclude", "decay_norm")
        .Changes("Use sequence_len; packing never splits a row.", "sample_packing_split", "min_sample_len", "pretraining_dataset", "pretrain_multipack_attn", "val_set_size_min", "max_prompt_len", "max_input_length", "max_target_length", "max_prompt_length", "max_completion_length");

    /// <summary>All names, for suggestions.</summary>
    public IEnumerable<string> Names => keys.Keys;

    /// <summary>False: not a key of another trainer either.</summary>
    public bool TryHandle(ConfigurationEntry entry, string path, IssueCollector issues)
    {
        if (this == OfTheRoot && RootSpecials.TryHandle(entry, issues))
        {
            return true;
        }

        if (!keys.TryGetValue(entry.Key, out ForeignKey? key))
        {
            key = prefixes.Find(candidate => entry.Key.StartsWith(candidate.Prefix, StringComparison.Ordinal)).Key;
        }

        if (key is null)
        {
            return false;
        }

        if (entry.Value.IsOff && !(key.EvenIfFalse && entry.Value.IsFalse))
        {
            return true;
        }

        ConfigurationLocation where = entry.Location;
        if (key.Effect == Effect.None)
        {
            issues.Notice(path, where, $"{path} has no effect here ({where}): {key.Advice}.");
        }
        else
        {
            issues.Wrong(path, where, $"{path} would change the training and is not supported, got {entry.Value.Describe()} ({where}). {key.Advice}");
        }

        return true;
    }

    private ForeignKeys WithoutEffect(string why, params string[] names) => Add(new ForeignKey(Effect.None, why, false), names);

    private ForeignKeys Changes(string insteadDo, params string[] names) => Add(new ForeignKey(Effect.ChangesTraining, insteadDo, false), names);

    private ForeignKeys ChangesEvenIfFalse(string insteadDo, params string[] names) => Add(new ForeignKey(Effect.ChangesTraining, insteadDo, true), names);

    private ForeignKeys WithoutEffectByPrefix(string why, params string[] names) => AddPrefixes(new ForeignKey(Effect.None, why, false), names);

    private ForeignKeys ChangesByPrefix(string insteadDo, params string[] names) => AddPrefixes(new ForeignKey(Effect.ChangesTraining, insteadDo, false), names);

    private ForeignKeys Add(ForeignKey key, string[] names)
    {
        foreach (string name in names)
        {
            keys.TryAdd(name, key);
        }

        return this;
    }

    private ForeignKeys AddPrefixes(ForeignKey key, string[] names)
    {
        prefixes.AddRange(names.Select(name => (name, key)));
        return this;
    }

    private sealed record ForeignKey(Effect Effect, string Advice, bool EvenIfFalse);
}

/// <summary>Keys of other trainers whose meaning depends on what they hold.</summary>
internal static class RootSpecials
{
    public static bool TryHandle(ConfigurationEntry entry, IssueCollector issues)
    {
        ConfigurationLocation where = entry.Location;
        switch (entry.Key)
        {
            case "stage":
                if (!entry.Value.IsOff && entry.Value.Text != "sft")
                {
                    issues.Wrong("stage", where, $"stage must be sft, got {entry.Value.Describe()} ({where}). Only supervised fine-tuning is supported.");
                }

                return true;

            case "special_tokens":
                foreach (ConfigurationEntry token in entry.Value.Entries.Where(token => !token.Value.IsOff))
                {
                    string name = $"special_tokens.{token.Key}";
                    if (token.Key == "pad_token")
                    {
                        issues.Notice(name, token.Location, $"{name} has no effect here ({token.Location}): there is no padding anywhere.");
                    }
                    else
                    {
                        issues.Wrong(name, token.Location, $"{name} would change the training and is not supported, got {token.Value.Describe()} ({token.Location}). The tokenizer's own special tokens are used; remove it.");
                    }
                }

                return true;

            case "metric_for_best_model":
                if (!entry.Value.IsOff && entry.Value.Text is not ("eval_loss" or "loss"))
                {
                    issues.Wrong(entry.Key, where, $"metric_for_best_model must be eval_loss, got {entry.Value.Describe()} ({where}). The best adapter is the one with the lowest held-out loss.");
                }

                return true;

            case "greater_is_better":
                if (!entry.Value.IsOff)
                {
                    issues.Wrong(entry.Key, where, $"greater_is_better must be false, got {entry.Value.Describe()} ({where}). The best adapter is the one with the lowest held-out loss.");
                }

                return true;

            case "quantization_method" or "quantization_device_map":
                if (!entry.Value.IsOff && entry.Value.Text is not ("bnb" or "bitsandbytes" or "auto"))
                {
                    issues.Wrong(entry.Key, where, $"{entry.Key} must be bnb, got {entry.Value.Describe()} ({where}). Bases are quantized as bitsandbytes does.");
                }

                return true;

            default:
                return false;
        }
    }
}
