using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Interruptions;

/// <summary>
/// Watches for notices that the machine is about to be taken away, in the background and from the first moment of a run, whatever its phase.
/// Raises each notice once. Never throws, never makes the training wait, and where nothing can give a notice does nothing.
/// </summary>
public sealed class InterruptionWatcher : IAsyncDisposable
{
    private static readonly TimeSpan LongestGoodbye = TimeSpan.FromSeconds(1);

    private readonly Action<InterruptionNotice> raised;
    private readonly Action<string> warn;
    private readonly TimeProvider time;
    private readonly WatchTimings timings;
    private readonly CancellationTokenSource ending = new();
    private readonly Lock gate = new();
    private readonly HashSet<string> known = new(StringComparer.Ordinal);
    private readonly List<IDisposable> owned = [];
    private readonly List<NoticeSource> sources = [];
    private readonly MachineIdentity told;
    private Func<CancellationToken, Task<MachineIdentity>>? identify;
    private Task[] watches = [];
    private Task firstRound = Task.CompletedTask;
    private bool isFirstRoundOver;

    private InterruptionWatcher(InterruptionOptions options, Action<InterruptionNotice> raised, Action<string> warn, TimeProvider time, MachineTraits traits, WatchTimings timings)
    {
        this.raised = raised;
        this.warn = warn;
        this.time = time;
        this.timings = timings;
        Provider = ProviderInfo.Detect(options, traits);
        told = MachineIdentity.Of(traits);
        AddSources(options, traits);
    }

    /// <summary>Who runs this machine, as far as it can be told without asking a network.</summary>
    public ProviderInfo Provider { get; }

    /// <summary>
    /// The notice under which the process started: a run that finds one here after <see cref="FirstRoundAsync"/> ends before it takes anything. It
    /// is raised like any other too.
    /// </summary>
    public InterruptionNotice? Pending { get; private set; }

    /// <summary>What is asked, for tests and for the log.</summary>
    public IReadOnlyList<string> Watched => [.. sources.Select(source => source.Name)];

    /// <summary>Starts to watch.</summary>
    /// <param name="options">What is watched and where.</param>
    /// <param name="raised">Is told each notice once, from any thread, maybe before this method returns; must return at once.</param>
    /// <param name="warn">Is told, as a whole sentence and once, of a source that ought to be there and is not.</param>
    /// <param name="time">The clock.</param>
    public static InterruptionWatcher Start(InterruptionOptions options, Action<InterruptionNotice> raised, Action<string> warn, TimeProvider time) =>
        Start(options, raised, warn, time, MachineTraits.Here, new WatchTimings());

    internal static InterruptionWatcher Start(
        InterruptionOptions options, Action<InterruptionNotice> raised, Action<string> warn, TimeProvider time, MachineTraits traits, WatchTimings timings)
    {
        InterruptionWatcher watcher = new(options, raised, warn, time, traits, timings);
        watcher.Begin();
        return watcher;
    }

    /// <summary>
    /// Which machine this is. A platform's environment goes before the cloud below it, which bills the platform and not its users. Takes one and a half
    /// seconds at most and never throws; where nobody tells, <see cref="MachineIdentity.Unknown"/>.
    /// </summary>
    public async Task<MachineIdentity> IdentifyAsync()
    {
        if (identify is null || told != MachineIdentity.Unknown)
        {
            return told;
        }

        using var limit = new CancellationTokenSource(timings.FirstRound, time);
        using var either = CancellationTokenSource.CreateLinkedTokenSource(limit.Token, ending.Token);
        try
        {
            return await identify(either.Token).ConfigureAwait(false);
        }
        catch (Exception exception) when (exception is OperationCanceledException or ObjectDisposedException)
        {
            return MachineIdentity.Unknown;
        }
    }

    /// <summary>Waits until every source was asked once, but not longer than one and a half seconds after the start.</summary>
    public Task FirstRoundAsync() => firstRound;

    /// <summary>
    /// Tells the source of a notice that the run needs no more time, where the source wants to know (Azure). Only after the checkpoint is committed:
    /// the machine may end at once. Before the watcher is disposed. False: it was not taken, which harms nothing.
    /// </summary>
    /// <param name="notice">One that this watcher raised.</param>
    /// <param name="cancellation">Gives up.</param>
    public static async Task<bool> AcknowledgeAsync(InterruptionNotice notice, CancellationToken cancellation = default)
    {
        try
        {
            return notice.Origin is not { } origin || await origin.AcknowledgeAsync(notice, cancellation).ConfigureAwait(false);
        }
        catch (Exception exception) when (exception is OperationCanceledException or ObjectDisposedException)
        {
            return false;
        }
    }

    public async ValueTask DisposeAsync()
    {
        if (ending.IsCancellationRequested)
        {
            return;
        }

        await ending.CancelAsync().ConfigureAwait(false);

        // A look at a file on a dead drive cannot be cancelled; the process does not wait for it.
        await Task.WhenAny(Task.WhenAll(watches), Task.Delay(LongestGoodbye, time)).ConfigureAwait(false);
        owned.ForEach(one => one.Dispose());
        ending.Dispose();
    }

