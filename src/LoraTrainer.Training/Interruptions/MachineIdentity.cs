using System.Text.Json;

namespace LoraTrainer.Training.Interruptions;

/// <summary>Which machine this is, as far as its cloud or its environment tells. What is empty is not known.</summary>
/// <param name="Provider">As the price table names it: "aws", "gcp", "azure", "runpod", "vast".</param>
/// <param name="InstanceType">The provider's name of the machine: "g6.xlarge".</param>
/// <param name="Region">The provider's name of it: "us-east-1".</param>
/// <param name="IsSpot">Whether it can be taken back at any moment; null: not known.</param>
public sealed record MachineIdentity(string Provider, string InstanceType, string Region, bool? IsSpot)
{
    private const int LongestWord = 128;

    public static MachineIdentity Unknown { get; } = new(string.Empty, string.Empty, string.Empty, null);

    /// <summary>What the environment tells, without asking anybody.</summary>
    internal static MachineIdentity Of(MachineTraits traits) =>
        traits.Variable("RUNPOD_POD_ID") is not null ? new("runpod", string.Empty, Word(traits.Variable("RUNPOD_DC_ID")), null)
        : traits.Variable("VAST_CONTAINERLABEL") is not null ? new("vast", string.Empty, string.Empty, null)
        : Unknown;

    internal static async Task<MachineIdentity> OfAsync(AwsMetadata metadata, CancellationToken cancellation) => new(
        "aws",
        await AskAsync(path => metadata.GetAsync(path, cancellation), "/latest/meta-data/instance-type").ConfigureAwait(false),
        await AskAsync(path => metadata.GetAsync(path, cancellation), "/latest/meta-data/placement/region").ConfigureAwait(false),
        await AskAsync(path => metadata.GetAsync(path, cancellation), "/latest/meta-data/instance-life-cycle").ConfigureAwait(false) switch
        {
            "spot" => true,
            "on-demand" => false,
            _ => null,
        });

    internal static async Task<MachineIdentity> OfAsync(GcpMetadata metadata, TimeSpan limit, CancellationToken cancellation)
    {
        // projects/123/machineTypes/a2-highgpu-1g, projects/123/zones/us-central1-a.
        string type = await AskAsync(path => metadata.GetAsync(path, limit, cancellation), "machine-type").ConfigureAwait(false);
        string zone = Last(await AskAsync(path => metadata.GetAsync(path, limit, cancellation), "zone").ConfigureAwait(false));
        string preemptible = await AskAsync(path => metadata.GetAsync(path, limit, cancellation), "scheduling/preemptible").ConfigureAwait(false);
        return new("gcp", Last(type), zone.LastIndexOf('-') is > 0 and int dash ? zone[..dash] : zone, preemptible switch
        {
            "TRUE" => true,
            "FALSE" => false,
            _ => null,
        });

        static string Last(string path) => path[(path.LastIndexOf('/') + 1)..];
    }

    /// <summary>Azure's answer about the machine.</summary>
    /// <param name="json">Of /metadata/instance/compute.</param>
    internal static MachineIdentity OfAzure(string json)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(json);
            return new("azure", Text("vmSize"), Text("location"), Text("priority") switch
            {
                "Spot" or "Low" => true,
                "Regular" or "" => false,
                _ => null,
            });

            string Text(string name) => document.RootElement.TryGetProperty(name, out JsonElement value) && value.ValueKind == JsonValueKind.String ? Word(value.GetString()) : string.Empty;
        }
        catch (Exception exception) when (exception is JsonException or InvalidOperationException)
        {
            return Unknown with { Provider = "azure" };
        }
    }

    private static async Task<string> AskAsync(Func<string, Task<MetadataAnswer>> ask, string path)
    {
        MetadataAnswer answer = await ask(path).ConfigureAwait(false);
        return answer.IsOk ? Word(answer.Body) : string.Empty;
    }

    /// <summary>One word as names of machines are; anything else is not one.</summary>
    private static string Word(string? text) =>
        text?.Trim() is { Length: > 0 and <= LongestWord } word && word.All(letter => char.IsAsciiLetterOrDigit(letter) || letter is '-' or '_' or '.' or '/') ? word : string.Empty;
}
