namespace LoraTrainer.Engine.Devices;

/// <summary>What a <see cref="CudaDevice"/> is opened with beside the size of its memory.</summary>
internal sealed record CudaDeviceOptions
{
    public KernelSources Sources { get; init; } = KernelSources.Embedded;

    /// <summary>Folder of compiled kernels; null: none are kept.</summary>
    public string? CacheFolder { get; init; } = KernelCache.DefaultFolder(Environment.GetEnvironmentVariable);

    /// <summary>Folder of kernels that came with the program; there need be none.</summary>
    public string? ReadyFolder { get; init; } = ReadyKernels.DefaultFolder(Environment.GetEnvironmentVariable);

    /// <summary>Wait for each launch, so that an error names the kernel at fault.</summary>
    public bool SynchronizeLaunches { get; init; } = Environment.GetEnvironmentVariable("LT_CUDA_SYNC") == "1";

    // Large enough that copying into it and the GPU's fetching overlap, small enough not to count in the process's memory.
    public int StagingSegmentBytes { get; init; } = 4 << 20;

    public int StagingSegmentCount { get; init; } = 4;
}
