// Small kernels with one planted mistake each. Compiled as they stand they are right; with -DLT_WRONG they hold the mistake.
// Every kernel reads x and writes y; n and the launch are in planted.cpp.
#include "port.cuh"

#if defined(LT_WRONG)
#define RIGHT(...)
#define WRONG(...) __VA_ARGS__
#define EITHER(right, wrong) wrong
#else
#define RIGHT(...) __VA_ARGS__
#define WRONG(...)
#define EITHER(right, wrong) right
#endif
#define KERNEL(name) extern "C" __global__ void name([[maybe_unused]] const float* x, float* y, [[maybe_unused]] int n)

// ---- barriers ----
KERNEL(barrier_in_divergent_branch) {
    float v = x[threadIdx.x];
    RIGHT(__syncthreads();)
    RIGHT(v = __shfl_xor_sync(0xffffffffu, v, 1);)
#if defined(LT_WRONG)
    if ((threadIdx.x & 31) < 16) __syncthreads();
    else v = __shfl_xor_sync(0xffffffffu, v, 1);
#endif
    if ((int)threadIdx.x < n) y[threadIdx.x] = v;
}
KERNEL(two_different_barriers) {
    y[threadIdx.x] = x[threadIdx.x] + n;
    RIGHT(__syncthreads();)
#if defined(LT_WRONG)
    if (threadIdx.x < 128) {
        __syncthreads();
    } else {
        __syncthreads();
    }
#endif
}
KERNEL(barrier_in_uneven_loop) {
    float sum = 0.0f;
    for (int i = EITHER(0, threadIdx.x); i < n; i += 256) {
        __syncthreads();
        sum += 1.0f;
    }
    __syncthreads();
    y[threadIdx.x] = sum + x[threadIdx.x];
}
KERNEL(missing_barrier) {
    __shared__ float s[256];
    s[threadIdx.x] = x[threadIdx.x];
    RIGHT(__syncthreads();)
    y[threadIdx.x] = s[n - 1 - threadIdx.x];
}
KERNEL(missing_barrier_reads_lower) {
    __shared__ float s[256];
    s[threadIdx.x] = x[threadIdx.x];
    RIGHT(__syncthreads();)
    y[threadIdx.x] = s[threadIdx.x / 2] + n;
}
KERNEL(missing_barrier_before_reuse) {
    __shared__ float s[256];
    float sum = 0.0f;
    for (int round = 0; round < n; round++) {
        s[threadIdx.x] = x[threadIdx.x] * (float)(round + 1);
        __syncthreads();
        sum += s[255 - threadIdx.x];
        RIGHT(__syncthreads();)
    }
    y[threadIdx.x] = sum;
}
KERNEL(missing_barrier_after_block_sum) {
    __shared__ float scratch[32];
    float first = block_sum(x[threadIdx.x], scratch);
    RIGHT(__syncthreads();)
    float second = block_sum(x[threadIdx.x] * 2.0f, scratch);
    y[threadIdx.x] = first + second + n;
}
KERNEL(missing_warp_barrier) {
    __shared__ float s[256];
    s[threadIdx.x] = x[threadIdx.x];
    RIGHT(__syncwarp();)
    y[threadIdx.x] = s[threadIdx.x ^ 1] + n;
}
KERNEL(missing_barrier_on_dynamic_memory) {
    LT_SHARED(bytes);
    float* s = (float*)bytes;
    if ((int)threadIdx.x == n - 1) s[0] = x[7];
    RIGHT(__syncthreads();)
    y[threadIdx.x] = s[0];
}

