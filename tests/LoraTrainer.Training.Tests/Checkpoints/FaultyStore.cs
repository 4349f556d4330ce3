using System.Collections.Concurrent;
using LoraTrainer.Storage;

namespace LoraTrainer.Training.Tests.Checkpoints;

/// <summary>A store between a test and a real one: it sees each call, and fails it, holds it or loses its answer as the test says.</summary>
internal sealed class FaultyStore(IObjectStore inner) : IObjectStore
{
    /// <summary>Calls that came to the real store, as "put run/lease.json".</summary>
    public ConcurrentQueue<string> Done { get; } = [];

    /// <summary>Called before the real store is: what it throws is what the caller gets, and nothing is done.</summary>
    public Func<string, CancellationToken, Task>? Before { get; set; }

    /// <summary>Called when the real store has done what was asked: what it throws is what the caller gets in the place of the answer.</summary>
    public Func<string, CancellationToken, Task>? After { get; set; }

    /// <summary>True: a conditional put is done and answered as if its condition had not held, as by a store that tries again on its own after an answer was lost.</summary>
    public bool AnswersItsOwnRetry { get; set; }

    public string Location => inner.Location;

    /// <summary>How often something was done.</summary>
    public int Count(string call) => Done.Count(done => done == call);

    /// <summary>From now on every call fails, as when the network is gone.</summary>
    public void Cut() => Before = (_, _) => throw new StoreException(StoreProblem.Unreachable, "The store is out of reach.");

    public void Mend() => (Before, After) = (null, null);

    public Task<StoreAbilities> ProbeAsync(string prefix, CancellationToken cancellation = default) => inner.ProbeAsync(prefix, cancellation);

    public async Task<string?> PutAsync(string key, Stream content, PutCondition condition = default, IProgress<long>? progress = null, CancellationToken cancellation = default)
    {
        string? version = await CallAsync($"put {key}", () => inner.PutAsync(key, content, condition, progress, cancellation), cancellation);
        if (!AnswersItsOwnRetry || condition == default)
        {
            return version;
        }

        AnswersItsOwnRetry = false;
        return null;
    }

    public Task<StoredContent?> GetAsync(string key, CancellationToken cancellation = default) => CallAsync($"get {key}", () => inner.GetAsync(key, cancellation), cancellation);

    public Task<IReadOnlyList<StoredObject>> ListAsync(string prefix = "", CancellationToken cancellation = default) => CallAsync($"list {prefix}", () => inner.ListAsync(prefix, cancellation), cancellation);

    public Task<bool> DeleteAsync(string key, CancellationToken cancellation = default) => CallAsync($"delete {key}", () => inner.DeleteAsync(key, cancellation), cancellation);

    public Task<bool> ExistsAsync(string key, CancellationToken cancellation = default) => CallAsync($"exists {key}", () => inner.ExistsAsync(key, cancellation), cancellation);

    public Task<int> RemoveUnfinishedAsync(string prefix, CancellationToken cancellation = default) => CallAsync($"clean {prefix}", () => inner.RemoveUnfinishedAsync(prefix, cancellation), cancellation);

    public ValueTask DisposeAsync() => inner.DisposeAsync();

    private async Task<T> CallAsync<T>(string call, Func<Task<T>> act, CancellationToken cancellation)
    {
        await (Before?.Invoke(call, cancellation) ?? Task.CompletedTask);
        T answer = await act();
        Done.Enqueue(call);
        await (After?.Invoke(call, cancellation) ?? Task.CompletedTask);
        return answer;
    }
}
