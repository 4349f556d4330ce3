// Dropout, and its backward (the same function on the gradient): output[i] = keep(first_element + i) ? input[i] * scale : 0.
// keep(e): word e % 4 of Philox4x32-10 with key = seed (low word, high word), counter = (e / 4 low word, high word, step, stream) is below
// the threshold. A mask depends on these numbers alone: any device, split or recomputation gives the same one, and none is stored.
#include "port.cuh"

struct Philox {
    u32 words[4];
};

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

// One Philox call serves four elements, where first_element is a multiple of four.
// Launch: ceil(count / 2048) blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
dropout_apply(
    bf16* output,                       // (count) overwritten; may be the input
    const bf16* input,                  // (count)
    long long count,
    unsigned long long first_element,   // number of the first element in the tensor the mask belongs to
    unsigned long long keep_threshold,  // 1 .. 2^32: keep probability * 2^32
    float scale,                        // 1 / keep probability
    unsigned long long seed,
    unsigned stream,
    unsigned step) {
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
            const u64 element = first_element + i;
            const Philox numbers = philox(element / 4, step, stream, seed);
            const u32 pair = element & 2 ? 2 : 0;
            const u32 even = pair ? numbers.words[2] : numbers.words[0], odd = pair ? numbers.words[3] : numbers.words[1];
            output[i] = to_bf16((element & 1 ? odd : even) <= last_kept ? to_float(input[i]) * scale : 0.0f);
        });
}
