// Matrices of signed bytes with a scale a row, bit for bit as the CPU's code and so as bitsandbytes. Weights are rounded to f16 first; with
// absmax = max |w| of the row: code = round(fl32(w * fl32(fl32(1 / absmax) * 127))), half to even, and scale = fl32(absmax / 127); a row of
// zeros stays one. The value of a code is fl32(code * scale), rounded to bf16 when it is stored.
#include "port.cuh"

// x rounded to f16, as a float; |x| is below 65520. An f16 below 2^-14 is a multiple of 2^-24, which is what a float of [0.5, 1) ends with.
LT_DEVICE float rounded_to_f16(float x) {
    const u32 bits = __float_as_uint(x);
    if (fabsf(x) < 6.103515625e-5f) {
        const float magnitude = __fsub_rn(__fadd_rn(fabsf(x), 0.5f), 0.5f);
        return __uint_as_float(__float_as_uint(magnitude) | (bits & 0x80000000u));
    }
    return __uint_as_float((bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu);
}

// One row a block, read twice: the second time from the cache.
// Launch: M blocks of min(1024, 32 * ceil(D / 512)) threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
int8_quantize(
    signed char* __restrict__ codes,        // (M, D) overwritten
    float* __restrict__ scales,             // (M) overwritten
    const float* __restrict__ values,       // (M, D) finite
    int rows,                               // M
    int width) {                            // D
    __shared__ float scratch[32];
    if (blockIdx.x >= (unsigned)rows) return;
    const float* row = values + (i64)blockIdx.x * width;
    signed char* output = codes + (i64)blockIdx.x * width;
    float largest = 0.0f;
#pragma unroll 4
    for (int i = threadIdx.x; i < width; i += blockDim.x) largest = fmaxf(largest, fabsf(rounded_to_f16(row[i])));
    const float absmax = block_max(largest, scratch);
    const float inverse = absmax == 0.0f ? 0.0f : __fmul_rn(__fdiv_rn(1.0f, absmax), 127.0f);
    if (threadIdx.x == 0) scales[blockIdx.x] = __fdiv_rn(absmax, 127.0f);
#pragma unroll 4
    for (int i = threadIdx.x; i < width; i += blockDim.x) output[i] = (signed char)rintf(__fmul_rn(rounded_to_f16(row[i]), inverse));
}

// The values of the four codes in a word, the first in its low byte.
LT_DEVICE void values_of_four(float (&values)[8], int first, u32 codes, float scale) {
#pragma unroll
    for (int i = 0; i < 4; i++) values[first + i] = __fmul_rn((float)(signed char)(codes >> i * 8 & 255), scale);
}

// One row a block; a thread has sixteen neighbouring codes.
// Launch: M blocks of min(1024, 32 * ceil(D / 512)) threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
int8_dequantize(
    bf16* __restrict__ output,              // (M, D) overwritten
    const signed char* __restrict__ codes,  // (M, D)
    const float* __restrict__ scales,       // (M)
    int rows,                               // M
    int width) {                            // D
    if (blockIdx.x >= (unsigned)rows) return;
    const float scale = scales[blockIdx.x];
    const signed char* row = codes + (i64)blockIdx.x * width;
    bf16* target = output + (i64)blockIdx.x * width;
    if (width % 16 == 0 && is_aligned_16(output) && is_aligned_16(codes)) {
        for (int i = threadIdx.x * 16; i < width; i += blockDim.x * 16) {
            const u32x4 loaded = load_16_bytes(row + i);
            float w[8];
            values_of_four(w, 0, loaded.x, scale);
            values_of_four(w, 4, loaded.y, scale);
            store_bf16x8(target + i, w);
            values_of_four(w, 0, loaded.z, scale);
            values_of_four(w, 4, loaded.w, scale);
            store_bf16x8(target + i + 8, w);
        }
    } else {
        for (int i = threadIdx.x; i < width; i += blockDim.x) target[i] = to_bf16(__fmul_rn((float)row[i], scale));
    }
}
