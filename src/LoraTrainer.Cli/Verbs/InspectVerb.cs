using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using LoraTrainer.Data.ChatTemplates;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Models.Adapters;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;
using LoraTrainer.Training;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Sources;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Says what a file or folder is and what is in it; shows a row of data as the model sees it.</summary>
internal static class InspectVerb
{
    private const string Examples = """
        Examples:
          lora-trainer inspect outputs/mine                             a run: step, checkpoints, adapter
          lora-trainer inspect outputs/mine/checkpoints/mine/step-100   one of its checkpoints, by its step
          lora-trainer inspect models/llama                             a model folder
          lora-trainer inspect model.safetensors --tensors              every tensor of a file
          lora-trainer inspect my.yaml --row 1                          the first row of the training data, token by token

        Nothing is changed. Norms are Frobenius norms; |sBA| is how large the update is that is added to the weights. With --row, what stands between │ is a token as
        the model gets it: supervised ones are learned, ignored ones are only read.
        """;

    private const int LargestShown = 10;

    private static readonly string[] ModuleHeader = ["module", "shape", "rank", "|A|", "|B|", "|sBA|"];
    private static readonly string[] LayerHeader = ["layer", "modules", "|A|", "|B|", "|sBA|"];

    public static Verb Create()
    {
        Argument<string> path = new("PATH") { Description = "A run, a checkpoint, an adapter folder, a model folder or a .safetensors file; with --row a configuration." };
        Option<int?> row = new("--row") { Description = "Show this row of the configuration's data, counted from 1 over all its files.", HelpName = "N" };
        Option<bool> heldOut = new("--held-out") { Description = "With --row: of the rows that training holds out (test_datasets, val_set_size) instead." };
        Option<bool> tensors = new("--tensors") { Description = "List every tensor, or every module of an adapter." };
        return new Verb("inspect", "Say what a run, checkpoint, adapter, model or file holds; show a row as tokens.", Examples) { path, row, heldOut, tensors, CommandLine.Set }.WithWork(async context =>
        {
            string what = RunFolder.Completed(context.Arguments.GetRequiredValue(path));
            bool all = context.Arguments.GetValue(tensors);
            if (context.Arguments.GetValue(row) is { } number)
            {
                return Row(context, what, number, context.Arguments.GetValue(heldOut));
            }

            if (context.Settings.Count > 0 || context.Arguments.GetValue(heldOut))
            {
                throw new TrainingSetupException("--set and --held-out are for --row. Leave them out, or say which row.");
            }

            FactSheet sheet = await SheetOfAsync(what, all);
            context.Terminal.Result(sheet.Words(context.Terminal.Width));
            context.Terminal.Json(sheet.Write);
            return ExitCode.Done;
        });
    }

    private static async Task<FactSheet> SheetOfAsync(string path, bool all)
    {
        if (File.Exists(path))
        {
            return path.EndsWith(".safetensors", StringComparison.Ordinal)
                ? Tensors(path, all)
                : throw new TrainingSetupException($"{path} is a file that this verb does not read. Give a .safetensors file or a folder; of a configuration, validate says what is in it, and --row N shows a row.");
        }

        if (!Directory.Exists(path))
        {
            throw new TrainingSetupException($"{path}: there is no such file or folder.");
        }

        bool Has(string name) => File.Exists(Path.Combine(path, name));
        return Has(CheckpointFiles.StateName) ? await CheckpointAsync(path, all)
            : Has(CheckpointFiles.ConfigName) ? await RunAsync(path, all)
            : Has(AdapterConfig.FileName) ? Adapter(path, all, "an adapter")
            : Has("config.json") ? Model(path, all)
            : throw new TrainingSetupException($"{path} is neither a run ({CheckpointFiles.ConfigName}) nor a checkpoint ({CheckpointStore.ManifestName}), an adapter ({AdapterConfig.FileName}) or a model (config.json).");
    }

