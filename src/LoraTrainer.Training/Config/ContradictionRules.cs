using LoraTrainer.Storage;

namespace LoraTrainer.Training.Config;

/// <summary>What no key can check alone. One method each, named for what must hold.</summary>
internal static class ContradictionRules
{
    private static readonly string[] ModulesOfTokens = ["embed_tokens", "lm_head"];

    public static void Check(TrainingConfig config, IssueCollector issues)
    {
        BaseModelIsGiven(config, issues);
        DatasetsAreGiven(config, issues);
        TemplateIsWhole("", config.Data.ChatTemplate, config.Data.ChatTemplateJinja, issues);
        EveryDatasetIsComplete("datasets", config.Data.Datasets, issues);
        EveryDatasetIsComplete("test_datasets", config.Data.TestDatasets, issues);
        SomethingLimitsTheRun(config, issues);
        WarmupIsGivenOnce(config, issues);
        WarmupFitsTheSchedule(config, issues);
        ScheduleReadsItsDetails(config, issues);
        ScheduleHasWhatItNeeds(config, issues);
        AdapterKeysNeedAnAdapter(config, issues);
        QuantizationNeedsAnAdapter(config, issues);
        OneQuantizationAtMost(config, issues);
        QloraIsIn4Bit(config, issues);
        FourBitDetailsNeed4Bit(config, issues);
        DoraStartsFromTheBase(config, issues);
        AddedTokensAreTrained(config, issues);
        AnAdapterHasOneStart(config, issues);
        OneHeldOutSet(config, issues);
        EvaluationsAreTimedOnce(config, issues);
        EvaluationsHaveRows(config, issues);
        WhatEvaluationsDecideHasThem(config, issues);
        FullTrainingNamesItsLearningRate(config, issues);
        AutomaticCheckpointIntervalIsAlone(config, issues);
        ResumeIsSaidOnce(config, issues);
        PlaceIsWrittenRight("checkpoint.uri", config.Checkpoint.Uri, issues);
        PlaceIsWrittenRight("quantized_cache.uri", config.QuantizedCache.Uri, issues);
        StoreOfQuantizedBasesHasAFolder(config, issues);
        RollbackHasWhereToGo(config, issues);
        TouchFileIsNamedAndWatched(config, issues);
    }

    /// <summary>The store itself is not asked: a config can be checked anywhere.</summary>
    private static void PlaceIsWrittenRight(string key, string? uri, IssueCollector issues)
    {
        try
        {
            _ = uri is null ? null : ObjectStore.Open(uri);
        }
        catch (StoreException exception)
        {
            ConfigurationLocation where = issues.Where(key);
            issues.Wrong(key, where, $"{key} ({where}): {exception.Message}");
        }
    }

    private static void StoreOfQuantizedBasesHasAFolder(TrainingConfig config, IssueCollector issues)
    {
        if (config.QuantizedCache is { Uri: not null, Path: null })
        {
            ConfigurationLocation where = issues.Where("quantized_cache.uri");
            issues.Wrong("quantized_cache.uri", where, $"quantized_cache.uri is given ({where}), but no quantized_cache.path. Add the folder of this machine where what comes from the store lies, for example path: /tmp/quantized.");
        }
    }

    private static void BaseModelIsGiven(TrainingConfig config, IssueCollector issues)
    {
        if (config.BaseModel.Length == 0 && !issues.IsGiven("base_model"))
        {
            issues.Wrong("base_model", issues.Whole, $"base_model is missing ({issues.Whole}). Give the model to start from, a folder or a name of the hub, for example base_model: HuggingFaceTB/SmolLM2-135M.");
        }
    }

    private static void DatasetsAreGiven(TrainingConfig config, IssueCollector issues)
    {
        if (config.Data.Datasets.Count == 0 && (!issues.IsGiven("datasets") || !issues.HasWrong))
        {
            ConfigurationLocation where = issues.Where("datasets");
            issues.Wrong("datasets", where, $"datasets is missing ({where}). Give at least one file, for example datasets: [{{path: data/train.jsonl, type: alpaca}}].");
        }
    }

