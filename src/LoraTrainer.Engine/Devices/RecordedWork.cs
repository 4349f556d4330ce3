namespace LoraTrainer.Engine.Devices;

/// <summary>Work that a device has recorded and can launch again and again: on a GPU an executable CUDA graph. Goes with its device at the latest.</summary>
public sealed class RecordedWork : IDisposable
{
    private readonly CudaDevice device;

    internal RecordedWork(CudaDevice device, nint executable, string title)
    {
        this.device = device;
        Executable = executable;
        Title = title;
    }

    /// <summary>Names it in messages.</summary>
    public string Title { get; }

    /// <summary>The driver's handle; 0 when it is disposed of.</summary>
    internal nint Executable { get; set; }

    public void Dispose() => device.Forget(this);
}
