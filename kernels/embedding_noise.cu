// Uniform noise on embedded tokens: x[t, j] += (2u - 1) * magnitude[t], u in [0, 1) from the random number of the element. Each operation is
// rounded by itself, as in the CPU's code; the result once more to bf16.
#include "port.cuh"

LT_DEVICE float noisy(float x, u32 number, float magnitude) {
    const float u = (float)(number >> 8) * 5.9604644775390625e-8f;
    return __fadd_rn(x, __fmul_rn(__fsub_rn(u + u, 1.0f), magnitude));
}

// Launch: ceil(N * D / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
embedding_noise(
    bf16* __restrict__ embedded,            // (N, D) changed in place
    const float* __restrict__ magnitudes,   // (N) alpha / sqrt(length of the token's document * D)
    int rows,                               // N
    int width,                              // D
    unsigned long long first_element,       // number of the first element in the tensor the numbers belong to
    unsigned long long seed,
    unsigned stream,
    unsigned step) {
    for_each_eight(
        (i64)rows * width, width % 8 == 0 && first_element % 4 == 0 && is_aligned_16(embedded),
        [=](i64 i) {
            const u64 counter = (first_element + i) / 4;
            const Philox low = philox(counter, step, stream, seed), high = philox(counter + 1, step, stream, seed);
            const float magnitude = magnitudes[i / width];
            float x[8];
            load_bf16x8(x, embedded + i);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                x[k] = noisy(x[k], low.words[k], magnitude);
                x[k + 4] = noisy(x[k + 4], high.words[k], magnitude);
            }
            store_bf16x8(embedded + i, x);
        },
        [=](i64 i) {
            embedded[i] = to_bf16(noisy(to_float(embedded[i]), philox_of(first_element + i, step, stream, seed), magnitudes[i / width]));
        });
}
