using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>h = silu(gate) * up with silu(a) = a * sigmoid(a): the gated activation of Llama's MLP. Nothing but its two inputs is kept.</summary>
public static partial class SwiGlu
{
    /// <param name="output">(N, F) activations; overwritten. May alias gate or up.</param>
    /// <param name="gate">(N, F) activations</param>
    /// <param name="up">(N, F) activations</param>
    public static void Forward(Tensor output, Tensor gate, Tensor up) => GatedUnit<Silu>.Forward(output, gate, up);

    /// <summary>
    /// dGate and dUp are OVERWRITTEN; each may take the place of its forward input, which saves 2*N*F numbers.
    /// dup = dh * silu(a);  dgate = dh * up * s * (1 + a*(1 - s)) with s = sigmoid(a), a = gate.
    /// </summary>
    /// <param name="dGate">(N, F) activations; may be gate itself.</param>
    /// <param name="dUp">(N, F) activations; may be up itself.</param>
    /// <param name="dOutput">(N, F) activations</param>
    /// <param name="gate">(N, F) activations</param>
    /// <param name="up">(N, F) activations</param>
    public static void Backward(Tensor dGate, Tensor dUp, Tensor dOutput, Tensor gate, Tensor up) => GatedUnit<Silu>.Backward(dGate, dUp, dOutput, gate, up);

    private readonly partial struct Silu : IGateActivation
    {
        public static string Forward => "SwiGlu.Forward";

        public static string Backward => "SwiGlu.Backward";

        public static double Flops => 5;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Vector512<float> Value(Vector512<float> a) => a * VectorMath.Sigmoid(a);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Vector512<float> Value(Vector512<float> a, out Vector512<float> slope)
        {
            Vector512<float> s = VectorMath.Sigmoid(a);
            slope = s * Vector512.FusedMultiplyAdd(a, Vector512<float>.One - s, Vector512<float>.One);
            return a * s;
        }
    }
}
