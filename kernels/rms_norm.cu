// RMSNorm over the rows of (N, D) matrices.
//   forward   y = x * rstd * w,  rstd = 1 / sqrt(mean(x^2) + eps)
//   backward  dx = rstd * (m - xh * mean(m * xh)),  dw += sum over rows of dy * xh,   with m = dy * w, xh = x * rstd
// Activations bf16, statistics and weights fp32; y and dx are rounded once, when they are stored.
// Determinism: a thread sums its own elements in their order, warps and blocks meet in a fixed order; no atomics.
#include "port.cuh"

// A block keeps its row in registers: so many times eight elements a thread, all of a row of 16384. What a longer row has beyond is read
// again.
constexpr int KeptVectors = 2;

LT_DEVICE float sum_of_squares_of(const u32x4& packed) {
    float x[8], sum = 0.0f;
    unpack_bf16x8(x, packed);
#pragma unroll
    for (int i = 0; i < 8; i++) sum = fmaf(x[i], x[i], sum);
    return sum;
}

LT_DEVICE void store_normalized(bf16* output, const u32x4& packed, float rstd, const float* weight) {
    float x[8], w[8];
    unpack_bf16x8(x, packed);
    load_f32x8(w, weight);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = x[i] * rstd * w[i];
    store_bf16x8(output, x);
}

// What a norm multiplies with where the stored weight is not the gain itself: gain = weight + offset.
// Launch: ceil(D / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
rms_norm_gain(
    float* __restrict__ gain,           // (D) overwritten
    const float* __restrict__ weight,   // (D)
    float offset,
    long long count) {                  // D
    for_each_eight(
        count, is_aligned_16(gain) && is_aligned_16(weight),
        [=](i64 i) {
            float w[8];
            load_f32x8(w, weight + i);
            store_f32x4(gain + i, f32x4{w[0] + offset, w[1] + offset, w[2] + offset, w[3] + offset});
            store_f32x4(gain + i + 4, f32x4{w[4] + offset, w[5] + offset, w[6] + offset, w[7] + offset});
        },
        [=](i64 i) { gain[i] = weight[i] + offset; });
}

