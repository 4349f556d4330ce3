// Kernels that use one primitive each; self_tests.cpp computes the same in plain C++.
#include "port.cuh"

extern "C" __global__ void shuffles(const float* x, float* y, int width) {
    int t = threadIdx.x;
    float v = x[t];
    y[t] = __shfl_sync(0xffffffffu, v, t * 7 + 3, width);
    y[64 + t] = __shfl_xor_sync(0xffffffffu, v, 5, width);
    y[128 + t] = __shfl_down_sync(0xffffffffu, v, 3, width);
    y[192 + t] = __shfl_up_sync(0xffffffffu, v, 3, width);
}
extern "C" __global__ void wide_shuffles(const double* x, double* y, const long long* i, long long* j) {
    int t = threadIdx.x;
    y[t] = __shfl_xor_sync(0xffffffffu, x[t], 16);
    j[t] = __shfl_down_sync(0xffffffffu, i[t], 1);
}
extern "C" __global__ void votes(const int* x, u32* y) {
    int t = threadIdx.x, v = x[t];
    y[t] = __ballot_sync(0xffffffffu, v > 0);
    y[64 + t] = (u32)__any_sync(0xffffffffu, v > 90);
    y[128 + t] = (u32)__all_sync(0xffffffffu, v > -101);
    // halves of a warp vote apart
    u32 half = (t & 16) ? 0xffff0000u : 0x0000ffffu;
    if (t & 16) y[192 + t] = __ballot_sync(half, v & 1);
    else y[192 + t] = __ballot_sync(half, v & 2);
}
extern "C" __global__ void indices(u32* y) {
    u32 threads = blockDim.x * blockDim.y * blockDim.z;
    u32 block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    u32 thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    y[block * threads + thread] = 1000000u * block + thread;
}
extern "C" __global__ void multiply(const u32* a, const u32* b, const float* c, float* d) {
    int lane = threadIdx.x;
    u32 fa[4], fb[2];
    float fc[4], fd[4];
    for (int i = 0; i < 4; i++) fa[i] = a[lane * 4 + i], fc[i] = c[lane * 4 + i];
    for (int i = 0; i < 2; i++) fb[i] = b[lane * 2 + i];
    mma_bf16_16816(fd, fa, fb, fc);
    mma_bf16_16816(fc, fa, fb, fc);  // the sum may be added to in place
    for (int i = 0; i < 4; i++) d[lane * 4 + i] = fd[i] == fc[i] ? fd[i] : -1e30f;
}
extern "C" __global__ void load_matrices(const u16* matrices, u32* plain, u32* transposed) {
    __shared__ __align__(16) u16 s[32 * 24];
    int lane = threadIdx.x;
    for (int i = 0; i < 8; i++) s[lane * 24 + i] = matrices[lane * 8 + i];
    __syncthreads();
    u32 fragments[4];
    ldmatrix_x4(fragments, s + lane * 24);
    for (int i = 0; i < 4; i++) plain[lane * 4 + i] = fragments[i];
    ldmatrix_x4_trans(fragments, s + lane * 24);
    for (int i = 0; i < 4; i++) transposed[lane * 4 + i] = fragments[i];
}
// y: what is in shared memory after wait_group 1 and after wait_group 0, with two groups started
extern "C" __global__ void async_groups(const float* x, float* y) {
    __shared__ __align__(16) float s[256];
    int t = threadIdx.x;
    cp_async16(s + t * 4, x + t * 4);
    cp_async_commit();
    cp_async16(s + 128 + t * 4, x + 128 + t * 4);
    cp_async_commit();
    cp_async_wait<1>();
    y[t] = s[t * 4];
    y[32 + t] = s[128 + t * 4];
    cp_async_wait<0>();
    y[64 + t] = s[128 + t * 4];
}
extern "C" __global__ void shared_at_start(u32* y) {
    LT_SHARED(bytes);
    __shared__ u32 s[64];
    y[blockIdx.x * 128 + threadIdx.x] = s[threadIdx.x];
    y[blockIdx.x * 128 + 64 + threadIdx.x] = ((u32*)bytes)[threadIdx.x];
    s[threadIdx.x] = 1;
    ((u32*)bytes)[threadIdx.x] = 2;
}
extern "C" __global__ void integer_atomics(int* y, u64* z) {
    int t = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(y, t);
    atomicMax(y + 1, t);
    atomicMin(y + 2, -t);
    atomicAdd(z, (u64)t << 32);
}
extern "C" __global__ void conversions(const float* x, int* y, u32* z) {
    int t = threadIdx.x;
    y[t] = __float2int_rn(x[t]);
    y[32 + t] = __float2int_rz(x[t]);
    z[t] = __float2uint_rn(x[t]);
    z[32 + t] = __umulhi(__float_as_uint(x[t]), 0xdeadbeefu);
}
extern "C" __global__ void contraction(const float* x, float* y) {
    int t = threadIdx.x;
    float a = x[t], b = x[t + 1], c = x[t + 2];
    y[t] = __fadd_rn(__fmul_rn(a, b), c);
    y[32 + t] = fmaf(a, b, c);
}
extern "C" __global__ void sums_in_double(const float* x, double* y, int n) {
    __shared__ double scratch[32];
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += (double)x[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) y[0] = sqrt(sum * sum);
}
// one barrier a step, and threads that leave early do not count
extern "C" __global__ void tree_sum(const float* x, float* y, int leavers) {
    LT_SHARED(bytes);
    float* s = (float*)bytes;
    int t = threadIdx.x, n = (int)blockDim.x - leavers;
    if (t >= n) return;
    s[t] = x[blockIdx.x * blockDim.x + t];
    __syncthreads();
    for (int distance = n / 2; distance; distance /= 2) {
        if (t < distance) s[t] += s[t + distance];
        __syncthreads();
    }
    if (t == 0) y[blockIdx.x] = s[0];
}
struct Pair {
    const float* x;
    float* y;
    int n;
    float scale;
    long long offset;
};
extern "C" __global__ void by_structure(Pair p, unsigned char small, double factor) {
    if ((int)threadIdx.x < p.n) p.y[threadIdx.x + p.offset] = p.x[threadIdx.x] * p.scale * (float)small * (float)factor;
}
extern "C" __global__ void __launch_bounds__(64 * 2, 1) bounded(float* y) { y[threadIdx.x] = 1.0f; }
#if defined(NEVER_DEFINED)
extern "C" __global__ void left_out(float* y) { y[0] = 1.0f; }  // a kernel that is not there
#endif
/* extern "C" __global__ void commented_out(float* y) { } */
#define MAKE(name, value) extern "C" __global__ void name(float* y) { y[threadIdx.x] = value; }
MAKE(made_by_macro, 3.0f)

