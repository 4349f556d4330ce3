using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Models.Layers;

/// <summary>One trained tensor: a name, a shape and its place in the flat buffers of a <see cref="ParameterStore"/>.</summary>
public sealed class Parameter
{
    internal Parameter(string name, Shape shape, double learningRateScale, bool decays)
    {
        Name = name;
        Shape = shape;
        LearningRateScale = learningRateScale;
        Decays = decays;
    }

    /// <summary>Module path and role, as in <c>model.layers.0.self_attn.q_proj.lora_A.weight</c>.</summary>
    public string Name { get; }

    public Shape Shape { get; }

    public double LearningRateScale { get; }

    public bool Decays { get; }

    /// <summary>f32; a view into the flat buffer, set when the store is allocated.</summary>
    public Tensor Value { get; internal set; }

    /// <summary>What matrix products and lookups read: <see cref="Value"/> itself, or its bf16 copy on a device that computes in bf16.</summary>
    public Tensor Operand { get; internal set; }

    /// <summary>f32; a view into the flat gradient buffer.</summary>
    public Tensor Gradient { get; internal set; }
}

/// <summary>
/// All trained tensors in one flat f32 buffer and their gradients in a second: one optimizer launch, one norm, one all-reduce, one file.
/// Parameters are declared first, then allocated together.
/// </summary>
public sealed class ParameterStore
{
    private readonly List<Parameter> parameters = [];
    private readonly List<(Parameter Stack, int First)> stacks = [];
    private ParameterSegment[] segments = [];

    // (P) bf16 copies of all parameters, or none where the device multiplies in f32.
    private Tensor operands;

    public IReadOnlyList<Parameter> Parameters => parameters;

    /// <summary>(P) f32, all parameters; P counts the padding between segments.</summary>
    public Tensor Values { get; private set; }

    /// <summary>(P) f32</summary>
    public Tensor Gradients { get; private set; }

    /// <summary>One for each parameter, in the order of <see cref="Parameters"/>.</summary>
    public ReadOnlySpan<ParameterSegment> Segments => segments;

    /// <summary>Trained numbers, padding not counted.</summary>
    public long TrainableCount => parameters.Sum(parameter => parameter.Shape.ElementCount);

    /// <summary>Elements of the flat buffers, padding counted; at least one segment.</summary>
    public long BufferCount { get; private set; }

    public Parameter Declare(string name, Shape shape, double learningRateScale = 1, bool decays = true)
    {
        if (!Values.IsNone)
        {
            throw new InvalidOperationException($"The parameter {name} was declared after the buffers were allocated.");
        }

        var parameter = new Parameter(name, shape, learningRateScale, decays);
        parameters.Add(parameter);
        return parameter;
    }

    /// <summary>Whether the next parameter begins where this one ends; otherwise there is padding between them.</summary>
    public static bool FillsItsPlace(Shape shape) => shape.ElementCount % ParameterSegment.Alignment == 0;

    /// <summary>Matrices that lie one below another in the buffers, as one matrix; a single one is itself. The stack is a view: it is no parameter of its own.</summary>
    /// <param name="members">(R, C) each, with the same C; declared just now, in this order. All but the last fill their places.</param>
    public Parameter Stack(IReadOnlyList<Parameter> members)
    {
        if (members.Count == 1)
        {
            return members[0];
        }

        long rows = 0, columns = members[0].Shape[1];
        int first = parameters.Count - members.Count;
        for (int i = 0; i < members.Count; i++)
        {
            if (first < 0 || parameters[first + i] != members[i] || members[i].Shape[1] != columns || (i < members.Count - 1 && !FillsItsPlace(members[i].Shape)))
            {
                throw new InvalidOperationException($"{members[i].Name} {members[i].Shape} cannot be part of a stack: its members have equal columns and are declared one after another, with no padding between them.");
            }

            rows += members[i].Shape[0];
        }

        var stack = new Parameter($"{members[0].Name} to {members[^1].Name}", new Shape(rows, columns), members[0].LearningRateScale, members[0].Decays);
        stacks.Add((stack, first));
        return stack;
    }

    /// <summary>Brings the bf16 copies up to the values; every pass starts with it. One sweep over what is trained: small beside the pass itself.</summary>
    public void RefreshOperands()
    {
        if (!operands.IsNone)
        {
            Cast.ToBF16(operands, Values);
        }
    }

    /// <summary>Allocates the buffers, zeroed, and gives every parameter its views.</summary>
    public void Allocate(Device device)
    {
        segments = new ParameterSegment[parameters.Count];
        long offset = 0;
        for (int i = 0; i < segments.Length; i++)
        {
            Parameter parameter = parameters[i];
            segments[i] = new ParameterSegment(offset, parameter.Shape.ElementCount, parameter.LearningRateScale, parameter.Decays);
            offset += (parameter.Shape.ElementCount + ParameterSegment.Alignment - 1) / ParameterSegment.Alignment * ParameterSegment.Alignment;
        }

        BufferCount = offset;
        Values = device.AllocateZeroed(MemoryKind.Parameters, DType.F32, new Shape(offset));
        Gradients = device.AllocateZeroed(MemoryKind.Gradients, DType.F32, new Shape(offset));
        operands = device.ComputesInBF16 ? device.AllocateZeroed(MemoryKind.Parameters, DType.BF16, new Shape(offset)) : Tensor.None;
        for (int i = 0; i < segments.Length; i++)
        {
            Place(parameters[i], segments[i].Offset);
        }

        foreach ((Parameter stack, int first) in stacks)
        {
            Place(stack, segments[first].Offset);
        }
    }

    private void Place(Parameter parameter, long offset)
    {
        parameter.Value = Values.Slice(offset, parameter.Shape);
        parameter.Operand = operands.IsNone ? parameter.Value : operands.Slice(offset, parameter.Shape);
        parameter.Gradient = Gradients.Slice(offset, parameter.Shape);
    }
}