// ---- shuffles ----
KERNEL(one_mask_on_two_shuffles) {
    float v = x[threadIdx.x];
    RIGHT(v += __shfl_xor_sync(0xffffffffu, v, 1);)
#if defined(LT_WRONG)
    if ((threadIdx.x & 31) < 16) v += __shfl_xor_sync(0xffffffffu, v, 1);
    else v += __shfl_xor_sync(0xffffffffu, v, 1);
#endif
    y[threadIdx.x] = v + n;
}
KERNEL(mask_without_the_caller) {
    float v = x[threadIdx.x];
    v += __shfl_xor_sync(EITHER(0xffffffffu, 0x0000ffffu), v, 1);
    y[threadIdx.x] = v + n;
}
KERNEL(overlapping_masks) {
    float v = x[threadIdx.x];
    unsigned mine = (threadIdx.x & 31) < 16 ? EITHER(0x0000ffffu, 0x0001ffffu) : 0xffff0000u;
    v += __shfl_xor_sync(mine, v, 1);
    y[threadIdx.x] = v + n;
}
KERNEL(shuffle_from_outside_the_mask) {
    float v = x[threadIdx.x];
    if ((threadIdx.x & 31) < 16) v = __shfl_down_sync(0x0000ffffu, v, 8, EITHER(16, 32));
    y[threadIdx.x] = v + n;
}
KERNEL(shuffle_after_some_lanes_left) {
    if ((threadIdx.x & 31) >= EITHER(32, 24)) return;
    float v = warp_sum(x[threadIdx.x]);
    if ((threadIdx.x & 31) == 0) y[threadIdx.x / 32] = v + n;
}
KERNEL(half_warp_reduction) {
    float v = x[threadIdx.x];
    for (int distance = EITHER(16, 8); distance; distance >>= 1) v += __shfl_down_sync(0xffffffffu, v, distance);
    if ((threadIdx.x & 31) == 0) y[threadIdx.x / 32] = v + n;
}

// ---- cp.async ----
KERNEL(missing_async_wait) {
    __shared__ __align__(16) float s[1024];
    cp_async16(s + threadIdx.x * 4, x + threadIdx.x * 4);
    cp_async_commit();
    RIGHT(cp_async_wait<0>();)
    __syncthreads();
    y[threadIdx.x] = s[n - 1 - threadIdx.x * 4];
}
KERNEL(missing_async_commit) {
    __shared__ __align__(16) float s[1024];
    cp_async16(s + threadIdx.x * 4, x + threadIdx.x * 4);
    RIGHT(cp_async_commit();)
    cp_async_wait<0>();
    __syncthreads();
    y[threadIdx.x] = s[n - 1 - threadIdx.x * 4];
}
KERNEL(async_wait_without_barrier) {
    __shared__ __align__(16) float s[1024];
    cp_async16(s + threadIdx.x * 4, x + threadIdx.x * 4);
    cp_async_commit();
    cp_async_wait<0>();
    RIGHT(__syncthreads();)
    y[threadIdx.x] = s[n - 1 - threadIdx.x * 4];
}
// Two stages: the next tile is on its way while this one is summed.
KERNEL(async_wait_for_one_group_too_few) {
    __shared__ __align__(16) float s[2][512];
    float sum = 0.0f;
    cp_async16(&s[0][threadIdx.x * 4], x + threadIdx.x * 4);
    cp_async_commit();
    for (int tile = 0; tile < n; tile++) {
        if (tile + 1 < n) cp_async16(&s[(tile + 1) & 1][threadIdx.x * 4], x + (tile + 1) * 512 + threadIdx.x * 4);
        RIGHT(cp_async_commit();)
        WRONG(if (tile + 1 < n) cp_async_commit();)
        cp_async_wait<1>();
        __syncthreads();
        sum += s[tile & 1][511 - threadIdx.x * 4];
        __syncthreads();
    }
    y[threadIdx.x] = sum;
}
KERNEL(async_copy_into_a_stage_in_use) {
    __shared__ __align__(16) float s[2][512];
    float sum = 0.0f;
    cp_async16(&s[0][threadIdx.x * 4], x + threadIdx.x * 4);
    cp_async_commit();
    for (int tile = 0; tile < n; tile++) {
        if (tile + 1 < n) cp_async16(&s[(tile + 1) & 1][threadIdx.x * 4], x + (tile + 1) * 512 + threadIdx.x * 4);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        sum += s[tile & 1][511 - threadIdx.x * 4];
        RIGHT(__syncthreads();)
    }
    y[threadIdx.x] = sum;
}
KERNEL(async_source_overwritten) {
    __shared__ __align__(16) float s[1024];
    if ((int)threadIdx.x < n) cp_async16(s + threadIdx.x * 4, y + threadIdx.x * 4);
    cp_async_commit();
    RIGHT(cp_async_wait<0>();)
    for (int i = 0; i < 4; i++) y[threadIdx.x * 4 + i] = 0.0f * x[0];
    WRONG(cp_async_wait<0>();)
    for (int i = 0; i < 4; i++) y[threadIdx.x * 4 + i] = s[threadIdx.x * 4 + i] + 1.0f;
}
KERNEL(async_misaligned) {
    __shared__ __align__(16) float s[1024];
    cp_async16(s + threadIdx.x * 4, x + EITHER(0, 1) + threadIdx.x * 4);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    y[threadIdx.x] = s[n - 1 - threadIdx.x * 4];
}

