using System.Globalization;
using System.Security.Cryptography;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Loop;

/// <summary>
/// The passes of a run that repeat, as CUDA graphs. What decides a pass's launches is how many tokens it has and how many are scored; everything else that changes lies in device memory.
/// The first pass of a shape is made as always. A later one that a step begins with is too, and is then recorded; it is proven before its results are used: when a later step begins with one,
/// that is made both ways, and losses and gradients must be the same bits. From then on it is launched as a whole.
/// </summary>
public sealed class PassGraphs
{
    /// <summary>Graphs that are kept; of those that are not the one that was used longest ago goes.</summary>
    public const int Capacity = 8;

    private const int RememberedShapes = 64;

    /// <summary>A shape whose graph was dropped so often before it was of use comes too rarely: recording costs more than it brings.</summary>
    private const int MostUnusedRecordings = 2;
    private const int ChunkBytes = 16 << 20;

    private readonly CausalLanguageModel model;
    private readonly bool provesAll;
    private readonly bool recompute;
    private readonly bool inputsOnHost;

    // Those that were used last come first.
    private readonly List<PassShape> shapes = new(RememberedShapes + 1);
    private byte[] chunk = [];

    /// <param name="model">On a device that records work.</param>
    /// <param name="options">Which passes, and how many of them are proven.</param>
    public PassGraphs(CausalLanguageModel model, DeviceOptions options)
    {
        this.model = model;
        provesAll = options.CudaGraphs == CudaGraphs.Verify;
        (recompute, inputsOnHost) = Trainer.RecomputationOf(options.GradientCheckpointing, model.Device.Platform);
    }

    /// <summary>All passes so far.</summary>
    public long Passes { get; private set; }

    /// <summary>Passes of which the result is that of a graph.</summary>
    public long Launches { get; private set; }

    /// <summary>Graphs that were recorded so far.</summary>
    public int Recordings { get; private set; }

    /// <summary>Passes that were made both ways.</summary>
    public long Proofs { get; private set; }

    /// <summary>Shapes for whose graph the driver had no memory: their passes are made as always.</summary>
    public int WithoutMemory { get; private set; }

    /// <summary>As <see cref="CausalLanguageModel.ForwardBackward"/>. Gradients are zero before the first pass of a step, the one with <see cref="PackedBatch.FirstToken"/> 0.</summary>
    /// <param name="losses">(N) f32</param>
    /// <param name="batch">With targets and numbers.</param>
    /// <param name="dropout">As in the batch's numbers.</param>
    /// <param name="gradientScale">As in the batch's numbers.</param>
    /// <exception cref="PassGraphException">The driver records no graph of this pass, or the graph does something else.</exception>
    public void ForwardBackward(Tensor losses, in PackedBatch batch, DropoutState dropout, float gradientScale)
    {
        Passes++;
        Device device = model.Device;
        PassShape shape = Find(new PassKey(batch.TokenCount, batch.ScoredRows.ElementCount, device.Arena.UsedBytes, device.HostArena.UsedBytes), out bool isNew);
        if (shape.Work is { } work && (shape.IsProven || provesAll || (batch.FirstToken == 0 && dropout.Step != shape.RecordedIn)))
        {
            if (!shape.IsProven || provesAll)
            {
                Prove(work, losses, batch, dropout, gradientScale);
                shape.IsProven = true;
            }
            else
            {
                model.Replay(work, batch, dropout);
            }

            Launches++;
            return;
        }

        model.ForwardBackward(losses, batch, dropout, gradientScale, recompute, inputsOnHost: inputsOnHost);
        if (!isNew && shape.Work is null && shape.UnusedRecordings < MostUnusedRecordings && (batch.FirstToken == 0 || provesAll))
        {
            shape.Work = Record(shape, losses, batch, dropout, gradientScale);
            shape.RecordedIn = dropout.Step;
            DropOldest();
        }
    }

    private PassShape Find(in PassKey key, out bool isNew)
    {
        int index = 0;
        while (index < shapes.Count && shapes[index].Key != key)
        {
            index++;
        }

        isNew = index == shapes.Count;
        PassShape shape = isNew ? new PassShape(key) : shapes[index];
        if (!isNew)
        {
            shapes.RemoveAt(index);
        }

        shapes.Insert(0, shape);
        if (shapes.Count > RememberedShapes)
        {
            shapes[^1].Forget();
            shapes.RemoveAt(shapes.Count - 1);
        }

        return shape;
    }

    private void DropOldest()
    {
        int kept = 0;
        foreach (PassShape shape in shapes)
        {
            if (shape.Work is not null && ++kept > Capacity)
            {
                shape.Forget();
            }
        }
    }

