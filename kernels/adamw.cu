// AdamW with decoupled weight decay over all trainable parameters, which lie in one flat buffer; moments in 32 bits or, block by block, in
// eight. With g = gradient * gradient_scale:
//   m += (1-b1) * (g - m);  v = b2*v + (1-b2)*g*g;  p = p*keep - step_size * m / (sqrt(v) / root_correction2 + epsilon)
// All fp32. Every operation is rounded by itself or is an explicit fma, in the order of the CPU's code: the same bits come out.
#include "port.cuh"

// One tensor's place in the flat buffers, and this step's numbers for it.
struct AdamWSegment {
    long long offset;       // first element, a multiple of 256
    long long count;        // elements; padding follows up to the next multiple of 256
    float keep;             // 1 - learning rate * weight decay, or 1
    float step_size;        // learning rate / (1 - b1^t)
};

// What is the same for all segments.
struct AdamWConstants {
    float one_minus_beta1, beta2, one_minus_beta2, root_correction2, epsilon;
};

// The last of the segments, whose starts ascend, that starts at or before `element`, found by a whole warp: 32 candidates a step.
template <class Start> LT_DEVICE int find_segment(int segment_count, i64 element, Start start_of) {
    const int lane = threadIdx.x & 31;
    int first = 0, size = segment_count;
    while (size > 1) {
        const int stride = (size + 31) / 32;
        const bool starts_before = lane * stride < size && start_of(first + lane * stride) <= element;
        const int passed = max(__popc(__ballot_sync(LT_ALL_LANES, starts_before)) - 1, 0) * stride;
        first += passed;
        size = min(stride, size - passed);
    }
    return first;
}

// What gradients are multiplied with: min(1, max_grad_norm / (norm + 1e-6)), 1 without clipping; NaN where the step must not be taken.
LT_DEVICE float gradient_scale_of(const double* report, double max_grad_norm) {
    const double loss = report[0], norm = report[1];
    const bool finite = loss - loss == 0.0 && norm - norm == 0.0;
    if (!finite) return LT_INFINITY - LT_INFINITY;
    const double ratio = max_grad_norm / (norm + 1e-6);
    return max_grad_norm <= 0.0 || ratio >= 1.0 ? 1.0f : (float)ratio;
}

LT_DEVICE void update(float& p, float g, float& m, float& v, float scale, const AdamWSegment& segment, const AdamWConstants& c) {
    g = __fmul_rn(g, scale);
    m = fmaf(c.one_minus_beta1, __fsub_rn(g, m), m);
    v = fmaf(__fmul_rn(c.one_minus_beta2, g), g, __fmul_rn(c.beta2, v));
    const float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), c.root_correction2), c.epsilon);
    p = __fsub_rn(__fmul_rn(p, segment.keep), __fmul_rn(segment.step_size, __fdiv_rn(m, denominator)));
}

// One optimizer step. A warp has 256 elements, which belong to one segment at most, because segments start at multiples of 256.
// If the loss or the norm in the report is not finite nothing changes.
// Launch: ceil(end of the last segment / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
adamw_step(
    float* __restrict__ parameters,             // (P) changed in place, inside the segments; so are the moments
    const float* __restrict__ gradients,        // (P)
    float* __restrict__ first_moment,           // (P)
    float* __restrict__ second_moment,          // (P)
    const AdamWSegment* __restrict__ segments,  // (segment_count) by ascending offset
    int segment_count,                          // at least 1
    const double* __restrict__ report,          // [0] sum of the losses, [1] gradient norm
    double max_grad_norm,                       // 0 or less: no clipping
    AdamWConstants constants) {
    __shared__ float shared_scale;
    if (threadIdx.x == 0) shared_scale = gradient_scale_of(report, max_grad_norm);
    const int lane = threadIdx.x & 31;
    const i64 first = ((i64)blockIdx.x * 8 + (threadIdx.x >> 5)) * 256;
    const AdamWSegment segment = segments[find_segment(segment_count, first, [=](int i) { return segments[i].offset; })];
    __syncthreads();
    const float scale = shared_scale;
    const i64 left = segment.offset + segment.count - first;        // elements of the segment from `first` on
    if (!(scale == scale) || first < segment.offset || left <= 0) return;

    const bool aligned =
        is_aligned_16(parameters) && is_aligned_16(gradients) && is_aligned_16(first_moment) && is_aligned_16(second_moment);
    if (aligned && left >= 256) {
        f32x4 p[2], g[2], m[2], v[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const i64 i = first + k * 128 + lane * 4;
            g[k] = load_f32x4(gradients + i);
            m[k] = load_f32x4(first_moment + i);
            v[k] = load_f32x4(second_moment + i);
            p[k] = load_f32x4(parameters + i);
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const i64 i = first + k * 128 + lane * 4;
            update(p[k].x, g[k].x, m[k].x, v[k].x, scale, segment, constants);
            update(p[k].y, g[k].y, m[k].y, v[k].y, scale, segment, constants);
            update(p[k].z, g[k].z, m[k].z, v[k].z, scale, segment, constants);
            update(p[k].w, g[k].w, m[k].w, v[k].w, scale, segment, constants);
            store_f32x4(first_moment + i, m[k]);
            store_f32x4(second_moment + i, v[k]);
            store_f32x4(parameters + i, p[k]);
        }
        return;
    }
    const int elements = (int)min(left, (i64)256);
#pragma unroll 2
    for (int k = lane; k < elements; k += 32) {
        const i64 i = first + k;
        float p = parameters[i], m = first_moment[i], v = second_moment[i];
        update(p, gradients[i], m, v, scale, segment, constants);
        first_moment[i] = m;
        second_moment[i] = v;
        parameters[i] = p;
    }
}