    private static void TemplateIsWhole(string prefix, string? name, string? jinja, IssueCollector issues)
    {
        string key = prefix + "chat_template", text = prefix + "chat_template_jinja";
        if (name == ChatTemplates.Own && jinja is null)
        {
            ConfigurationLocation where = issues.Where(key);
            issues.Wrong(text, where, $"{key} is jinja ({where}), but {text} is missing. Give the template, or a file with it.");
        }
        else if (name != ChatTemplates.Own && jinja is not null)
        {
            ConfigurationLocation where = issues.Where(text);
            issues.Wrong(text, where, $"{text} is given ({where}), but {key} is {name ?? "not"}. Set {key}: jinja, or remove it.");
        }
    }

    private static void EveryDatasetIsComplete(string list, EquatableList<DatasetOptions> datasets, IssueCollector issues)
    {
        for (int i = 0; i < datasets.Count; i++)
        {
            ConfigurationLocation where = issues.Where(list);
            if (!issues.IsGiven($"{list}[{i}].path"))
            {
                issues.Wrong($"{list}[{i}].path", where, $"{list}[{i}].path is missing ({where}). Give the file with the rows, for example path: data/train.jsonl, or the name of a data set of the hub.");
            }

            if (Storage.DownloadCache.IsAddress(datasets[i].Path) && Storage.DownloadCache.Wrong(datasets[i].Path) is { } wrong)
            {
                where = issues.Where($"{list}[{i}].path");
                issues.Wrong($"{list}[{i}].path", where, $"{list}[{i}].path {wrong} ({where}).");
            }

            TemplateIsWhole($"{list}[{i}].", datasets[i].Conversation.Template, datasets[i].Conversation.TemplateJinja, issues);
            if (issues.IsGiven($"{list}[{i}].field") && datasets[i].Format.Kind != DatasetFormatKind.Completion)
            {
                where = issues.Where($"{list}[{i}].field");
                issues.Wrong($"{list}[{i}].field", where, $"{list}[{i}].field belongs to type: completion only ({where}). Name the fields in a block under type, or remove it.");
            }
        }
    }

    private static void SomethingLimitsTheRun(TrainingConfig config, IssueCollector issues)
    {
        if (config.Batch.NumEpochs == 0 && config.Batch.MaxSteps == 0)
        {
            ConfigurationLocation where = issues.Where("num_epochs");
            issues.Wrong("num_epochs", where, $"num_epochs and max_steps are both 0, so nothing would be trained ({where}). Set one of them, for example num_epochs: 1.");
        }
    }

    private static void AnAdapterHasOneStart(TrainingConfig config, IssueCollector issues)
    {
        if (config.Adapter is { StartFolder: not null, Initialization: not AdapterInitialization.Default })
        {
            ConfigurationLocation where = issues.Where("peft_init_lora_weights");
            issues.Wrong("peft_init_lora_weights", where, $"peft_init_lora_weights ({where}) and lora_model_dir ({issues.Where("lora_model_dir")}) both say how the adapter starts. Keep one of the two.");
        }
    }

    /// <summary>A new row that is never trained says the same for every new token.</summary>
    private static void AddedTokensAreTrained(TrainingConfig config, IssueCollector issues)
    {
        string[] untrained = [.. ModulesOfTokens.Except(config.Adapter.ModulesToSave, StringComparer.Ordinal)];
        if (config.Data.Tokens.Count > 0 && config.Adapter.Kind != AdapterKind.None && untrained.Length > 0)
        {
            ConfigurationLocation where = issues.Where("tokens");
            issues.Wrong("tokens", where, $"tokens ({where}) adds rows to the embedding and to the output layer, and {string.Join(" and ", untrained)} would not be trained. Write lora_modules_to_save: [embed_tokens, lm_head].");
        }
    }

    /// <summary>The magnitude is that of the base as published, and the finished adapter could not be turned into one for it.</summary>
    private static void DoraStartsFromTheBase(TrainingConfig config, IssueCollector issues)
    {
        if (config.Adapter is { UseDora: true, Initialization: AdapterInitialization.Pissa or AdapterInitialization.Olora } adapter)
        {
            ConfigurationLocation where = issues.Where("peft_init_lora_weights");
            issues.Wrong("peft_init_lora_weights", where, $"peft_init_lora_weights: {(adapter.Initialization == AdapterInitialization.Pissa ? "pissa" : "olora")} ({where}) takes the start out of the base, whose row lengths peft_use_dora ({issues.Where("peft_use_dora")}) trains. Keep one of the two.");
        }
    }

