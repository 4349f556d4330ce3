// What every kernel file includes, and includes first: one set of names for the three compilers that read the kernels.
//   NVRTC and nvcc            the real thing; nothing is missing there
//   clang without a toolkit   the compile check: clang_cuda.h declares the few builtins that are used
//   a host C++ compiler       LT_EMULATOR: emu.h runs the same kernels on the CPU, with block and warp semantics
// All inline PTX of the project is in this file, one instruction a wrapper, each with its emulator branch.
//
// CUDA builtins the kernels may use (an environment has to offer these, and no kernel may use others):
//   threadIdx blockIdx blockDim gridDim   __syncthreads __syncwarp
//   __shfl_sync __shfl_xor_sync __shfl_down_sync __shfl_up_sync (int, unsigned, float, double)   __ballot_sync __any_sync __all_sync
//   __float_as_uint __uint_as_float __float_as_int __int_as_float   __umulhi __popc __ffs __clz   min max (int, unsigned, long long)
//   fabsf fmaxf fminf fmaf rintf sqrtf rsqrtf expf logf exp2f log2f sinf cosf   fabs fmax fma sqrt (double)
//   __fmul_rn __fadd_rn __fsub_rn __fdiv_rn __fsqrt_rn: one correctly rounded operation that is never contracted into an fma
#pragma once

#if defined(LT_EMULATOR)
#include "emu.h"
#elif !defined(__CUDACC__) && !defined(__CUDACC_RTC__)
#include "clang_cuda.h"
#endif

#if defined(LT_EMULATOR)
#define LT_DEVICE static inline
#define LT_SHARED(name) unsigned char* const name = emu_cur->blk->dyn
#else
#define LT_DEVICE static __device__ __forceinline__
// Declares the dynamic shared memory of a kernel under a name, as bytes at a multiple of 16.
#define LT_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

// A struct that is read and written in one access of so many bytes, from and to arrays of other element types; the compilers that
// would assume the latter never happens are told so.
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define LT_VECTOR(bytes) alignas(bytes)
#else
#define LT_VECTOR(bytes) __attribute__((aligned(bytes), may_alias))
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct bf16 {
    u16 bits;
};

// What differs from one pass to the next while its launches stay the same. It lies in device memory, so that launches can be recorded and repeated; a kernel that takes a
// null pointer instead goes by its own arguments.
struct PassNumbers {
    i64 first_row;          // rows of the same global batch that come before this pass
    u32 step;               // optimizer step
    float gradient_scale;   // 1 / scored tokens of the global batch
};

struct LT_VECTOR(16) u32x4 {
    u32 x, y, z, w;
};

struct LT_VECTOR(16) f32x4 {
    float x, y, z, w;
};

struct LT_VECTOR(8) u32x2 {
    u32 x, y;
};

struct LT_VECTOR(4) u32x1 {
    u32 x;
};

#define LT_INFINITY __int_as_float(0x7f800000)      // NVRTC has no INFINITY macro
#define LT_ALL_LANES 0xffffffffu

// ---- bf16 -----------------------------------------------------------------------------------------------------------------------

// Two floats, rounded to nearest even, in one register: `low` in the low half. A NaN becomes the quiet NaN 0x7fff.
LT_DEVICE u32 pack_bf16(float low, float high) {
#if defined(LT_EMULATOR)
    const float values[2] = {low, high};
    u32 halves[2];
    for (int i = 0; i < 2; i++) {
        const u32 bits = __float_as_uint(values[i]);
        const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
        halves[i] = is_nan ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    }
    return halves[0] | halves[1] << 16;
#else
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}

LT_DEVICE bf16 to_bf16(float value) {
    bf16 result;
    result.bits = (u16)pack_bf16(value, 0.0f);
    return result;
}

LT_DEVICE float to_float(bf16 value) { return __uint_as_float((u32)value.bits << 16); }

LT_DEVICE float low_half(u32 packed) { return __uint_as_float(packed << 16); }
LT_DEVICE float high_half(u32 packed) { return __uint_as_float(packed & 0xffff0000u); }

