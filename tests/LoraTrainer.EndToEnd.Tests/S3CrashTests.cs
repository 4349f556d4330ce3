using System.Diagnostics;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>
/// A run with its checkpoints in a real S3 server is killed at any moment, also in the middle of an upload and before its manifest arrives; every second time
/// the machine's disk is lost with it. Resumed from the URI alone it ends with the bytes of a run that was never stopped.
/// </summary>
[Collection(S3Runs.Name)]
[Trait("Category", "S3")]
[Trait("Category", "Crash")]
public sealed class S3CrashTests
{
    // Bytes of a checkpoint of the tiny run, roughly.
    private const int CheckpointBytes = 250_000;

    private readonly S3Server server;

    public S3CrashTests(S3Server server)
    {
        this.server = server;
        server.Require();
    }

    [Theory]
    [MemberData(nameof(CrashVariant.InS3), MemberType = typeof(CrashVariant))]
    public async Task Killed_AndResumedFromItsUri_EndsWithTheSameBytes(string name)
    {
        CrashVariant variant = CrashVariant.Of(name);
        int kills = CrashVariant.Scaled(variant.KillsInS3), killed = 0, disks = 0, held = 0;
        using var uninterrupted = new TinyFolder(changes: variant.Changes);
        long start = Stopwatch.GetTimestamp();
        Ending whole = await uninterrupted.RunAsync(S3Run.Train, environment: variant.Environment);
        TimeSpan duration = Stopwatch.GetElapsedTime(start);
        Assert.True(whole.ExitCode == 0, whole.ToString());
        Dictionary<string, string> expected = uninterrupted.Result();

        var random = new Random(variant.Seed);
        await using var run = new S3Run(server, variant.Changes);

        // A process that was to be killed with its disk may have ended before, on a busy machine more often.
        for (int i = 0; killed < kills || disks * 5 < killed * 2; i++)
        {
            Assert.True(i < 3 * kills, $"only {killed} of {kills} processes were killed before they had ended, {disks} of them with the disk lost");
            var story = new List<string>();
            int inARow = i % 4 == 3 ? 2 : 1;
            Fault? late = null;
            for (int k = 0; k < inARow; k++)
            {
                string[] arguments = await run.NextAsync();
                (string what, Ending ending, Fault? fault) = await KillAsync(run, variant, arguments, (i + k) % 6, random, duration);
                bool losesDisk = (i + (i / 6)) % 2 == 0;
                story.Add($"{arguments[0]}, killed {what}{(losesDisk ? ", disk lost" : "")}");
                Assert.True(ending.ExitCode is 137 or 0, $"{string.Join("; ", story)}\n{ending}");
                if (ending.ExitCode == 137)
                {
                    killed++;
                    disks += losesDisk ? 1 : 0;
                    held += fault?.Hits ?? 0;
                }

                if (losesDisk)
                {
                    run.LoseDisk();
                }

                late?.Release();
                late = fault;
            }

            // What the dead process had sent may still arrive, while the next one is at work already.
            string[] last = await run.NextAsync();
            await using Child next = Child.Start(run.Folder, last, variant.Environment);
            late?.Release();
            Ending end = await next.EndAsync();
            Assert.True(end.ExitCode == 0, $"{string.Join("; ", story)}\n{end}");
            Dictionary<string, string> result = await run.ResultAsync();
            foreach ((string what, string bytes) in expected)
            {
                Assert.True(bytes == result[what], $"{what} differs after: {string.Join("; ", story)}\nexpected {bytes}\ngot      {result[what]}");
            }

            await run.AssertNothingIsLeftOverAsync();
            run.StartAnew();
        }

        TestContext.Current.SendDiagnosticMessage($"{name}: {killed} kills, {disks} with the disk lost, {held} while bytes were on their way to the store");
        Assert.True(held > 0, "no process was killed while it sent something");
    }

    /// <summary>Starts the program and kills it: between two steps, as it saves, as it sends, as it commits, as it evaluates, or anywhere.</summary>
    private static async Task<(string What, Ending Ending, Fault? Fault)> KillAsync(S3Run run, CrashVariant variant, string[] arguments, int kind, Random random, TimeSpan duration)
    {
        switch (kind)
        {
            case 2 or 3:
                int save = random.Next(1, 4), seen = 0, after = random.Next(CheckpointBytes);
                var fault = new Fault(FaultKind.HoldUp)
                {
                    After = kind == 2 ? after : 0,
                    Request = kind == 2 ? null : line => line.StartsWith("PUT ", StringComparison.Ordinal) && line.Contains("/manifest.json", StringComparison.Ordinal) && Interlocked.Increment(ref seen) == save,
                };
                run.Proxy.Set(fault);
                Ending ending;
                await using (Child child = Child.Start(run.Folder, arguments, variant.Environment))
                {
                    Task<Ending> ended = child.EndAsync();
                    if (await Task.WhenAny(ended, fault.Reached) == fault.Reached && !ended.IsCompleted)
                    {
                        child.Signal(TinyFolder.SignalKill);
                    }

                    ending = await ended;
                }

                run.Proxy.Set(null);
                return (kind == 2 ? $"after {after} bytes to the store" : $"before the manifest number {save} arrived", ending, fault);
            case 5:
                TimeSpan time = duration * random.NextDouble();
                return ($"after {time.TotalMilliseconds:0} ms", await run.Folder.KillAfterAsync(time, arguments, variant.Environment), null);
            default:
                Moment moment = kind switch
                {
                    0 => new Moment("step ", random.Next(1, 9), random.NextDouble() * 8),
                    1 => new Moment("saving", random.Next(1, 5), random.NextDouble() * 60),
                    _ => new Moment("evaluating", random.Next(1, 3), random.NextDouble() * 30),
                };
                return (moment.ToString(), await run.Folder.RunAsync(arguments, moment, environment: variant.Environment), null);
        }
    }
}
