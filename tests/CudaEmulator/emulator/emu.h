// emu.h - the CUDA device language for a host compiler (g++, C++17, x86-64 Linux).
//
// A kernel file that is compiled with -DLT_EMULATOR gets this header through port.cuh. Every CUDA thread of a block is a
// fiber; a block runs on one worker thread of the runtime (emu.cpp), so a shared variable is a thread-local one.
// What the real compiler does not have is missing here too, and float atomics are missing on purpose: their order is not fixed.
#pragma once
#include <limits>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <type_traits>
#include <utility>

// The stand-in for NVRTC preprocesses with EMU_KEEP_MARKS, finds the kernels by these words, and takes the words out.
#if defined(EMU_KEEP_MARKS)
#define __global__ EMU_GLOBAL
#define __launch_bounds__(...) EMU_LAUNCH_BOUNDS(__VA_ARGS__)
#else
#define __global__
#define __launch_bounds__(...)
#endif
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static thread_local
#define __forceinline__ inline
#define __noinline__  // empty: the C++ library itself writes __attribute__((__noinline__))
#define __align__(n) __attribute__((aligned(n)))

struct emu_uint3 {
    unsigned x, y, z;
};
typedef emu_uint3 uint3;
typedef emu_uint3 dim3;

struct emu_block {
    emu_uint3 bidx, bdim, gdim;
    unsigned char* dyn;  // dynamic shared memory
};

// What a kernel may see of its thread; the runtime keeps more behind it.
struct emu_thread {
    emu_uint3 tid;
    unsigned lane;
    emu_block* blk;
};

extern "C" {
extern __thread emu_thread* emu_cur __attribute__((tls_model("initial-exec")));

void emu_syncthreads(const char* file, int line);

// The one warp primitive. Every lane of the mask deposits a pointer to its operands; the last lane to arrive performs the
// operation for all of them (live: the lanes that take part, slot: their pointers by lane number); then all go on.
typedef void (*emu_warp_operation)(unsigned live, void** slot);
void emu_collective(const char* what, unsigned mask, emu_warp_operation operation, void* operands, const char* file, int line);
void emu_shuffle_operation(unsigned live, void** slot);
void emu_ballot_operation(unsigned live, void** slot);
void emu_mma_operation(unsigned live, void** slot);
void emu_ldmatrix_operation(unsigned live, void** slot);
void emu_nothing(unsigned live, void** slot);

void emu_cp_async(void* shared_destination, const void* global_source, int bytes);
void emu_cp_async_commit();
void emu_cp_async_wait(int groups_left);

[[noreturn]] void emu_fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// A kernel as a module describes it to the runtime.
struct emu_kernel {
    const char* name;
    void (*call)(void** arguments);
    int argument_count;
    const unsigned* sizes;
    const unsigned* alignments;
    const unsigned* is_pointer;
    int max_threads;            // of __launch_bounds__; 1024 without
    void* (*shared_probe)();    // an address inside the module's thread-local memory, which is its static shared memory
};
}

// const: a kernel cannot write to its indices
static inline const emu_uint3& emu_thread_index() { return emu_cur->tid; }
static inline const emu_uint3& emu_block_index() { return emu_cur->blk->bidx; }
static inline const emu_uint3& emu_block_size() { return emu_cur->blk->bdim; }
static inline const emu_uint3& emu_grid_size() { return emu_cur->blk->gdim; }
#if !defined(EMU_HOST_SIDE)  // the runtime and the tests' host code use these words for themselves
#define threadIdx (emu_thread_index())
#define blockIdx (emu_block_index())
#define blockDim (emu_block_size())
#define gridDim (emu_grid_size())
static const int warpSize = 32;
#endif

// The place of a call, taken where the call is written. Return addresses would not do: compilers duplicate calls.
#define EMU_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(EMU_PLACE) { emu_syncthreads(file, line); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_PLACE) {
    emu_collective("__syncwarp", mask, emu_nothing, nullptr, file, line);
}

// ---- bits ----
template <class To, class From> static inline To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}
static inline float __uint_as_float(unsigned u) { return emu_bits<float>(u); }
static inline unsigned __float_as_uint(float f) { return emu_bits<unsigned>(f); }
static inline float __int_as_float(int i) { return emu_bits<float>(i); }
static inline int __float_as_int(float f) { return emu_bits<int>(f); }
static inline double __longlong_as_double(long long i) { return emu_bits<double>(i); }
static inline long long __double_as_longlong(double d) { return emu_bits<long long>(d); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1u) << (31 - i);
    return r;
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
static inline int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    unsigned long long bytes = (unsigned long long)high << 32 | low;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) r |= (unsigned)(bytes >> ((selector >> 4 * i & 7u) * 8) & 0xffu) << 8 * i;
    return r;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)((((unsigned long long)high << 32 | low) << (shift & 31u)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (shift & 31u));
}

