using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>A run that is killed at any moment and resumed ends with the bytes of a run that was never stopped.</summary>
[Trait("Category", "Crash")]
public sealed class CrashTests
{
    private static readonly string[] Train = ["train", "tiny.yaml"];
    private static readonly string[] Resume = ["resume", "out"];

    /// <summary>What is trained, and how the rows become steps.</summary>
    private static (string Key, object? Value)[] Variant(string name) => name switch
    {
        "lora" => [],
        "packed" => [("sample_packing", "true"), ("sequence_len", 96), ("micro_batch_size", 1), ("gradient_accumulation_steps", 4)],
        "qlora" => [("adapter", "qlora"), ("load_in_4bit", "true"), ("gradient_checkpointing", "true")],
        "full" => [("adapter", null), ("lora_r", null), ("lora_alpha", null), ("lora_dropout", null), ("lora_target_linear", null), ("learning_rate", "1e-3")],
        _ => throw new ArgumentOutOfRangeException(nameof(name), name, "no such variant"),
    };

    /// <summary>Ten moments in plain LoRA, six with packing, four with a base in 4 bits, five in full training: some tied to what the program just said, some anywhere.</summary>
    [Theory]
    [InlineData("lora", 10, 11)]
    [InlineData("packed", 6, 12)]
    [InlineData("qlora", 4, 13)]
    [InlineData("full", 5, 14)]
    public async Task Killed_AndResumed_EndsWithTheSameBytes(string variant, int kills, int seed)
    {
        using var uninterrupted = new TinyFolder(changes: Variant(variant));
        long start = System.Diagnostics.Stopwatch.GetTimestamp();
        Ending whole = await uninterrupted.RunAsync(Train);
        TimeSpan duration = System.Diagnostics.Stopwatch.GetElapsedTime(start);
        Assert.True(whole.ExitCode == 0, whole.ToString());
        Dictionary<string, string> expected = uninterrupted.Result();
        Assert.True(uninterrupted.Log().Length >= 8, "the run is too short to be interrupted in many places");

        var random = new Random(seed);
        using var run = new TinyFolder(changes: Variant(variant));
        int killed = 0;
        for (int i = 0; i < kills; i++)
        {
            // Every fourth run is killed twice more before it may go on to its end.
            int inARow = i % 4 == 3 ? 3 : 1;
            var story = new List<string>();
            for (int k = 0; k < inARow; k++)
            {
                string[] arguments = Directory.Exists(run.Out) && File.Exists(run.PathOf("out/config.resolved.yaml")) ? Resume : Train;
                Ending ending;
                if (i % 3 == 2)
                {
                    TimeSpan time = duration * random.NextDouble();
                    story.Add($"{arguments[0]}, killed after {time.TotalMilliseconds:0} ms");
                    ending = await run.KillAfterAsync(time, arguments);
                }
                else
                {
                    Moment moment = RandomMoment(random, i);
                    story.Add($"{arguments[0]}, killed {moment}");
                    ending = await run.RunAsync(arguments, moment);
                }

                Assert.True(ending.ExitCode is 137 or 0, $"{string.Join("; ", story)}\n{ending}");
                killed += ending.ExitCode == 137 ? 1 : 0;
            }

            string[] last = File.Exists(run.PathOf("out/config.resolved.yaml")) ? Resume : Train;
            Ending end = await run.RunAsync(last);
            Assert.True(end.ExitCode == 0, $"{string.Join("; ", story)}\n{end}");
            Dictionary<string, string> result = run.Result();
            foreach ((string what, string bytes) in expected)
            {
                Assert.True(bytes == result[what], $"{what} differs after: {string.Join("; ", story)}\nexpected {bytes}\ngot      {result[what]}");
            }

            AssertNothingIsLeftOver(run);
            Directory.Delete(run.Out, recursive: true);
        }

        Assert.True(killed >= kills, $"only {killed} of {kills} processes were killed before they had ended");
    }

    private static Moment RandomMoment(Random random, int number) => (number % 6) switch
    {
        0 => new Moment("saving", random.Next(1, 5), random.NextDouble() * 12),
        1 => new Moment("step ", random.Next(1, 9), random.NextDouble() * 8),
        3 => new Moment("evaluating", 1, random.NextDouble() * 30),
        4 => new Moment("saving", random.Next(1, 5), random.NextDouble() * 4),
        _ => new Moment("loading", 1, random.NextDouble() * 30),
    };

    /// <summary>Of killed processes nothing remains: no staging folder, no temporary file, no checkpoint without a manifest.</summary>
    private static void AssertNothingIsLeftOver(TinyFolder run)
    {
        string[] hidden = [.. Directory.EnumerateFileSystemEntries(run.Out, ".*", SearchOption.AllDirectories).Where(path => Path.GetFileName(path) != ".lock")];
        Assert.Empty(hidden);
        Assert.Equal(run.CheckpointFolders(), Directory.EnumerateDirectories(run.Checkpoints, "step-*").Order(StringComparer.Ordinal));
        Assert.Equal(2, run.CheckpointFolders().Length);
    }
}
