// Copies between chosen rows, or neighbouring columns, of a bf16 matrix and a matrix of their own.
#include "port.cuh"

// output[i] = input[rows[i]], one row a block.
// Launch: M blocks of min(1024, 32 * ceil(D / 512)) threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
rows_gather(
    bf16* __restrict__ output,          // (M, D) overwritten; not the input
    const bf16* __restrict__ input,     // (N, D)
    const int* __restrict__ rows,       // (M) in 0..N-1
    int count,                          // M
    int width) {                        // D
    if (blockIdx.x >= (unsigned)count) return;
    const bool aligned = width % 8 == 0 && is_aligned_16(output) && is_aligned_16(input);
    copy_row(output + (i64)blockIdx.x * width, input + (i64)rows[blockIdx.x] * width, width, aligned);
}

// output[rows[i]] = input[i], one row a block; rows that are not named keep their content.
// Launch: M blocks of min(1024, 32 * ceil(D / 512)) threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
rows_scatter(
    bf16* __restrict__ output,          // (N, D) the named rows are overwritten; not the input
    const bf16* __restrict__ input,     // (M, D)
    const int* __restrict__ rows,       // (M) in 0..N-1, each at most once
    int count,                          // M
    int width) {                        // D
    if (blockIdx.x >= (unsigned)count) return;
    const bool aligned = width % 8 == 0 && is_aligned_16(output) && is_aligned_16(input);
    copy_row(output + (i64)rows[blockIdx.x] * width, input + (i64)blockIdx.x * width, width, aligned);
}

// output[i, j] = input[i, first + j], one row a block.
// Launch: N blocks of min(1024, 32 * ceil(C / 512)) threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
columns_gather(
    bf16* __restrict__ output,          // (N, C) overwritten; not the input
    const bf16* __restrict__ input,     // (N, D)
    int count,                          // N
    int width,                          // C
    int whole_width,                    // D
    int first) {                        // column
    if (blockIdx.x >= (unsigned)count) return;
    const bool aligned = width % 8 == 0 && whole_width % 8 == 0 && is_aligned_16(output) && is_aligned_16(input + first);
    copy_row(output + (i64)blockIdx.x * width, input + (i64)blockIdx.x * whole_width + first, width, aligned);
}

// output[i, first + j] = input[i, j], one row a block; other columns keep their content.
// Launch: N blocks of min(1024, 32 * ceil(C / 512)) threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
columns_scatter(
    bf16* __restrict__ output,          // (N, D) the columns are overwritten; not the input
    const bf16* __restrict__ input,     // (N, C)
    int count,                          // N
    int width,                          // C
    int whole_width,                    // D
    int first) {                        // column
    if (blockIdx.x >= (unsigned)count) return;
    const bool aligned = width % 8 == 0 && whole_width % 8 == 0 && is_aligned_16(output + first) && is_aligned_16(input);
    copy_row(output + (i64)blockIdx.x * whole_width + first, input + (i64)blockIdx.x * width, width, aligned);
}
