using System.Globalization;

namespace LoraTrainer.Engine.Devices;

/// <summary>A GPU as its driver describes it.</summary>
public sealed record CudaDeviceInfo
{
    /// <summary>For example "NVIDIA H100 80GB HBM3".</summary>
    public required string Name { get; init; }

    public required int ComputeCapabilityMajor { get; init; }

    public required int ComputeCapabilityMinor { get; init; }

    public required int MultiprocessorCount { get; init; }

    /// <summary>Shared memory that a block may have when it asks for it.</summary>
    public required int SharedBytesPerBlock { get; init; }

    public required long TotalMemoryBytes { get; init; }

    /// <summary>Null where the driver did not tell, or was not asked.</summary>
    public long? FreeMemoryBytes { get; init; }

    /// <summary>The newest CUDA version that the driver serves, for example "13.0".</summary>
    public required string DriverVersion { get; init; }

    /// <summary>For example "9.0".</summary>
    public string ComputeCapability => string.Create(CultureInfo.InvariantCulture, $"{ComputeCapabilityMajor}.{ComputeCapabilityMinor}");

    /// <summary>10 * major + minor, as in sm_90.</summary>
    internal int Architecture => 10 * ComputeCapabilityMajor + ComputeCapabilityMinor;
}

/// <summary>A library that a GPU run needs, as it was found or not.</summary>
/// <param name="Name">The name without folder and version: libcuda, libnvrtc, libcublasLt.</param>
/// <param name="Purpose">What it is for.</param>
/// <param name="Path">The file that was taken; null where there is none.</param>
/// <param name="Version">Its version, or null.</param>
/// <param name="Attempts">The files that were tried before, each with the reason why it was not taken.</param>
/// <param name="Install">The commands that install it, one clause.</param>
public sealed record CudaLibraryInfo(string Name, string Purpose, string? Path, string? Version, IReadOnlyList<(string Path, string Error)> Attempts, string Install);

/// <summary>Everything that decides whether a run on a GPU is possible on this machine.</summary>
public sealed record CudaReport
{
    /// <summary>In the order of what needs what: driver, compiler, matrix products.</summary>
    public required IReadOnlyList<CudaLibraryInfo> Libraries { get; init; }

    /// <summary>The first GPU, or null.</summary>
    public CudaDeviceInfo? Device { get; init; }

    /// <summary>GPUs that the driver shows to this process.</summary>
    public int DeviceCount { get; init; }

    /// <summary>Empty where a GPU run is possible; else what is missing and what was tried.</summary>
    public required string Problem { get; init; }

    /// <summary>What to do about it; empty where <see cref="Problem"/> says it.</summary>
    public string Remedy { get; init; } = "";

    /// <summary>What is not as it should be beside that, a sentence or two each.</summary>
    public IReadOnlyList<string> Warnings { get; init; } = [];

    /// <summary>Empty where a GPU run is possible; else what is missing, what was tried and what to do.</summary>
    public string Reason => Remedy.Length == 0 ? Problem : $"{Problem} {Remedy}";

    public bool Available => Problem.Length == 0;
}