// y = x * rstd * w and rstd, one row a block.
// Launch: N blocks of T = min(1024, 32 * ceil(D / 512)) threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
rms_norm_forward(
    bf16* __restrict__ output,          // (N, D) overwritten; not the input
    float* __restrict__ rstd,           // (N) overwritten
    const bf16* __restrict__ input,     // (N, D)
    const float* __restrict__ weight,   // (D)
    int width,                          // D
    float eps) {
    __shared__ float scratch[32];
    const bf16* x = input + (i64)blockIdx.x * width;
    bf16* y = output + (i64)blockIdx.x * width;
    const bool vectors = width % 8 == 0 && is_aligned_16(input) && is_aligned_16(output) && is_aligned_16(weight);
    const int start = vectors ? threadIdx.x * 8 : threadIdx.x, stride = vectors ? blockDim.x * 8 : blockDim.x;

    u32x4 kept[KeptVectors];
    float sum = 0.0f;
    if (vectors) {
#pragma unroll
        for (int k = 0; k < KeptVectors; k++) {
            const int i = start + k * stride;
            kept[k] = i < width ? load_16_bytes(x + i) : u32x4{0, 0, 0, 0};
        }
#pragma unroll
        for (int k = 0; k < KeptVectors; k++) sum += sum_of_squares_of(kept[k]);
#pragma unroll 1
        for (int i = start + KeptVectors * stride; i < width; i += stride) sum += sum_of_squares_of(load_16_bytes(x + i));
    } else {
        for (int i = start; i < width; i += stride) sum = fmaf(to_float(x[i]), to_float(x[i]), sum);
    }
    const float r = 1.0f / sqrtf(block_sum(sum, scratch) / (float)width + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = r;

    if (vectors) {
#pragma unroll
        for (int k = 0; k < KeptVectors; k++) {
            const int i = start + k * stride;
            if (i < width) store_normalized(y + i, kept[k], r, weight + i);
        }
#pragma unroll 1
        for (int i = start + KeptVectors * stride; i < width; i += stride) store_normalized(y + i, load_16_bytes(x + i), r, weight + i);
    } else {
        for (int i = start; i < width; i += stride) y[i] = to_bf16(to_float(x[i]) * r * weight[i]);
    }
}

// sum of m * xh over eight elements.
LT_DEVICE float sum_of_products(const u32x4& packed_dy, const u32x4& packed_x, float rstd, const float* weight) {
    float dy[8], x[8], w[8], sum = 0.0f;
    unpack_bf16x8(dy, packed_dy);
    unpack_bf16x8(x, packed_x);
    load_f32x8(w, weight);
#pragma unroll
    for (int i = 0; i < 8; i++) sum = fmaf(dy[i] * w[i], x[i] * rstd, sum);
    return sum;
}

LT_DEVICE void store_input_gradient(
    bf16* dx, const u32x4& packed_dy, const u32x4& packed_x, float rstd, float mean, const float* weight, bool accumulate) {
    float dy[8], x[8], w[8];
    unpack_bf16x8(dy, packed_dy);
    unpack_bf16x8(x, packed_x);
    load_f32x8(w, weight);
#pragma unroll
    for (int i = 0; i < 8; i++) dy[i] = rstd * (dy[i] * w[i] - x[i] * rstd * mean);
    if (accumulate) {
        float before[8];
        load_bf16x8(before, dx);
#pragma unroll
        for (int i = 0; i < 8; i++) dy[i] += before[i];
    }
    store_bf16x8(dx, dy);
}

// dx = rstd * (m - xh * mean(m * xh)), one row a block. A thread has read its part of a row before it writes the same part.
// Launch: N blocks of T = min(1024, 32 * ceil(D / 512)) threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
rms_norm_backward(
    bf16* d_input,                      // (N, D) overwritten, or added to; may be d_output when it is overwritten
    const bf16* d_output,               // (N, D)
    const bf16* __restrict__ input,     // (N, D)
    const float* __restrict__ weight,   // (D)
    const float* __restrict__ rstd,     // (N)
    int width,                          // D
    int accumulate) {                   // not 0: d_input = bf16(d_input + dx)
    __shared__ float scratch[32];
    const i64 row = (i64)blockIdx.x * width;
    const bf16 *x = input + row, *dy = d_output + row;
    bf16* dx = d_input + row;
    const float r = rstd[blockIdx.x];
    const bool vectors =
        width % 8 == 0 && is_aligned_16(d_input) && is_aligned_16(d_output) && is_aligned_16(input) && is_aligned_16(weight);
    const int start = vectors ? threadIdx.x * 8 : threadIdx.x, stride = vectors ? blockDim.x * 8 : blockDim.x;

    u32x4 kept_x[KeptVectors], kept_dy[KeptVectors];
    float sum = 0.0f;
    if (vectors) {
#pragma unroll
        for (int k = 0; k < KeptVectors; k++) {
            const int i = start + k * stride;
            kept_x[k] = i < width ? load_16_bytes(x + i) : u32x4{0, 0, 0, 0};
            kept_dy[k] = i < width ? load_16_bytes(dy + i) : u32x4{0, 0, 0, 0};
        }
#pragma unroll
        for (int k = 0; k < KeptVectors; k++) {
            const int i = start + k * stride;
            if (i < width) sum += sum_of_products(kept_dy[k], kept_x[k], r, weight + i);
        }
#pragma unroll 1
        for (int i = start + KeptVectors * stride; i < width; i += stride)
            sum += sum_of_products(load_16_bytes(dy + i), load_16_bytes(x + i), r, weight + i);
    } else {
        for (int i = start; i < width; i += stride) sum = fmaf(to_float(dy[i]) * weight[i], to_float(x[i]) * r, sum);
    }
    const float mean = block_sum(sum, scratch) / (float)width;

    if (vectors) {
#pragma unroll
        for (int k = 0; k < KeptVectors; k++) {
            const int i = start + k * stride;
            if (i < width) store_input_gradient(dx + i, kept_dy[k], kept_x[k], r, mean, weight + i, accumulate != 0);
        }
#pragma unroll 1
        for (int i = start + KeptVectors * stride; i < width; i += stride)
            store_input_gradient(dx + i, load_16_bytes(dy + i), load_16_bytes(x + i), r, mean, weight + i, accumulate != 0);
    } else {
        for (int i = start; i < width; i += stride) {
            const float gradient = r * (to_float(dy[i]) * weight[i] - to_float(x[i]) * r * mean);
            dx[i] = to_bf16(accumulate != 0 ? to_float(dx[i]) + gradient : gradient);
        }
    }
}

// What eight terms of a weight's gradient are made of.
struct WeightTerms {
    u32x4 d_output, input;
    float rstd;
};

// dw += sum over rows of dy * x * rstd. A block owns 32 columns of all rows.
// Launch: ceil(D / 32) blocks of 1024 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024, 1)
rms_norm_weight_gradient(
    float* __restrict__ d_weight,       // (D) added to
    const bf16* __restrict__ d_output,  // (N, D)
    const bf16* __restrict__ input,     // (N, D)
    const float* __restrict__ rstd,     // (N)
    int rows,                           // N
    int width) {                        // D
    __shared__ float scratch[1024];
    const bool aligned = width % 8 == 0 && is_aligned_16(d_output) && is_aligned_16(input);
    add_column_sums<4>(
        d_weight, rows, width, aligned, scratch,
        [=](int row, int column) {
            const i64 i = (i64)row * width + column;
            return WeightTerms{load_16_bytes(d_output + i), load_16_bytes(input + i), rstd[row]};
        },
        [=](float (&sums)[8], const WeightTerms& terms) {
            float dy[8], x[8];
            unpack_bf16x8(dy, terms.d_output);
            unpack_bf16x8(x, terms.input);
#pragma unroll
            for (int k = 0; k < 8; k++) sums[k] = fmaf(dy[k], x[k] * terms.rstd, sums[k]);
        },
        [=](int row, int column) {
            const i64 i = (i64)row * width + column;
            return to_float(d_output[i]) * (to_float(input[i]) * rstd[row]);
        });
}
