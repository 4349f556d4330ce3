using System.Collections.Concurrent;
using System.Diagnostics;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Interruptions;
using Xunit;

namespace LoraTrainer.Training.Tests.Interruptions;

/// <summary>A watcher with short pauses on a machine that a test describes, and what it raised.</summary>
internal sealed class WatchedRun : IAsyncDisposable
{
    /// <summary>The pauses of the product, a hundredth as long where tests would wait for them.</summary>
    public static WatchTimings Quick { get; } = new()
    {
        FirstRound = TimeSpan.FromMilliseconds(400),
        Answer = TimeSpan.FromSeconds(2),
        Aws = TimeSpan.FromMilliseconds(50),
        Gcp = TimeSpan.FromMilliseconds(20),
        GcpWait = TimeSpan.FromSeconds(2),
        GcpMaintenance = TimeSpan.FromMilliseconds(50),
        Azure = TimeSpan.FromMilliseconds(20),
        File = TimeSpan.FromMilliseconds(20),
        Rare = TimeSpan.FromMinutes(1),
    };

    private readonly SemaphoreSlim arrived = new(0);

    public WatchedRun(InterruptionOptions options, WatchTimings? timings = null, Dictionary<string, string>? variables = null, Dictionary<string, string>? firmware = null, TimeProvider? time = null)
    {
        MachineTraits traits = new((variables ?? []).GetValueOrDefault, (firmware ?? []).GetValueOrDefault);
        Watcher = InterruptionWatcher.Start(
            options,
            notice =>
            {
                Notices.Enqueue(notice);
                arrived.Release();
            },
            Warnings.Enqueue,
            time ?? TimeProvider.System,
            traits,
            timings ?? Quick);
    }

    public InterruptionWatcher Watcher { get; }

    public ConcurrentQueue<InterruptionNotice> Notices { get; } = [];

    public ConcurrentQueue<string> Warnings { get; } = [];

    /// <summary>The next notice that was not waited for yet.</summary>
    public async Task<InterruptionNotice> NextAsync()
    {
        Assert.True(await arrived.WaitAsync(TimeSpan.FromSeconds(10), TestContext.Current.CancellationToken), $"no notice came. {string.Join(' ', Warnings)}");
        return Notices.ElementAt(taken++);
    }

    private int taken;

    /// <summary>Waits until something is so.</summary>
    public static async Task Until(Func<bool> isSo)
    {
        for (var waited = Stopwatch.StartNew(); !isSo(); await Task.Delay(5, TestContext.Current.CancellationToken))
        {
            Assert.True(waited.Elapsed < TimeSpan.FromSeconds(10), "it did not happen within ten seconds");
        }
    }

    public async ValueTask DisposeAsync()
    {
        await Watcher.DisposeAsync();
        arrived.Dispose();
    }
}
