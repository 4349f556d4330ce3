// NF4 and FP4, bit for bit as the CPU's code and so as bitsandbytes. Blocks of 64 consecutive elements of the flattened tensor share
// absmax = max |w|; x = fl32(w * fl32(1 / max(absmax, 1e-38))). Element 2i has the high nibble of byte i, element 2i+1 the low one.
//   NF4   the code of w counts the thresholds below x, which are the fp32 midpoints of neighbouring values; a tie takes the lower code
//   FP4   bit 3 is the sign of x, the others name the magnitude that |x| is nearest to, by bitsandbytes' thresholds; a tie takes the
//         smaller one; codes 0 and 8 are both +0
// The value of a code is fl32(table[code] * absmax), rounded to bf16 when it is stored.
// Double quantization: absmax = fl32(fl32(map[code] * nested_absmax[block / 256]) + offset).
#include "port.cuh"

#define LT_NF4_VALUES \
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f, \
    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f, \
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f

__constant__ float nf4_values[16] = {LT_NF4_VALUES};
__constant__ float fp4_values[16] = {
    0.0f, 1.0f / 192, 2.0f / 3, 1.0f, 1.0f / 3, 1.0f / 2, 1.0f / 6, 1.0f / 4,
    0.0f, -1.0f / 192, -2.0f / 3, -1.0f, -1.0f / 3, -1.0f / 2, -1.0f / 6, -1.0f / 4};

// Below this the reciprocal overflows; it also gives a block of zeros the code of zero.
constexpr float SmallestAbsmax = 1e-38f;

// The number of thresholds below x. Each comparison halves the thresholds that are left, by selects between registers: lanes of a warp
// take the same path, and no table in memory is read.
LT_DEVICE u32 nf4_code(float x) {
    constexpr float values[16] = {LT_NF4_VALUES};
    float thresholds[15];
#pragma unroll
    for (int i = 0; i < 15; i++) thresholds[i] = (values[i] + values[i + 1]) * 0.5f;
    u32 code = 0;
#pragma unroll
    for (int half = 8; half >= 1; half /= 2) {
        const bool above = x > thresholds[half - 1];
        if (above) code += half;
#pragma unroll
        for (int i = 0; i < half - 1; i++) thresholds[i] = above ? thresholds[i + half] : thresholds[i];
    }
    return code;
}

// The magnitudes by their size are 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1; the eight digits of a number are their codes, the smallest last.
LT_DEVICE u32 fp4_code(float x) {
    constexpr float thresholds[7] = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f};
    u32 above = 0;
#pragma unroll
    for (int i = 0; i < 7; i++) above += fabsf(x) > thresholds[i];
    return (0x32547610u >> above * 4 & 7) | (x < 0.0f ? 8 : 0);
}

// Codes and scales of a tensor, or of a piece of one that starts at a multiple of 64. Eight lanes have a block of 64, eight elements each.
// An element that is not finite makes its absmax not finite. code_of_scaled(x) is the code of x.
template <class Code> LT_DEVICE void quantize(unsigned char* packed, float* absmax, const float* values, i64 count, Code code_of_scaled) {
    const i64 first = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    const int elements = (int)max(min(count - first, 8ll), 0ll);
    float w[8] = {};
    if (elements == 8 && is_aligned_16(values)) {
        load_f32x8(w, values + first);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < elements) w[i] = values[first + i];
    }

    // The bits of numbers without a sign are ordered as the numbers are, and those of infinity and NaN are above all others.
    u32 largest = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) largest = max(largest, __float_as_uint(w[i]) & 0x7fffffffu);
#pragma unroll
    for (int distance = 1; distance < 8; distance <<= 1) largest = max(largest, __shfl_xor_sync(LT_ALL_LANES, largest, distance));
    if (elements <= 0) return;

    const float block_absmax = __uint_as_float(largest), inverse = __fdiv_rn(1.0f, fmaxf(block_absmax, SmallestAbsmax));
    if ((threadIdx.x & 7) == 0) absmax[first / 64] = block_absmax;
    u32 bytes = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) bytes |= code_of_scaled(__fmul_rn(w[i], inverse)) << (i * 4 ^ 4);
    if (elements == 8 && is_aligned_4(packed)) {
        store_4_bytes(packed + first / 2, bytes);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (i * 2 < elements) packed[first / 2 + i] = (unsigned char)(bytes >> (i * 8));
    }
}

