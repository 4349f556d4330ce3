// Softmax cross entropy of a block of logits rows, and its gradient.
//   lse = max + log(sum exp(z - max)),  loss = lse - z[target],  dz = (exp(z - max) / sum - onehot) * gradient_scale
// Logits and losses fp32, the gradient bf16 with one rounding. The logits are read once for maximum and sum together, and once more for the
// gradient. Determinism: a thread sums its own elements in their order, warps and the block meet in a fixed order.
#include "port.cuh"

// The sum of exp(z - maximum) over what a thread has seen.
struct RunningSum {
    float maximum, sum;
};

// Takes N more elements in. The sum moves to the new maximum first; a maximum of -infinity stands for zero, so that exp never sees a
// difference of infinities.
template <int N> LT_DEVICE void add_elements(RunningSum& running, const float (&z)[N]) {
    float maximum = running.maximum;
#pragma unroll
    for (int i = 0; i < N; i++) maximum = fmaxf(maximum, z[i]);
    const float shift = maximum == -LT_INFINITY ? 0.0f : maximum;
    float sum = running.sum * expf(running.maximum - shift);
#pragma unroll
    for (int i = 0; i < N; i++) sum += expf(z[i] - shift);
    running = {maximum, sum};
}

// Block i has the logits of row rows[i].
// Launch: M blocks of T = min(1024, 32 * ceil(V / 512)) threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
softmax_cross_entropy(
    float* __restrict__ losses,         // (N) losses[rows[i]] is overwritten
    bf16* __restrict__ d_logits,        // (M, V) overwritten; null: no gradient
    const float* __restrict__ logits,   // (M, V)
    const int* __restrict__ targets,    // (N) in 0..V-1 where rows points
    const int* __restrict__ rows,       // (M) in 0..N-1
    int vocabulary,                     // V
    float gradient_scale) {             // 1 / scored tokens of the global batch
    __shared__ float maxima[32];
    __shared__ float sums[32];
    const int row = rows[blockIdx.x], target = targets[row];
    const float* z = logits + (i64)blockIdx.x * vocabulary;
    const bool vectors = vocabulary % 8 == 0 && is_aligned_16(logits) && is_aligned_16(d_logits);
    const int start = vectors ? threadIdx.x * 8 : threadIdx.x, stride = vectors ? blockDim.x * 8 : blockDim.x;

    RunningSum running = {-LT_INFINITY, 0.0f};
    if (vectors) {
        for (int i = start; i < vocabulary; i += stride) {
            float eight[8];
            load_f32x8(eight, z + i);
            add_elements(running, eight);
        }
    } else {
        for (int i = start; i < vocabulary; i += stride) add_elements(running, {z[i]});
    }
    const float maximum = block_max(running.maximum, maxima), shift = maximum == -LT_INFINITY ? 0.0f : maximum;
    const float sum = block_sum(running.sum * expf(running.maximum - shift), sums);
    if (threadIdx.x == 0) losses[row] = logf(sum) + (shift - z[target]);

    if (d_logits == nullptr) return;
    bf16* dz = d_logits + (i64)blockIdx.x * vocabulary;
    const float factor = gradient_scale / sum;
    if (vectors) {
        for (int i = start; i < vocabulary; i += stride) {
            float eight[8];
            load_f32x8(eight, z + i);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                eight[k] = expf(eight[k] - shift) * factor;
                if (i + k == target) eight[k] -= gradient_scale;
            }
            store_bf16x8(dz + i, eight);
        }
    } else {
        for (int i = start; i < vocabulary; i += stride) {
            const float gradient = expf(z[i] - shift) * factor;
            dz[i] = to_bf16(i == target ? gradient - gradient_scale : gradient);
        }
    }
}