    private static async Task<FactSheet> RunAsync(string path, bool all)
    {
        var sheet = new FactSheet();
        RunStatus status = await RunStatus.ReadAsync(path, TimeProvider.System, _ => { });
        TrainingConfig config = RunFolder.ConfigOf(path, []);
        sheet.Line("what", "a run");
        sheet.Field("kind", json => json.WriteStringValue("run"));
        sheet.Add("name", "run_name", status.RunName);
        sheet.Line("state", StatusVerb.State(status));
        sheet.Field("state", json => json.WriteStringValue(status.State.ToString().ToLowerInvariant()));
        sheet.Add("step", "step", status.Step, string.Create(CultureInfo.InvariantCulture, $"{status.Step}{(status.TotalSteps is { } total ? $" of {total}" : "")}"));
        sheet.Field("total_steps", json => WriteNumber(json, status.TotalSteps));
        sheet.Add("base", "base_model", config.BaseModel);
        sheet.Add("config hash", "config_hash", config.Hash);
        IObjectStore store = ObjectStore.Open(new RunFolder(config).CheckpointRoot);
        await using (store)
        {
            await AddCheckpointsAsync(sheet, new CheckpointStore(store, config.RunName, TimeProvider.System));
        }

        if (File.Exists(Path.Combine(path, AdapterConfig.FileName)))
        {
            sheet.Nest("adapter", Adapter(path, all, null));
        }
        else if (File.Exists(Path.Combine(path, "config.json")))
        {
            sheet.Nest("model", Model(path, all));
        }
        else
        {
            sheet.Line("result", $"none yet: lora-trainer resume {path}");
        }

        return sheet;
    }

    private static async Task AddCheckpointsAsync(FactSheet sheet, CheckpointStore store)
    {
        var damaged = new List<string>();
        IReadOnlyList<Checkpoint> found = await store.ListAsync(damaged.Add);
        var rows = new List<(Checkpoint Checkpoint, string? Damage)>();
        foreach (Checkpoint checkpoint in found)
        {
            rows.Add((checkpoint, await store.DamageOfAsync(checkpoint)));
        }

        sheet.Add("checkpoints", "checkpoint_place", store.Location);
        sheet.Field("checkpoints", json =>
        {
            json.WriteStartArray();
            foreach ((Checkpoint checkpoint, string? damage) in rows)
            {
                json.WriteStartObject();
                json.WriteString("name", checkpoint.Name);
                json.WriteNumber("step", checkpoint.Step);
                json.WriteNumber("epoch", checkpoint.Epoch);
                json.WriteNumber("bytes", checkpoint.Files.Sum(file => file.SizeBytes));
                json.WriteBoolean("intact", damage is null);
                json.WriteString("damage", damage);
                json.WriteEndObject();
            }

            json.WriteEndArray();
        });
        foreach ((Checkpoint checkpoint, string? damage) in rows)
        {
            sheet.Line("", string.Create(CultureInfo.InvariantCulture, $"step {checkpoint.Step}: {(damage is null ? "intact" : $"DAMAGED: {damage}")}, {Quantities.Bytes(checkpoint.Files.Sum(file => file.SizeBytes))}, {checkpoint.Name}"));
        }

        foreach (string sentence in damaged)
        {
            sheet.Line("", sentence);
        }
    }

    private static async Task<FactSheet> CheckpointAsync(string path, bool all)
    {
        string full = Path.TrimEndingDirectorySeparator(Path.GetFullPath(path)), run = Path.GetDirectoryName(full)!;
        TrainerState state = CheckpointFiles.ReadState(path);
        var sheet = new FactSheet();
        sheet.Line("what", "a checkpoint of a run");
        sheet.Field("kind", json => json.WriteStringValue("checkpoint"));
        IObjectStore store = ObjectStore.Open(Path.GetDirectoryName(run)!);
        await using (store)
        {
            var checkpoints = new CheckpointStore(store, Path.GetFileName(run), TimeProvider.System);
            string unreadable = "there is no intact manifest: it was never finished, and counts for nothing";
            Checkpoint? found = (await checkpoints.ListAsync(sentence => unreadable = sentence.Contains(Path.GetFileName(full), StringComparison.Ordinal) ? sentence : unreadable)).FirstOrDefault(item => item.Name == Path.GetFileName(full));
            string? damage = found is not null ? await checkpoints.DamageOfAsync(found)
                : File.Exists(Path.Combine(path, CheckpointStore.ManifestName)) ? "it is not part of the run: a later process went on from an earlier step" : unreadable;
            sheet.Add("name", "name", Path.GetFileName(full));
            sheet.Add("run", "run_name", Path.GetFileName(run));
            sheet.Line("manifest", damage is null ? "intact: every file has its size and SHA-256" : damage);
            sheet.Field("intact", json => json.WriteBooleanValue(damage is null));
            sheet.Field("damage", json => WriteText(json, damage));
            sheet.Add("step", "step", state.Step, string.Create(CultureInfo.InvariantCulture, $"{state.Step} of {state.TotalSteps}"));
            sheet.Field("total_steps", json => json.WriteNumberValue(state.TotalSteps));
            if (found is not null)
            {
                string lineage = found.Lineage.Count == 0 ? "" : $"; before it {string.Join(", ", found.Lineage.Where(entry => entry.UpToStep is not null).Select(entry => string.Create(CultureInfo.InvariantCulture, $"epoch {entry.Epoch} up to step {entry.UpToStep}")))}";
                sheet.Add("lineage", "epoch", found.Epoch, string.Create(CultureInfo.InvariantCulture, $"epoch {found.Epoch}{(lineage.EndsWith(' ') ? "" : lineage)}"));
                sheet.Add("files", "files", [.. found.Files.Select(file => $"{file.Name} ({Quantities.Bytes(file.SizeBytes)})")]);
            }
        }

        sheet.Add("tokens", "tokens", state.Tokens);
        if (state.Losses.Count > 0)
        {
            sheet.Line("loss", string.Create(CultureInfo.InvariantCulture, $"{state.Losses[0]:0.0000} at the first step, {state.Losses[^1]:0.0000} at the last"));
            sheet.Field("loss", json => json.WriteNumberValue(state.Losses[^1]));
        }

        sheet.Add("attempts", "attempts", state.Attempts);
        sheet.Add("base hash", "base_hash", state.BaseHash);
        sheet.Add("data hash", "data_hash", state.DataHash);
        sheet.Add("config hash", "config_hash", state.ConfigHash);
        if (File.Exists(Path.Combine(path, AdapterConfig.FileName)))
        {
            sheet.Nest("adapter", Adapter(path, all, null));
        }

        return sheet;
    }

