using System.Globalization;
using LoraTrainer.Engine.Native.Cuda;

namespace LoraTrainer.Engine.Devices;

/// <summary>Recorded work is a CUDA graph: what the driver captured of the stream, and of the copies beside it.</summary>
public sealed unsafe partial class CudaDevice
{
    private readonly List<RecordedWork> recorded = [];
    private bool isRecording;

    // Launched after what was waited for last, so an error that shows up may be its.
    private string? lastRecorded;
    private long lastRecordedStep;

    /// <summary>Not where each launch is waited for.</summary>
    public override bool RecordsWork => !synchronizeLaunches;

    public override void StartRecording()
    {
        RefuseWhileRecording("A second recording");
        if (!RecordsWork)
        {
            throw new NotSupportedException("With LT_CUDA_SYNC=1 each launch is waited for, and nothing can be recorded.");
        }

        MakeCurrent();

        // What was started before is not part of it, so nothing in it may wait for that.
        AwaitCopies();
        ThrowIfFailed(CudaDriver.cuStreamBeginCapture(stream, CudaDriver.CaptureThreadLocal));
        isRecording = true;
    }

    public override RecordedWork FinishRecording(string title)
    {
        AwaitCopies();
        isRecording = false;
        ThrowIfFailed(CudaDriver.cuStreamEndCapture(stream, out nint graph));
        CudaStatus status = CudaDriver.cuGraphInstantiateWithFlags(out nint executable, graph, 0);
        _ = CudaDriver.cuGraphDestroy(graph);
        ThrowIfFailed(status, nameof(CudaDriver.cuGraphInstantiateWithFlags));
        var work = new RecordedWork(this, executable, title);
        recorded.Add(work);
        return work;
    }

    public override void AbandonRecording()
    {
        if (!isRecording)
        {
            return;
        }

        isRecording = false;
        copiesAreUnderWay = false;
        MakeCurrent();
        if (CudaDriver.cuStreamEndCapture(stream, out nint graph) == CudaStatus.Success)
        {
            _ = CudaDriver.cuGraphDestroy(graph);
        }
    }

    public override void Launch(RecordedWork work, long step)
    {
        RefuseWhileRecording("The launch of recorded work");
        ObjectDisposedException.ThrowIf(work.Executable == 0, work);
        if (!recorded.Contains(work))
        {
            throw new ArgumentException($"{work.Title} was recorded on another device.", nameof(work));
        }

        MakeCurrent();
        ThrowIfFailed(CudaDriver.cuGraphLaunch(work.Executable, stream));
        (lastRecorded, lastRecordedStep, lastLaunch) = (work.Title, step, null);
    }

    internal void Forget(RecordedWork work)
    {
        if (work.Executable != 0 && recorded.Remove(work))
        {
            MakeCurrent();
            _ = CudaDriver.cuGraphExecDestroy(work.Executable);
            work.Executable = 0;
        }
    }

    /// <summary>The work that was given to the GPU last, for messages; null where there was none.</summary>
    private string? LastLaunch => lastRecorded is null ? lastLaunch : string.Create(
        CultureInfo.InvariantCulture, $"{lastLaunch}{(lastLaunch is null ? "" : ", and before it ")}{lastRecorded} in step {lastRecordedStep}, many kernels in a CUDA graph");

    private void RefuseWhileRecording(string what)
    {
        if (isRecording)
        {
            throw new InvalidOperationException($"{what} cannot be part of recorded work.");
        }
    }

    private void ReleaseRecorded()
    {
        foreach (RecordedWork work in recorded)
        {
            _ = CudaDriver.cuGraphExecDestroy(work.Executable);
            work.Executable = 0;
        }

        recorded.Clear();
    }
}
