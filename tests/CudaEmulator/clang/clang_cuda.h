// clang_cuda.h - what "clang -x cuda" needs to compile the kernels without a CUDA toolkit, and not more than NVRTC has built in.
//
// For the compile check only: there is no libdevice, so the transcendental functions are the hardware's approximations.
#pragma once
#if !defined(__clang__) || !defined(__CUDA__)
#error "only for clang -x cuda without a CUDA toolkit"
#endif

#define __host__ __attribute__((host))
#define __device__ __attribute__((device))
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))
#define __constant__ __attribute__((constant))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))

typedef __SIZE_TYPE__ size_t;
struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
};
#include <__clang_cuda_builtin_vars.h>  // threadIdx and the like; comes with clang

#define LT_CLANG static __device__ __forceinline__

// __syncthreads is a builtin of clang
LT_CLANG void __syncwarp(unsigned mask = 0xffffffffu) { __nvvm_bar_warp_sync(mask); }
LT_CLANG void __threadfence() { __nvvm_membar_gl(); }
LT_CLANG void __threadfence_block() { __nvvm_membar_cta(); }
LT_CLANG void __trap() { __builtin_trap(); }

// ---- bits ----
LT_CLANG float __uint_as_float(unsigned u) { return __builtin_bit_cast(float, u); }
LT_CLANG unsigned __float_as_uint(float f) { return __builtin_bit_cast(unsigned, f); }
LT_CLANG float __int_as_float(int i) { return __builtin_bit_cast(float, i); }
LT_CLANG int __float_as_int(float f) { return __builtin_bit_cast(int, f); }
LT_CLANG double __longlong_as_double(long long i) { return __builtin_bit_cast(double, i); }
LT_CLANG long long __double_as_longlong(double d) { return __builtin_bit_cast(long long, d); }
LT_CLANG unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
LT_CLANG unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned long long)(((unsigned __int128)a * b) >> 64); }
LT_CLANG int __popc(unsigned x) { return __builtin_popcount(x); }
LT_CLANG int __ffs(int x) { return __builtin_ffs(x); }
LT_CLANG int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }

// ---- votes and shuffles ----
LT_CLANG unsigned __ballot_sync(unsigned mask, int predicate) { return __nvvm_vote_ballot_sync(mask, predicate); }
LT_CLANG int __any_sync(unsigned mask, int predicate) { return __nvvm_vote_any_sync(mask, predicate); }
LT_CLANG int __all_sync(unsigned mask, int predicate) { return __nvvm_vote_all_sync(mask, predicate); }
#define LT_SHUFFLE(name, mode, offset_type, clamp)                                                                                      \
    LT_CLANG int name(unsigned mask, int value, offset_type offset, int width = 32) {                                                   \
        return __nvvm_shfl_sync_##mode##_i32(mask, value, (int)offset, ((32 - width) << 8) | clamp);                                    \
    }                                                                                                                                   \
    LT_CLANG unsigned name(unsigned mask, unsigned value, offset_type offset, int width = 32) {                                         \
        return (unsigned)name(mask, (int)value, offset, width);                                                                         \
    }                                                                                                                                   \
    LT_CLANG float name(unsigned mask, float value, offset_type offset, int width = 32) {                                               \
        return __nvvm_shfl_sync_##mode##_f32(mask, value, (int)offset, ((32 - width) << 8) | clamp);                                    \
    }                                                                                                                                   \
    LT_CLANG unsigned long long name(unsigned mask, unsigned long long value, offset_type offset, int width = 32) {                     \
        unsigned low = name(mask, (unsigned)value, offset, width), high = name(mask, (unsigned)(value >> 32), offset, width);           \
        return (unsigned long long)high << 32 | low;                                                                                    \
    }                                                                                                                                   \
    LT_CLANG long long name(unsigned mask, long long value, offset_type offset, int width = 32) {                                       \
        return (long long)name(mask, (unsigned long long)value, offset, width);                                                         \
    }                                                                                                                                   \
    LT_CLANG double name(unsigned mask, double value, offset_type offset, int width = 32) {                                             \
        return __builtin_bit_cast(double, name(mask, __builtin_bit_cast(unsigned long long, value), offset, width));                    \
    }
LT_SHUFFLE(__shfl_sync, idx, int, 0x1f)
LT_SHUFFLE(__shfl_xor_sync, bfly, int, 0x1f)
LT_SHUFFLE(__shfl_down_sync, down, unsigned, 0x1f)
LT_SHUFFLE(__shfl_up_sync, up, unsigned, 0)
#undef LT_SHUFFLE