// Launch: ceil(count / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
nf4_quantize(
    unsigned char* __restrict__ packed,     // (ceil(count / 2)) overwritten; an odd count is filled up with the code of zero
    float* __restrict__ absmax,             // (ceil(count / 64)) overwritten
    const float* __restrict__ values,       // (count)
    long long count) {
    quantize(packed, absmax, values, count, [](float x) { return nf4_code(x); });
}

// Launch: ceil(count / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
fp4_quantize(
    unsigned char* __restrict__ packed,     // (ceil(count / 2)) overwritten; an odd count is filled up with the code of zero
    float* __restrict__ absmax,             // (ceil(count / 64)) overwritten
    const float* __restrict__ values,       // (count)
    long long count) {
    quantize(packed, absmax, values, count, [](float x) { return fp4_code(x); });
}

// Six blocks have to fit on a multiprocessor: bytes enough on their way, and registers for all that a thread has read.
constexpr int DequantizeThreads = 256, DequantizeVectors = 4;
constexpr int DequantizeElements = DequantizeThreads * DequantizeVectors * 8;

// Element e of the eight whose codes are in four bytes: the even one has the high nibble.
LT_DEVICE u32 code_of(u32 bytes, int e) { return bytes >> (e * 4 ^ 4) & 15; }

LT_DEVICE void store_values(bf16* output, u32 bytes, float scale, const float* table) {
    float w[8];
#pragma unroll
    for (int e = 0; e < 8; e++) w[e] = __fmul_rn(table[code_of(bytes, e)], scale);
    store_bf16x8(output, w);
}

// The values of all elements, for kernels that know the scale of a block of 64: scale_of(block). A thread has four times eight elements,
// a block of threads apart, so that every access of a warp covers whole lines; all reads come before the first write.
// `table` is shared memory for the 16 values: neighbouring words, so any 32 lanes read without a conflict.
template <class Scale>
LT_DEVICE void dequantize(bf16* output, const unsigned char* packed, i64 count, const float* table, Scale scale_of) {
    const i64 first = (i64)blockIdx.x * DequantizeElements;
    const bool vectors = is_aligned_16(output) && is_aligned_4(packed);
    if (vectors && first + DequantizeElements <= count) {
        u32 bytes[DequantizeVectors];
        float scales[DequantizeVectors];
#pragma unroll
        for (int k = 0; k < DequantizeVectors; k++) {
            const i64 i = first + (k * DequantizeThreads + threadIdx.x) * 8;
            bytes[k] = load_4_bytes(packed + i / 2);
            scales[k] = scale_of(i / 64);
        }
#pragma unroll
        for (int k = 0; k < DequantizeVectors; k++)
            store_values(output + first + (k * DequantizeThreads + threadIdx.x) * 8, bytes[k], scales[k], table);
        return;
    }
    // The block at the end, or addresses that do not allow vectors.
    const i64 end = min(first + DequantizeElements, count);
#pragma unroll 1
    for (i64 i = first + threadIdx.x * 8; i < end; i += DequantizeThreads * 8) {
        const float scale = scale_of(i / 64);
        if (vectors && i + 8 <= end) {
            store_values(output + i, load_4_bytes(packed + i / 2), scale, table);
            continue;
        }
        const int elements = (int)min(end - i, 8ll);
#pragma unroll 1
        for (int e = 0; e < elements; e++) output[i + e] = to_bf16(__fmul_rn(table[code_of(packed[(i + e) / 2], e & 1)], scale));
    }
}