// ---- shuffles and votes ----
struct emu_shuffle_operands {
    unsigned long long value, result;
    int source;
};
template <class T>
static inline T emu_shuffle(const char* what, unsigned mask, T value, int source, bool inside, const char* file, int line) {
    static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles take 4- and 8-byte numbers");
    emu_shuffle_operands operands{0, 0, inside ? source : (int)emu_cur->lane};
    memcpy(&operands.value, &value, sizeof(T));
    emu_collective(what, mask, emu_shuffle_operation, &operands, file, line);
    memcpy(&value, &operands.result, sizeof(T));
    return value;
}
template <class T> static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_PLACE) {
    int lane = (int)emu_cur->lane;
    return emu_shuffle("__shfl_sync", mask, value, (lane & ~(width - 1)) | (source & (width - 1)), true, file, line);
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, EMU_PLACE) {
    int lane = (int)emu_cur->lane, source = lane ^ lane_mask;
    return emu_shuffle("__shfl_xor_sync", mask, value, source, source <= (lane | (width - 1)), file, line);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_PLACE) {
    int lane = (int)emu_cur->lane, source = lane + (int)delta;
    return emu_shuffle("__shfl_down_sync", mask, value, source, source <= (lane | (width - 1)), file, line);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_PLACE) {
    int lane = (int)emu_cur->lane, source = lane - (int)delta;
    return emu_shuffle("__shfl_up_sync", mask, value, source, source >= (lane & ~(width - 1)), file, line);
}
struct emu_ballot_operands {
    unsigned predicate, result;
};
static inline unsigned emu_ballot(const char* what, unsigned mask, bool predicate, const char* file, int line) {
    emu_ballot_operands operands{predicate, 0};
    emu_collective(what, mask, emu_ballot_operation, &operands, file, line);
    return operands.result;
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_PLACE) {
    return emu_ballot("__ballot_sync", mask, predicate != 0, file, line);
}
static inline int __any_sync(unsigned mask, int predicate, EMU_PLACE) {
    return emu_ballot("__any_sync", mask, predicate != 0, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, EMU_PLACE) {
    return emu_ballot("__all_sync", mask, predicate == 0, file, line) == 0;
}

// ---- warp matrix instructions, called by the wrappers in port.cuh ----
struct emu_mma_operands {
    const unsigned *a, *b;
    const float* c;
    float* d;
};
static inline void emu_mma_bf16_16816(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4], EMU_PLACE) {
    emu_mma_operands operands{a, b, c, d};
    emu_collective("mma.sync", 0xffffffffu, emu_mma_operation, &operands, file, line);
}
struct emu_ldmatrix_operands {
    const unsigned char* row;
    unsigned* registers;
    int count;
    bool transposed;
};
static inline void emu_ldmatrix(unsigned* registers, int count, bool transposed, const void* row, EMU_PLACE) {
    emu_ldmatrix_operands operands{(const unsigned char*)row, registers, count, transposed};
    emu_collective(transposed ? "ldmatrix.trans" : "ldmatrix", 0xffffffffu, emu_ldmatrix_operation, &operands, file, line);
}

// ---- integer atomics (several workers may run blocks of one grid) ----
#define EMU_ATOMICS(type)                                                                                                   \
    static inline type atomicAdd(type* p, type v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }                    \
    static inline type atomicExch(type* p, type v) { return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }                  \
    static inline type atomicAnd(type* p, type v) { return __atomic_fetch_and(p, v, __ATOMIC_RELAXED); }                    \
    static inline type atomicOr(type* p, type v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }                      \
    static inline type atomicXor(type* p, type v) { return __atomic_fetch_xor(p, v, __ATOMIC_RELAXED); }                    \
    static inline type atomicCAS(type* p, type expected, type v) {                                                         \
        __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                            \
        return expected;                                                                                                   \
    }                                                                                                                      \
    static inline type atomicMax(type* p, type v) {                                                                        \
        type old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                                    \
        while (old < v && !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}            \
        return old;                                                                                                        \
    }                                                                                                                      \
    static inline type atomicMin(type* p, type v) {                                                                        \
        type old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                                    \
        while (v < old && !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}            \
        return old;                                                                                                        \
    }
EMU_ATOMICS(int)
EMU_ATOMICS(unsigned)
EMU_ATOMICS(unsigned long long)
#undef EMU_ATOMICS
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() {}

