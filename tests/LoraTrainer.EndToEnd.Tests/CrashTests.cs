using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>A run that is killed at any moment and resumed ends with the bytes of a run that was never stopped.</summary>
[Trait("Category", "Crash")]
public sealed class CrashTests
{
    private static readonly string[] Train = ["train", "tiny.yaml"];
    private static readonly string[] Resume = ["resume", "out"];

    /// <summary>Some moments are tied to what the program just said, some lie anywhere.</summary>
    [Theory]
    [MemberData(nameof(CrashVariant.InFolder), MemberType = typeof(CrashVariant))]
    public async Task Killed_AndResumed_EndsWithTheSameBytes(string name)
    {
        CrashVariant variant = CrashVariant.Of(name);
        int kills = CrashVariant.Scaled(variant.KillsInFolder);
        using var uninterrupted = new TinyFolder(changes: variant.Changes);
        long start = System.Diagnostics.Stopwatch.GetTimestamp();
        Ending whole = await uninterrupted.RunAsync(Train, environment: variant.Environment);
        TimeSpan duration = System.Diagnostics.Stopwatch.GetElapsedTime(start);
        Assert.True(whole.ExitCode == 0, whole.ToString());
        Dictionary<string, string> expected = uninterrupted.Result();
        Assert.InRange(uninterrupted.CheckpointFolders().Length, 2, 3);
        Assert.True(uninterrupted.Log().Length >= 8, "the run is too short to be interrupted in many places");

        var random = new Random(variant.Seed);
        using var run = new TinyFolder(changes: variant.Changes);
        int killed = 0;
        for (int i = 0; i < kills || killed < kills; i++)
        {
            Assert.True(i < 3 * kills, $"only {killed} of {kills} processes were killed before they had ended");

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
                    ending = await run.KillAfterAsync(time, arguments, variant.Environment);
                }
                else
                {
                    Moment moment = RandomMoment(random, i);
                    story.Add($"{arguments[0]}, killed {moment}");
                    ending = await run.RunAsync(arguments, moment, environment: variant.Environment);
                }

                Assert.True(ending.ExitCode is 137 or 0, $"{string.Join("; ", story)}\n{ending}");
                killed += ending.ExitCode == 137 ? 1 : 0;
            }

            string[] last = File.Exists(run.PathOf("out/config.resolved.yaml")) ? Resume : Train;
            Ending end = await run.RunAsync(last, environment: variant.Environment);
            Assert.True(end.ExitCode == 0, $"{string.Join("; ", story)}\n{end}");
            Dictionary<string, string> result = run.Result();
            foreach ((string what, string bytes) in expected)
            {
                Assert.True(bytes == result[what], $"{what} differs after: {string.Join("; ", story)}\nexpected {bytes}\ngot      {result[what]}");
            }

            AssertNothingIsLeftOver(run, uninterrupted.CheckpointFolders().Length);
            Directory.Delete(run.Out, recursive: true);
        }
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
    private static void AssertNothingIsLeftOver(TinyFolder run, int checkpoints)
    {
        string[] hidden = [.. Directory.EnumerateFileSystemEntries(run.Out, ".*", SearchOption.AllDirectories).Where(path => Path.GetFileName(path) != ".lock")];
        Assert.Empty(hidden);
        Assert.Equal(run.CheckpointFolders(), Directory.EnumerateDirectories(run.Checkpoints, "step-*").Order(StringComparer.Ordinal));
        Assert.Equal(checkpoints, run.CheckpointFolders().Length);
    }
}
