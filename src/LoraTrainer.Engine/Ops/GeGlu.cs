using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.Engine.Ops;

/// <summary>
/// h = gelu(gate) * up with gelu(a) = a/2 * (1 + tanh(c * (a + 0.044715 a^3))), c = sqrt(2/pi): the gated activation of Gemma's MLP (the tanh form).
/// Nothing but its two inputs is kept.
/// </summary>
public static partial class GeGlu
{
    private const float SqrtTwoOverPi = 0.7978845608028654f;
    private const float Cubic = 0.044715f;

    /// <param name="output">(N, F) activations; overwritten. May alias gate or up.</param>
    /// <param name="gate">(N, F) activations</param>
    /// <param name="up">(N, F) activations</param>
    public static void Forward(Tensor output, Tensor gate, Tensor up) => GatedUnit<GeluTanh>.Forward(output, gate, up);

    /// <summary>
    /// dGate and dUp are OVERWRITTEN; each may take the place of its forward input, which saves 2*N*F numbers.
    /// dup = dh * gelu(a);  dgate = dh * up * ((1 + t)/2 + a/2 * (1 - t^2) * c * (1 + 0.134145 a^2)) with t = tanh(c * (a + 0.044715 a^3)), a = gate.
    /// </summary>
    /// <param name="dGate">(N, F) activations; may be gate itself.</param>
    /// <param name="dUp">(N, F) activations; may be up itself.</param>
    /// <param name="dOutput">(N, F) activations</param>
    /// <param name="gate">(N, F) activations</param>
    /// <param name="up">(N, F) activations</param>
    public static void Backward(Tensor dGate, Tensor dUp, Tensor dOutput, Tensor gate, Tensor up) => GatedUnit<GeluTanh>.Backward(dGate, dUp, dOutput, gate, up);

    private readonly partial struct GeluTanh : IGateActivation
    {
        public static string Forward => "GeGlu.Forward";

        public static string Backward => "GeGlu.Backward";

        public static double Flops => 10;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Vector512<float> Value(Vector512<float> a) => a * Vector512.Create(0.5f) * (Vector512<float>.One + Inner(a, a * a));

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Vector512<float> Value(Vector512<float> a, out Vector512<float> slope)
        {
            Vector512<float> half = Vector512.Create(0.5f), one = Vector512<float>.One, square = a * a;
            Vector512<float> t = Inner(a, square);
            Vector512<float> rise = Vector512.FusedMultiplyAdd(-t, t, one);
            Vector512<float> inside = Vector512.Create(SqrtTwoOverPi) * Vector512.FusedMultiplyAdd(square, Vector512.Create(3 * Cubic), one);

            // Where tanh is flat, a^2 may be infinite, and 0 * infinity is not what is meant.
            Vector512<float> bend = Vector512.ConditionalSelect(Vector512.Equals(rise, Vector512<float>.Zero), Vector512<float>.Zero, a * rise * inside);
            slope = half * ((one + t) + bend);
            return a * half * (one + t);
        }

        /// <summary>tanh(c * (a + 0.044715 a^3)) for a and its square.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static Vector512<float> Inner(Vector512<float> a, Vector512<float> square) =>
            VectorMath.Tanh(Vector512.Create(SqrtTwoOverPi) * (a * Vector512.FusedMultiplyAdd(square, Vector512.Create(Cubic), Vector512<float>.One)));
    }
}