// ---- maths. sqrtf, expf, fmaf and the like come from math.h ----
static inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
// macros, because glibc declares some of these names
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)
#define __fdividef(x, y) ((float)(x) / (float)(y))
static inline float __saturatef(float x) { return x != x ? 0.f : x < 0.f ? 0.f : x > 1.f ? 1.f : x; }
// These are never contracted into one fused operation; the empty asm keeps the compiler from doing it.
template <class T> static inline T emu_rounded(T x) {
    asm("" : "+x"(x));
    return x;
}
static inline float __fadd_rn(float a, float b) { return emu_rounded(a + b); }
static inline float __fsub_rn(float a, float b) { return emu_rounded(a - b); }
static inline float __fmul_rn(float a, float b) { return emu_rounded(a * b); }
static inline float __fdiv_rn(float a, float b) { return emu_rounded(a / b); }
static inline float __frcp_rn(float a) { return emu_rounded(1.f / a); }
static inline float __fsqrt_rn(float a) { return emu_rounded(sqrtf(a)); }
static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { return emu_rounded(a + b); }
static inline double __dsub_rn(double a, double b) { return emu_rounded(a - b); }
static inline double __dmul_rn(double a, double b) { return emu_rounded(a * b); }
static inline double __ddiv_rn(double a, double b) { return emu_rounded(a / b); }
static inline double __dsqrt_rn(double a) { return emu_rounded(sqrt(a)); }
static inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
// Conversions saturate and take NaN to 0, as on the device. A plain cast of a value out of range is undefined in both worlds.
template <class I, class F> static inline I emu_saturate(F x) {
    const I lowest = std::numeric_limits<I>::min(), highest = std::numeric_limits<I>::max();
    if (x != x) return 0;
    if (x <= (F)lowest) return lowest;
    // (F)highest may round up to one past it; >= takes both cases
    if (x >= (F)highest) return highest;
    return (I)x;
}
static inline int __float2int_rn(float x) { return emu_saturate<int>(rintf(x)); }
static inline int __float2int_rz(float x) { return emu_saturate<int>(truncf(x)); }
static inline int __float2int_rd(float x) { return emu_saturate<int>(floorf(x)); }
static inline int __float2int_ru(float x) { return emu_saturate<int>(ceilf(x)); }
static inline unsigned __float2uint_rn(float x) { return emu_saturate<unsigned>(rintf(x)); }
static inline unsigned __float2uint_rz(float x) { return emu_saturate<unsigned>(truncf(x)); }
static inline long long __float2ll_rn(float x) { return emu_saturate<long long>(rintf(x)); }
static inline long long __float2ll_rz(float x) { return emu_saturate<long long>(truncf(x)); }
static inline int __double2int_rn(double x) { return emu_saturate<int>(rint(x)); }
static inline int __double2int_rz(double x) { return emu_saturate<int>(trunc(x)); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __ll2float_rn(long long x) { return (float)x; }
static inline float __ull2float_rn(unsigned long long x) { return (float)x; }
static inline double __int2double_rn(int x) { return (double)x; }
static inline double __ll2double_rn(long long x) { return (double)x; }
static inline float __double2float_rn(double x) { return (float)x; }
#if !defined(EMU_HOST_SIDE)
#define EMU_MIN_MAX(type)                                                \
    static inline type min(type a, type b) { return b < a ? b : a; }     \
    static inline type max(type a, type b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
#undef EMU_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
#endif
template <class T> static inline T __ldg(const T* p) { return *p; }
[[noreturn]] static inline void __trap() { emu_fail("__trap"); }

// ---- what a module says about a kernel: its name, its parameters, and how to call it with an array of argument pointers ----
template <auto Kernel> struct emu_entry;
template <class... Parameters, void (*Kernel)(Parameters...)> struct emu_entry<Kernel> {
    static constexpr unsigned sizes[] = {sizeof(Parameters)..., 0};
    static constexpr unsigned alignments[] = {alignof(Parameters)..., 0};
    static constexpr unsigned is_pointer[] = {std::is_pointer<Parameters>::value..., 0};
    template <size_t... I> static void unpack(void** arguments, std::index_sequence<I...>) {
        (void)arguments;
        Kernel(*(typename std::remove_cv<Parameters>::type*)arguments[I]...);
    }
    static void call(void** arguments) { unpack(arguments, std::index_sequence_for<Parameters...>{}); }
    static constexpr emu_kernel describe(const char* name, int max_threads, void* (*probe)()) {
        return {name, call, (int)sizeof...(Parameters), sizes, alignments, is_pointer, max_threads, probe};
    }
};
__attribute__((unused)) static void* emu_shared_probe() {
    static thread_local char probe;
    return &probe;
}
