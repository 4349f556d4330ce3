namespace LoraTrainer.Engine.Devices;

/// <summary>What a device is opened with, as a plan says.</summary>
/// <param name="ArenaBytes">Size of <see cref="Device.Arena"/>.</param>
/// <param name="HostBytes">Size of <see cref="Device.HostArena"/>.</param>
/// <param name="PagedBytes">All that <see cref="Device.PagedArena"/> will be asked for.</param>
public readonly record struct DeviceMemory(long ArenaBytes, long HostBytes = 0, long PagedBytes = 0)
{
    /// <summary>What a GPU must have free: what is paged is on it while it is used.</summary>
    public long DeviceBytes => ArenaBytes + PagedBytes;
}

/// <summary>Which memory a device did not get.</summary>
public enum MemoryShortage
{
    /// <summary>It got what it asked for, or failed for another reason.</summary>
    None,

    /// <summary>The GPU's.</summary>
    Device,

    /// <summary>The host's, page-locked: <see cref="Device.HostArena"/>.</summary>
    Host,
}