    private static void WarmupIsGivenOnce(TrainingConfig config, IssueCollector issues)
    {
        if (config.Schedule is { WarmupSteps: > 0, WarmupRatio: > 0 })
        {
            ConfigurationLocation where = issues.Where("warmup_ratio");
            issues.Wrong("warmup_ratio", where, $"warmup_steps ({issues.Where("warmup_steps")}) and warmup_ratio ({where}) are both given. Keep one.");
        }
    }

    private static void WarmupFitsTheSchedule(TrainingConfig config, IssueCollector issues)
    {
        if (config.Schedule is { Kind: LearningRateSchedule.Constant } schedule && (schedule.WarmupSteps > 0 || schedule.WarmupRatio > 0))
        {
            ConfigurationLocation where = issues.Where("lr_scheduler");
            issues.Wrong("lr_scheduler", where, $"lr_scheduler: constant has no warm-up, but one is given ({where}). Use constant_with_warmup, or remove the warm-up.");
        }
    }

    /// <summary>A detail that is not read would be taken for one that works.</summary>
    private static void ScheduleReadsItsDetails(TrainingConfig config, IssueCollector issues)
    {
        const string block = "lr_scheduler_kwargs";
        string[] read = config.Schedule.Kind switch
        {
            LearningRateSchedule.Cosine or LearningRateSchedule.CosineWithRestarts => ["num_cycles"],
            LearningRateSchedule.CosineWithMinLr => ["num_cycles", "min_lr", "min_lr_rate"],
            LearningRateSchedule.CosineWarmupWithMinLr => ["num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"],
            LearningRateSchedule.Polynomial => ["power", "lr_end"],
            LearningRateSchedule.InverseSqrt => ["timescale"],
            LearningRateSchedule.WarmupStableDecay => ["num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"],
            _ => [],
        };
        foreach (string key in issues.Given.Where(key => key.StartsWith(block + ".", StringComparison.Ordinal)).ToArray())
        {
            if (!read.Contains(key[(block.Length + 1)..]))
            {
                ConfigurationLocation where = issues.Where(key);
                string own = read.Length == 0 ? "It reads none" : $"It reads {string.Join(", ", read)}";
                issues.Wrong(key, where, $"{key} is given, but the lr_scheduler ({issues.Where("lr_scheduler")}) does not read it ({where}). {own}; remove it, or use another lr_scheduler.");
            }
        }

        if (config.Schedule is { CosineMinLrRatio: not null, Kind: not LearningRateSchedule.Cosine })
        {
            ConfigurationLocation where = issues.Where("cosine_min_lr_ratio");
            issues.Wrong("cosine_min_lr_ratio", where, $"cosine_min_lr_ratio belongs to lr_scheduler: cosine ({where}), but another one is given ({issues.Where("lr_scheduler")}). Remove it, or use lr_scheduler: cosine.");
        }
    }

