using System.Globalization;
using System.Runtime.InteropServices;
using System.Text.Json;
using LoraTrainer.Models.Formats;
using LoraTrainer.Storage;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training;

/// <summary>Compares what two runs with the same settings came to, byte for byte where nothing of it is a time or a place.</summary>
public static class RunComparison
{
    /// <summary>They hold times, places or the number of processes; what matters of the log and of the state is compared by itself.</summary>
    private static readonly string[] NotCompared = [CheckpointFiles.LogName, RunFolder.SummaryName, CheckpointFiles.ConfigName, CheckpointFiles.StateName];

    private static readonly string[] LoggedValues = ["step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "supervised_tokens", "eval_loss", "eval_rows", "left_out_from", "back_to"];

    /// <summary>Each difference as a sentence; empty where there is none. The runs' outputs and checkpoints lie in folders of this machine.</summary>
    /// <param name="one">A run's config.</param>
    /// <param name="other">The other one's.</param>
    /// <param name="onNotice">Is told about checkpoints that cannot be read.</param>
    public static async Task<IReadOnlyList<string>> DifferencesAsync(TrainingConfig one, TrainingConfig other, Action<string> onNotice)
    {
        var differences = new List<string>();
        CompareFolders("", one.OutputDir, other.OutputDir, differences);
        foreach (string name in new[] { RunFolder.BestName, RunFolder.LastName }.Where(name => Directory.Exists(Path.Combine(one.OutputDir, name)) || Directory.Exists(Path.Combine(other.OutputDir, name))))
        {
            CompareFolders(name + "/", Path.Combine(one.OutputDir, name), Path.Combine(other.OutputDir, name), differences);
        }

        CompareLogs(new RunFolder(one).LogFile, new RunFolder(other).LogFile, differences);
        (Checkpoint? Checkpoint, string Folder) first = await NewestAsync(one, onNotice).ConfigureAwait(false), second = await NewestAsync(other, onNotice).ConfigureAwait(false);
        if (first.Checkpoint?.Step != second.Checkpoint?.Step)
        {
            differences.Add($"The last checkpoint is {Step(first.Checkpoint)} in the one run and {Step(second.Checkpoint)} in the other.");
        }
        else if (first.Checkpoint is not null)
        {
            CompareFolders("The last checkpoint: ", first.Folder, second.Folder, differences);
            CompareStates(CheckpointFiles.ReadState(first.Folder), CheckpointFiles.ReadState(second.Folder), differences);
        }

        return differences;

        static string Step(Checkpoint? checkpoint) => checkpoint is null ? "not there" : $"of step {checkpoint.Step}";
    }

    private static async Task<(Checkpoint? Checkpoint, string Folder)> NewestAsync(TrainingConfig config, Action<string> onNotice)
    {
        string root = new RunFolder(config).CheckpointRoot;
        IObjectStore store = ObjectStore.Open(root);
        await using (store.ConfigureAwait(false))
        {
            Checkpoint? newest = await new CheckpointStore(store, config.RunName, TimeProvider.System).FindNewestIntactAsync(onNotice).ConfigureAwait(false);
            return (newest, newest is null ? string.Empty : Path.Combine(root, config.RunName, newest.Name));
        }
    }

    private static void CompareFolders(string prefix, string one, string other, List<string> differences)
    {
        string[] names = [.. NamesIn(one).Union(NamesIn(other)).Order(StringComparer.Ordinal)];
        foreach (string name in names)
        {
            string first = Path.Combine(one, name), second = Path.Combine(other, name);
            if (!File.Exists(first) || !File.Exists(second))
            {
                differences.Add($"{prefix}{name} is only in the {(File.Exists(first) ? "one" : "other")} run.");
            }
            else if (ContentHash.OfFile(first) != ContentHash.OfFile(second))
            {
                differences.Add($"{prefix}{name} differs{(name.EndsWith(".safetensors", StringComparison.Ordinal) ? $": {Tensors(first, second)}" : "")}.");
            }
        }

        static IEnumerable<string> NamesIn(string folder) => (Directory.Exists(folder) ? Directory.EnumerateFiles(folder) : []).Select(path => Path.GetFileName(path)).Where(name => name[0] != '.' && name != CheckpointStore.ManifestName && !NotCompared.Contains(name));
    }

    /// <summary>Which tensors, and by how much.</summary>
    private static string Tensors(string one, string other)
    {
        using SafetensorsFile first = SafetensorsFile.Open(one), second = SafetensorsFile.Open(other);
        int differing = 0;
        string firstName = "";
        double largest = 0;
        foreach (SafetensorsEntry entry in first.Entries)
        {
            byte[] a = new byte[entry.ByteLength], b = new byte[entry.ByteLength];
            if (second.Find(entry.Name) is not { } same || same.DType != entry.DType || !same.Shape.SequenceEqual(entry.Shape))
            {
                return $"the tensor {entry.Name} is not in both with one shape";
            }

            first.ReadInto(entry, 0, a);
            second.ReadInto(same, 0, b);
            if (a.AsSpan().SequenceEqual(b))
            {
                continue;
            }

            firstName = differing++ == 0 ? entry.Name : firstName;
            if (entry.DType == SafetensorsDType.F32)
            {
                ReadOnlySpan<float> x = MemoryMarshal.Cast<byte, float>(a), y = MemoryMarshal.Cast<byte, float>(b);
                for (int i = 0; i < x.Length; i++)
                {
                    // NaN wins.
                    largest = Math.Max(largest, x[i].Equals(y[i]) ? 0 : Math.Abs((double)x[i] - y[i]));
                }
            }
        }

        return differing == 0
            ? "the tensors are equal, the rest of the file is not"
            : string.Create(CultureInfo.InvariantCulture, $"{differing} of {first.Entries.Count} tensors, the first is {firstName}{(largest == 0 ? "" : $", the largest difference {largest:0.0e-0}")}");
    }

    private static void CompareLogs(string one, string other, List<string> differences)
    {
        string[] first = Lines(one), second = Lines(other);
        if (first.Length != second.Length)
        {
            differences.Add($"{CheckpointFiles.LogName} has {first.Length} lines in the one run and {second.Length} in the other.");
        }

        for (int i = 0; i < Math.Min(first.Length, second.Length); i++)
        {
            if (first[i] != second[i])
            {
                differences.Add($"{CheckpointFiles.LogName} differs from line {i + 1} on: {first[i]} in the one run, {second[i]} in the other.");
                return;
            }
        }

        static string[] Lines(string path) => !File.Exists(path) ? [] :
        [
            .. File.ReadLines(path).Select(line =>
            {
                using JsonDocument document = JsonDocument.Parse(line);
                return string.Join(", ", LoggedValues.Where(name => document.RootElement.TryGetProperty(name, out _)).Select(name => $"{name} {document.RootElement.GetProperty(name).GetRawText()}"));
            }),
        ];
    }

    private static void CompareStates(TrainerState one, TrainerState other, List<string> differences)
    {
        int equal = one.Losses.Zip(other.Losses).TakeWhile(pair => BitConverter.DoubleToInt64Bits(pair.First) == BitConverter.DoubleToInt64Bits(pair.Second)).Count();
        if (equal < Math.Max(one.Losses.Count, other.Losses.Count))
        {
            differences.Add($"The losses differ from step {equal + 1} on: {Loss(one)} in the one run, {Loss(other)} in the other.");
        }

        if (!one.Evaluations.SequenceEqual(other.Evaluations))
        {
            differences.Add($"The evaluations differ: {Evaluations(one)} in the one run, {Evaluations(other)} in the other.");
        }

        if (one.Updates != other.Updates || !one.LeftOut.SequenceEqual(other.LeftOut))
        {
            differences.Add("The last checkpoint: the runs left other steps out.");
        }

        if ((one.Tokens, one.SupervisedTokens, one.DataHash, one.BaseHash) != (other.Tokens, other.SupervisedTokens, other.DataHash, other.BaseHash))
        {
            differences.Add("The last checkpoint: the runs had other data, another base, or another number of tokens.");
        }

        static string Evaluations(TrainerState state) => string.Join(", ", state.Evaluations.Select(point => string.Create(CultureInfo.InvariantCulture, $"{point.Loss:R} after step {point.Step}")));

        string Loss(TrainerState state) => equal < state.Losses.Count ? state.Losses[equal].ToString("R", CultureInfo.InvariantCulture) : "no such step";
    }
}
