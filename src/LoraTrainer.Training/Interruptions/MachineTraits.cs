namespace LoraTrainer.Training.Interruptions;

/// <summary>Where a machine can be told by: environment variables, and what its firmware says of itself. Asks no network.</summary>
internal sealed class MachineTraits(Func<string, string?> variable, Func<string, string?> firmware)
{
    private const string FirmwareFolder = "/sys/class/dmi/id";

    /// <summary>This machine.</summary>
    public static MachineTraits Here { get; } = new(Environment.GetEnvironmentVariable, ReadFirmware);

    /// <summary>The variable's value, or null if it is not set or empty.</summary>
    public string? Variable(string name) => variable(name) is { Length: > 0 } value ? value : null;

    /// <summary>True in a container, which starts and ends without its machine.</summary>
    public bool IsContainer => File.Exists("/.dockerenv") || File.Exists("/run/.containerenv") || Variable("container") is not null || Variable("KUBERNETES_SERVICE_HOST") is not null || Variable("RUNPOD_POD_ID") is not null;

    /// <summary>The cloud whose metadata this machine can ask, or <see cref="Config.InterruptionSources.None"/>.</summary>
    public Config.InterruptionSources Cloud
    {
        get
        {
            string vendor = firmware("sys_vendor") ?? "";
            string product = firmware("product_name") ?? "";
            if (vendor == "Amazon EC2" || (firmware("bios_vendor") ?? "").StartsWith("Amazon", StringComparison.Ordinal) || (firmware("bios_version") ?? "").EndsWith(".amazon", StringComparison.Ordinal))
            {
                return Config.InterruptionSources.Aws;
            }

            if (vendor == "Google" || product == "Google Compute Engine")
            {
                return Config.InterruptionSources.Gcp;
            }

            // Every Hyper-V machine names this vendor and product; the tag is Azure's alone.
            return vendor == "Microsoft Corporation" && product == "Virtual Machine" && (firmware("chassis_asset_tag") ?? AzureTag) == AzureTag
                ? Config.InterruptionSources.Azure
                : Config.InterruptionSources.None;
        }
    }

    private static string AzureTag => "7783-7084-3265-9085-8269-3286-77";

    private static string? ReadFirmware(string name)
    {
        try
        {
            return File.ReadAllText(Path.Combine(FirmwareFolder, name)).Trim();
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }
}