    private static void ScheduleHasWhatItNeeds(TrainingConfig config, IssueCollector issues)
    {
        ScheduleDetails details = config.Schedule.Details;
        ConfigurationLocation where = issues.Where("lr_scheduler");
        switch (config.Schedule.Kind)
        {
            case LearningRateSchedule.CosineWithMinLr or LearningRateSchedule.CosineWarmupWithMinLr when details is { MinLr: null, MinLrRate: null } or { MinLr: not null, MinLrRate: not null }:
                string got = details.MinLr is null ? "neither" : "both";
                issues.Wrong("lr_scheduler", where, $"This lr_scheduler ({where}) needs min_lr or min_lr_rate in lr_scheduler_kwargs, got {got}. Example: lr_scheduler_kwargs: {{min_lr_rate: 0.1}}.");
                break;

            case LearningRateSchedule.CosineWithMinLr or LearningRateSchedule.CosineWarmupWithMinLr when details.MinLr > config.Optimizer.LearningRate:
                issues.Wrong("lr_scheduler_kwargs.min_lr", issues.Where("lr_scheduler_kwargs.min_lr"), $"lr_scheduler_kwargs.min_lr ({issues.Where("lr_scheduler_kwargs.min_lr")}) is higher than learning_rate ({issues.Where("learning_rate")}), so the rate would rise. Give a lower one.");
                break;

            case LearningRateSchedule.Polynomial when (details.LrEnd ?? Optimizers.Schedule.UsualEnd) >= config.Optimizer.LearningRate && config.Optimizer.LearningRate > 0:
                ConfigurationLocation end = issues.Where("lr_scheduler_kwargs.lr_end");
                issues.Wrong("lr_scheduler_kwargs.lr_end", end, $"lr_scheduler_kwargs.lr_end ({end}) must be lower than learning_rate ({issues.Where("learning_rate")}). Give a lower one, or a higher learning_rate.");
                break;

            case LearningRateSchedule.WarmupStableDecay when details.NumDecaySteps is null:
                issues.Wrong("lr_scheduler", where, $"lr_scheduler: warmup_stable_decay ({where}) needs num_decay_steps. Example: lr_scheduler_kwargs: {{num_decay_steps: 100}}.");
                break;
        }
    }

    private static void AdapterKeysNeedAnAdapter(TrainingConfig config, IssueCollector issues)
    {
        if (config.Adapter.Kind != AdapterKind.None || issues.IsGiven("adapter"))
        {
            return;
        }

        string? key = issues.Given.FirstOrDefault(name => name.StartsWith("lora", StringComparison.Ordinal) || name.StartsWith("peft_", StringComparison.Ordinal));
        if (key is not null)
        {
            ConfigurationLocation where = issues.Where(key);
            issues.Wrong(key, where, $"{key} is given, but no adapter, so all parameters would be trained ({where}). Add adapter: lora or adapter: qlora, or remove the lora_ and peft_ keys.");
        }
    }

    private static void QuantizationNeedsAnAdapter(TrainingConfig config, IssueCollector issues)
    {
        if (config.Adapter.Kind == AdapterKind.None && (config.Quantization.LoadIn4Bit || config.Quantization.LoadIn8Bit))
        {
            string key = config.Quantization.LoadIn4Bit ? "load_in_4bit" : "load_in_8bit";
            ConfigurationLocation where = issues.Where(key);
            issues.Wrong(key, where, $"{key} needs an adapter, because a quantized base cannot be trained itself ({where}). Add adapter: {(config.Quantization.LoadIn4Bit ? "qlora" : "lora")}, or remove {key}.");
        }

        if (config is { Adapter.Kind: AdapterKind.None, Device.Embeddings: EmbeddingPlacement.Host })
        {
            ConfigurationLocation where = issues.Where("embeddings");
            issues.Wrong("embeddings", where, $"embeddings: host needs an adapter, because embeddings that are trained are on the device ({where}). Add adapter: lora, or remove embeddings.");
        }

        if (config is { Adapter.Kind: AdapterKind.None, Device.LmHead: LmHeadFormat.EightBit })
        {
            ConfigurationLocation where = issues.Where("lm_head");
            issues.Wrong("lm_head", where, $"lm_head: int8 needs an adapter, because a quantized head cannot be trained itself ({where}). Add adapter: lora, or remove lm_head.");
        }
    }

    private static void OneQuantizationAtMost(TrainingConfig config, IssueCollector issues)
    {
        if (config.Quantization is { LoadIn4Bit: true, LoadIn8Bit: true } && config.Adapter.Kind != AdapterKind.Qlora)
        {
            ConfigurationLocation where = issues.Where("load_in_8bit");
            issues.Wrong("load_in_8bit", where, $"load_in_4bit ({issues.Where("load_in_4bit")}) and load_in_8bit ({where}) are both true. Keep one.");
        }
    }

