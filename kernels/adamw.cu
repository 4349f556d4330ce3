// AdamW with decoupled weight decay over all trainable parameters, which lie in one flat buffer. With g = gradient * gradient_scale:
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

// The last segment that starts at or before `element`, found by a whole warp: 32 candidates a step.
LT_DEVICE int find_segment(const AdamWSegment* segments, int segment_count, i64 element) {
    const int lane = threadIdx.x & 31;
    int first = 0, size = segment_count;
    while (size > 1) {
        const int stride = (size + 31) / 32;
        const bool starts_before = lane * stride < size && segments[first + lane * stride].offset <= element;
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
    const AdamWSegment segment = segments[find_segment(segments, segment_count, first)];
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
