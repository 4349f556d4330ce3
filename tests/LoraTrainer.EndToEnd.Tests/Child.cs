using System.Diagnostics;
using System.Text;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>The program while it runs: what it has said so far and when, and signals to it. It does not outlive the test.</summary>
internal sealed class Child : IAsyncDisposable
{
    // Guards against a hang, not a measure of speed.
    private static readonly TimeSpan Longest = TimeSpan.FromMinutes(2);

    private readonly Process process;
    private readonly Lock gate = new();
    private readonly List<(string Text, bool IsError)> lines = [];
    private readonly Task reading;

    private Child(Process process)
    {
        this.process = process;
        reading = Task.WhenAll(ReadAsync(process.StandardOutput, isError: false), ReadAsync(process.StandardError, isError: true));
    }

    public int Id => process.Id;

    public static Child Start(TinyFolder folder, string[] arguments, IReadOnlyDictionary<string, string>? environment = null) => new(folder.Start(arguments, environment));

    /// <summary>How often something was said so far, on either stream.</summary>
    public int Count(string text)
    {
        lock (gate)
        {
            return lines.Count(line => line.Text.Contains(text, StringComparison.Ordinal));
        }
    }

    /// <summary>Lines of standard output that start so.</summary>
    public string[] Said(string start)
    {
        lock (gate)
        {
            return [.. lines.Where(line => !line.IsError && line.Text.StartsWith(start, StringComparison.Ordinal)).Select(line => line.Text)];
        }
    }

    /// <summary>Waits until something was said so often; fails where the process ends before.</summary>
    public async Task SeesAsync(string text, int occurrence = 1)
    {
        long start = Stopwatch.GetTimestamp();
        while (Count(text) < occurrence)
        {
            Assert.True(!reading.IsCompleted || Count(text) >= occurrence, $"it ended without '{text}' number {occurrence}:\n{Everything()}");
            Assert.True(Stopwatch.GetElapsedTime(start) < Longest, $"it never said '{text}' number {occurrence}:\n{Everything()}");
            await Task.Delay(1, TestContext.Current.CancellationToken);
        }
    }

    public void Signal(int signal) => Assert.Equal(0, TinyFolder.SendSignal(process.Id, signal));

    public async Task<Ending> EndAsync()
    {
        await process.WaitForExitAsync(TestContext.Current.CancellationToken).WaitAsync(Longest, TestContext.Current.CancellationToken);
        await reading;
        lock (gate)
        {
            return new Ending(process.ExitCode, Text(isError: false), Text(isError: true));
        }
    }

    public async ValueTask DisposeAsync()
    {
        if (!process.HasExited)
        {
            process.Kill();
            await process.WaitForExitAsync();
        }

        await reading;
        process.Dispose();
    }

    private string Everything()
    {
        lock (gate)
        {
            return string.Join('\n', lines.Select(line => line.Text));
        }
    }

    private string Text(bool isError)
    {
        var text = new StringBuilder();
        foreach ((string line, bool _) in lines.Where(line => line.IsError == isError))
        {
            text.Append(line).Append('\n');
        }

        return text.ToString();
    }

    private async Task ReadAsync(StreamReader reader, bool isError)
    {
        while (await reader.ReadLineAsync() is { } line)
        {
            lock (gate)
            {
                lines.Add((line, isError));
            }
        }
    }
}
