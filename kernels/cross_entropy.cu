// Softmax cross entropy of a block of logits rows, and its gradient.
//   lse = max + log(sum exp(z - max)),  loss = lse - z[target],  dz = (exp(z - max) / sum - onehot) * gradient_scale
// Logits and losses fp32, the gradient bf16 with one rounding. The logits are read once for maximum and sum together, and once more for the
// gradient; what has room in shared memory waits there for the second reading.
// Determinism: a thread sums its own elements in their order, warps and the block meet in a fixed order. How much waits in shared memory
// changes no bit.
#include "port.cuh"

constexpr float kLog2E = 1.4426950408889634f;

// e^x for x <= 0, off by (|x| + 4) / 2^24 of itself at most: what the product rounds away, and two units of the last place. Below the
// smallest normal number it is zero.
LT_DEVICE float exp_of_difference(float x) { return fast_exp2(x * kLog2E); }

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
    float sum = running.sum * exp_of_difference(running.maximum - shift);
#pragma unroll
    for (int i = 0; i < N; i++) sum += exp_of_difference(z[i] - shift);
    running = {maximum, sum};
}

// Rows come in pieces of four elements a thread: thread t of T has the elements 4 * (p * T + t) .. + 3 of piece p, so that neighbouring
// threads have neighbouring 16 bytes.

// What the gradient of every element of a row needs.
struct RowGradient {
    float shift, factor, gradient_scale;
    int target;
};

// The gradient of the four elements from `first` on.
LT_DEVICE void store_gradient(bf16* dz, const RowGradient& row, const f32x4& logits, int first) {
    float z[4] = {logits.x, logits.y, logits.z, logits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        z[i] = exp_of_difference(z[i] - row.shift) * row.factor;
        if (first + i == row.target) z[i] -= row.gradient_scale;
    }
    store_8_bytes(dz + first, {pack_bf16(z[0], z[1]), pack_bf16(z[2], z[3])});
}

// Block i has the logits of row rows[i].
// Launch: M blocks of T = min(1024, 32 * ceil(V / 512)) threads, kept_pieces * T * 16 bytes of dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024, 1)
softmax_cross_entropy(
    float* __restrict__ losses,         // (N) losses[rows[i]] is overwritten
    bf16* __restrict__ d_logits,        // (M, V) overwritten; null: no gradient
    const float* __restrict__ logits,   // (M, V)
    const int* __restrict__ targets,    // (N) in 0..V-1 where rows points
    const int* __restrict__ rows,       // (M) in 0..N-1
    int vocabulary,                     // V
    int kept_pieces,                    // so many pieces of a row wait in shared memory for the gradient
    float gradient_scale,               // 1 / scored tokens of the global batch
    const PassNumbers* numbers) {       // where given, gradient_scale is this one's
    __shared__ float maxima[32];
    __shared__ float sums[32];
    LT_SHARED(memory);
    float* const kept = (float*)memory;
    const int row = rows[blockIdx.x], target = targets[row];
    const float* z = logits + (i64)blockIdx.x * vocabulary;
    const bool vectors = vocabulary % 4 == 0 && is_aligned_16(logits) && is_aligned_16(d_logits);
    const int stride = blockDim.x * 4, start = threadIdx.x * 4;
    const int pieces = vocabulary > start ? (vocabulary - start + stride - 1) / stride : 0;     // of this thread

    const auto load = [=](int piece) { return load_f32x4(z + start + piece * stride); };

    RunningSum running = {-LT_INFINITY, 0.0f};
    if (vectors) {
        in_batches<4>(0, 1, pieces, load, [&](int piece, const f32x4& four) {
            if (piece < kept_pieces) store_f32x4(kept + start + piece * stride, four);
            add_elements(running, {four.x, four.y, four.z, four.w});
        });
    } else {
        for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) add_elements(running, {z[i]});
    }
    const float maximum = block_max(running.maximum, maxima), shift = maximum == -LT_INFINITY ? 0.0f : maximum;
    const float sum = block_sum(running.sum * exp_of_difference(running.maximum - shift), sums);
    if (threadIdx.x == 0) losses[row] = logf(sum) + (shift - z[target]);

    if (d_logits == nullptr) return;
    if (numbers) gradient_scale = numbers->gradient_scale;
    bf16* dz = d_logits + (i64)blockIdx.x * vocabulary;
    const RowGradient gradient = {shift, gradient_scale / sum, gradient_scale, target};
    if (vectors) {
        // From the end: what was read last is most likely still in the cache.
        const int last = pieces - 1, in_memory = min(kept_pieces, pieces);
        in_batches<4>(0, 1, pieces - in_memory, [=](int i) { return load(last - i); },
                      [=](int i, const f32x4& four) { store_gradient(dz, gradient, four, start + (last - i) * stride); });
        for (int piece = in_memory - 1; piece >= 0; piece--)
            store_gradient(dz, gradient, load_f32x4(kept + start + piece * stride), start + piece * stride);
    } else {
        for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) {
            const float value = exp_of_difference(z[i] - shift) * gradient.factor;
            dz[i] = to_bf16(i == target ? value - gradient_scale : value);
        }
    }
}