LT_DEVICE void unpack_bf16x8(float (&values)[8], const u32x4& packed) {
    values[0] = low_half(packed.x), values[1] = high_half(packed.x);
    values[2] = low_half(packed.y), values[3] = high_half(packed.y);
    values[4] = low_half(packed.z), values[5] = high_half(packed.z);
    values[6] = low_half(packed.w), values[7] = high_half(packed.w);
}

LT_DEVICE u32x4 pack_bf16x8(const float (&values)[8]) {
    u32x4 packed;
    packed.x = pack_bf16(values[0], values[1]);
    packed.y = pack_bf16(values[2], values[3]);
    packed.z = pack_bf16(values[4], values[5]);
    packed.w = pack_bf16(values[6], values[7]);
    return packed;
}

// ---- memory ---------------------------------------------------------------------------------------------------------------------

LT_DEVICE bool is_aligned_16(const void* address) { return ((size_t)address & 15) == 0; }

// 16 bytes in one access; the address is a multiple of 16.
LT_DEVICE u32x4 load_16_bytes(const void* address) { return *(const u32x4*)address; }
LT_DEVICE void store_16_bytes(void* address, const u32x4& value) { *(u32x4*)address = value; }

LT_DEVICE bool is_aligned_4(const void* address) { return ((size_t)address & 3) == 0; }
LT_DEVICE u32 load_4_bytes(const void* address) { return ((const u32x1*)address)->x; }
LT_DEVICE void store_4_bytes(void* address, u32 value) { ((u32x1*)address)->x = value; }

LT_DEVICE bool is_aligned_8(const void* address) { return ((size_t)address & 7) == 0; }

// 8 bytes in one access; the address is a multiple of 8.
LT_DEVICE u32x2 load_8_bytes(const void* address) { return *(const u32x2*)address; }
LT_DEVICE void store_8_bytes(void* address, const u32x2& value) { *(u32x2*)address = value; }

LT_DEVICE void load_bf16x8(float (&values)[8], const bf16* address) { unpack_bf16x8(values, load_16_bytes(address)); }
LT_DEVICE void store_bf16x8(bf16* address, const float (&values)[8]) { store_16_bytes(address, pack_bf16x8(values)); }

LT_DEVICE f32x4 load_f32x4(const float* address) { return *(const f32x4*)address; }
LT_DEVICE void store_f32x4(float* address, const f32x4& value) { *(f32x4*)address = value; }

LT_DEVICE void load_f32x8(float (&values)[8], const float* address) {
    const f32x4 low = load_f32x4(address), high = load_f32x4(address + 4);
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
}

#if !defined(LT_EMULATOR)
// The address inside the shared window that ldmatrix and cp.async want. The compilers see through these two forms, so that sums of an
// array's address and offsets become sums of 32 bits, the constant part of which goes into the instruction.
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
LT_DEVICE u32 shared_address(const void* generic) { return (u32)__cvta_generic_to_shared(generic); }
#else
LT_DEVICE u32 shared_address(const void* generic) { return (u32)(size_t)(const __attribute__((address_space(3))) void*)generic; }
#endif
#endif

// Starts to copy 16 bytes from global to shared memory, past the registers and the L1 cache. Both addresses are multiples of 16.
LT_DEVICE void cp_async16(void* shared_destination, const void* global_source) {
#if defined(LT_EMULATOR)
    emu_cp_async(shared_destination, global_source, 16);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :: "r"(shared_address(shared_destination)), "l"(global_source) : "memory");
#endif
}

#if defined(LT_EMULATOR)
alignas(16) static const unsigned char lt_sixteen_zeros[16] = {};
#endif

// The same; where `present` is false nothing is read and sixteen zeros arrive. The source then only has to be a multiple of 16.
LT_DEVICE void cp_async16_or_zero(void* shared_destination, const void* global_source, bool present) {
#if defined(LT_EMULATOR)
    emu_cp_async(shared_destination, present ? global_source : lt_sixteen_zeros, 16);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(shared_destination)), "l"(global_source), "r"(present ? 16 : 0) : "memory");
#endif
}

