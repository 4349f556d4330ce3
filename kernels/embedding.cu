// Rows of a table by token.
//   forward   output[i] = scale * table[tokens[i]]
//   backward  d_table[t] += scale * the rows of d_output whose token is t, in their order
// Table and activations bf16, the table's gradient fp32. Determinism: every row of the gradient has one block, which adds in the order of
// the rows; the result is the one a loop over the rows would give, bit for bit.
#include "port.cuh"

// One row a block.
// Launch: N blocks of min(1024, 32 * ceil(D / 512)) threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024)
embedding_forward(
    bf16* __restrict__ output,          // (N, D) overwritten
    const int* __restrict__ tokens,     // (N) in 0..V-1
    const bf16* __restrict__ table,     // (V, D)
    int rows,                           // N
    int width,                          // D
    float scale) {
    if (blockIdx.x >= (unsigned)rows) return;
    const bool aligned = width % 8 == 0 && is_aligned_16(output) && is_aligned_16(table);
    bf16* const target = output + (i64)blockIdx.x * width;
    const bf16* const source = table + (i64)tokens[blockIdx.x] * width;
    if (scale == 1.0f) {
        copy_row(target, source, width, aligned);
    } else if (aligned) {
        for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
            float x[8];
            load_bf16x8(x, source + i);
#pragma unroll
            for (int k = 0; k < 8; k++) x[k] *= scale;
            store_bf16x8(target + i, x);
        }
    } else {
        for (int i = threadIdx.x; i < width; i += blockDim.x) target[i] = to_bf16(to_float(source[i]) * scale);
    }
}

constexpr int BackwardThreads = 256;
constexpr int ColumnsPerBlock = BackwardThreads * 8;
constexpr int SearchStep = 1024;                        // tokens a block looks at between two barriers: 32 words of 32 answers
constexpr int WordsPerStep = SearchStep / 32;

// Whether a row before `row` has its token. The whole block calls it; `scratch` is shared memory for 64 numbers.
LT_DEVICE bool occurs_before(const int* tokens, int row, int token, int* scratch) {
    for (int base = 0, step = 0; base < row; base += SearchStep, step++) {
        bool found = false;
#pragma unroll
        for (int k = 0; k < SearchStep; k += BackwardThreads) {
            const int candidate = base + k + threadIdx.x;
            found |= candidate < row && tokens[candidate] == token;
        }
        // Two halves of the scratch by turns: a thread that is one barrier ahead writes what nobody reads any more.
        if (block_any(found, scratch + (step & 1) * 32)) return true;
    }
    return false;
}

// The eight columns of a thread: neighbours where whole vectors can be read, else a block width apart.
LT_DEVICE void load_columns(float (&values)[8], const bf16* row, int column, int width, bool aligned) {
    if (aligned) {
        load_bf16x8(values, row + column);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int c = column + i * BackwardThreads;
        values[i] = c < width ? to_float(row[c]) : 0.0f;
    }
}

// d_table[token] += ... : the block of a row has work only if no earlier row has the same token, and then adds all rows that have it.
// Launch: grid (N, ceil(D / 2048)), blocks of 256 threads, no dynamic shared memory. A block owns 2048 columns.
extern "C" __global__ void __launch_bounds__(BackwardThreads)
embedding_backward(
    float* __restrict__ d_table,        // (V, D) added to
    const bf16* __restrict__ d_output,  // (N, D)
    const int* __restrict__ tokens,     // (N) in 0..V-1
    int rows,                           // N
    int width,                          // D
    int padding_token,                  // its row gets nothing; -1: there is none
    float scale) {
    __shared__ int scratch[64];
    __shared__ unsigned matches[2][WordsPerStep];
    const int row = blockIdx.x, token = tokens[row];
    if (token == padding_token || occurs_before(tokens, row, token, scratch)) return;

    const bool aligned = width % 8 == 0 && is_aligned_16(d_output) && is_aligned_16(d_table);
    const int column = blockIdx.y * ColumnsPerBlock + (aligned ? threadIdx.x * 8 : threadIdx.x);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float* target = d_table + (i64)token * width + column;
    float sums[8] = {};
    if (column < width) {
        if (aligned) {
            load_f32x8(sums, target);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (column + i * BackwardThreads < width) sums[i] = target[i * BackwardThreads];
        }
    }

    for (int base = row, step = 0; base < rows; base += SearchStep, step++) {
        unsigned* words = matches[step & 1];            // by turns, as above
#pragma unroll
        for (int k = 0; k < SearchStep; k += BackwardThreads) {
            const int candidate = base + k + threadIdx.x;
            const unsigned word = __ballot_sync(LT_ALL_LANES, candidate < rows && tokens[candidate] == token);
            if (lane == 0) words[k / 32 + warp] = word;
        }
        __syncthreads();
        unsigned filled = __ballot_sync(LT_ALL_LANES, words[lane] != 0);
        for (; filled != 0; filled &= filled - 1) {
            const int index = __ffs((int)filled) - 1;
            for (unsigned word = words[index]; word != 0; word &= word - 1) {
                const int source = base + index * 32 + __ffs((int)word) - 1;
                if (column >= width) continue;
                float values[8];
                load_columns(values, d_output + (i64)source * width, column, width, aligned);
#pragma unroll
                for (int i = 0; i < 8; i++) sums[i] = __fadd_rn(sums[i], __fmul_rn(values[i], scale));
            }
        }
    }

    if (column >= width) return;
    if (aligned) {
        store_f32x4(target, f32x4{sums[0], sums[1], sums[2], sums[3]});
        store_f32x4(target + 4, f32x4{sums[4], sums[5], sums[6], sums[7]});
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (column + i * BackwardThreads < width) target[i * BackwardThreads] = sums[i];
    }
}
