// Copies between chosen rows of a bf16 matrix and a dense block of rows.
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