// The same for 4 bytes: both addresses are multiples of 4, and the copy goes through the L1 cache.
LT_DEVICE void cp_async4_or_zero(void* shared_destination, const void* global_source, bool present) {
#if defined(LT_EMULATOR)
    emu_cp_async(shared_destination, present ? global_source : lt_sixteen_zeros, 4);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(shared_address(shared_destination)), "l"(global_source), "r"(present ? 4 : 0) : "memory");
#endif
}

// Closes the group of the copies this thread started since the last group.
LT_DEVICE void cp_async_commit() {
#if defined(LT_EMULATOR)
    emu_cp_async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `Pending` of this thread's newest groups are under way; other threads' copies need a barrier on top.
template <int Pending> LT_DEVICE void cp_async_wait() {
#if defined(LT_EMULATOR)
    emu_cp_async_wait(Pending);
#else
    asm volatile("cp.async.wait_group %0;" :: "n"(Pending) : "memory");
#endif
}

// use(i, load(i)) for i = first, first + step, ... below `end`, in this order. kBatch loads are under way before the first of them is
// used: what an unrolled loop does not give, where each round has a way out before its load.
template <int kBatch, class Load, class Use> LT_DEVICE void in_batches(int first, int step, int end, Load load, Use use) {
    int i = first;
    for (; i + (kBatch - 1) * step < end; i += kBatch * step) {
        decltype(load(i)) batch[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; k++) batch[k] = load(i + k * step);
#pragma unroll
        for (int k = 0; k < kBatch; k++) use(i + k * step, batch[k]);
    }
    if constexpr (kBatch > 1) in_batches<kBatch / 2>(i, step, end, load, use);
}

// output = input, a row of `width` elements, by a one-dimensional block. `aligned`: both rows start at multiples of 16 bytes and the
// width is a multiple of 8.
LT_DEVICE void copy_row(bf16* __restrict__ output, const bf16* __restrict__ input, int width, bool aligned) {
    if (aligned) {
        in_batches<2>(
            threadIdx.x * 8, blockDim.x * 8, width, [=](int i) { return load_16_bytes(input + i); },
            [=](int i, const u32x4& eight) { store_16_bytes(output + i, eight); });
    } else {
#pragma unroll 4
        for (int i = threadIdx.x; i < width; i += blockDim.x) output[i] = input[i];
    }
}

// How an elementwise kernel shares its work: thread t of the grid has the elements 8*t .. 8*t+7 and calls eight(8*t) for them. Where the
// addresses do not allow that, and for what is left after the last eight, it calls one(i) for single elements instead.
// Launch: ceil(count / (8 * threads)) one-dimensional blocks; count is at least 1.
template <class Eight, class One> LT_DEVICE void for_each_eight(i64 count, bool aligned, Eight eight, One one) {
    const i64 block_elements = (i64)blockDim.x * 8, first = blockIdx.x * block_elements, i = first + threadIdx.x * 8;
    if (!aligned) {
        const i64 end = min(first + block_elements, count);
        for (i64 single = first + threadIdx.x; single < end; single += blockDim.x) one(single);
        return;
    }
    if (i + 8 <= count) eight(i);
    const i64 rest = (count & ~7ll) + threadIdx.x;
    if (blockIdx.x == gridDim.x - 1 && rest < count) one(rest);
}

// ---- matrix fragments -----------------------------------------------------------------------------------------------------------

// d (16x8) = a (16x16) * b (16x8) + c, by one warp; bf16 factors, fp32 sums. With group = lane/4 and pair = lane%4*2 a lane holds
//   a[0] (group, pair..+1)  a[1] (group+8, pair..)  a[2] (group, pair+8..)  a[3] (group+8, pair+8..)      two columns a register
//   b[0] (pair..+1, group)  b[1] (pair+8.., group)                                                        two rows a register
//   c, d [0..1] (group, pair..+1)   [2..3] (group+8, pair..+1)
// d may be c.
LT_DEVICE void mma_bf16_16816(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4]) {
#if defined(LT_EMULATOR)
    emu_mma_bf16_16816(d, a, b, c);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#endif
}