    private RecordedWork? Record(PassShape shape, Tensor losses, in PackedBatch batch, DropoutState dropout, float gradientScale)
    {
        string title = string.Create(CultureInfo.InvariantCulture, $"the pass of {batch.TokenCount} tokens ({batch.ScoredRows.ElementCount} scored)");
        try
        {
            RecordedWork work = model.Record(losses, batch, dropout, gradientScale, recompute, inputsOnHost, title);
            Recordings++;
            return work;
        }
        catch (CudaException exception) when (exception.IsOutOfMemory)
        {
            WithoutMemory++;
            shape.UnusedRecordings = MostUnusedRecordings;
            return null;
        }
        catch (CudaException exception) when (exception.Fault == GpuFault.None)
        {
            throw new PassGraphException($"A micro-batch of {Size(batch)} could not be recorded as a CUDA graph: {exception.Message} {PassGraphException.Remedy}", exception);
        }
    }

    /// <summary>Makes the pass both ways; what is left is the graph's result.</summary>
    private void Prove(RecordedWork work, Tensor losses, in PackedBatch batch, DropoutState dropout, float gradientScale)
    {
        Proofs++;
        ParameterStore parameters = model.Parameters;
        List<byte[]>? before = batch.FirstToken == 0 ? null : Read(parameters.Gradients);
        model.ForwardBackward(losses, batch, dropout, gradientScale, recompute, inputsOnHost: inputsOnHost);
        byte[] expectedLosses = Digest(losses);
        byte[][] expected = [.. parameters.Parameters.Select(parameter => Digest(parameter.Gradient))];
        if (before is null)
        {
            model.Device.Zero(parameters.Gradients);
        }
        else
        {
            Write(parameters.Gradients, before);
        }

        model.Replay(work, batch, dropout);
        string? difference = expectedLosses.AsSpan().SequenceEqual(Digest(losses)) ? null : "the losses";
        for (int i = 0; i < expected.Length && difference is null; i++)
        {
            difference = expected[i].AsSpan().SequenceEqual(Digest(parameters.Parameters[i].Gradient)) ? null : $"the gradient of {parameters.Parameters[i].Name}";
        }

        if (difference is not null)
        {
            throw new PassGraphException(string.Create(CultureInfo.InvariantCulture,
                $"Step {dropout.Step + 1}: a micro-batch of {Size(batch)} was computed twice, and its CUDA graph does not give the bits that its launches one by one do: {difference} differ{(difference == "the losses" ? "" : "s")}. The step was not applied. {PassGraphException.Remedy}"));
        }
    }

    private static string Size(in PackedBatch batch) => string.Create(CultureInfo.InvariantCulture, $"{batch.TokenCount} tokens");

    private List<byte[]> Read(Tensor values)
    {
        var parts = new List<byte[]>();
        for (long first = 0; first < values.SizeBytes; first += ChunkBytes)
        {
            byte[] part = new byte[Math.Min(ChunkBytes, values.SizeBytes - first)];
            model.Device.Download(values, part, first / values.DType.SizeBytes());
            parts.Add(part);
        }

        return parts;
    }

    private void Write(Tensor values, List<byte[]> parts)
    {
        long first = 0;
        foreach (byte[] part in parts)
        {
            model.Device.Upload(values, part, first / values.DType.SizeBytes());
            first += part.Length;
        }
    }

    private byte[] Digest(Tensor values)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        for (long first = 0; first < values.SizeBytes; first += ChunkBytes)
        {
            int length = (int)Math.Min(ChunkBytes, values.SizeBytes - first);
            if (chunk.Length < length)
            {
                chunk = new byte[length];
            }

            model.Device.Download(values, chunk.AsSpan(0, length), first / values.DType.SizeBytes());
            hash.AppendData(chunk, 0, length);
        }

        return hash.GetHashAndReset();
    }

    /// <summary>What decides a pass's launches and their arguments.</summary>
    /// <param name="Tokens">N</param>
    /// <param name="Scored">M</param>
    /// <param name="ArenaBytes">What lies below it: the pass's own memory begins there.</param>
    /// <param name="HostArenaBytes">The same in the host's memory.</param>
    private readonly record struct PassKey(long Tokens, long Scored, long ArenaBytes, long HostArenaBytes);

    private sealed class PassShape(PassKey key)
    {
        public PassKey Key => key;

        public RecordedWork? Work { get; set; }

        /// <summary>The optimizer step: in a later one the numbers of a pass are others.</summary>
        public uint RecordedIn { get; set; }

        public bool IsProven { get; set; }

        /// <summary>Graphs that were dropped before they were proven.</summary>
        public int UnusedRecordings { get; set; }

        public void Forget()
        {
            UnusedRecordings += Work is not null && !IsProven ? 1 : 0;
            Work?.Dispose();
            Work = null;
            IsProven = false;
        }
    }
}

/// <summary>A pass could not be recorded, or its recording does something else; the message says what to do.</summary>
public sealed class PassGraphException(string message, Exception? inner = null) : Exception(message, inner)
{
    internal const string Remedy = "cuda_graphs: false trains without such graphs, to the same result; lora-trainer resume takes --set cuda_graphs=false.";
}
