// The gated product of the MLP, element by element. With a = gate, b = up and a share s of a that follows from a:
//   forward   out = a * s * b
//   backward  db = dout * a * s,  da = dout * b * (s + a * ds/da)
//   SwiGLU    s = 1 / (1 + exp(-a))                                                                  silu(a) = a * s
//   GeGLU     s = 1 / (1 + exp(-2 z)),  z = sqrt(2/pi) * (a + 0.044715 a^3)                           gelu(a) = a/2 * (1 + tanh(z)) = a * s
// bf16 in and out, fp32 between, one rounding. The exponential is the library's (2 units of the last place) and the division is exact to
// one: these kernels wait for memory, so the cheap forms, which lose more digits the larger |a| is, would not make them quicker.
#include "port.cuh"

LT_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct Silu {
    LT_DEVICE float share(float a) { return sigmoid(a); }

    // s + a * ds/da
    LT_DEVICE float slope(float a, float s) { return s * fmaf(a, 1.0f - s, 1.0f); }
};

// Of Gemma.
struct Gelu {
    static constexpr float SqrtTwoOverPi = 0.7978845608028654f, Cubic = 0.044715f;

    LT_DEVICE float share(float a) { return sigmoid(2.0f * SqrtTwoOverPi * (a * fmaf(a * a, Cubic, 1.0f))); }

    LT_DEVICE float slope(float a, float s) {
        const float rise = s * (1.0f - s);
        // Where the share is flat a^2 may be infinite, and 0 * infinity is not what is meant.
        return s + (rise == 0.0f ? 0.0f : 2.0f * a * rise * (SqrtTwoOverPi * fmaf(a * a, 3.0f * Cubic, 1.0f)));
    }
};

template <class Activation> LT_DEVICE float gated(float gate, float up) { return gate * Activation::share(gate) * up; }

template <class Activation> LT_DEVICE void gated_gradients(float& d_gate, float& d_up, float d_output, float gate, float up) {
    const float s = Activation::share(gate);
    d_up = d_output * (gate * s);
    d_gate = d_output * up * Activation::slope(gate, s);
}

template <class Activation> LT_DEVICE void gated_forward(bf16* output, const bf16* gate, const bf16* up, i64 count) {
    for_each_eight(
        count, is_aligned_16(output) && is_aligned_16(gate) && is_aligned_16(up),
        [=](i64 i) {
            float a[8], b[8];
            load_bf16x8(a, gate + i);
            load_bf16x8(b, up + i);
#pragma unroll
            for (int k = 0; k < 8; k++) a[k] = gated<Activation>(a[k], b[k]);
            store_bf16x8(output + i, a);
        },
        [=](i64 i) { output[i] = to_bf16(gated<Activation>(to_float(gate[i]), to_float(up[i]))); });
}

template <class Activation> LT_DEVICE void gated_backward(bf16* d_gate, bf16* d_up, const bf16* d_output, const bf16* gate, const bf16* up, i64 count) {
    const bool aligned =
        is_aligned_16(d_gate) && is_aligned_16(d_up) && is_aligned_16(d_output) && is_aligned_16(gate) && is_aligned_16(up);
    for_each_eight(
        count, aligned,
        [=](i64 i) {
            float dh[8], a[8], b[8];
            load_bf16x8(dh, d_output + i);
            load_bf16x8(a, gate + i);
            load_bf16x8(b, up + i);
#pragma unroll
            for (int k = 0; k < 8; k++) gated_gradients<Activation>(a[k], b[k], dh[k], a[k], b[k]);
            store_bf16x8(d_gate + i, a);
            store_bf16x8(d_up + i, b);
        },
        [=](i64 i) {
            float da, db;
            gated_gradients<Activation>(da, db, to_float(d_output[i]), to_float(gate[i]), to_float(up[i]));
            d_gate[i] = to_bf16(da);
            d_up[i] = to_bf16(db);
        });
}

// Launch of each: ceil(count / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
swiglu_forward(
    bf16* output,       // (count) overwritten; may be gate or up
    const bf16* gate,   // (count)
    const bf16* up,     // (count)
    long long count) {
    gated_forward<Silu>(output, gate, up, count);
}

extern "C" __global__ void __launch_bounds__(256)
swiglu_backward(
    bf16* d_gate,           // (count) overwritten; may be gate
    bf16* d_up,             // (count) overwritten; may be up
    const bf16* d_output,   // (count); may be d_gate or d_up
    const bf16* gate,       // (count)
    const bf16* up,         // (count)
    long long count) {
    gated_backward<Silu>(d_gate, d_up, d_output, gate, up, count);
}

extern "C" __global__ void __launch_bounds__(256)
geglu_forward(
    bf16* output,       // as above
    const bf16* gate,
    const bf16* up,
    long long count) {
    gated_forward<Gelu>(output, gate, up, count);
}

extern "C" __global__ void __launch_bounds__(256)
geglu_backward(
    bf16* d_gate,           // as above
    bf16* d_up,
    const bf16* d_output,
    const bf16* gate,
    const bf16* up,
    long long count) {
    gated_backward<Gelu>(d_gate, d_up, d_output, gate, up, count);
}
