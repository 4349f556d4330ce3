// Dropout, and its backward (the same function on the gradient): output[i] = keep(first_row * width + i) ? input[i] * scale : 0.
// keep(e): the random number of element e, stream and step is below the threshold. A mask depends on these numbers alone: any device, split
// or recomputation gives the same one, and none is stored.
#include "port.cuh"

// One Philox call serves four elements, where the number of the first one is a multiple of four.
// Launch: ceil(count / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
dropout_apply(
    bf16* output,                       // (count) overwritten; may be the input
    const bf16* input,                  // (count)
    long long count,
    int width,                          // elements of a row
    long long first_row,                // rows of the tensor the mask belongs to that come before these
    unsigned long long keep_threshold,  // 1 .. 2^32: keep probability * 2^32
    float scale,                        // 1 / keep probability
    unsigned long long seed,
    unsigned stream,
    unsigned step,
    const PassNumbers* numbers) {       // where given, first_row and step are these
    const u64 first_element = (u64)(numbers ? numbers->first_row : first_row) * (u64)width;
    if (numbers) step = numbers->step;
    const u32 last_kept = (u32)(keep_threshold - 1);
    for_each_eight(
        count, first_element % 4 == 0 && is_aligned_16(output) && is_aligned_16(input),
        [=](i64 i) {
            const u64 counter = (first_element + i) / 4;
            const Philox low = philox(counter, step, stream, seed), high = philox(counter + 1, step, stream, seed);
            float x[8];
            load_bf16x8(x, input + i);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                x[k] = low.words[k] <= last_kept ? x[k] * scale : 0.0f;
                x[k + 4] = high.words[k] <= last_kept ? x[k + 4] * scale : 0.0f;
            }
            store_bf16x8(output + i, x);
        },
        [=](i64 i) {
            const bool kept = philox_of(first_element + i, step, stream, seed) <= last_kept;
            output[i] = to_bf16(kept ? to_float(input[i]) * scale : 0.0f);
        });
}
