// Rotary position embedding, half-split layout: of the first 2*half elements of a head the pair (i, i + half) turns by
// position * inverse_frequency[i].
//   forward   x' = x*cos - y*sin,  y' = y*cos + x*sin;   backward: the same with -sin
// Tables fp32, heads bf16 with one rounding. No sums, so nothing depends on an order.
#include "port.cuh"

// cosine and sine of fl32(frequency * position), times the scaling. The library functions reduce large angles exactly.
// Launch: ceil(N * half / 256) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
rope_tables(
    float* __restrict__ cosine,                     // (N, half) overwritten
    float* __restrict__ sine,                       // (N, half) overwritten
    const int* __restrict__ positions,              // (N)
    const float* __restrict__ inverse_frequencies,  // (half)
    int rows,                                       // N
    int half,                                       // pairs that turn in a head: half the rotary dim
    float attention_scaling) {                      // cosine and sine are multiplied with it; 1 but for some rescaled RoPE
    const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (i64)rows * half) return;
    const int row = (int)(i / half), pair = (int)(i - (i64)row * half);
    const float angle = __fmul_rn(inverse_frequencies[pair], (float)positions[row]);
    cosine[i] = cosf(angle) * attention_scaling;
    sine[i] = sinf(angle) * attention_scaling;
}

// Turns all heads of a row in place; elements from 2*half on stay as they are. One row a block, eight pairs a thread at a time.
// Launch: N blocks of min(1024, 32 * ceil(H * Dh / 512)) threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
rope_apply(
    bf16* __restrict__ heads,           // (N, H * Dh) changed in place
    const float* __restrict__ cosine,   // (N, half)
    const float* __restrict__ sine,     // (N, half)
    int rows,                           // N
    int head_count,                     // H
    int head_dim,                       // Dh
    int half,                           // at most Dh / 2
    float direction) {                  // 1 forward, -1 backward
    if (blockIdx.x >= (unsigned)rows) return;
    bf16* row = heads + (i64)blockIdx.x * head_count * head_dim;
    const float *row_cosine = cosine + (i64)blockIdx.x * half, *row_sine = sine + (i64)blockIdx.x * half;
    const bool vectors = half % 8 == 0 && head_dim % 8 == 0 && is_aligned_16(heads) && is_aligned_16(cosine) && is_aligned_16(sine);
    if (vectors) {
        const int groups = half / 8;
        for (int item = threadIdx.x; item < head_count * groups; item += blockDim.x) {
            const int head = item / groups, pair = (item - head * groups) * 8;
            bf16 *first = row + head * head_dim + pair, *second = first + half;
            float a[8], b[8], c[8], s[8], turned[8];
            load_bf16x8(a, first);
            load_bf16x8(b, second);
            load_f32x8(c, row_cosine + pair);
            load_f32x8(s, row_sine + pair);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                s[i] *= direction;
                turned[i] = a[i] * c[i] - b[i] * s[i];
            }
            store_bf16x8(first, turned);
#pragma unroll
            for (int i = 0; i < 8; i++) turned[i] = b[i] * c[i] + a[i] * s[i];
            store_bf16x8(second, turned);
        }
    } else {
        for (int item = threadIdx.x; item < head_count * half; item += blockDim.x) {
            const int head = item / half, pair = item - head * half;
            bf16 *first = row + head * head_dim + pair, *second = first + half;
            const float a = to_float(*first), b = to_float(*second), c = row_cosine[pair], s = row_sine[pair] * direction;
            *first = to_bf16(a * c - b * s);
            *second = to_bf16(b * c + a * s);
        }
    }
}
