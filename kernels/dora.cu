// What DoRA adds to LoRA: with V = W + s B A, n[o] = ||V[o]|| and the trained magnitude m, a layer computes g * (x V^T) with g = m/n.
// Activations and W bf16, everything else fp32. Determinism: sums in an order that shapes alone decide.
#include "port.cuh"

constexpr int NormRows = 8;                 // rows of W that a block owns: an element of A serves all of them
constexpr int NormThreads = 256;

// squares[r] += the squares of kColumns neighbouring elements of row r of W + s B A. `factors` has B's elements of these rows, rank by rank.
template <int kColumns>
LT_DEVICE void add_squares(
    float (&squares)[NormRows], const bf16* weight, const float* a, const float* factors, float scaling, int rank, int rows, int width,
    int column) {
    float update[NormRows][kColumns] = {};
    for (int k = 0; k < rank; k++) {
        const float* const source = a + (i64)k * width + column;
        float x[kColumns];
        if constexpr (kColumns == 4) {
            const f32x4 four = load_f32x4(source);
            x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
        } else {
            x[0] = source[0];
        }
        const f32x4 low = load_f32x4(factors + k * NormRows), high = load_f32x4(factors + k * NormRows + 4);
        const float b[NormRows] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int r = 0; r < NormRows; r++)
#pragma unroll
            for (int i = 0; i < kColumns; i++) update[r][i] = fmaf(b[r], x[i], update[r][i]);
    }
#pragma unroll
    for (int r = 0; r < NormRows; r++) {
        if (r >= rows) break;
        float w[kColumns];
        if constexpr (kColumns == 4) {
            const u32x2 four = load_8_bytes(weight + (i64)r * width + column);
            w[0] = low_half(four.x), w[1] = high_half(four.x), w[2] = low_half(four.y), w[3] = high_half(four.y);
        } else {
            w[0] = to_float(weight[(i64)r * width + column]);
        }
#pragma unroll
        for (int i = 0; i < kColumns; i++) {
            const float v = fmaf(update[r][i], scaling, w[i]);
            squares[r] = fmaf(v, v, squares[r]);
        }
    }
}

// norms[o] = ||W[o] + s (B A)[o]||. The sum of W and B A exists in registers only.
// Launch: ceil(Out / 8) blocks of 256 threads, 32 * R bytes of dynamic shared memory.
extern "C" __global__ void __launch_bounds__(NormThreads)
dora_norms(
    float* __restrict__ norms,          // (Out) overwritten
    const bf16* __restrict__ weight,    // (Out, In)
    const float* __restrict__ a,        // (R, In), or null
    const float* __restrict__ b,        // (Out, R), or null
    float scaling,                      // s
    int rank,                           // R; 0: the norms of W alone
    int rows,                           // Out
    int width) {                        // In
    LT_SHARED(memory);
    __shared__ float scratch[NormThreads / 32][NormRows];
    float* const factors = (float*)memory;
    const int first_row = blockIdx.x * NormRows, present = min(NormRows, rows - first_row);
    for (int i = threadIdx.x; i < rank * NormRows; i += NormThreads) {
        const int row = i % NormRows;
        factors[i] = row < present ? b[(i64)(first_row + row) * rank + i / NormRows] : 0.0f;
    }
    __syncthreads();

    const bf16* const own = weight + (i64)first_row * width;
    float squares[NormRows] = {};
    if (width % 4 == 0 && is_aligned_8(weight) && is_aligned_16(a)) {
        for (int i = threadIdx.x * 4; i < width; i += NormThreads * 4) add_squares<4>(squares, own, a, factors, scaling, rank, present, width, i);
    } else {
        for (int i = threadIdx.x; i < width; i += NormThreads) add_squares<1>(squares, own, a, factors, scaling, rank, present, width, i);
    }
#pragma unroll
    for (int r = 0; r < NormRows; r++) {
        squares[r] = warp_sum(squares[r]);
        if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5][r] = squares[r];
    }
    __syncthreads();
    if (threadIdx.x < (unsigned)present) {
        float total = 0.0f;
#pragma unroll
        for (int warp = 0; warp < NormThreads / 32; warp++) total += scratch[warp][threadIdx.x];
        norms[first_row + threadIdx.x] = __fsqrt_rn(total);
    }
}