// ---- for measuring ----
extern "C" __global__ void measure_empty(float* p) { if (p == nullptr) p[0] = 1.0f; }
extern "C" __global__ void measure_barrier(float* p, int n) {
    for (int i = 0; i < n; i++) __syncthreads();
    if (n < 0) p[0] = 1.0f;
}
extern "C" __global__ void measure_shuffle(float* p, int n) {
    float v = (float)threadIdx.x;
    for (int i = 0; i < n; i++) v = __shfl_xor_sync(0xffffffffu, v, 1 << (i % 5));
    if (n < 0) p[0] = v;
}
extern "C" __global__ void measure_mma(float* p, int n) {
    u32 a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
    float c[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    for (int i = 0; i < n; i++) mma_bf16_16816(c, a, b, c);
    if (n < 0) p[0] = c[0];
}
extern "C" __global__ void measure_ldmatrix(float* p, int n) {
    LT_SHARED(bytes);
    u32 r[4], sum = 0;
    for (int i = 0; i < n; i++) {
        ldmatrix_x4(r, bytes + threadIdx.x % 32 * 16);
        sum += r[0];
    }
    if (n < 0) p[0] = (float)sum;
}
extern "C" __global__ void measure_shared(float* p, int n) {
    __shared__ float s[1024];
    s[threadIdx.x] = p[threadIdx.x];
    __syncthreads();
    float v = 0.0f;
    for (int i = 0; i < n; i++) v += s[(threadIdx.x + i) & 255];
    if (v == 12345.0f) p[0] = v;
}
