using System.Globalization;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Interruptions;

/// <summary>Who runs this machine, how long ahead it says that it takes it back, and how.</summary>
/// <param name="Name">"AWS", "Kubernetes on Google Cloud", "an unknown provider".</param>
/// <param name="GraceSeconds">The shortest notice to expect; null: not known.</param>
/// <param name="HowItTells">As a clause: "in the instance metadata, two minutes ahead".</param>
public sealed record ProviderInfo(string Name, double? GraceSeconds, string HowItTells)
{
    internal const double AwsGrace = 120;
    internal const double GcpGrace = 30;
    internal const double AzureGrace = 30;

    /// <summary>The notice to expect; null: not known.</summary>
    public TimeSpan? Grace => GraceSeconds is { } seconds ? TimeSpan.FromSeconds(seconds) : null;

    /// <summary>From environment and firmware, without asking any network.</summary>
    /// <param name="options">grace_seconds there goes before what is known.</param>
    public static ProviderInfo Detect(InterruptionOptions options) => Detect(options, MachineTraits.Here);

    /// <summary>Whether a save fits into the notice, as a sentence for the start of a run; null when nothing is known about the notice.</summary>
    /// <param name="save">What a save takes; null: not measured yet.</param>
    public string? Judge(TimeSpan? save)
    {
        if (Grace is not { } grace)
        {
            return null;
        }

        string seconds = Seconds(grace);
        return grace == TimeSpan.Zero ? $"On {Name} a machine may go away without notice ({HowItTells}): what was computed since the last checkpoint is then lost."
            : save is not { } cost ? $"On {Name} a notice comes {HowItTells}: a save may take {Seconds(grace / DeadlinePolicy.Margin)} s to be safe within {seconds} s."
            : DeadlinePolicy.CanCommit(grace, cost) ? $"On {Name} a notice comes {HowItTells}: a save takes {Seconds(cost)} s and fits into {seconds} s."
            : $"On {Name} a notice comes {HowItTells}: a save takes {Seconds(cost)} s and does not safely fit into {seconds} s, so what was computed since the last checkpoint may be lost.";
    }

    /// <summary>The notice that a signal of the system is.</summary>
    /// <param name="signal">"SIGTERM".</param>
    /// <param name="time">The clock that counts what is left.</param>
    public InterruptionNotice NoticeOf(string signal, TimeProvider time) => new(time)
    {
        Source = signal,
        Kind = NoticeKind.Stop,
        Event = $"{signal} asks the run to stop",
        TimeLeftAtReceipt = Grace is { } grace && grace > TimeSpan.Zero ? grace : null,
        Grace = Grace,
        Key = signal,
    };

    internal static ProviderInfo Detect(InterruptionOptions options, MachineTraits traits)
    {
        // A container may not see the firmware; then the one cloud that the configuration names is believed.
        InterruptionSources named = options.Sources & (InterruptionSources.Aws | InterruptionSources.Gcp | InterruptionSources.Azure);
        ProviderInfo? cloud = (traits.Cloud == InterruptionSources.None ? named : traits.Cloud) switch
        {
            InterruptionSources.Aws => new("AWS", AwsGrace, "in the instance metadata, two minutes ahead"),
            InterruptionSources.Gcp => new("Google Cloud", GcpGrace, "in the instance metadata, half a minute ahead"),
            InterruptionSources.Azure => new("Azure", AzureGrace, "as a scheduled event, half a minute ahead"),
            _ => null,
        };

        // A platform on top of a cloud has the shorter notice, and its own way.
        ProviderInfo? platform =
            traits.Variable("RUNPOD_POD_ID") is not null ? new("RunPod", 5, "by SIGTERM, five seconds ahead")
            : traits.Variable("VAST_CONTAINERLABEL") is not null ? new("Vast", 0, "it stops the container when somebody bids more")
            : traits.Variable("KUBERNETES_SERVICE_HOST") is not null ? new("Kubernetes", 30, "by SIGTERM, terminationGracePeriodSeconds ahead")
            : traits.Variable("SLURM_JOB_ID") is not null ? new("Slurm", null, "by SIGTERM, and by SIGUSR1 where the job asked for it with --signal")
            : null;
        ProviderInfo found = (platform, cloud) switch
        {
            (null, null) => new("an unknown provider", null, "by SIGTERM"),
            (null, { } only) => only,
            ({ } only, null) => only,
            ({ } upper, { } lower) => new($"{upper.Name} on {lower.Name}", Math.Min(upper.GraceSeconds ?? lower.GraceSeconds ?? 0, lower.GraceSeconds ?? 0), upper.HowItTells),
        };
        return options.GraceSeconds is { } given ? found with { GraceSeconds = given } : found;
    }

    private static string Seconds(TimeSpan span) => span.TotalSeconds.ToString(span.TotalSeconds < 10 ? "0.#" : "0", CultureInfo.InvariantCulture);
}