    private static FactSheet Adapter(string path, bool all, string? what)
    {
        using PeftAdapterFolder adapter = PeftAdapterFolder.Open(path);
        AdapterConfig config = adapter.Config;
        IReadOnlyList<AdapterNorms> norms = AdapterNorms.Of(adapter);
        string kind = $"{(config.UseDora ? "DoRA" : config.UseRslora ? "rsLoRA" : "LoRA")}{(config.InitLoraWeights is "true" or "false" or "gaussian" ? "" : $", started with {config.InitLoraWeights}")}";
        var sheet = new FactSheet();
        if (what is not null)
        {
            sheet.Line("what", what);
            sheet.Field("kind", json => json.WriteStringValue("adapter"));
        }

        string weights = Path.Combine(path, PeftAdapterFolder.WeightsFileName);
        sheet.Add("adapter", "method", kind);
        sheet.Add("for base", "base_model_name_or_path", config.BaseModelNameOrPath ?? "not said");
        sheet.Add("rank", "r", config.R, string.Join(", ", norms.Select(item => item.Rank).Distinct().Order()));
        sheet.Line("alpha", string.Create(CultureInfo.InvariantCulture, $"{config.LoraAlpha}, scaling {string.Join(", ", norms.Select(item => item.Scaling).Distinct().Order().Select(scaling => scaling.ToString("0.####", CultureInfo.InvariantCulture)))}"));
        sheet.Field("lora_alpha", json => json.WriteNumberValue(config.LoraAlpha));
        sheet.Add("targets", "target_modules", [.. norms.Select(item => item.Module[(item.Module.LastIndexOf('.') + 1)..]).Distinct()]);
        if (config.ModulesToSave is { Count: > 0 } whole)
        {
            sheet.Add("trained whole", "modules_to_save", whole);
        }

        sheet.Add("parameters", "trainable_parameters", adapter.Tensors.Values.Sum(Elements));
        sheet.Add("file", "path", weights);
        sheet.Add("size", "bytes", new FileInfo(weights).Length, Quantities.Bytes(new FileInfo(weights).Length));
        sheet.Add("SHA-256", "sha256", ContentHash.OfFile(weights));
        sheet.Field("modules", json => WriteNorms(json, norms));
        if (norms.Count > 0)
        {
            int idle = norms.Count(item => item.B == 0);
            string remark = idle == 0 ? "" : $"{Environment.NewLine}{idle} of {norms.Count} modules have B = 0: nothing was learned there.";
            string broken = norms.All(item => double.IsFinite(item.Update)) ? "" : $"{Environment.NewLine}There are values that are no numbers: the training diverged, or the file is damaged.";
            sheet.Block((all ? ByModule(norms) : ByLayer(norms)) + remark + broken);
        }

        return sheet;
    }

    private static string ByModule(IReadOnlyList<AdapterNorms> norms)
    {
        var rows = new List<string[]> { ModuleHeader };
        rows.AddRange(norms.Select(item => new[] { item.Module, string.Create(CultureInfo.InvariantCulture, $"{item.Out} x {item.In}"), item.Rank.ToString(CultureInfo.InvariantCulture), Short(item.A), Short(item.B), Short(item.Update) }));
        return Columns.Align(rows, column => column > 1);
    }

    /// <summary>All modules of a layer together: the root of the sum of their squares.</summary>
    private static string ByLayer(IReadOnlyList<AdapterNorms> norms)
    {
        var rows = new List<string[]> { LayerHeader };
        foreach (IGrouping<int?, AdapterNorms> layer in norms.GroupBy(item => AdapterNorms.LayerOf(item.Module)))
        {
            rows.Add([layer.Key?.ToString(CultureInfo.InvariantCulture) ?? "other", layer.Count().ToString(CultureInfo.InvariantCulture), Root(item => item.A), Root(item => item.B), Root(item => item.Update)]);

            string Root(Func<AdapterNorms, double> norm) => Short(Math.Sqrt(layer.Sum(item => norm(item) * norm(item))));
        }

        return Columns.Align(rows, _ => true);
    }

    private static FactSheet Model(string path, bool all)
    {
        ModelConfig config = ModelConfig.Parse(path);
        var sheet = new FactSheet();
        sheet.Line("what", "a model");
        sheet.Field("kind", json => json.WriteStringValue("model"));
        sheet.Add("family", "model_type", config.ModelType);
        sheet.Add("layers", "num_hidden_layers", config.NumHiddenLayers);
        sheet.Line("widths", string.Create(CultureInfo.InvariantCulture, $"hidden {config.HiddenSize}, intermediate {config.IntermediateSize}, {config.NumAttentionHeads} heads of {config.HeadDim}, {config.NumKeyValueHeads} for keys and values"));
        sheet.Field("hidden_size", json => json.WriteNumberValue(config.HiddenSize));
        sheet.Add("vocabulary", "vocab_size", config.VocabSize, string.Create(CultureInfo.InvariantCulture, $"{config.VocabSize:#,0}{(config.TieWordEmbeddings ? ", one matrix for input and output" : "")}"));
        sheet.Add("positions", "max_position_embeddings", config.MaxPositionEmbeddings);
        sheet.Add("parameters", "parameters", config.ExpectedTensors().Sum(tensor => tensor.Shape.Aggregate(1L, (product, extent) => product * extent)));
        if (config.Quantization is { } quantization)
        {
            sheet.Add("quantized", "quantization", quantization.Description);
        }

        sheet.Line("tokenizer", Tokenizing(path, config));
        using ModelFolder folder = ModelFolder.Open(path);
        ModelTensorLayout layout = config.CheckTensors(folder);
        sheet.Line("weights", string.Create(CultureInfo.InvariantCulture, $"{Quantities.Bytes(folder.TotalBytes)} in {Quantities.Count(folder.Files.Count, "file")}; they fit config.json"));
        sheet.Field("bytes", json => json.WriteNumberValue(folder.TotalBytes));
        AddTensors(sheet, [.. folder.Files.SelectMany(file => file.Entries)], all);
        foreach (string notice in layout.Notices.Concat(config.Notices))
        {
            sheet.Line("note", notice);
        }

        return sheet;
    }

    private static string Tokenizing(string path, ModelConfig config)
    {
        if (!Tokenizer.IsIn(path))
        {
            return "none (no tokenizer.json or tokenizer.model)";
        }

        Tokenizer tokenizer = Tokenizer.Load(path);
        bool hasTemplate = ChatTemplate.OfModel(path) is not null;
        return string.Create(
            CultureInfo.InvariantCulture,
            $"{tokenizer.VocabularySize:#,0} tokens{(tokenizer.VocabularySize > config.VocabSize ? ", MORE than the model has" : "")}, EOS {tokenizer.SpecialTokens.Eos ?? "not named"}, {(hasTemplate ? "with" : "without")} a chat template");
    }

    private static FactSheet Tensors(string path, bool all)
    {
        using SafetensorsFile file = SafetensorsFile.Open(path);
        var sheet = new FactSheet();
        sheet.Line("what", "a safetensors file; its header is sound");
        sheet.Field("kind", json => json.WriteStringValue("safetensors"));
        sheet.Add("path", "path", path);
        sheet.Add("size", "bytes", new FileInfo(path).Length, Quantities.Bytes(new FileInfo(path).Length));
        sheet.Add("parameters", "parameters", file.Entries.Sum(Elements));
        AddTensors(sheet, file.Entries, all);
        foreach ((string key, string value) in file.Metadata)
        {
            sheet.Line($"metadata {key}", value);
        }

        return sheet;
    }

    private static void AddTensors(FactSheet sheet, IReadOnlyList<SafetensorsEntry> entries, bool all)
    {
        sheet.Add("tensors", "tensors_count", entries.Count);
        sheet.Add("types", "types", [.. entries.GroupBy(entry => entry.DType).Select(group => string.Create(CultureInfo.InvariantCulture, $"{group.Key.Name()} ({group.Count()} tensors, {Quantities.Bytes(group.Sum(entry => entry.ByteLength))})"))]);
        SafetensorsEntry[] shown = all ? [.. entries] : [.. entries.OrderByDescending(entry => entry.ByteLength).ThenBy(entry => entry.Name, StringComparer.Ordinal).Take(LargestShown)];
        sheet.Field("tensors", json =>
        {
            json.WriteStartArray();
            foreach (SafetensorsEntry entry in entries)
            {
                json.WriteStartObject();
                json.WriteString("name", entry.Name);
                json.WriteString("dtype", entry.DType.Name());
                json.WriteStartArray("shape");
                foreach (long extent in entry.Shape)
                {
                    json.WriteNumberValue(extent);
                }

                json.WriteEndArray();
                json.WriteEndObject();
            }

            json.WriteEndArray();
        });
        var rows = new List<string[]> { new[] { all || shown.Length == entries.Count ? "tensor" : $"the {LargestShown} largest tensors (--tensors: all)", "type and shape", "size" } };
        rows.AddRange(shown.Select(entry => new[] { entry.Name, entry.ToString(), Quantities.Bytes(entry.ByteLength) }));
        sheet.Block(Columns.Align(rows, column => column == 2));
    }

    private static ExitCode Row(VerbContext context, string path, int number, bool heldOut)
    {
        ConfigurationResult loaded = ConfigurationLoader.LoadFile(RunFolder.ConfigFileOf(path) ?? path, context.Settings);
        TrainingConfig config = FetchedSources.Fetch(loaded.Require(), SourceNeeds.Description | SourceNeeds.Data, context.Terminal.Note, context.Signals.Listen("The download stops."));
        Tokenizer tokenizer = InspectedRow.TokenizerOf(config);
        InspectedRow row = InspectedRow.Read(config, tokenizer, number, heldOut);
        context.Terminal.Result(RowPage.Words(row, tokenizer, context.Terminal.Width, context.Terminal.HasColour));
        context.Terminal.Json(json => RowPage.Write(json, row, tokenizer));
        return ExitCode.Done;
    }

    private static long Elements(SafetensorsEntry entry)
    {
        long count = 1;
        foreach (long extent in entry.Shape)
        {
            count *= extent;
        }

        return count;
    }

    private static string Short(double value) => value.ToString(value == 0 ? "0" : Math.Abs(value) is >= 0.01 and < 10000 ? "0.000" : "0.00e+0", CultureInfo.InvariantCulture);

    private static void WriteNorms(Utf8JsonWriter json, IReadOnlyList<AdapterNorms> norms)
    {
        json.WriteStartArray();
        foreach (AdapterNorms item in norms)
        {
            json.WriteStartObject();
            json.WriteString("module", item.Module);
            json.WriteNumber("rank", item.Rank);
            json.WriteNumber("scaling", item.Scaling);
            Number("norm_a", item.A);
            Number("norm_b", item.B);
            Number("norm_update", item.Update);
            json.WriteEndObject();
        }

        json.WriteEndArray();

        void Number(string name, double value)
        {
            if (double.IsFinite(value))
            {
                json.WriteNumber(name, value);
            }
            else
            {
                json.WriteNull(name);
            }
        }
    }

    private static void WriteNumber(Utf8JsonWriter json, int? value)
    {
        if (value is { } number)
        {
            json.WriteNumberValue(number);
        }
        else
        {
            json.WriteNullValue();
        }
    }

    private static void WriteText(Utf8JsonWriter json, string? text)
    {
        if (text is null)
        {
            json.WriteNullValue();
        }
        else
        {
            json.WriteStringValue(text);
        }
    }
}