// ---- memory ----
KERNEL(uninitialised_shared) {
    __shared__ float s[256];
    if ((int)threadIdx.x >= EITHER(0, 1)) s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[n - 1 - threadIdx.x];
}
KERNEL(uninitialised_dynamic_shared) {
    LT_SHARED(bytes);
    float* s = (float*)bytes;
    RIGHT(s[threadIdx.x] = 0.0f;)
    __syncthreads();
    s[threadIdx.x] += x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[n - 1 - threadIdx.x];
}
KERNEL(output_left_unwritten) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < EITHER(n, n / 32 * 32)) y[i] = x[i];
}
KERNEL(far_out_of_bounds) {
    y[threadIdx.x + EITHER(0, blockIdx.x * 1000000)] = x[threadIdx.x] + n;
}
KERNEL(one_past_the_end) {
    if ((int)threadIdx.x EITHER(<, <=) n) y[threadIdx.x] = x[threadIdx.x];
}
KERNEL(one_before_the_start) {
    if ((int)threadIdx.x < n) y[(int)threadIdx.x - EITHER(0, 1)] = x[threadIdx.x];
}
KERNEL(read_past_the_end) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i EITHER(<, <=) n; i += 32) sum += x[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) y[0] = sum;
}
KERNEL(null_pointer) {
    const float* p = EITHER(x, nullptr);
    y[threadIdx.x] = p[threadIdx.x] + n;
}
KERNEL(misaligned_16_byte_load) {
    u32x4 v = *(const u32x4*)(x + EITHER(threadIdx.x * 4, threadIdx.x));
    y[threadIdx.x] = __uint_as_float(v.x) + n;
}
KERNEL(misaligned_16_byte_store) {
    u32x4 v = {__float_as_uint(x[threadIdx.x]), 0, 0, 0};
    if ((int)threadIdx.x < n) *(u32x4*)(y + EITHER(threadIdx.x * 4, threadIdx.x * 2)) = v;
}
KERNEL(past_a_static_shared_array) {
    __shared__ float s[256], other[256];
    s[threadIdx.x] = x[threadIdx.x];
    other[threadIdx.x] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = s[(int)threadIdx.x + EITHER(0, n)] + other[threadIdx.x];
}
KERNEL(past_dynamic_shared) {
    LT_SHARED(bytes);
    float* s = (float*)bytes;
    s[threadIdx.x + EITHER(0, n / 256)] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x + EITHER(0, n / 256)];
}
KERNEL(before_dynamic_shared) {
    LT_SHARED(bytes);
    float* s = (float*)bytes - EITHER(0, 1);
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[n - 1 - threadIdx.x];
}
KERNEL(index_overflow) {
    int row = 70000 + (int)threadIdx.x;
    EITHER(long long, int) at = EITHER((long long)row, row) * (n * 128);
    y[threadIdx.x] = x[at % 256 < 0 ? 0 : at % 256];
}
KERNEL(division_by_zero) {
    y[threadIdx.x] = x[threadIdx.x] + (float)((int)threadIdx.x / EITHER((n + 1), (n - 256)));
}
KERNEL(blocks_write_one_place) {
    if (threadIdx.x == 0) y[EITHER(blockIdx.x, 0)] = x[blockIdx.x] + n;
    RIGHT(if (blockIdx.x == 0 && threadIdx.x == 0) y[0] = x[gridDim.x - 1] + n;)
}
KERNEL(endless_loop) {
    volatile int round = 0;
    while (round >= EITHER(10, 0)) round = n;
    y[threadIdx.x] = x[threadIdx.x];
}

