// The gated product of Gemma's MLP, element by element.
//   forward   out = gelu(a) * b,  gelu(a) = a/2 * (1 + tanh(z)) = a * s,  z = sqrt(2/pi) * (a + 0.044715 a^3),  s = 1 / (1 + exp(-2 z))
//   backward  db = dout * gelu(a),  da = dout * b * (s + 2 a s (1 - s) * sqrt(2/pi) * (1 + 0.134145 a^2))       with a = gate, b = up
// bf16 in and out, fp32 between, one rounding.
#include "port.cuh"

constexpr float SqrtTwoOverPi = 0.7978845608028654f, Cubic = 0.044715f;

LT_DEVICE float share(float a) { return 1.0f / (1.0f + expf(-2.0f * SqrtTwoOverPi * (a * fmaf(a * a, Cubic, 1.0f)))); }

LT_DEVICE float geglu(float gate, float up) { return gate * share(gate) * up; }

LT_DEVICE void geglu_gradients(float& d_gate, float& d_up, float d_output, float gate, float up) {
    const float s = share(gate), rise = s * (1.0f - s);
    // Where the share is flat a^2 may be infinite, and 0 * infinity is not what is meant.
    const float bend = rise == 0.0f ? 0.0f : 2.0f * gate * rise * (SqrtTwoOverPi * fmaf(gate * gate, 3.0f * Cubic, 1.0f));
    d_up = d_output * (gate * s);
    d_gate = d_output * up * (s + bend);
}

// Launch: ceil(count / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
geglu_forward(
    bf16* output,       // (count) overwritten; may be gate or up
    const bf16* gate,   // (count)
    const bf16* up,     // (count)
    long long count) {
    for_each_eight(
        count, is_aligned_16(output) && is_aligned_16(gate) && is_aligned_16(up),
        [=](i64 i) {
            float a[8], b[8];
            load_bf16x8(a, gate + i);
            load_bf16x8(b, up + i);
#pragma unroll
            for (int k = 0; k < 8; k++) a[k] = geglu(a[k], b[k]);
            store_bf16x8(output + i, a);
        },
        [=](i64 i) { output[i] = to_bf16(geglu(to_float(gate[i]), to_float(up[i]))); });
}

// Launch: ceil(count / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
geglu_backward(
    bf16* d_gate,           // (count) overwritten; may be gate
    bf16* d_up,             // (count) overwritten; may be up
    const bf16* d_output,   // (count); may be d_gate or d_up
    const bf16* gate,       // (count)
    const bf16* up,         // (count)
    long long count) {
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
            for (int k = 0; k < 8; k++) geglu_gradients(a[k], b[k], dh[k], a[k], b[k]);
            store_bf16x8(d_gate + i, a);
            store_bf16x8(d_up + i, b);
        },
        [=](i64 i) {
            float da, db;
            geglu_gradients(da, db, to_float(d_output[i]), to_float(gate[i]), to_float(up[i]));
            d_gate[i] = to_bf16(da);
            d_up[i] = to_bf16(db);
        });
}
