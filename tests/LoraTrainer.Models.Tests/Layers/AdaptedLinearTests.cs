using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Layers;
using LoraTrainer.TestSupport;
using Xunit;
using static LoraTrainer.TestSupport.OpHarness;

namespace LoraTrainer.Models.Tests.Layers;

/// <summary>One linear layer with everything attached, against the formulas in fp64 with the very masks that were drawn.</summary>
public sealed class AdaptedLinearTests
{
    private const int N = 11, In = 37, Out = 23, R = 5;
    private const float Scaling = 1.5f;

    [Theory]
    [InlineData(false, false, false)]
    [InlineData(false, true, false)]
    [InlineData(true, false, false)]
    [InlineData(true, true, false)]
    [InlineData(true, true, true)]
    public void ForwardAndBackward_MatchReference(bool dora, bool dropping, bool withoutInputGradient)
    {
        using Device device = Open("cpu");
        float dropout = dropping ? 0.3f : 0;
        var layer = new AdaptedLinear("layer", In, Out, hasBias: true) { Weight = new DenseMatrix(device.Random(1, new Shape(Out, In))), Bias = device.Random(2, new Shape(Out)) };
        var store = new ParameterStore();
        Parameter a = store.Declare("a", new Shape(R, In)), b = store.Declare("b", new Shape(Out, R)), m = store.Declare("m", new Shape(Out));
        store.Allocate(device);
        Set(a, 3);
        Set(b, 4);
        Set(m, 5);
        layer.Attach(new LoraAdapter
        {
            A = a, B = b, Scaling = Scaling, Dropout = dropout, Stream = 7, Magnitude = dora ? m : null, Norms = dora ? device.Poisoned(new Shape(Out)) : Tensor.None,
        });
        layer.RefreshNorms();

        var state = new DropoutState(true, 9, 4);
        const long firstToken = 100;
        Tensor x = device.Random(6, new Shape(N, In)), y = device.Poisoned(new Shape(N, Out)), g = device.Random(8, new Shape(N, Out)), mask = device.Filled(1, new Shape(N, In));
        Dropout.Apply(mask, mask, dropout, new DropoutKey(9, 7, 4, firstToken));
        AdaptedLinear.Saved saved = layer.Allocate(device, N);
        var context = new PassContext { Batch = new PackedBatch { Tokens = Tensor.None, Positions = Tensor.None, DocumentOffsets = default, FirstToken = firstToken }, Dropout = state, Cosine = Tensor.None, Sine = Tensor.None };
        layer.Forward(y, x, saved, context);

        var reference = new Reference(
            ((DenseMatrix)layer.Weight).Values.Doubles(), layer.Bias.Doubles(), a.Value.Doubles(), b.Value.Doubles(), dora ? m.Value.Doubles() : null, x.Doubles(), mask.Doubles());
        Near(reference.Output(), y.Download(), "y");

        Tensor dx = withoutInputGradient ? Tensor.None : device.Random(10, new Shape(N, In));
        double[] before = withoutInputGradient ? [] : dx.Doubles();
        layer.Backward(dx, g, x, saved, context, GradientMode.Accumulate);
        double[] gd = g.Doubles();
        if (!withoutInputGradient)
        {
            Near([.. reference.Gradient(reference.X, gd).Zip(before, (d, was) => d + was)], dx.Download(), "dX");
        }

        Near(reference.Gradient(reference.A, gd), a.Gradient.Download(), "dA");
        Near(reference.Gradient(reference.B, gd), b.Gradient.Download(), "dB");
        if (dora)
        {
            Near(reference.Gradient(reference.M!, gd), m.Gradient.Download(), "dm");
        }

        void Set(Parameter parameter, uint stream) => device.Copy(parameter.Value, device.Random(stream, parameter.Shape));
    }

    [Fact]
    public void Saved_WithoutAMagnitude_HoldsNoProduct()
    {
        using Device device = Open("cpu");
        var layer = new AdaptedLinear("layer", In, Out, hasBias: false) { Weight = new DenseMatrix(device.Random(1, new Shape(Out, In))) };
        Assert.True(layer.Allocate(device, N).Product.IsNone);
        layer.RefreshNorms();
    }

    private static void Near(double[] expected, float[] actual, string what)
    {
        double size = Math.Sqrt(expected.Sum(v => v * v) / expected.Length);
        Within(expected, [.. expected.Select(_ => 2e-6 * size)], actual, what);
    }

    /// <summary>The layer in fp64. Derivatives by central differences with the norms held fixed, as DoRA has them.</summary>
    private sealed class Reference(double[] w, double[] bias, double[] a, double[] b, double[]? m, double[] x, double[] mask)
    {
        private readonly double[]? norms = m is null ? null : [.. Enumerable.Range(0, Out).Select(o => Math.Sqrt(Enumerable.Range(0, In).Sum(i => Math.Pow(w[o * In + i] + Scaling * Enumerable.Range(0, R).Sum(k => b[o * R + k] * a[k * In + i]), 2))))];

        public double[] A => a;

        public double[] B => b;

        public double[]? M => m;

        public double[] X => x;

        public double[] Output()
        {
            double[] y = new double[N * Out];
            for (int n = 0; n < N; n++)
            {
                double[] dropped = [.. Enumerable.Range(0, In).Select(i => x[n * In + i] * mask[n * In + i])];
                double[] u = [.. Enumerable.Range(0, R).Select(k => Enumerable.Range(0, In).Sum(i => a[k * In + i] * dropped[i]))];
                for (int o = 0; o < Out; o++)
                {
                    double plain = Enumerable.Range(0, In).Sum(i => w[o * In + i] * x[n * In + i]) + bias[o];
                    double update = Scaling * Enumerable.Range(0, R).Sum(k => b[o * R + k] * u[k]);
                    double factor = m is null ? 1 : m[o] / norms![o];
                    y[n * Out + o] = plain + (factor - 1) * Enumerable.Range(0, In).Sum(i => w[o * In + i] * dropped[i]) + factor * update;
                }
            }

            return y;
        }

        /// <summary>Of the sum of G y; y is a polynomial of low degree in each of these, so the step may be large.</summary>
        public double[] Gradient(double[] variable, double[] g)
        {
            double[] gradient = new double[variable.Length];
            for (int i = 0; i < variable.Length; i++)
            {
                const double step = 1e-3;
                double before = variable[i];
                variable[i] = before + step;
                double above = Output().Zip(g, (p, q) => p * q).Sum();
                variable[i] = before - step;
                double below = Output().Zip(g, (p, q) => p * q).Sum();
                variable[i] = before;
                gradient[i] = (above - below) / (2 * step);
            }

            return gradient;
        }
    }
}
