using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Optimizers;

/// <summary>
/// The moments of AdamW, and the update itself. With 32-bit moments two flat buffers lie like the parameters. With 8-bit moments those of the larger tensors are
/// codes with a scale for each 256 elements; tensors of fewer than 4096 elements, and embeddings, keep 32-bit moments and AdamW's own update. Paged moments lie
/// behind a file or, on a GPU, in managed memory, all of them: where they are changes no number.
/// </summary>
public sealed class OptimizerState
{
    /// <summary>Tensors with fewer elements keep 32-bit moments, as in bitsandbytes: they are what little memory is, and often what matters most.</summary>
    private const long SmallestEightBit = 4096;

    private const string EmbeddingModule = "embed_tokens";

    private readonly ParameterStore parameters;
    private readonly AdamWSettings settings;
    private readonly double maxGradientNorm;
    private readonly Device device;
    private readonly Arena? paged;

    // One for each parameter; null where the buffers lie like the parameters.
    private readonly Place[]? places;
    private readonly EightBitSegment[] eightBit = [];
    private readonly Tensor firstCodes;
    private readonly Tensor firstAbsmax;
    private readonly Tensor secondCodes;
    private readonly Tensor secondAbsmax;

    /// <param name="device">Where the parameters live.</param>
    /// <param name="parameters">Allocated.</param>
    /// <param name="options">Kind, betas, epsilon, weight decay, clipping.</param>
    /// <param name="pageFile">Where paged moments lie while the device lives; needed for these kinds only.</param>
    public OptimizerState(Device device, ParameterStore parameters, OptimizerOptions options, string? pageFile = null)
    {
        this.device = device;
        this.parameters = parameters;
        settings = new AdamWSettings(options.Beta1, options.Beta2, options.Epsilon, options.WeightDecay);
        maxGradientNorm = options.MaxGradNorm;
        long wide = parameters.BufferCount, narrow = 0;
        if (options.IsEightBit)
        {
            places = PlacesOf(parameters, out wide, out narrow);
            eightBit = [.. places.Index().Where(place => place.Item.IsEightBit).Select(place => new EightBitSegment(parameters.Segments[place.Index], place.Item.First))];
        }

        long blocks = AdamW8Bit.Blocks(narrow);
        paged = options.IsPaged
            ? device.PagedArena(pageFile ?? throw new ArgumentNullException(nameof(pageFile)), 2 * (Arena.BytesOf(DType.F32, wide) + Arena.BytesOf(DType.U8, narrow) + Arena.BytesOf(DType.F32, blocks)))
            : null;
        FirstMoment = Allocate(DType.F32, wide);
        SecondMoment = Allocate(DType.F32, wide);
        firstCodes = Allocate(DType.U8, narrow);
        firstAbsmax = Allocate(DType.F32, blocks);
        secondCodes = Allocate(DType.U8, narrow);
        secondAbsmax = Allocate(DType.F32, blocks);

        Tensor Allocate(DType type, long count)
        {
            if (count == 0)
            {
                return Tensor.None;
            }

            Tensor tensor = (paged ?? device.Arena).Allocate(MemoryKind.Moments, type, new Shape(count));
            device.Zero(tensor);
            return tensor;
        }
    }

    /// <summary>(P) f32; with 8-bit moments those of the small tensors, or none.</summary>
    public Tensor FirstMoment { get; }

    /// <summary>As <see cref="FirstMoment"/>.</summary>
    public Tensor SecondMoment { get; }

    /// <summary>
    /// All that a later process needs, by name: <c>exp_avg.</c> and <c>exp_avg_sq.</c> with the parameter's name and shape, in f32 or as codes; then <c>exp_avg_absmax.</c> and
    /// <c>exp_avg_sq_absmax.</c> have the scales.
    /// </summary>
    public IEnumerable<(string Name, Tensor Values)> Tensors() => Moments("exp_avg", FirstMoment, firstCodes, firstAbsmax).Concat(Moments("exp_avg_sq", SecondMoment, secondCodes, secondAbsmax));

    /// <summary>One update of all parameters; none where the report is not finite.</summary>
    /// <param name="step">t, counted from 1.</param>
    /// <param name="learningRate">Of this step.</param>
    /// <param name="report">(2) f64: sum of the losses, gradient norm.</param>
    public void Step(int step, double learningRate, Tensor report)
    {
        if (paged is not null)
        {
            device.Prefetch(paged);
        }

        if (places is null)
        {
            AdamW.Step(parameters.Values, parameters.Gradients, FirstMoment, SecondMoment, parameters.Segments, settings, step, learningRate, report, maxGradientNorm);
            return;
        }

        if (eightBit.Length > 0)
        {
            AdamW8Bit.Step(
                parameters.Values, parameters.Gradients, firstCodes, firstAbsmax, secondCodes, secondAbsmax, eightBit, settings, step, learningRate, report, maxGradientNorm);
        }

        for (int i = 0; i < places.Length; i++)
        {
            if (!places[i].IsEightBit)
            {
                StepWide(parameters.Segments[i], places[i].First, step, learningRate, report);
            }
        }
    }

    private void StepWide(ParameterSegment segment, long first, int step, double learningRate, Tensor report)
    {
        var shape = new Shape(segment.Count);
        ParameterSegment alone = segment with { Offset = 0 };
        AdamW.Step(
            parameters.Values.Slice(segment.Offset, shape), parameters.Gradients.Slice(segment.Offset, shape), FirstMoment.Slice(first, shape), SecondMoment.Slice(first, shape),
            new ReadOnlySpan<ParameterSegment>(in alone), settings, step, learningRate, report, maxGradientNorm);
    }

    private IEnumerable<(string Name, Tensor Values)> Moments(string name, Tensor wide, Tensor codes, Tensor absmax)
    {
        for (int i = 0; i < parameters.Parameters.Count; i++)
        {
            Parameter parameter = parameters.Parameters[i];
            if (places is not null && places[i].IsEightBit)
            {
                long first = places[i].First;
                yield return ($"{name}.{parameter.Name}", codes.Slice(first, parameter.Shape));
                yield return ($"{name}_absmax.{parameter.Name}", absmax.Slice(first / AdamW8Bit.Blocksize, new Shape(AdamW8Bit.Blocks(parameter.Shape.ElementCount))));
            }
            else
            {
                yield return ($"{name}.{parameter.Name}", wide.Slice(places?[i].First ?? parameters.Segments[i].Offset, parameter.Shape));
            }
        }
    }

    /// <summary>Lays the moments of all parameters into two sets of buffers, each tensor from a multiple of a block on.</summary>
    private static Place[] PlacesOf(ParameterStore parameters, out long wide, out long narrow)
    {
        wide = 0;
        narrow = 0;
        var places = new Place[parameters.Parameters.Count];
        for (int i = 0; i < places.Length; i++)
        {
            Parameter parameter = parameters.Parameters[i];
            bool isEightBit = parameter.Shape.ElementCount >= SmallestEightBit && !parameter.Name.Split('.').Contains(EmbeddingModule);
            ref long end = ref (isEightBit ? ref narrow : ref wide);
            places[i] = new Place(isEightBit, end);
            end += AdamW8Bit.Blocks(parameter.Shape.ElementCount) * AdamW8Bit.Blocksize;
        }

        return places;
    }

    /// <summary>Where a parameter's moments are: in which buffers, and from which element on.</summary>
    private readonly record struct Place(bool IsEightBit, long First);
}
