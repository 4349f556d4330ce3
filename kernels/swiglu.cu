// The gated product of the MLP, element by element.
//   forward   out = silu(a) * b,  silu(a) = a * s,  s = 1 / (1 + exp(-a))
//   backward  db = dout * silu(a),  da = dout * b * s * (1 + a * (1 - s))                with a = gate, b = up
// bf16 in and out, fp32 between, one rounding. The exponential is the library's (2 units of the last place) and the division is exact to
// one: these kernels wait for memory, so the cheap forms, which lose more digits the larger |a| is, would not make them quicker.
#include "port.cuh"

LT_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

LT_DEVICE float swiglu(float gate, float up) { return gate * sigmoid(gate) * up; }

LT_DEVICE void swiglu_gradients(float& d_gate, float& d_up, float d_output, float gate, float up) {
    const float s = sigmoid(gate);
    d_up = d_output * (gate * s);
    d_gate = d_output * up * (s * fmaf(gate, 1.0f - s, 1.0f));
}

// Launch: ceil(count / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
swiglu_forward(
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
            for (int k = 0; k < 8; k++) a[k] = swiglu(a[k], b[k]);
            store_bf16x8(output + i, a);
        },
        [=](i64 i) { output[i] = to_bf16(swiglu(to_float(gate[i]), to_float(up[i]))); });
}

// Launch: ceil(count / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
swiglu_backward(
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
            for (int k = 0; k < 8; k++) swiglu_gradients(a[k], b[k], dh[k], a[k], b[k]);
            store_bf16x8(d_gate + i, a);
            store_bf16x8(d_up + i, b);
        },
        [=](i64 i) {
            float da, db;
            swiglu_gradients(da, db, to_float(d_output[i]), to_float(gate[i]), to_float(up[i]));
            d_gate[i] = to_bf16(da);
            d_up[i] = to_bf16(db);
        });
}