    private static void QloraIsIn4Bit(TrainingConfig config, IssueCollector issues)
    {
        if (config.Adapter.Kind != AdapterKind.Qlora)
        {
            return;
        }

        if (config.Quantization.LoadIn8Bit)
        {
            ConfigurationLocation where = issues.Where("load_in_8bit");
            issues.Wrong("load_in_8bit", where, $"adapter: qlora means a base in 4 bits, but load_in_8bit is true ({where}). Remove load_in_8bit, or use adapter: lora.");
        }
        else if (!config.Quantization.LoadIn4Bit)
        {
            ConfigurationLocation where = issues.Where("load_in_4bit");
            issues.Wrong("load_in_4bit", where, $"adapter: qlora means a base in 4 bits, but load_in_4bit is false ({where}). Remove load_in_4bit, or use adapter: lora.");
        }
    }

    private static void FourBitDetailsNeed4Bit(TrainingConfig config, IssueCollector issues)
    {
        if (!config.Quantization.LoadIn4Bit && issues.Given.Any(key => key.StartsWith("bnb_config_kwargs.", StringComparison.Ordinal)) && config.Adapter.Kind != AdapterKind.Qlora)
        {
            ConfigurationLocation where = issues.Where("bnb_config_kwargs");
            issues.Wrong("bnb_config_kwargs", where, $"bnb_config_kwargs is given, but load_in_4bit is not true ({where}). Add load_in_4bit: true, or remove it.");
        }
    }

    private static void OneHeldOutSet(TrainingConfig config, IssueCollector issues)
    {
        if (config.Data.ValSetSize > 0 && config.Data.TestDatasets.Count > 0)
        {
            ConfigurationLocation where = issues.Where("val_set_size");
            issues.Wrong("val_set_size", where, $"val_set_size ({where}) and test_datasets ({issues.Where("test_datasets")}) both name a held-out set. Keep one.");
        }
    }

    private static void EvaluationsAreTimedOnce(TrainingConfig config, IssueCollector issues)
    {
        EvaluationOptions options = config.Evaluation;
        string? given = options.Steps > 0 ? "eval_steps" : options.PerEpoch > 0 ? "evals_per_epoch" : null;
        ConfigurationLocation where = issues.Where(given ?? "eval_strategy");
        if (options is { Steps: > 0, PerEpoch: > 0 })
        {
            issues.Wrong("evals_per_epoch", issues.Where("evals_per_epoch"), $"eval_steps ({where}) and evals_per_epoch ({issues.Where("evals_per_epoch")}) both say when to evaluate. Keep one.");
        }
        else if (given is null && options.Strategy == EvaluationStrategy.Steps)
        {
            issues.Wrong("eval_strategy", where, $"eval_strategy: steps ({where}) needs eval_steps or evals_per_epoch. Example: eval_steps: 50.");
        }
        else if (given is not null && options.Strategy != EvaluationStrategy.Steps)
        {
            issues.Wrong(given, where, $"{given} ({where}) is given, but eval_strategy is {(options.Strategy == EvaluationStrategy.No ? "no" : "epoch")} ({issues.Where("eval_strategy")}). Remove one of the two, or use eval_strategy: steps.");
        }
    }

    /// <summary>Not an error: configs are often written for data sets with held-out rows and used for others.</summary>
    private static void EvaluationsHaveRows(TrainingConfig config, IssueCollector issues)
    {
        if (config.Evaluation is { Strategy: not EvaluationStrategy.No, DecidesTheResult: false } && !HasHeldOut(config))
        {
            string key = issues.IsGiven("eval_steps") ? "eval_steps" : issues.IsGiven("evals_per_epoch") ? "evals_per_epoch" : "eval_strategy";
            ConfigurationLocation where = issues.Where(key);
            issues.Warning(key, where, $"{key} has no effect, because nothing is held out ({where}). Add val_set_size: 0.02 or test_datasets.");
        }
    }

    private static void WhatEvaluationsDecideHasThem(TrainingConfig config, IssueCollector issues)
    {
        string key = config.Evaluation.EarlyStoppingPatience is not null ? "early_stopping_patience" : "load_best_model_at_end";
        ConfigurationLocation where = issues.Where(key);
        if (config.Evaluation.DecidesTheResult && config.Evaluation.Strategy == EvaluationStrategy.No)
        {
            issues.Wrong(key, where, $"{key} ({where}) needs evaluations during the training. Add, for example, evals_per_epoch: 4.");
        }
        else if (config.Evaluation.DecidesTheResult && !HasHeldOut(config))
        {
            issues.Wrong(key, where, $"{key} ({where}) needs a held-out set. Add val_set_size: 0.02 or test_datasets.");
        }

        if (config.Evaluation.EarlyStoppingPatience is null && issues.IsGiven("early_stopping_threshold"))
        {
            where = issues.Where("early_stopping_threshold");
            issues.Wrong("early_stopping_threshold", where, $"early_stopping_threshold ({where}) means nothing without early_stopping_patience. Add early_stopping_patience: 3, or remove it.");
        }
    }