    private void AddSources(InterruptionOptions options, MachineTraits traits)
    {
        bool isAuto = options.Sources == InterruptionSources.Auto;
        MetadataClient? shared = null;
        if (Endpoint("LT_AWS_METADATA", options.AwsEndpoint, InterruptionSources.Aws) is { } aws)
        {
            AwsMetadata metadata = new(Client(), aws, timings, time);
            owned.Add(metadata);
            identify ??= cancellation => MachineIdentity.OfAsync(metadata, cancellation);
            sources.Add(new AwsSpotSource(metadata, timings, GraceOr(ProviderInfo.AwsGrace), time));
            sources.Add(new AwsRebalanceSource(metadata, timings, time));
        }

        if (Endpoint("LT_GCP_METADATA", options.GcpEndpoint, InterruptionSources.Gcp) is { } gcp)
        {
            GcpMetadata metadata = new(Client(), gcp);
            identify ??= cancellation => MachineIdentity.OfAsync(metadata, timings.Answer, cancellation);
            sources.Add(new GcpPreemptionSource(metadata, timings, GraceOr(ProviderInfo.GcpGrace), time));
            sources.Add(new GcpMaintenanceSource(metadata, timings, time));
        }

        if (Endpoint("LT_AZURE_METADATA", options.AzureEndpoint, InterruptionSources.Azure) is { } azure)
        {
            MetadataClient client = Client();
            identify ??= async cancellation => MachineIdentity.OfAzure((await client.SendAsync(AzureEventsSource.MachineRequest(azure), timings.Answer, cancellation).ConfigureAwait(false)).Body);
            sources.Add(new AzureEventsSource(client, azure, timings, GraceOr(ProviderInfo.AzureGrace), time));
        }

        if ((isAuto || options.Sources.HasFlag(InterruptionSources.File)) && (traits.Variable("LT_INTERRUPT_FILE") ?? options.File) is { } file)
        {
            sources.Add(new TouchFileSource(file, timings, options.GraceSeconds is { } seconds ? TimeSpan.FromSeconds(seconds) : null, time));
        }

        if (isAuto || options.Sources.HasFlag(InterruptionSources.Signals))
        {
            owned.Add(new SchedulerSignals(name => Raise(Provider.NoticeOf(name, time))));
        }

        MetadataClient Client()
        {
            if (shared is null)
            {
                shared = new MetadataClient(timings.Connect, time);
                owned.Add(shared);
            }

            return shared;
        }

        TimeSpan GraceOr(double usual) => TimeSpan.FromSeconds(options.GraceSeconds ?? usual);

        // Whoever names an address wants it to be asked. All three services are at this link-local one, so that no name has to be resolved, which
        // elsewhere could take long.
        Uri? Endpoint(string variable, string? key, InterruptionSources source)
        {
            string? given = traits.Variable(variable) ?? key;
            if (!options.Sources.HasFlag(source) && !(isAuto && (traits.Cloud == source || given is not null)))
            {
                return null;
            }

            if (Uri.TryCreate(given ?? "http://169.254.169.254", UriKind.Absolute, out Uri? address) && address.Scheme is "http" or "https")
            {
                return address;
            }

            warn($"{variable} must be an address that starts with http:// or https://, got {given}. It is left out, so this cloud's notices are not watched.");
            return null;
        }
    }

    private void Begin()
    {
        TaskCompletionSource[] asked = [.. sources.Select(_ => new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously))];
        watches = [.. sources.Select((source, i) => Task.Run(() => WatchAsync(source, asked[i])))];
        firstRound = sources.Count == 0 ? Task.CompletedTask : EndFirstRoundAsync(Task.WhenAll(asked.Select(one => one.Task)));
    }

    private async Task EndFirstRoundAsync(Task allAsked)
    {
        await Task.WhenAny(allAsked, Task.Delay(timings.FirstRound, time)).ConfigureAwait(false);
        lock (gate)
        {
            isFirstRoundOver = true;
        }
    }

    private async Task WatchAsync(NoticeSource source, TaskCompletionSource asked)
    {
        bool hasAnswered = false;
        int failures = 0;
        try
        {
            while (!ending.IsCancellationRequested)
            {
                SourceAnswer answer = await source.AskAsync(ending.Token).ConfigureAwait(false);
                foreach (InterruptionNotice notice in answer.Notices)
                {
                    Raise(notice, isFirst: !asked.Task.IsCompleted);
                }

                asked.TrySetResult();
                hasAnswered |= answer.IsUnderstood;
                failures = answer.IsUnderstood ? 0 : failures + 1;
                if (failures == timings.FailuresUntilRare && source.Trouble(answer.Why) is { Length: > 0 } sentence)
                {
                    Warn(source, sentence);
                }

                TimeSpan pause = !hasAnswered && failures >= timings.FailuresUntilRare ? timings.Rare : source.Pause;
                if (pause > TimeSpan.Zero)
                {
                    await Task.Delay(pause, time, ending.Token).ConfigureAwait(false);
                }
            }
        }
        catch (Exception exception) when (exception is OperationCanceledException or ObjectDisposedException)
        {
            // The end of the watch.
        }
        catch (Exception exception)
        {
            // Whatever it is, the training is worth more than the notice.
            Warn(source, $"The watch for interruptions by {source.Name} has ended: {exception.Message}");
        }
        finally
        {
            asked.TrySetResult();
        }
    }

    private void Raise(InterruptionNotice notice, bool isFirst = false)
    {
        lock (gate)
        {
            if (!known.Add(notice.Key) || ending.IsCancellationRequested)
            {
                return;
            }

            if (isFirst && !isFirstRoundOver && notice.Kind == NoticeKind.Stop)
            {
                Pending ??= notice;
            }
        }

        try
        {
            raised(notice);
        }
        catch (Exception exception)
        {
            // On the thread of a signal it would end the process.
            warn($"A notice could not be handled ({exception.Message}): {notice.Announcement}.");
        }
    }

    /// <summary>Once for each source, however often it comes and goes.</summary>
    private void Warn(NoticeSource source, string sentence)
    {
        lock (gate)
        {
            if (!known.Add($"warned of {source.Name}"))
            {
                return;
            }
        }

        warn(sentence);
    }
}