// ---- atomics on integers; those on floats are left out, because the order of their additions is not fixed ----
LT_CLANG int atomicAdd(int* p, int v) { return __nvvm_atom_add_gen_i(p, v); }
LT_CLANG unsigned atomicAdd(unsigned* p, unsigned v) { return (unsigned)__nvvm_atom_add_gen_i((int*)p, (int)v); }
LT_CLANG unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) { return (unsigned long long)__nvvm_atom_add_gen_ll((long long*)p, (long long)v); }
LT_CLANG int atomicMax(int* p, int v) { return __nvvm_atom_max_gen_i(p, v); }
LT_CLANG int atomicMin(int* p, int v) { return __nvvm_atom_min_gen_i(p, v); }
LT_CLANG unsigned atomicCAS(unsigned* p, unsigned expected, unsigned v) { return (unsigned)__nvvm_atom_cas_gen_i((int*)p, (int)expected, (int)v); }

// ---- maths ----
LT_CLANG float sqrtf(float x) { return __nvvm_sqrt_rn_f(x); }
LT_CLANG float rsqrtf(float x) { return __nvvm_rsqrt_approx_f(x); }
LT_CLANG float exp2f(float x) { return __nvvm_ex2_approx_ftz_f(x); }
LT_CLANG float expf(float x) { return __nvvm_ex2_approx_ftz_f(x * 1.4426950408889634f); }
LT_CLANG float log2f(float x) { return __nvvm_lg2_approx_ftz_f(x); }
LT_CLANG float logf(float x) { return __nvvm_lg2_approx_ftz_f(x) * 0.6931471805599453f; }
LT_CLANG float sinf(float x) { return __nvvm_sin_approx_f(x); }
LT_CLANG float cosf(float x) { return __nvvm_cos_approx_f(x); }
LT_CLANG float __expf(float x) { return expf(x); }
LT_CLANG float __logf(float x) { return logf(x); }
LT_CLANG float fabsf(float x) { return __builtin_fabsf(x); }
LT_CLANG float fmaxf(float a, float b) { return __builtin_fmaxf(a, b); }
LT_CLANG float fminf(float a, float b) { return __builtin_fminf(a, b); }
LT_CLANG float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
LT_CLANG float floorf(float x) { return __builtin_floorf(x); }
LT_CLANG float rintf(float x) { return __builtin_rintf(x); }
LT_CLANG double sqrt(double x) { return __nvvm_sqrt_rn_d(x); }
LT_CLANG double fabs(double x) { return __builtin_fabs(x); }
LT_CLANG double fmax(double a, double b) { return __builtin_fmax(a, b); }
LT_CLANG double fmin(double a, double b) { return __builtin_fmin(a, b); }
LT_CLANG double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
LT_CLANG float __fadd_rn(float a, float b) { return __nvvm_add_rn_f(a, b); }
LT_CLANG float __fsub_rn(float a, float b) { return __nvvm_add_rn_f(a, -b); }
LT_CLANG float __fmul_rn(float a, float b) { return __nvvm_mul_rn_f(a, b); }
LT_CLANG float __fdiv_rn(float a, float b) { return __nvvm_div_rn_f(a, b); }
LT_CLANG float __frcp_rn(float a) { return __nvvm_rcp_rn_f(a); }
LT_CLANG float __fsqrt_rn(float a) { return __nvvm_sqrt_rn_f(a); }
LT_CLANG float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
LT_CLANG double __dadd_rn(double a, double b) { return __nvvm_add_rn_d(a, b); }
LT_CLANG double __dmul_rn(double a, double b) { return __nvvm_mul_rn_d(a, b); }
LT_CLANG int __float2int_rn(float x) { return __nvvm_f2i_rn(x); }
LT_CLANG int __float2int_rz(float x) { return __nvvm_f2i_rz(x); }
LT_CLANG unsigned __float2uint_rn(float x) { return __nvvm_f2ui_rn(x); }
LT_CLANG float __int2float_rn(int x) { return (float)x; }
#define LT_MIN_MAX(type)                                       \
    LT_CLANG type min(type a, type b) { return b < a ? b : a; } \
    LT_CLANG type max(type a, type b) { return a < b ? b : a; }
LT_MIN_MAX(int)
LT_MIN_MAX(unsigned)
LT_MIN_MAX(long long)
LT_MIN_MAX(unsigned long long)
#undef LT_MIN_MAX
LT_CLANG float min(float a, float b) { return __builtin_fminf(a, b); }
LT_CLANG float max(float a, float b) { return __builtin_fmaxf(a, b); }
template <class T> LT_CLANG T __ldg(const T* p) { return *p; }
#undef LT_CLANG
