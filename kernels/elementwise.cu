// Sums of whole tensors, biases, and the change of format. bf16 activations, fp32 arithmetic, one rounding.
#include "port.cuh"

// output = first + second.
// Launch: ceil(count / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
add(
    bf16* output,           // (count) overwritten; may be first or second
    const bf16* first,      // (count)
    const bf16* second,     // (count)
    long long count) {
    for_each_eight(
        count, is_aligned_16(output) && is_aligned_16(first) && is_aligned_16(second),
        [=](i64 i) {
            float a[8], b[8];
            load_bf16x8(a, first + i);
            load_bf16x8(b, second + i);
#pragma unroll
            for (int k = 0; k < 8; k++) a[k] += b[k];
            store_bf16x8(output + i, a);
        },
        [=](i64 i) { output[i] = to_bf16(to_float(first[i]) + to_float(second[i])); });
}

// rows[i] += bias, one row a block.
// Launch: N blocks of min(1024, 32 * ceil(D / 512)) threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
add_bias(
    bf16* __restrict__ rows,            // (N, D) changed in place
    const float* __restrict__ bias,     // (D)
    int row_count,                      // N
    int width) {                        // D
    if (blockIdx.x >= (unsigned)row_count) return;
    bf16* row = rows + (i64)blockIdx.x * width;
    if (width % 8 == 0 && is_aligned_16(rows) && is_aligned_16(bias)) {
        for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
            float x[8], b[8];
            load_bf16x8(x, row + i);
            load_f32x8(b, bias + i);
#pragma unroll
            for (int k = 0; k < 8; k++) x[k] += b[k];
            store_bf16x8(row + i, x);
        }
    } else {
        for (int i = threadIdx.x; i < width; i += blockDim.x) row[i] = to_bf16(to_float(row[i]) + bias[i]);
    }
}

// d_bias += sum over rows of d_output. A block owns 32 columns of all rows; the order of the sum is add_column_sums'.
// Launch: ceil(D / 32) blocks of 1024 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024, 1)
bias_gradient(
    float* __restrict__ d_bias,         // (D) added to
    const bf16* __restrict__ d_output,  // (N, D)
    int rows,                           // N
    int width) {                        // D
    __shared__ float scratch[1024];
    add_column_sums<8>(
        d_bias, rows, width, width % 8 == 0 && is_aligned_16(d_output), scratch,
        [=](int row, int column) { return load_16_bytes(d_output + (i64)row * width + column); },
        [=](float (&sums)[8], const u32x4& loaded) {
            float dy[8];
            unpack_bf16x8(dy, loaded);
#pragma unroll
            for (int k = 0; k < 8; k++) sums[k] += dy[k];
        },
        [=](int row, int column) { return to_float(d_output[(i64)row * width + column]); });
}

// output = bf16(input), to nearest even.
// Launch: ceil(count / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
cast_to_bf16(
    bf16* __restrict__ output,          // (count) overwritten
    const float* __restrict__ input,    // (count)
    long long count) {
    for_each_eight(
        count, is_aligned_16(output) && is_aligned_16(input),
        [=](i64 i) {
            float x[8];
            load_f32x8(x, input + i);
            store_bf16x8(output + i, x);
        },
        [=](i64 i) { output[i] = to_bf16(input[i]); });
}