// ---- fragments: y (16x8) = a (16x16) b (16x8); x holds a, row-major, and then b transposed (8x16), as bf16 ----
LT_DEVICE void product(const float* x, float* y, int swapped_a, int swapped_d, int swapped_b) {
    const bf16 *a = (const bf16*)x, *b = a + 256;
    const int lane = threadIdx.x & 31, group = lane >> 2, pair = (lane & 3) * 2;
    u32 fa[4] = {load_4_bytes(a + group * 16 + pair), load_4_bytes(a + (group + 8) * 16 + pair), load_4_bytes(a + group * 16 + pair + 8),
                 load_4_bytes(a + (group + 8) * 16 + pair + 8)};
    u32 fb[2] = {load_4_bytes(b + group * 16 + pair), load_4_bytes(b + group * 16 + pair + 8)};
    if (swapped_a) { u32 t = fa[1]; fa[1] = fa[2]; fa[2] = t; }
    if (swapped_b) { u32 t = fb[0]; fb[0] = fb[1]; fb[1] = t; }
    float d[4], zero[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    mma_bf16_16816(d, fa, fb, zero);
    if (swapped_d) { float t = d[1]; d[1] = d[2]; d[2] = t; }
    y[group * 8 + pair] = d[0], y[group * 8 + pair + 1] = d[1];
    y[(group + 8) * 8 + pair] = d[2], y[(group + 8) * 8 + pair + 1] = d[3];
}
KERNEL(fragments_of_a_swapped) { product(x, y, EITHER(0, n), 0, 0); }
KERNEL(fragments_of_b_swapped) { product(x, y, 0, 0, EITHER(0, n)); }
KERNEL(fragments_of_d_swapped) { product(x, y, 0, EITHER(0, n), 0); }
KERNEL(mma_in_a_branch) {
    if (threadIdx.x < EITHER(32, 16)) product(x, y, 0, 0, 0 * n);
}

// The same product with b (16x8) as it is in memory, so that its fragments need .trans. x: a, then b row-major.
LT_DEVICE void product_from_shared(const float* x, float* y, int stride, bool plain) {
    __shared__ __align__(16) bf16 a[16 * 24], b[16 * 24];
    const bf16 *ga = (const bf16*)x, *gb = ga + 256;
    for (int i = threadIdx.x; i < 256; i += 32) a[i / 16 * stride + i % 16] = ga[i];
    for (int i = threadIdx.x; i < 256; i += 32) b[i / 16 * stride + i % 16] = gb[i];
    __syncthreads();
    const int lane = threadIdx.x;
    u32 fa[4], fb[4];
    ldmatrix_x4(fa, a + (lane & 15) * stride + (lane >> 4) * 8);
    if (plain) ldmatrix_x4(fb, b + (lane & 15) * stride + (lane >> 4) * 8);
    else ldmatrix_x4_trans(fb, b + (lane & 15) * stride + (lane >> 4) * 8);
    const u32 first[2] = {fb[0], fb[1]}, second[2] = {fb[2], fb[3]};
    float d[2][4], zero[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    mma_bf16_16816(d[0], fa, first, zero);
    mma_bf16_16816(d[1], fa, second, zero);
    const int group = lane >> 2, pair = (lane & 3) * 2;
    for (int tile = 0; tile < 2; tile++)
        for (int e = 0; e < 4; e++) y[(group + (e >> 1) * 8) * 16 + tile * 8 + pair + (e & 1)] = d[tile][e];
}
KERNEL(missing_trans) { product_from_shared(x, y, n, EITHER(false, true)); }
KERNEL(ldmatrix_row_misaligned) { product_from_shared(x, y, n - EITHER(0, 4), false); }

// ---- logic that only numbers can show ----
KERNEL(causal_mask_off_by_one) {
    const int row = threadIdx.x;
    float largest = -LT_INFINITY, sum = 0.0f;
    for (int key = 0; key EITHER(<=, <) row; key++) largest = fmaxf(largest, x[key]);
    for (int key = 0; key EITHER(<=, <) row; key++) sum += expf(x[key] - largest);
    if (row < n) y[row] = largest + logf(sum);
}
KERNEL(tail_not_masked) {
    float sum = 0.0f;
    for (int start = 0; start < n; start += 32) {
        int i = start + (int)threadIdx.x;
        sum += EITHER(i < n ? x[i] : 0.0f, x[i < n ? i : n - 1]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0) y[0] = sum;
}
KERNEL(second_block_sums_again) {
    float sum = 0.0f;
    for (int i = threadIdx.x + EITHER(blockIdx.x * 32, 0); i < n; i += EITHER(gridDim.x * 32, 32)) sum += x[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

// ---- what cannot be found here: threads are not preempted, so these run as if they were right ----
KERNEL(lost_update) {
    RIGHT(atomicAdd((u32*)y, 1u);)
    WRONG(u32 old = *(volatile u32*)y; *(volatile u32*)y = old + 1u;)
    if (threadIdx.x == 0 && n < 0) y[1] = x[0];
}
