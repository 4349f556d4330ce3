// twins.cu - every wrapper of port.cuh that holds inline PTX, twice: ours_NAME calls the wrapper, twin_NAME asks LLVM for the same
// instruction through an intrinsic, which LLVM prints by its own tables. check.sh compares the two texts, so that a misspelt instruction
// or a wrong shape of operands shows although the compiler passes inline PTX on unread.
#include "port.cuh"

struct four_floats { float a, b, c, d; };
struct four_words { u32 a, b, c, d; };
typedef __attribute__((address_space(3))) void* in_shared;
typedef const __attribute__((address_space(3))) void* const_in_shared;
typedef const __attribute__((address_space(1))) void* in_global;
typedef __bf16 two_bf16 __attribute__((ext_vector_type(2)));

extern __device__ four_floats llvm_mma(u32, u32, u32, u32, u32, u32, float, float, float, float) __asm("llvm.nvvm.mma.m16n8k16.row.col.bf16");
extern __device__ four_words llvm_ldmatrix(const_in_shared) __asm("llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.b16.p3");
extern __device__ four_words llvm_ldmatrix_trans(const_in_shared) __asm("llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.trans.b16.p3");

#define OURS(name, ...) extern "C" __global__ void ours_##name(__VA_ARGS__)
#define TWIN(name, ...) extern "C" __global__ void twin_##name(__VA_ARGS__)

OURS(pack_bf16, const float* x, u32* y) { y[0] = pack_bf16(x[0], x[1]); }
TWIN(pack_bf16, const float* x, u32* y) { y[0] = __builtin_bit_cast(u32, (two_bf16)__nvvm_ff2bf16x2_rn(x[1], x[0])); }

OURS(fast_exp2, const float* x, float* y) { y[0] = fast_exp2(x[0]); }
TWIN(fast_exp2, const float* x, float* y) { y[0] = __nvvm_ex2_approx_ftz_f(x[0]); }

OURS(fast_reciprocal, const float* x, float* y) { y[0] = fast_reciprocal(x[0]); }
TWIN(fast_reciprocal, const float* x, float* y) { y[0] = __nvvm_rcp_approx_ftz_f(x[0]); }

OURS(shared_address, u32* y) {
    __shared__ u32 s[4];
    y[0] = shared_address(s + y[1]);
}
TWIN(shared_address, u32* y, void* generic) { y[0] = (u32)(u64)(const_in_shared)generic; }

OURS(mma_bf16_16816, const u32* a, const u32* b, const float* c, float* d) {
    const u32 fa[4] = {a[0], a[1], a[2], a[3]}, fb[2] = {b[0], b[1]};
    const float fc[4] = {c[0], c[1], c[2], c[3]};
    float fd[4];
    mma_bf16_16816(fd, fa, fb, fc);
    d[0] = fd[0], d[1] = fd[1], d[2] = fd[2], d[3] = fd[3];
}
TWIN(mma_bf16_16816, const u32* a, const u32* b, const float* c, float* d) {
    four_floats fd = llvm_mma(a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]);
    d[0] = fd.a, d[1] = fd.b, d[2] = fd.c, d[3] = fd.d;
}

#define LDMATRIX(name, llvm)                                       \
    OURS(name, u32* y) {                                           \
        __shared__ u32 s[128];                                     \
        s[threadIdx.x] = y[threadIdx.x];                           \
        __syncthreads();                                           \
        u32 r[4];                                                  \
        name(r, s + threadIdx.x * 4);                              \
        y[0] = r[0], y[1] = r[1], y[2] = r[2], y[3] = r[3];        \
    }                                                              \
    TWIN(name, u32* y) {                                           \
        __shared__ u32 s[128];                                     \
        s[threadIdx.x] = y[threadIdx.x];                           \
        __syncthreads();                                           \
        four_words r = llvm((const_in_shared)(s + threadIdx.x * 4)); \
        y[0] = r.a, y[1] = r.b, y[2] = r.c, y[3] = r.d;            \
    }
LDMATRIX(ldmatrix_x4, llvm_ldmatrix)
LDMATRIX(ldmatrix_x4_trans, llvm_ldmatrix_trans)

#define COPY(name, ours, ...)                                       \
    OURS(name, [[maybe_unused]] const float* x, float* y, u32 present) { \
        __shared__ float s[512];                                    \
        ours;                                                       \
        y[0] = s[threadIdx.x] + (float)present;                     \
    }                                                               \
    TWIN(name, [[maybe_unused]] const float* x, float* y, u32 present) { \
        __shared__ float s[512];                                    \
        __VA_ARGS__;                                                \
        y[0] = s[threadIdx.x] + (float)present;                     \
    }
#define DESTINATION (in_shared)(s + threadIdx.x * 4), (in_global)x
COPY(cp_async16, cp_async16(s + threadIdx.x * 4, x), __nvvm_cp_async_cg_shared_global_16(DESTINATION))
COPY(cp_async16_or_zero, cp_async16_or_zero(s + threadIdx.x * 4, x, present != 0), __nvvm_cp_async_cg_shared_global_16(DESTINATION, present ? 16 : 0))
COPY(cp_async4_or_zero, cp_async4_or_zero(s + threadIdx.x * 4, x, present != 0), __nvvm_cp_async_ca_shared_global_4(DESTINATION, present ? 4 : 0))
COPY(cp_async_commit, cp_async_commit(), __nvvm_cp_async_commit_group())
COPY(cp_async_wait, cp_async_wait<1>(), __nvvm_cp_async_wait_group(1))
