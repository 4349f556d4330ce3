using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Layers;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Models.Tests.Layers;

/// <summary>
/// Adapters that share their products with A against the same ones alone. Every number is a chain over the same terms in the same order, so all bits are equal but those of dX,
/// which is summed in another order: first what comes through the layers' own matrices, then what comes through A.
/// </summary>
public sealed class JointAdapterTests
{
    private const int N = 11, In = 64;

    private static readonly string[] Names = ["q", "k", "v"];
    private static readonly int[] Widths = [48, 16, 33];

    /// <summary>Ranks of the three layers, 0 for one without an adapter.</summary>
    public static TheoryData<int[], bool, bool> Cases
    {
        get
        {
            var data = new TheoryData<int[], bool, bool>();
            foreach (int[] ranks in (int[][])[[4, 4, 4], [8, 12, 5], [4, 0, 8], [0, 16, 4], [8, 4, 0], [0, 4, 0], [0, 0, 0]])
            {
                data.Add(ranks, false, true);
            }

            data.Add([8, 12, 5], false, false);
            data.Add([8, 12, 5], true, true);
            data.Add([4, 0, 8], true, false);
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void ForwardAndBackward_TogetherAndAlone_HaveTheSameBits(int[] ranks, bool dora, bool withInputGradient)
    {
        using Device device = Open("cpu");
        var alone = new Layers(device, ranks, dora, isJoint: false);
        var together = new Layers(device, ranks, dora, isJoint: true);
        Result expected = alone.Run(withInputGradient), actual = together.Run(withInputGradient);

        Assert.Equal(expected.Outputs, actual.Outputs);
        Assert.Equal(expected.Gradients, actual.Gradients);
        Assert.All(actual.Gradients, gradient => Assert.Contains(gradient, v => v != 0));
        if (withInputGradient)
        {
            Assert.Equal(alone.InputGradientInOrder(expected.Projected), actual.InputGradient);
            double size = Math.Sqrt(expected.InputGradient.Sum(v => (double)v * v) / expected.InputGradient.Length);
            Within([.. expected.InputGradient.Select(v => (double)v)], [.. expected.InputGradient.Select(_ => 2e-6 * size)], actual.InputGradient, "dX");
        }
    }

    [Fact]
    public void Stack_OfWhatDoesNotLieTogether_IsRefused()
    {
        var store = new ParameterStore();
        Parameter a = store.Declare("a", new Shape(4, 64)), b = store.Declare("b", new Shape(3, 64)), c = store.Declare("c", new Shape(4, 64)), narrow = store.Declare("d", new Shape(8, 32));
        Assert.Same(narrow, store.Stack([narrow]));
        Assert.Equal(
            "d (8, 32) cannot be part of a stack: its members have equal columns and are declared one after another, with no padding between them.",
            Assert.Throws<InvalidOperationException>(() => store.Stack([c, narrow])).Message);
        Assert.StartsWith("a (4, 64) ", Assert.Throws<InvalidOperationException>(() => store.Stack([a, b])).Message, StringComparison.Ordinal);

        var padded = new ParameterStore();
        Parameter three = padded.Declare("three", new Shape(3, 64)), four = padded.Declare("four", new Shape(4, 64));
        Assert.StartsWith("three (3, 64) ", Assert.Throws<InvalidOperationException>(() => padded.Stack([three, four])).Message, StringComparison.Ordinal);
    }

    private sealed record Result(float[][] Outputs, float[][] Gradients, Tensor[] Projected, float[] InputGradient);

    /// <summary>Three layers that read one input. Values depend on the ranks alone, not on whether products are shared.</summary>
    private sealed class Layers
    {
        private readonly Device device;
        private readonly JointLinears joint;
        private readonly Tensor[] dOutputs;
        private readonly Tensor input;

        public Layers(Device device, int[] ranks, bool dora, bool isJoint)
        {
            this.device = device;
            joint = new JointLinears("", Names, fusedName: null, In, Widths, hasBias: false);
            input = device.Random(1, new Shape(N, In));
            dOutputs = [.. Widths.Select((width, i) => device.Random(10 + (uint)i, new Shape(N, width)))];
            var store = new ParameterStore();
            int[] carriers = [.. Enumerable.Range(0, ranks.Length).Where(i => ranks[i] > 0)];
            Parameter[] a = [.. carriers.Select(i => store.Declare("A of " + Names[i], new Shape(ranks[i], In)))];
            Parameter? stack = isJoint && a.Length > 0 ? store.Stack(a) : null;
            Parameter[] b = [.. carriers.Select(i => store.Declare("B of " + Names[i], new Shape(Widths[i], ranks[i])))];
            Parameter[] m = [.. carriers.Where(_ => dora).Select(i => store.Declare("m of " + Names[i], new Shape(Widths[i])))];
            store.Allocate(device);
            Parameters = store.Parameters;
            for (int i = 0; i < Names.Length; i++)
            {
                joint.Linears[i].Weight = new DenseMatrix(device.Random(20 + (uint)i, new Shape(Widths[i], In)));
            }

            int row = 0;
            for (int j = 0; j < carriers.Length; j++)
            {
                foreach ((Parameter parameter, uint stream) in ((Parameter, uint)[])[(a[j], 30), (b[j], 40)])
                {
                    device.Copy(parameter.Value, device.Random(stream + (uint)j, parameter.Shape));
                }

                if (dora)
                {
                    device.Copy(m[j].Value, device.Random(50 + (uint)j, m[j].Shape));
                }

                var adapter = new LoraAdapter
                {
                    A = a[j], B = b[j], Scaling = 0.5f + j, Dropout = 0, Stream = 0, Magnitude = dora ? m[j] : null, Norms = dora ? device.Poisoned(m[j].Shape) : Tensor.None,
                };
                joint.Linears[carriers[j]].Attach(stack is null ? adapter : new LoraAdapter
                {
                    A = adapter.A, B = adapter.B, Scaling = adapter.Scaling, Dropout = 0, Stream = 0, Magnitude = adapter.Magnitude, Norms = adapter.Norms, Joint = stack, JointRow = row,
                });
                joint.Linears[carriers[j]].RefreshNorms();
                row += ranks[carriers[j]];
            }
        }

        private IReadOnlyList<Parameter> Parameters { get; }

        public Result Run(bool withInputGradient)
        {
            Tensor[] outputs = [.. Widths.Select(width => device.Poisoned(new Shape(N, width)))];
            Tensor dInput = withInputGradient ? device.Poisoned(new Shape(N, In)) : Tensor.None;
            JointLinears.Saved saved = joint.Allocate(device, N);
            var context = new PassContext { Batch = new PackedBatch { Tokens = Tensor.None, Positions = Tensor.None, DocumentOffsets = default }, Dropout = DropoutState.Inactive, Cosine = Tensor.None, Sine = Tensor.None };
            joint.Forward(outputs, input, saved, context);
            joint.Backward(dInput, dOutputs, input, saved, context);
            return new Result(
                [.. outputs.Select(output => output.Download())], [.. Parameters.Select(parameter => parameter.Gradient.Download())],
                [saved.First.Projected, saved.Second.Projected, saved.Third.Projected], withInputGradient ? dInput.Download() : []);
        }

        /// <summary>The chains of dX in the order of shared products, made of the products of layers that are alone.</summary>
        /// <param name="dProjected">What backward left there: du of each.</param>
        public float[] InputGradientInOrder(Tensor[] dProjected)
        {
            Tensor dInput = device.Filled(0, new Shape(N, In));
            int last = joint.Linears.Select((layer, i) => layer.Adapter is null ? -1 : i).Max();
            for (int i = 0; i < Names.Length; i++)
            {
                AdaptedLinear layer = joint.Linears[i];
                Tensor arrived = dOutputs[i];
                if (layer.Adapter?.Magnitude is { } magnitude)
                {
                    arrived = device.Poisoned(dOutputs[i].Shape);
                    Dora.Scale(arrived, dOutputs[i], magnitude.Value, layer.Adapter.Norms, shift: 0, GradientMode.Overwrite);
                }

                Linear.BackwardInput(dInput, arrived, layer.Weight, GradientMode.Accumulate);
                for (int j = 0; i == last && j <= last; j++)
                {
                    if (joint.Linears[j].Adapter is { } adapter)
                    {
                        Linear.BackwardInput(dInput, dProjected[j], new DenseMatrix(adapter.A.Value), GradientMode.Accumulate);
                    }
                }
            }

            return dInput.Download();
        }
    }
}