// Four 8x8 matrices of 16-bit elements from shared memory: lane 8*j + i gives the address of row i of matrix j (a multiple of 16),
// and gets from matrix j the elements (lane/4, lane%4*2 .. +1) in fragments[j].
LT_DEVICE void ldmatrix_x4(u32 (&fragments)[4], const void* shared_row) {
#if defined(LT_EMULATOR)
    emu_ldmatrix(fragments, 4, false, shared_row);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
                 : "r"(shared_address(shared_row)) : "memory");
#endif
}

// The same with every matrix transposed: the elements (lane%4*2 .. +1, lane/4) of matrix j.
LT_DEVICE void ldmatrix_x4_trans(u32 (&fragments)[4], const void* shared_row) {
#if defined(LT_EMULATOR)
    emu_ldmatrix(fragments, 4, true, shared_row);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
                 : "r"(shared_address(shared_row)) : "memory");
#endif
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------------------

// 2^x within 2 units of the last place; results below 2^-126 become zero, 2^-infinity is zero.
LT_DEVICE float fast_exp2(float x) {
#if defined(LT_EMULATOR)
    const float power = exp2f(x);
    return power < 1.17549435e-38f ? 0.0f : power;
#else
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#endif
}

// 1/x within 1 unit of the last place; 0 for an infinite x.
LT_DEVICE float fast_reciprocal(float x) {
#if defined(LT_EMULATOR)
    return 1.0f / x;
#else
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    return inverse;
#endif
}

// tanh within 3 units of the last place: the CPU's formula with the library's exponential.
LT_DEVICE float tanh_of(float x) {
    const float a = fabsf(x), z = x * x;
    const float large = 1.0f - 2.0f / (expf(a + a) + 1.0f);
    float p = fmaf(-5.70498872745e-3f, z, 2.06390887954e-2f);
    p = fmaf(p, z, -5.37397155531e-2f);
    p = fmaf(p, z, 1.33314422036e-1f);
    p = fmaf(p, z, -3.33332819422e-1f);
    const float magnitude = a < 0.625f ? fmaf(p * z, a, a) : large;
    return __uint_as_float(__float_as_uint(magnitude) | (__float_as_uint(x) & 0x80000000u));
}

// ---- codes of eight bits ----------------------------------------------------------------------------------------------------------
// A map has 256 ascending values; a number's code is that of the nearest one. Neighbours part at fl32(fl32(a + b) / 2), and a tie goes to the
// even code.

// The number just below a finite one.
LT_DEVICE float decremented(float x) {
    const u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) == 0) return __uint_as_float(0x80000001u);
    return __uint_as_float(bits & 0x80000000u ? bits + 1 : bits - 1);
}

// What parts codes i and i + 1, i below 255: a code counts the thresholds below a number. A tie above an odd code belongs to the even one
// after it, so it has to count.
LT_DEVICE float map_threshold(const float* map, int i) {
    const float middle = __fmul_rn(__fadd_rn(map[i], map[i + 1]), 0.5f);
    return i & 1 ? decremented(middle) : middle;
}

// The code of x by the 255 thresholds; 0 for a NaN.
LT_DEVICE int map_code(const float* thresholds, float x) {
    int code = 0;
#pragma unroll
    for (int half = 128; half >= 1; half /= 2) code += x > thresholds[code + half - 1] ? half : 0;
    return code;
}

// ---- random numbers -------------------------------------------------------------------------------------------------------------

struct Philox {
    u32 words[4];
};

// Philox4x32-10 with key = seed (low word, high word) and counter = (low word, high word, step, stream): the numbers of the elements
// 4 * counter .. 4 * counter + 3.
LT_DEVICE Philox philox(u64 counter, u32 step, u32 stream, u64 seed) {
    u32 c0 = (u32)counter, c1 = (u32)(counter >> 32), c2 = step, c3 = stream, key0 = (u32)seed, key1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const u32 high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return Philox{{c0, c1, c2, c3}};
}

// The number of one element.
LT_DEVICE u32 philox_of(u64 element, u32 step, u32 stream, u64 seed) {
    const Philox numbers = philox(element / 4, step, stream, seed);
    const bool upper = element & 2;
    const u32 even = upper ? numbers.words[2] : numbers.words[0], odd = upper ? numbers.words[3] : numbers.words[1];
    return element & 1 ? odd : even;
}

