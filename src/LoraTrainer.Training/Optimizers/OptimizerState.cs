using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Optimizers;

/// <summary>The moments of AdamW in flat buffers that lie like the parameters, and the update itself.</summary>
public sealed class OptimizerState
{
    private readonly ParameterStore parameters;
    private readonly AdamWSettings settings;
    private readonly double maxGradientNorm;

    /// <param name="device">Where the parameters live.</param>
    /// <param name="parameters">Allocated.</param>
    /// <param name="options">Betas, epsilon, weight decay, clipping.</param>
    public OptimizerState(Device device, ParameterStore parameters, OptimizerOptions options)
    {
        this.parameters = parameters;
        settings = new AdamWSettings(options.Beta1, options.Beta2, options.Epsilon, options.WeightDecay);
        maxGradientNorm = options.MaxGradNorm;
        var shape = new Shape(parameters.BufferCount);
        FirstMoment = device.AllocateZeroed(MemoryKind.Moments, DType.F32, shape);
        SecondMoment = device.AllocateZeroed(MemoryKind.Moments, DType.F32, shape);
    }

    /// <summary>(P) f32</summary>
    public Tensor FirstMoment { get; }

    /// <summary>(P) f32</summary>
    public Tensor SecondMoment { get; }

    /// <summary>One update of all parameters; none where the report is not finite.</summary>
    /// <param name="step">t, counted from 1.</param>
    /// <param name="learningRate">Of this step.</param>
    /// <param name="report">(2) f64: sum of the losses, gradient norm.</param>
    public void Step(int step, double learningRate, Tensor report) =>
        AdamW.Step(parameters.Values, parameters.Gradients, FirstMoment, SecondMoment, parameters.Segments, settings, step, learningRate, report, maxGradientNorm);
}
