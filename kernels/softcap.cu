// y = c * tanh(x/c), element by element, and its derivative by its own result: dx = dy * (1 - (y/c)^2). Values fp32, gradients bf16.
#include "port.cuh"

// Launch: ceil(count / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
softcap_forward(
    float* __restrict__ values,     // (count) changed in place
    long long count,
    float cap) {                    // c
    const float inverse = 1.0f / cap;
    for_each_eight(
        count, is_aligned_16(values),
        [=](i64 i) {
            float x[8];
            load_f32x8(x, values + i);
#pragma unroll
            for (int k = 0; k < 8; k++) x[k] = cap * tanh_of(x[k] * inverse);
            store_f32x4(values + i, f32x4{x[0], x[1], x[2], x[3]});
            store_f32x4(values + i + 4, f32x4{x[4], x[5], x[6], x[7]});
        },
        [=](i64 i) { values[i] = cap * tanh_of(values[i] * inverse); });
}

// Launch: ceil(count / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
softcap_backward(
    bf16* __restrict__ d_values,        // (count) in: of y; out: of x
    const float* __restrict__ values,   // (count) y
    long long count,
    float cap) {                        // c
    const float inverse = 1.0f / cap;
    for_each_eight(
        count, is_aligned_16(d_values) && is_aligned_16(values),
        [=](i64 i) {
            float d[8], y[8];
            load_bf16x8(d, d_values + i);
            load_f32x8(y, values + i);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const float t = y[k] * inverse;
                d[k] *= fmaf(-t, t, 1.0f);
            }
            store_bf16x8(d_values + i, d);
        },
        [=](i64 i) {
            const float t = values[i] * inverse;
            d_values[i] = to_bf16(to_float(d_values[i]) * fmaf(-t, t, 1.0f));
        });
}