// ---- reductions -----------------------------------------------------------------------------------------------------------------
// The order is fixed by the lane and warp numbers alone. Both operands of every step are exchanged, so all lanes end with the same
// bits. A NaN goes through sums; a maximum skips it, as fmaxf does.

template <class T> LT_DEVICE T warp_sum(T value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance >>= 1) value += __shfl_xor_sync(LT_ALL_LANES, value, distance);
    return value;
}

LT_DEVICE float larger(float first, float second) { return fmaxf(first, second); }
LT_DEVICE double larger(double first, double second) { return fmax(first, second); }

template <class T> LT_DEVICE T warp_max(T value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance >>= 1) value = larger(value, __shfl_xor_sync(LT_ALL_LANES, value, distance));
    return value;
}

// The sum over all threads of a one-dimensional block, given to every thread. `scratch` is shared memory for 32 values; it may be
// used again after the caller's next barrier.
template <class T> LT_DEVICE T block_sum(T value, T* scratch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    value = warp_sum(value);
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : (T)0);
}

// The largest value of the block, given to every thread; `scratch` as above.
template <class T> LT_DEVICE T block_max(T value, T* scratch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    value = warp_max(value);
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    return warp_max(scratch[lane < warps ? lane : 0]);
}

// Whether the condition holds for any thread of the block, told to every thread; `scratch` is shared memory for 32 numbers, as above.
LT_DEVICE bool block_any(bool condition, int* scratch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int any_of_warp = __any_sync(LT_ALL_LANES, condition);
    if (lane == 0) scratch[warp] = any_of_warp;
    __syncthreads();
    return __any_sync(LT_ALL_LANES, lane < warps ? scratch[lane] : 0);
}

// totals[column] += finish(column, the sum over all rows of a term), for a matrix of (rows, width) terms. A block owns 32 columns. load(row, column) reads
// what the terms of eight columns are made of, add(sums, loaded) adds them to eight sums; both are used where `aligned`.
// one(row, column) gives a single term. There are few blocks, so each has kBatch rows a thread under way.
// The sum of a column: row group g of G takes the rows g, g + G, ...; the groups of a warp meet by exchange, the warps in their order.
// Launch: ceil(width / 32) blocks of 32 * W threads, W <= 32; `scratch` is shared memory for 1024 floats.
template <int kBatch, class Load, class Add, class One, class Finish>
LT_DEVICE void add_column_sums(float* totals, int rows, int width, bool aligned, float* scratch, Load load, Add add, One one, Finish finish) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    if (aligned) {
        // Four neighbouring lanes cover the 32 columns; a warp takes eight rows at a time.
        const int column = blockIdx.x * 32 + (lane & 3) * 8;
        float sums[8] = {};
        if (column < width) {
            in_batches<kBatch>(
                warp * 8 + (lane >> 2), warps * 8, rows, [=](int row) { return load(row, column); },
                [&](int, const decltype(load(0, 0))& loaded) { add(sums, loaded); });
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            for (int distance = 4; distance < 32; distance <<= 1) sums[i] += __shfl_xor_sync(LT_ALL_LANES, sums[i], distance);
            if (lane < 4) scratch[warp * 32 + lane * 8 + i] = sums[i];
        }
    } else {
        const int column = blockIdx.x * 32 + lane;
        float sum = 0.0f;
        if (column < width)
            in_batches<kBatch>(warp, warps, rows, [=](int row) { return one(row, column); }, [&](int, float term) { sum += term; });
        scratch[warp * 32 + lane] = sum;
    }
    __syncthreads();
    const int column = blockIdx.x * 32 + threadIdx.x;
    if (threadIdx.x < 32 && column < width) {
        float total = 0.0f;
        for (int i = 0; i < warps; i++) total += scratch[i * 32 + threadIdx.x];
        totals[column] += finish(column, total);
    }
}

template <int kBatch, class Load, class Add, class One>
LT_DEVICE void add_column_sums(float* totals, int rows, int width, bool aligned, float* scratch, Load load, Add add, One one) {
    add_column_sums<kBatch>(totals, rows, width, aligned, scratch, load, add, one, [](int, float total) { return total; });
}
