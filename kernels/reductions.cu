// Sums of whole arrays in fp64, each in one fixed order; no atomics.
#include "port.cuh"

// The sum of an array by one block: every thread takes each T-th element, the threads meet as in block_sum.
LT_DEVICE double sum_by_block(const float* values, i64 count, double* scratch) {
    double sum = 0.0;
#pragma unroll 8
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) sum += (double)values[i];
    return block_sum(sum, scratch);
}

// *total += sum of the losses.
// Launch: one block of 1024 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
sum_losses(
    double* __restrict__ total,         // (1) added to
    const float* __restrict__ losses,   // (count)
    int count) {                        // N
    __shared__ double scratch[32];
    const double sum = sum_by_block(losses, count, scratch);
    if (threadIdx.x == 0) *total += sum;
}

// *total = sum of the values.
// Launch: one block of 1024 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
sum_values(
    double* __restrict__ total,         // (1) overwritten
    const float* __restrict__ values,   // (count)
    long long count) {
    __shared__ double scratch[32];
    const double sum = sum_by_block(values, count, scratch);
    if (threadIdx.x == 0) *total = sum;
}

constexpr int PartialElements = 32768, PartialThreads = 512;

// partials[b] = sum of the squares of the elements 32768*b .. 32768*b + 32767.
// Launch: ceil(count / 32768) blocks of 512 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(PartialThreads)
sum_of_squares(
    double* __restrict__ partials,      // (ceil(count / 32768)) overwritten
    const float* __restrict__ values,   // (count)
    long long count) {
    __shared__ double scratch[32];
    const i64 first = (i64)blockIdx.x * PartialElements;
    const int elements = (int)min(count - first, (i64)PartialElements);
    const float* block = values + first;
    // Whole vectors, each lane of a vector in a chain of its own; then what is left, one element a thread.
    const int whole = is_aligned_16(values) ? elements & ~3 : 0;
    double chains[4] = {};
#pragma unroll 4
    for (int i = threadIdx.x * 4; i < whole; i += PartialThreads * 4) {
        const f32x4 v = load_f32x4(block + i);
        chains[0] = fma((double)v.x, (double)v.x, chains[0]);
        chains[1] = fma((double)v.y, (double)v.y, chains[1]);
        chains[2] = fma((double)v.z, (double)v.z, chains[2]);
        chains[3] = fma((double)v.w, (double)v.w, chains[3]);
    }
    for (int i = whole + threadIdx.x; i < elements; i += PartialThreads) chains[0] = fma((double)block[i], (double)block[i], chains[0]);
    const double sum = block_sum((chains[0] + chains[1]) + (chains[2] + chains[3]), scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// *norm = sqrt(sum of the partials).
// Launch: one block of 1024 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
norm_of_partials(
    double* __restrict__ norm,          // (1) overwritten
    const double* __restrict__ partials,    // (count)
    int count) {                        // of sum_of_squares: one for each 32768 elements
    __shared__ double scratch[32];
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partials[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *norm = sqrt(sum);
}