// Eight elements of each of two matrices, on their way.
struct EightOfTwo {
    u32x4 first, second;
};

constexpr int ScaleRows = 16;               // rows that share a quotient

// m/n + shift; the quotient is 1 where n is 0.
LT_DEVICE float factor_of(float magnitude, float norm, float shift) { return (norm == 0.0f ? 1.0f : magnitude / norm) + shift; }

// output[i, o] = (m[o]/n[o] + shift) * input[i, o], or added to it. A thread has eight columns of sixteen rows.
// Launch: grid (ceil(Out / (8 * T)), ceil(N / 16)), blocks of T = min(256, 32 * ceil(Out / 256)) threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
dora_scale(
    bf16* output,                           // (N, Out) overwritten or added to; may be the input
    const bf16* input,                      // (N, Out)
    const float* __restrict__ magnitude,    // (Out)
    const float* __restrict__ norms,        // (Out)
    float shift,
    int rows,                               // N
    int width,                              // Out
    int accumulate) {                       // 1: add
    const int first_row = blockIdx.y * ScaleRows, end_row = min(rows, first_row + ScaleRows);
    const bool aligned = width % 8 == 0 && is_aligned_16(output) && is_aligned_16(input) && is_aligned_16(magnitude) && is_aligned_16(norms);
    if (aligned) {
        const int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
        if (column >= width) return;
        float factors[8], n[8];
        load_f32x8(factors, magnitude + column);
        load_f32x8(n, norms + column);
#pragma unroll
        for (int k = 0; k < 8; k++) factors[k] = factor_of(factors[k], n[k], shift);
        in_batches<4>(
            first_row, 1, end_row,
            [=](int row) {
                const i64 i = (i64)row * width + column;
                return EightOfTwo{load_16_bytes(input + i), accumulate ? load_16_bytes(output + i) : u32x4{0, 0, 0, 0}};
            },
            [=](int row, const EightOfTwo& loaded) {
                float x[8], y[8];
                unpack_bf16x8(x, loaded.first);
                unpack_bf16x8(y, loaded.second);
#pragma unroll
                for (int k = 0; k < 8; k++) x[k] = accumulate ? fmaf(factors[k], x[k], y[k]) : factors[k] * x[k];
                store_bf16x8(output + (i64)row * width + column, x);
            });
        return;
    }
    const int first_column = blockIdx.x * blockDim.x * 8, end_column = min(width, first_column + (int)blockDim.x * 8);
    for (int column = first_column + threadIdx.x; column < end_column; column += blockDim.x) {
        const float factor = factor_of(magnitude[column], norms[column], shift);
        for (int row = first_row; row < end_row; row++) {
            const i64 i = (i64)row * width + column;
            const float x = to_float(input[i]);
            output[i] = to_bf16(accumulate ? fmaf(factor, x, to_float(output[i])) : factor * x);
        }
    }
}

// d_magnitude[o] += the sum over i of d_output[i, o] * product[i, o], by n[o]; nothing where n is 0. The order of the sum is add_column_sums'.
// Launch: ceil(Out / 32) blocks of 1024 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024, 1)
dora_magnitude_gradient(
    float* __restrict__ d_magnitude,    // (Out) added to
    const bf16* __restrict__ d_output,  // (N, Out)
    const bf16* __restrict__ product,   // (N, Out)
    const float* __restrict__ norms,    // (Out)
    int rows,                           // N
    int width) {                        // Out
    __shared__ float scratch[1024];
    add_column_sums<4>(
        d_magnitude, rows, width, width % 8 == 0 && is_aligned_16(d_output) && is_aligned_16(product), scratch,
        [=](int row, int column) {
            const i64 i = (i64)row * width + column;
            return EightOfTwo{load_16_bytes(d_output + i), load_16_bytes(product + i)};
        },
        [=](float (&sums)[8], const EightOfTwo& loaded) {
            float g[8], z[8];
            unpack_bf16x8(g, loaded.first);
            unpack_bf16x8(z, loaded.second);
#pragma unroll
            for (int k = 0; k < 8; k++) sums[k] = fmaf(g[k], z[k], sums[k]);
        },
        [=](int row, int column) {
            const i64 i = (i64)row * width + column;
            return to_float(d_output[i]) * to_float(product[i]);
        },
        [=](int column, float total) { return norms[column] == 0.0f ? 0.0f : total / norms[column]; });
}