    private static bool HasHeldOut(TrainingConfig config) => config.Data.ValSetSize > 0 || config.Data.TestDatasets.Count > 0;

    private static void FullTrainingNamesItsLearningRate(TrainingConfig config, IssueCollector issues)
    {
        if (config.Adapter.Kind == AdapterKind.None && !issues.IsGiven("learning_rate") && !issues.HasWrong)
        {
            issues.Wrong("learning_rate", issues.Whole, $"learning_rate is missing: all parameters would be trained, and the default suits adapters only ({issues.Whole}). Typical: 1e-5. Was adapter: lora meant?");
        }
    }

    private static void AutomaticCheckpointIntervalIsAlone(TrainingConfig config, IssueCollector issues)
    {
        string? other = issues.IsGiven("checkpoint.every_steps") ? "every_steps" : issues.IsGiven("checkpoint.every_minutes") ? "every_minutes" : null;
        if (other is not null && config.Checkpoint.Interval == CheckpointInterval.Auto)
        {
            ConfigurationLocation where = issues.Where("checkpoint.interval");
            issues.Wrong("checkpoint.interval", where, $"checkpoint.interval ({where}) and checkpoint.{other} ({issues.Where("checkpoint." + other)}) are both given. Keep one.");
        }
    }

    private static void ResumeIsSaidOnce(TrainingConfig config, IssueCollector issues)
    {
        if (config.ResumeFromCheckpoint is not null && config.Resume != ResumeMode.Never)
        {
            ConfigurationLocation where = issues.Where("resume_from_checkpoint");
            issues.Wrong("resume_from_checkpoint", where, $"resume ({issues.Where("resume")}) and resume_from_checkpoint ({where}) both say where to go on. Keep one.");
        }
    }

    /// <summary>Where it goes back to must follow from the number of steps: minutes are not the same in a run that was interrupted.</summary>
    private static void RollbackHasWhereToGo(TrainingConfig config, IssueCollector issues)
    {
        if (config.OnNonFinite == NonFiniteAction.Rollback && config.Checkpoint.EverySteps == 0)
        {
            ConfigurationLocation where = issues.Where("on_nonfinite");
            issues.Wrong("on_nonfinite", where, $"on_nonfinite: rollback ({where}) needs checkpoints by steps to go back to. Add, for example, checkpoint: {{every_steps: 100}}.");
        }
        else if (config.OnNonFinite != NonFiniteAction.Rollback && issues.IsGiven("max_rollbacks"))
        {
            ConfigurationLocation where = issues.Where("max_rollbacks");
            issues.Wrong("max_rollbacks", where, $"max_rollbacks ({where}) means nothing without on_nonfinite: rollback. Add it, or remove max_rollbacks.");
        }
    }

    private static void TouchFileIsNamedAndWatched(TrainingConfig config, IssueCollector issues)
    {
        InterruptionSources sources = config.Interruption.Sources;
        if (config.Interruption.File is not null && (sources & (InterruptionSources.File | InterruptionSources.Auto)) == 0)
        {
            ConfigurationLocation where = issues.Where("interruption.file");
            issues.Wrong("interruption.file", where, $"interruption.file ({where}) is given, but interruption.sources ({issues.Where("interruption.sources")}) does not watch it. Add file to the sources, or remove interruption.file.");
        }
        else if (config.Interruption.File is null && sources.HasFlag(InterruptionSources.File) && !issues.IsGiven("interruption.file"))
        {
            ConfigurationLocation where = issues.Where("interruption.sources");
            issues.Wrong("interruption.sources", where, $"interruption.sources ({where}) names file, but interruption.file is missing. Add it, for example file: /tmp/stop-training.");
        }
    }
}