// ---- moments in eight bits ----------------------------------------------------------------------------------------------------------
// Blocks of 256 elements of a tensor share an absmax for each moment: m = D[code] * absmax, v = U[code] * absmax. With g as above:
//   m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*g*g;  p = (p - step_size * m / (sqrt(v) + epsilon)) * keep
// by the moments before they are stored again: absmax = max |m| of the block, the code is the nearest to m / absmax, one further where that
// lost the sign of m; and so for v, which has none.

// One tensor's place in the flat buffers and in those of its codes, and this step's numbers for it.
struct AdamW8BitSegment {
    long long offset;           // first element of the parameters
    long long moments;          // first element of the codes, a multiple of 256
    long long count;            // elements; padding follows the codes up to the next multiple of 256
    float step_size;            // learning rate * sqrt(1 - b2^t) / (1 - b1^t)
    float keep;                 // 1 - learning rate * weight decay, or 1
};

// What is the same for all segments; epsilon has the factor sqrt(1 - b2^t).
struct AdamW8BitConstants {
    float beta1, one_minus_beta1, beta2, one_minus_beta2, epsilon;
};

// The largest magnitude of a warp's numbers, eight a lane. The bits of numbers without a sign are ordered as the numbers are, and those of
// infinity and NaN are above all others.
LT_DEVICE float warp_absmax(const float (&values)[8]) {
    u32 largest = 0;
#pragma unroll
    for (int k = 0; k < 8; k++) largest = max(largest, __float_as_uint(values[k]) & 0x7fffffffu);
#pragma unroll
    for (int distance = 1; distance < 32; distance <<= 1) largest = max(largest, __shfl_xor_sync(LT_ALL_LANES, largest, distance));
    return __uint_as_float(largest);
}

constexpr int CodeOfZero = 127;             // codes of D below it stand for negative numbers

// A moment's eight codes of a lane, in two words. A block of zeros is divided by its absmax too, and has code 0.
template <bool kSigned> LT_DEVICE u32x2 codes_of(const float (&values)[8], float absmax, const float* thresholds) {
    u32 words[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < 8; k++) {
        int code = map_code(thresholds, __fdiv_rn(values[k], absmax));
        if (kSigned && (code < CodeOfZero) != (__float_as_uint(values[k]) >> 31 != 0)) code += values[k] > 0.0f ? 1 : -1;
        words[k / 4] |= (u32)(code & 255) << k % 4 * 8;
    }
    return u32x2{words[0], words[1]};
}

LT_DEVICE u32 byte_of(const u32x2& words, int k) { return (k < 4 ? words.x : words.y) >> k % 4 * 8 & 255; }