// The same with the 16 values in constant memory and a scale a block in fp32.
LT_DEVICE void dequantize_single(bf16* output, const unsigned char* packed, const float* absmax, i64 count, const float* values) {
    __shared__ float table[16];
    if (threadIdx.x < 16) table[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    dequantize(output, packed, count, table, [=](i64 block) { return absmax[block]; });
}

// The same with scales in eight bits.
LT_DEVICE void dequantize_double(
    bf16* output, const unsigned char* packed, const unsigned char* absmax_codes, const float* nested_absmax, const float* nested_map,
    float offset, i64 count, const float* values) {
    __shared__ float table[16];
    __shared__ float map[256];
    if (threadIdx.x < 16) table[threadIdx.x] = values[threadIdx.x];
    map[threadIdx.x] = nested_map[threadIdx.x];
    __syncthreads();
    const float* scale_map = map;
    dequantize(output, packed, count, table, [=](i64 block) {
        return __fadd_rn(__fmul_rn(scale_map[absmax_codes[block]], nested_absmax[block / 256]), offset);
    });
}

// Launch: ceil(count / 8192) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(DequantizeThreads, 6)
nf4_dequantize(
    bf16* __restrict__ output,                  // (count) overwritten
    const unsigned char* __restrict__ packed,   // (ceil(count / 2))
    const float* __restrict__ absmax,           // (ceil(count / 64))
    long long count) {
    dequantize_single(output, packed, absmax, count, nf4_values);
}

// Launch: ceil(count / 8192) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(DequantizeThreads, 6)
nf4_dequantize_double(
    bf16* __restrict__ output,                          // (count) overwritten
    const unsigned char* __restrict__ packed,           // (ceil(count / 2))
    const unsigned char* __restrict__ absmax_codes,     // (nb) with nb = ceil(count / 64)
    const float* __restrict__ nested_absmax,            // (ceil(nb / 256))
    const float* __restrict__ nested_map,               // (256)
    float offset,                                       // mean of all absmax
    long long count) {
    dequantize_double(output, packed, absmax_codes, nested_absmax, nested_map, offset, count, nf4_values);
}

// Launch: ceil(count / 8192) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(DequantizeThreads, 6)
fp4_dequantize(
    bf16* __restrict__ output,                  // (count) overwritten
    const unsigned char* __restrict__ packed,   // (ceil(count / 2))
    const float* __restrict__ absmax,           // (ceil(count / 64))
    long long count) {
    dequantize_single(output, packed, absmax, count, fp4_values);
}

// Launch: ceil(count / 8192) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(DequantizeThreads, 6)
fp4_dequantize_double(
    bf16* __restrict__ output,                          // (count) overwritten
    const unsigned char* __restrict__ packed,           // (ceil(count / 2))
    const unsigned char* __restrict__ absmax_codes,     // (nb) with nb = ceil(count / 64)
    const float* __restrict__ nested_absmax,            // (ceil(nb / 256))
    const float* __restrict__ nested_map,               // (256)
    float offset,                                       // mean of all absmax
    long long count) {
    dequantize_double(output, packed, absmax_codes, nested_absmax, nested_map, offset, count, fp4_values);
}

constexpr int NestedBlock = 256;

// Scales to eight bits. d = fl32(absmax - offset); blocks of 256 share nested_absmax = max |d|; the code is the map's entry nearest to
// fl32(d * fl32(1 / max(nested_absmax, 1e-38))), where neighbours part at fl32(fl32(a + b) / 2) and a tie goes to the even code.
// Launch: ceil(blocks / 256) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(NestedBlock)
quantize_absmax(
    unsigned char* __restrict__ codes,          // (blocks) overwritten
    float* __restrict__ nested_absmax,          // (ceil(blocks / 256)) overwritten
    float* __restrict__ absmax,                 // (blocks) overwritten with d
    const float* __restrict__ nested_map,       // (256) ascending
    float offset,                               // mean of all absmax
    long long blocks) {
    __shared__ float thresholds[NestedBlock];
    __shared__ float scratch[32];
    const i64 i = (i64)blockIdx.x * NestedBlock + threadIdx.x;
    const float difference = i < blocks ? __fsub_rn(absmax[i], offset) : 0.0f;
    if (threadIdx.x < NestedBlock - 1) thresholds[threadIdx.x] = map_threshold(nested_map, threadIdx.x);
    const float largest = block_max(fabsf(difference), scratch);        // its barrier also closes the thresholds
    if (threadIdx.x == 0) nested_absmax[blockIdx.x] = largest;
    if (i >= blocks) return;
    absmax[i] = difference;
    const float x = __fmul_rn(difference, __fdiv_rn(1.0f, fmaxf(largest, SmallestAbsmax)));
    codes[i] = (unsigned char)map_code(thresholds, x);
}