// One optimizer step. A warp has a block of 256 elements, a lane eight neighbouring ones. If the loss or the norm in the report is not finite
// nothing changes.
// Launch: ceil(end of the last segment's codes / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
adamw_8bit_step(
    float* __restrict__ parameters,                 // (P) changed in place, inside the segments
    const float* __restrict__ gradients,            // (P)
    unsigned char* __restrict__ first_codes,        // (Q) changed in place, as the next three
    float* __restrict__ first_absmax,               // (Q / 256)
    unsigned char* __restrict__ second_codes,       // (Q)
    float* __restrict__ second_absmax,              // (Q / 256)
    const AdamW8BitSegment* __restrict__ segments,  // (segment_count) by ascending places of their codes
    int segment_count,                              // at least 1
    const float* __restrict__ first_map,            // (256) D, ascending
    const float* __restrict__ second_map,           // (256) U, ascending
    const double* __restrict__ report,              // [0] sum of the losses, [1] gradient norm
    double max_grad_norm,                           // 0 or less: no clipping
    AdamW8BitConstants constants) {
    __shared__ float first_values[256], first_thresholds[256], second_values[256], second_thresholds[256];
    __shared__ float shared_scale;
    if (threadIdx.x == 0) shared_scale = gradient_scale_of(report, max_grad_norm);
    first_values[threadIdx.x] = first_map[threadIdx.x];
    second_values[threadIdx.x] = second_map[threadIdx.x];
    if (threadIdx.x < 255) {
        first_thresholds[threadIdx.x] = map_threshold(first_map, threadIdx.x);
        second_thresholds[threadIdx.x] = map_threshold(second_map, threadIdx.x);
    }
    const int lane = threadIdx.x & 31;
    const i64 block = (i64)blockIdx.x * 8 + (threadIdx.x >> 5), first = block * 256;
    const AdamW8BitSegment segment = segments[find_segment(segment_count, first, [=](int i) { return segments[i].moments; })];
    __syncthreads();
    const float scale = shared_scale;
    const i64 left = segment.moments + segment.count - first;       // elements of the segment from this block on
    if (!(scale == scale) || first < segment.moments || left <= 0) return;

    const int own = (int)min(left - lane * 8, 8ll);                 // elements of this lane; may be none
    float* const p_place = parameters + segment.offset + (first - segment.moments) + lane * 8;
    const float* const g_place = gradients + segment.offset + (first - segment.moments) + lane * 8;
    unsigned char* const m_place = first_codes + first + lane * 8;
    unsigned char* const v_place = second_codes + first + lane * 8;
    const bool whole = own == 8 && is_aligned_16(p_place) && is_aligned_16(g_place) && is_aligned_8(m_place) && is_aligned_8(v_place);
    float p[8] = {}, g[8] = {}, m[8] = {}, v[8] = {};
    u32x2 m_codes = {0, 0}, v_codes = {0, 0};
    if (whole) {
        load_f32x8(p, p_place);
        load_f32x8(g, g_place);
        m_codes = load_8_bytes(m_place);
        v_codes = load_8_bytes(v_place);
    } else {
#pragma unroll
        for (int k = 0; k < 8; k++) {
            if (k >= own) break;
            p[k] = p_place[k];
            g[k] = g_place[k];
            (k < 4 ? m_codes.x : m_codes.y) |= (u32)m_place[k] << k % 4 * 8;
            (k < 4 ? v_codes.x : v_codes.y) |= (u32)v_place[k] << k % 4 * 8;
        }
    }

    const float m_absmax = first_absmax[block], v_absmax = second_absmax[block];
#pragma unroll
    for (int k = 0; k < 8; k++) {
        if (k >= own) break;
        const float gradient = __fmul_rn(g[k], scale);
        m[k] = __fmul_rn(first_values[byte_of(m_codes, k)], m_absmax);
        v[k] = __fmul_rn(second_values[byte_of(v_codes, k)], v_absmax);
        m[k] = fmaf(constants.one_minus_beta1, gradient, __fmul_rn(constants.beta1, m[k]));
        v[k] = fmaf(__fmul_rn(constants.one_minus_beta2, gradient), gradient, __fmul_rn(constants.beta2, v[k]));
        const float change = __fdiv_rn(m[k], __fadd_rn(__fsqrt_rn(v[k]), constants.epsilon));
        p[k] = __fmul_rn(__fsub_rn(p[k], __fmul_rn(segment.step_size, change)), segment.keep);
    }

    const float new_m_absmax = warp_absmax(m), new_v_absmax = warp_absmax(v);
    m_codes = codes_of<true>(m, new_m_absmax, first_thresholds);
    v_codes = codes_of<false>(v, new_v_absmax, second_thresholds);
    if (lane == 0) {
        first_absmax[block] = new_m_absmax;
        second_absmax[block] = new_v_absmax;
    }
    if (whole) {
        store_f32x4(p_place, f32x4{p[0], p[1], p[2], p[3]});
        store_f32x4(p_place + 4, f32x4{p[4], p[5], p[6], p[7]});
        store_8_bytes(m_place, m_codes);
        store_8_bytes(v_place, v_codes);
    } else {
#pragma unroll
        for (int k = 0; k < 8; k++) {
            if (k >= own) break;
            p_place[k] = p[k];
            m_place[k] = (unsigned char)byte_of(m_codes, k);
            v_place[k] = (unsigned char)byte_of(v_codes, k);
        }
    }
}
