// Causal attention over a packed stream of documents, forward and backward, flash-style: scores live in registers only.
//
//   S = scale * q k^T     P = softmax(S) over the keys a query sees     o = P v     lse = ln(sum exp(S))
//   delta = rowsum(dO * o)     dP = dO v^T     dS = P * (dP - delta)     dv = P^T dO     dk = scale * dS^T q     dq = scale * dS k
//
// Query i stands at key index i + (keys - queries). It sees key j iff j is not beyond that index and not before the first token of i's
// document, and with a window W iff j is one of the last W keys up to its own. With a softcap c the scores are c * tanh(S / c), and
// dS = P * (dP - delta) * (1 - tanh^2). Query head h uses key head h / (query_heads / key_heads); dk and dv sum over the query heads of their key head.
//
// Numbers: bf16 in memory, every product on the tensor cores with fp32 sums, softmax in fp32 (in base 2, the logarithms come from
// folding log2(e) into the scale). P and dS are rounded to bf16 for their products, each result is rounded once when it is stored.
// backward computes P again from lse. scale must be positive. A hidden pair contributes an exact 0.
//
// Determinism: a block owns the rows it writes and adds in one fixed order: tiles of keys (or queries) upward, for dk and dv query head
// after query head, the two halves of the query tiles each by itself. There are no atomics, and dq has a kernel of its own. A row's bits
// depend on its own numbers and on where its document starts modulo the tile, not on its neighbours.
//
// LT_SCORES says what else is done to scores: 0 nothing, 1 a window, 2 a softcap, and a window of at least 1. Each is compiled by itself,
// so that what is not asked for takes neither time nor registers.
//
// LT_HEAD_DIM is head_dim rounded up to a multiple of 16 (16..256); head_dim is a multiple of 8. Columns head_dim..LT_HEAD_DIM exist on
// chip only and hold zeros, like the rows of a tile that lie past the last token: nothing outside the tensors is read or written.
//
// Launch (blocks are one-dimensional; a grid is x by y; `ceil` rounds up; rows of a tile, threads and dynamic shared bytes by D):
//
//   kernel                        grid x, y                              D         rows a block owns   tile it walks over   threads
//   attention_forward             query_heads, ceil(queries / rows)      <= 128    128 queries         64 keys              128
//                                                                        <= 192     64 queries         64 keys              128
//                                                                        <= 256     64 queries         32 keys              128
//   attention_delta               query_heads, ceil(tokens / 32)         any        32 queries         -                    256
//   attention_backward_keys       key_heads, ceil(tokens / rows)         <=  64     64 keys            64 queries           128
//                                                                        <= 128     64 keys            64 queries           256
//                                                                        <= 256     64 keys            16 queries           256
//   attention_backward_queries    query_heads, ceil(tokens / rows)       <=  64    128 queries         64 keys              128
//                                                                        <= 128    128 queries         64 keys              256
//                                                                        <= 192     64 queries         32 keys              128
//                                                                        <= 256     64 queries         16 keys              128
//
//   Shared bytes, with pitch = 2 * (D + (D == 192 || D == 256 ? 0 : 8)) bytes a row, and `rows` and `tile` from the table:
//     attention_forward             pitch * (rows + 2 * tile)
//     attention_delta               0
//     attention_backward_keys       pitch * ((D > 64 && D <= 128 ? 1 : 2) * rows + 4 * tile) + 16 * tile
//     attention_backward_queries    pitch * ((D <= 128 ? 0 : 2) * rows + 4 * tile)
#include "port.cuh"

#ifndef LT_HEAD_DIM
#define LT_HEAD_DIM 64
#endif
#ifndef LT_SCORES
#define LT_SCORES 0
#endif
static_assert(LT_SCORES >= 0 && LT_SCORES <= 2, "LT_SCORES is 0, 1 or 2");
static_assert(LT_HEAD_DIM % 16 == 0 && LT_HEAD_DIM >= 16 && LT_HEAD_DIM <= 256, "LT_HEAD_DIM is a multiple of 16 up to 256");

// D, the columns of a row on chip; a row is kChunks pieces of 16 bytes, a product over the columns takes kSteps steps of 16.
constexpr int kHeadDim = LT_HEAD_DIM;
constexpr int kChunks = kHeadDim / 8;
constexpr int kSteps = kHeadDim / 16;
constexpr bool kWindowed = LT_SCORES >= 1, kCapped = LT_SCORES == 2;

// ldmatrix reads 16 bytes of 8 neighbouring rows at once, and they have to lie in different banks. One chunk of padding does it (a row
// then has an odd number of them); for 192 and 256 columns there is no room for that, and the chunks of a 128-byte line change places
// by the row's low bits instead.
constexpr bool kSwizzled = kHeadDim % 64 == 0 && kHeadDim > 128;
constexpr int kPitch = kHeadDim + (kSwizzled ? 0 : 8);

// ---- tile sizes -----------------------------------------------------------------------------------------------------------------
// A warp owns kXxxRowTiles times 16 rows. Two such tiles share every fragment of the other factor and so halve the traffic of shared
// memory, but the sums they keep have to fit into 255 registers.

// From compute capability 10.0 on the same code needs a few registers more, and some sizes have none left: they take smaller steps there. The
// table of launches is that of the others; shared memory that is left over hurts nobody.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool kFewRegisters = true;
#else
constexpr bool kFewRegisters = false;
#endif

constexpr int kForwardWarps = 4;
constexpr int kForwardRowTiles = kHeadDim <= 128 ? 2 : 1;
constexpr int kForwardRows = kForwardWarps * kForwardRowTiles * 16;
constexpr int kForwardTile = kHeadDim > 192 ? 32 : kFewRegisters && kHeadDim == 96 && LT_SCORES == 1 ? 48 : 64;
constexpr int kForwardThreads = kForwardWarps * 32;
constexpr int kForwardBytes = 2 * kPitch * (kForwardRows + 2 * kForwardTile);
constexpr bool kForwardQueriesInRegisters = kHeadDim <= 64;

// Whether a warp leaves out a tile of which its rows see nothing. It takes registers, which some sizes do not have.
constexpr bool kForwardWarpsRest = kHeadDim <= 64 || (kFewRegisters ? kHeadDim > 128 : kHeadDim >= 128);

// Two warps share their keys, so that a block has few of them: the first keys of a document are seen by all of its queries, and the last
// block to end must not be much longer than the others. Up to 128 columns each of the two takes one half of every tile of queries, and
// what they summed is added at the end. Above, the sums of all columns have no room in one warp's registers: each computes all scores,
// and sums one half of the columns of dk and dv.
constexpr int kKeysWarps = kHeadDim <= 64 ? 4 : 8;
constexpr int kKeysColumnParts = kHeadDim <= 128 ? 1 : 2;
constexpr int kKeysQueryParts = kHeadDim <= 128 ? 2 : 1;
constexpr int kKeysRowTiles = kHeadDim <= 64 ? 2 : 1;
constexpr int kKeysWarpRows = kKeysRowTiles * 16;
constexpr int kKeysRows = kKeysWarps / 2 * kKeysWarpRows;
constexpr int kKeysStep = kHeadDim <= 128 ? 32 : 16;                    // queries that a warp takes at a time
constexpr int kKeysTile = kKeysQueryParts * kKeysStep;
constexpr int kKeysThreads = kKeysWarps * 32;
constexpr bool kKeysInRegisters = kHeadDim > 64 && kHeadDim <= 128;
constexpr int kKeysTileRows = (kKeysInRegisters ? 1 : 2) * kKeysRows + 4 * kKeysTile;
constexpr int kKeysBytes = 2 * kPitch * kKeysTileRows + 16 * kKeysTile;
static_assert(kKeysColumnParts * kKeysQueryParts == 2, "two warps share their keys in one way or the other");
static_assert(!kKeysInRegisters || kKeysRows <= 2 * kKeysTile, "the second buffer of the query tiles takes the place of K");
static_assert(kKeysQueryParts == 1 || 4 * kKeysWarps * kKeysWarpRows * kHeadDim <= 2 * kPitch * (kKeysTileRows - kKeysRows),
              "sums are exchanged by way of the tiles behind V");

constexpr int kQueriesWarps = kHeadDim > 64 && kHeadDim <= 128 ? 8 : 4;
constexpr int kQueriesRowTiles = kHeadDim <= 64 ? 2 : 1;
constexpr int kQueriesRows = kQueriesWarps * kQueriesRowTiles * 16;
constexpr int kQueriesTile = kHeadDim <= 128 ? 64 : kHeadDim <= 192 ? 32 : 16;
constexpr int kQueriesStep = kQueriesTile < 32 || (kFewRegisters && kHeadDim == 64 && kCapped) ? 16 : 32;
constexpr int kQueriesThreads = kQueriesWarps * 32;
constexpr bool kQueriesInRegisters = kHeadDim <= 128;
constexpr int kQueriesTileRows = (kQueriesInRegisters ? 0 : 2) * kQueriesRows + 4 * kQueriesTile;
constexpr int kQueriesBytes = 2 * kPitch * kQueriesTileRows;
static_assert(!kQueriesInRegisters || 2 * kQueriesRows <= 4 * kQueriesTile, "Q and dO pass through the buffers of the key tiles");

constexpr int kLargestBytes = 99 * 1024;             // what a block may have on the smaller cards (sm_86, sm_89, sm_120)
static_assert(kForwardBytes <= kLargestBytes && kKeysBytes <= kLargestBytes && kQueriesBytes <= kLargestBytes, "too much shared memory");

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

struct AttentionArguments {
    bf16* output;               // (queries, query_heads * head_dim), written
    float* lse;                 // (query_heads, queries), natural logarithm, written; may be null
    const bf16* q;              // (queries, query_heads * head_dim)
    const bf16* k;              // (keys, key_heads * head_dim)
    const bf16* v;              // (keys, key_heads * head_dim)
    const int* positions;       // (queries), 0 at the first token of each document; null: one document, from key 0
    int queries, keys, query_heads, key_heads, head_dim;
    float scale;
    int window;                 // keys that a query sees at most, its own included
    float softcap;
};

struct AttentionGradients {
    bf16* d_q;                  // (tokens, query_heads * head_dim), written by attention_backward_queries
    bf16* d_k;                  // (tokens, key_heads * head_dim), written by attention_backward_keys
    bf16* d_v;                  // (tokens, key_heads * head_dim), written by attention_backward_keys
    const bf16* d_output;       // (tokens, query_heads * head_dim)
    const bf16* output;         // (tokens, query_heads * head_dim), of the forward pass; read by attention_delta only
    const float* lse;           // (query_heads, tokens), of the forward pass
    float* delta;               // (query_heads, tokens), written by attention_delta, read by the other two
    const bf16* q;              // (tokens, query_heads * head_dim)
    const bf16* k;              // (tokens, key_heads * head_dim)
    const bf16* v;              // (tokens, key_heads * head_dim)
    const int* positions;       // (tokens); null: one document
    int tokens, query_heads, key_heads, head_dim;
    float scale;
    int window;
    float softcap;
};

// ---- tiles in shared memory -----------------------------------------------------------------------------------------------------

// Where a chunk of a row starts, in elements. Tiles start at multiples of 16 rows, so a row's low bits are those of its place.
LT_DEVICE int chunk_offset(int row, int chunk) { return row * kPitch + (kSwizzled ? chunk ^ (row & 7) : chunk) * 8; }

// Starts to copy rows of one head. `source` is the head's part of the tile's first row; of its rows `rows` exist. A thread copies one
// chunk of every kStride-th row, so that its addresses are those of the first row plus constants; threads that are over do nothing.
template <int kRows, int kThreads>
LT_DEVICE void load_tile(bf16* tile, const bf16* source, int source_pitch, int rows, int head_dim) {
    constexpr int kStride = kThreads / kChunks;
    const int first_row = (int)threadIdx.x / kChunks, chunk = (int)threadIdx.x % kChunks;
    if (kThreads % kChunks != 0 && first_row >= kStride) return;
    const bool column_exists = chunk * 8 < head_dim;
    const bf16* const first = source + first_row * source_pitch + chunk * 8;
#pragma unroll
    for (int i = 0; i < (kRows + kStride - 1) / kStride; i++) {
        const int row = first_row + i * kStride;
        if (kRows % kStride != 0 && row >= kRows) break;
        const bool present = column_exists && first_row < rows - i * kStride;
        cp_async16_or_zero(tile + chunk_offset(row, chunk), first + i * kStride * source_pitch, present);
    }
}

// What a lane contributes to and holds of a warp's fragments.
struct Lane {
    int warp;
    int row;                    // of a 16x8 fragment of sums it holds (row, column), (row, column + 1), (row + 8, ...)
    int column;
    int left_offset;            // its address inside 16 rows for fragments of a left factor, and of a transposed right one
    int right_offset;           // the same for a right factor whose rows are the columns of the product
};

LT_DEVICE Lane this_lane() {
    const int index = threadIdx.x & 31;
    Lane lane;
    lane.warp = threadIdx.x >> 5;
    lane.row = index >> 2;
    lane.column = (index & 3) * 2;
    lane.left_offset = chunk_offset(index & 15, index >> 4);
    lane.right_offset = chunk_offset((index & 7) | (index >> 4) << 3, (index >> 3) & 1);
    return lane;
}

// The address of a lane's row, moved by so many steps of 16 columns: the chunks of a step differ from those of step 0 in bits that
// the lane's own offset leaves to be exchanged.
LT_DEVICE int step_offset(int lane_offset, int step) {
    return kSwizzled ? (lane_offset ^ (step * 16 & 63)) + (step * 16 & ~63) : lane_offset + step * 16;
}

// ---- products -------------------------------------------------------------------------------------------------------------------

// The left factor of a product over the columns: kTiles times 16 rows of a tile, held in registers or read again at every use.
template <int kTiles, bool kInRegisters> struct LeftRows;

template <int kTiles> struct LeftRows<kTiles, false> {
    const bf16* rows;           // with the lane's offset not yet added
};

template <int kTiles> struct LeftRows<kTiles, true> {
    u32 fragments[kTiles][kSteps][4];
};

template <int kTiles> LT_DEVICE void set_rows(LeftRows<kTiles, false>& left, const bf16* rows, const Lane&) { left.rows = rows; }

template <int kTiles> LT_DEVICE void set_rows(LeftRows<kTiles, true>& left, const bf16* rows, const Lane& lane) {
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int step = 0; step < kSteps; step++)
            ldmatrix_x4(left.fragments[m][step], rows + m * 16 * kPitch + step_offset(lane.left_offset, step));
}

template <int kTiles>
LT_DEVICE void get_step(u32 (&fragments)[kTiles][4], const LeftRows<kTiles, false>& left, int step, const Lane& lane) {
#pragma unroll
    for (int m = 0; m < kTiles; m++)
        ldmatrix_x4(fragments[m], left.rows + m * 16 * kPitch + step_offset(lane.left_offset, step));
}

template <int kTiles>
LT_DEVICE void get_step(u32 (&fragments)[kTiles][4], const LeftRows<kTiles, true>& left, int step, const Lane&) {
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) fragments[m][i] = left.fragments[m][step][i];
}

template <int kTiles, int kColumns> LT_DEVICE void clear(float (&sums)[kTiles][kColumns][4]) {
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int n = 0; n < kColumns; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[m][n][i] = 0.0f;
}

// sums = left * right^T over the columns of both; `right` is the first of kColumns * 8 rows of a tile.
template <int kTiles, int kColumns, bool kInRegisters>
LT_DEVICE void multiply_rows(
    float (&sums)[kTiles][kColumns][4], const LeftRows<kTiles, kInRegisters>& left, const bf16* right, const Lane& lane) {
    clear(sums);
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
        u32 a[kTiles][4];
        get_step(a, left, step, lane);
#pragma unroll
        for (int n = 0; n < kColumns; n += 2) {
            u32 b[4];
            ldmatrix_x4(b, right + n * 8 * kPitch + step_offset(lane.right_offset, step));
            const u32 first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < kTiles; m++) {
                mma_bf16_16816(sums[m][n], a[m], first, sums[m][n]);
                mma_bf16_16816(sums[m][n + 1], a[m], second, sums[m][n + 1]);
            }
        }
    }
}

// sums += left * right; `left` holds kInner times 16 columns, `right` is the first of as many rows of a tile, and the sums are those of
// its columns from first_step * 16 on (columns past the tile's width are left out).
template <int kTiles, int kInner, int kColumns>
LT_DEVICE void multiply_add(
    float (&sums)[kTiles][kColumns][4], const u32 (&left)[kTiles][kInner][4], const bf16* right, int first_step, const Lane& lane) {
#pragma unroll
    for (int inner = 0; inner < kInner; inner++)
#pragma unroll
        for (int n = 0; n < kColumns; n += 2) {
            const int step = first_step + n / 2;
            if (kColumns * 8 < kHeadDim && kSteps % 2 != 0 && step >= kSteps) break;
            u32 b[4];
            ldmatrix_x4_trans(b, right + inner * 16 * kPitch + step_offset(lane.left_offset, step));
            const u32 first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < kTiles; m++) {
                mma_bf16_16816(sums[m][n], left[m][inner], first, sums[m][n]);
                mma_bf16_16816(sums[m][n + 1], left[m][inner], second, sums[m][n + 1]);
            }
        }
}

// Sums become a left factor: what a lane holds of two neighbouring 16x8 sums is what it has to hold of a 16x16 factor.
template <int kTiles, int kInner>
LT_DEVICE void round_to_left(u32 (&left)[kTiles][kInner][4], const float (&sums)[kTiles][2 * kInner][4]) {
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int inner = 0; inner < kInner; inner++) {
            left[m][inner][0] = pack_bf16(sums[m][2 * inner][0], sums[m][2 * inner][1]);
            left[m][inner][1] = pack_bf16(sums[m][2 * inner][2], sums[m][2 * inner][3]);
            left[m][inner][2] = pack_bf16(sums[m][2 * inner + 1][0], sums[m][2 * inner + 1][1]);
            left[m][inner][3] = pack_bf16(sums[m][2 * inner + 1][2], sums[m][2 * inner + 1][3]);
        }
}

// Rounds 16 rows of sums and writes them by way of `scratch`, 16 rows of shared memory that no other warp uses (in these columns), so
// that 16 bytes go out at a time. `target` is the head's part of the first row; of the rows `rows` exist.
template <int kColumns>
LT_DEVICE void store_rows(
    bf16* target, int target_pitch, int rows, int head_dim, bf16* scratch, const float (&sums)[kColumns][4], float upper_factor,
    float lower_factor, int first_step, const Lane& lane) {
    const int first_chunk = 2 * first_step;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < kColumns; n++) {
        if (kColumns * 8 < kHeadDim && first_chunk + n >= kChunks) break;
        bf16* const upper = scratch + chunk_offset(lane.row, first_chunk + n) + lane.column;
        bf16* const lower = scratch + chunk_offset(lane.row + 8, first_chunk + n) + lane.column;
        store_4_bytes(upper, pack_bf16(sums[n][0] * upper_factor, sums[n][1] * upper_factor));
        store_4_bytes(lower, pack_bf16(sums[n][2] * lower_factor, sums[n][3] * lower_factor));
    }
    __syncwarp();
#pragma unroll
    for (int piece = threadIdx.x & 31; piece < 16 * kColumns; piece += 32) {
        const int row = piece / kColumns, chunk = first_chunk + piece % kColumns;
        if (row < rows && chunk * 8 < head_dim)
            store_16_bytes(target + (size_t)row * target_pitch + chunk * 8, load_16_bytes(scratch + chunk_offset(row, chunk)));
    }
}

// ---- documents ------------------------------------------------------------------------------------------------------------------

// The first key of a query's document; `index` is where the query stands among the keys.
LT_DEVICE int document_start(const int* positions, int query, int index) { return positions == nullptr ? 0 : index - positions[query]; }

// The first key that a query sees. It never decreases from query to query.
LT_DEVICE int first_visible(const int* positions, int window, int query, int index) {
    const int start = document_start(positions, query, index);
    return kWindowed ? max(start, index - window + 1) : start;
}

// The first query after the document of `key`, or `tokens`. Starts never decrease, so the 32 lanes probe as
// many places at once. All lanes ask for the same key.
LT_DEVICE int document_end(const int* positions, int tokens, int key) {
    if (positions == nullptr || document_start(positions, tokens - 1, tokens - 1) <= key) return tokens;
    int inside = key, end = tokens - 1;              // the last query is known not to see the key
    while (end - inside > 1) {
        const int stride = (end - inside + 32) / 33;
        const int probe = inside + ((int)(threadIdx.x & 31) + 1) * stride;
        const bool sees = probe < end && document_start(positions, probe, probe) <= key;
        inside += __popc(__ballot_sync(LT_ALL_LANES, sees)) * stride;
        end = min(end, inside + stride);
    }
    return end;
}

// The first query after `key` that does not see it, or `tokens`, where the document of the key ends at `end`.
LT_DEVICE int visible_end(int end, int window, int tokens, int key) { return kWindowed && tokens - key > window ? min(end, key + window) : end; }

// Hides from rows that are queries the keys after their own place, which is `first_index` and up for the rows of the warp.
template <int kTiles, int kColumns>
LT_DEVICE void hide_later_keys(float (&scores)[kTiles][kColumns][4], int first_key, int first_index, const Lane& lane) {
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int n = 0; n < kColumns; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = first_key + n * 8 + lane.column + (i & 1), index = first_index + m * 16 + (i >> 1) * 8 + lane.row;
                if (key > index) scores[m][n][i] = -LT_INFINITY;
            }
}

// Hides the keys before the first one that each query sees. The warp's rows are the queries from `first_query` on; rows past the last
// query repeat it.
template <int kTiles, int kColumns>
LT_DEVICE void hide_earlier_keys(
    float (&scores)[kTiles][kColumns][4], int first_key, const int* positions, int window, int first_query, int queries, int shift,
    const Lane& lane) {
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int query = min(first_query + m * 16 + half * 8 + lane.row, queries - 1);
            const int start = kWindowed ? first_visible(positions, window, query, query + shift) : query + shift - positions[query];
#pragma unroll
            for (int n = 0; n < kColumns; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (first_key + n * 8 + lane.column + i < start) scores[m][n][2 * half + i] = -LT_INFINITY;
        }
}

// ---- softcap --------------------------------------------------------------------------------------------------------------------
// Scores become t = tanh(S / c) at once, in place; the exponent is then c * t * log2(e), and 1 - t^2 is what backward multiplies with.

// What a product q k^T and what a score are multiplied with on their way to an exponent of 2.
LT_DEVICE float score_factor(float scale, float softcap) { return (kCapped ? softcap : scale) * kLog2E; }

// Within a few times 1e-7 of the tanh, for any product: 1 - 2 / (1 + e^(2x)).
template <int kTiles, int kColumns> LT_DEVICE void cap_scores(float (&scores)[kTiles][kColumns][4], float scale, float softcap) {
    const float factor = 2.0f * kLog2E * scale / softcap;
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int n = 0; n < kColumns; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                scores[m][n][i] = fmaf(-2.0f, fast_reciprocal(1.0f + fast_exp2(scores[m][n][i] * factor)), 1.0f);
}

// The cap's derivative by its result t, and 0 where the key is hidden.
LT_DEVICE float cap_slope(float t) {
    const float shown = fmaxf(t, -1.0f);
    return fmaf(-shown, shown, 1.0f);
}

// ---- forward --------------------------------------------------------------------------------------------------------------------

// One tile of the softmax that is carried along: raises each row's maximum, turns scores into exponentials, adds them up (a lane for
// its own columns), and scales down what was summed before by the rise of the maximum.
template <int kTiles, int kColumns, int kOutput>
LT_DEVICE void softmax_tile(
    float (&scores)[kTiles][kColumns][4], float (&output)[kTiles][kOutput][4], float (&maximum)[kTiles][2], float (&sum)[kTiles][2],
    float scale2) {
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float highest = maximum[m][half];
#pragma unroll
            for (int n = 0; n < kColumns; n++) highest = fmaxf(highest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
            highest = fmaxf(highest, __shfl_xor_sync(LT_ALL_LANES, highest, 1));
            highest = fmaxf(highest, __shfl_xor_sync(LT_ALL_LANES, highest, 2));
            // Never fused with the subtraction, so that a maximum that stays gives a correction of exactly 1, and tiles of hidden keys
            // leave no trace. A row that has seen no key yet: any finite number keeps -infinity minus -infinity away.
            const float reference = highest == -LT_INFINITY ? 0.0f : __fmul_rn(highest, scale2);
            const float correction = fast_exp2(__fmul_rn(maximum[m][half], scale2) - reference);
            maximum[m][half] = highest;
            float total = sum[m][half] * correction;
#pragma unroll
            for (int n = 0; n < kColumns; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    scores[m][n][i] = fast_exp2(fmaf(scores[m][n][i], scale2, -reference));
                    total += scores[m][n][i];
                }
            sum[m][half] = total;
#pragma unroll
            for (int n = 0; n < kOutput; n++) {
                output[m][n][2 * half] *= correction;
                output[m][n][2 * half + 1] *= correction;
            }
        }
}

// Block (x, y): query head x, and from the end of the stream the y-th tile of queries: the longest rows start first. A warp owns its
// rows for all columns. Q stays; K and V have a buffer each, and one is filled while the other is used: V during q k^T and
// the softmax, the next K during P v.
extern "C" __global__ void __launch_bounds__(kForwardThreads, kHeadDim <= 128 ? 2 : 1)
attention_forward(AttentionArguments arguments) {
    constexpr int kRows = kForwardRows, kTile = kForwardTile, kThreads = kForwardThreads, kTiles = kForwardRowTiles;
    LT_SHARED(memory);
    bf16* const q_tile = (bf16*)memory;
    bf16* const k_tile = q_tile + kRows * kPitch;
    bf16* const v_tile = k_tile + kTile * kPitch;

    const Lane lane = this_lane();
    const int head = blockIdx.x, key_head = head / (arguments.query_heads / arguments.key_heads);
    const int first_query = ((int)gridDim.y - 1 - (int)blockIdx.y) * kRows;
    const int queries = min(kRows, arguments.queries - first_query);
    const int shift = arguments.keys - arguments.queries;
    const int head_dim = arguments.head_dim;
    const int q_pitch = arguments.query_heads * head_dim, kv_pitch = arguments.key_heads * head_dim;
    const bf16* const k = arguments.k + key_head * head_dim;
    const bf16* const v = arguments.v + key_head * head_dim;

    const int first_tile = first_visible(arguments.positions, arguments.window, first_query, first_query + shift) / kTile;
    const int last_tile = (first_query + queries - 1 + shift) / kTile;

    load_tile<kRows, kThreads>(q_tile, arguments.q + (size_t)first_query * q_pitch + head * head_dim, q_pitch, queries, head_dim);
    load_tile<kTile, kThreads>(k_tile, k + (size_t)first_tile * kTile * kv_pitch, kv_pitch, arguments.keys - first_tile * kTile, head_dim);
    cp_async_commit();

    const int warp_row = lane.warp * kTiles * 16;    // rows past the last query are computed, of zeros, and not stored
    const int last_query = first_query + queries - 1;
    const int latest_start = first_visible(arguments.positions, arguments.window, last_query, last_query + shift);

    const int warp_query = min(first_query + warp_row, last_query);
    const int warp_start = first_visible(arguments.positions, arguments.window, warp_query, warp_query + shift);

    LeftRows<kTiles, kForwardQueriesInRegisters> q_rows;
    float output[kTiles][kChunks][4], maximum[kTiles][2], sum[kTiles][2];
    clear(output);
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
        maximum[m][0] = maximum[m][1] = -LT_INFINITY;
        sum[m][0] = sum[m][1] = 0.0f;
    }
    const float scale2 = score_factor(arguments.scale, arguments.softcap);

    for (int tile = first_tile; tile <= last_tile; tile++) {
        const int first_key = tile * kTile;
        cp_async_wait<0>();
        __syncthreads();                             // K is there, and nobody reads the last V any more
        load_tile<kTile, kThreads>(v_tile, v + (size_t)first_key * kv_pitch, kv_pitch, arguments.keys - first_key, head_dim);
        cp_async_commit();
        if (!kForwardQueriesInRegisters || tile == first_tile) set_rows(q_rows, q_tile + warp_row * kPitch, lane);
        float scores[kTiles][kTile / 8][4];
        const bool works = !kForwardWarpsRest ||
            (first_key <= first_query + shift + warp_row + kTiles * 16 - 1 && first_key + kTile > warp_start);
        if (works) {
            multiply_rows(scores, q_rows, k_tile, lane);
            if constexpr (kCapped) cap_scores(scores, arguments.scale, arguments.softcap);
            if (first_key + kTile - 1 > first_query + shift) hide_later_keys(scores, first_key, first_query + warp_row + shift, lane);
            if (first_key < latest_start)
                hide_earlier_keys(scores, first_key, arguments.positions, arguments.window, first_query + warp_row, arguments.queries, shift, lane);
            softmax_tile(scores, output, maximum, sum, scale2);
        }
        // The barrier stands after the softmax: before it, the compiler reads V that early that it runs out of registers.
        cp_async_wait<0>();
        __syncthreads();                             // V is there, and nobody reads this K any more
        if (tile < last_tile) {
            const int next_key = first_key + kTile;
            load_tile<kTile, kThreads>(k_tile, k + (size_t)next_key * kv_pitch, kv_pitch, arguments.keys - next_key, head_dim);
            cp_async_commit();
        }
        if (!works) continue;
        u32 weights[kTiles][kTile / 16][4];
        round_to_left(weights, scores);
        multiply_add(output, weights, v_tile, 0, lane);
    }

#pragma unroll
    for (int m = 0; m < kTiles; m++) {
        const int row = warp_row + m * 16;           // within the block's queries
        float inverse[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[m][half];
            total += __shfl_xor_sync(LT_ALL_LANES, total, 1);
            total += __shfl_xor_sync(LT_ALL_LANES, total, 2);
            inverse[half] = 1.0f / total;
            const int query = row + half * 8 + lane.row;
            if (arguments.lse != nullptr && lane.column == 0 && query < queries) {
                float* const lse = arguments.lse + (size_t)head * arguments.queries + first_query;
                lse[query] = fmaf(__fmul_rn(maximum[m][half], scale2), kLn2, logf(total));
            }
        }
        bf16* const target = arguments.output + (size_t)(first_query + row) * q_pitch + head * head_dim;
        store_rows(target, q_pitch, queries - row, head_dim, q_tile + row * kPitch, output[m], inverse[0], inverse[1], 0, lane);
    }
}

// ---- backward -------------------------------------------------------------------------------------------------------------------

constexpr int kDeltaThreads = 256;

// delta[h][i] = sum over d of d_output * output. Grid (query_heads, ceil(tokens / 32)), 256 threads: eight lanes a row, 32 rows of one
// head a block.
extern "C" __global__ void __launch_bounds__(kDeltaThreads) attention_delta(AttentionGradients arguments) {
    constexpr int kLanes = 8;
    const int part = threadIdx.x % kLanes, head = blockIdx.x;
    const int row = blockIdx.y * (kDeltaThreads / kLanes) + threadIdx.x / kLanes;
    const bool present = row < arguments.tokens;
    float sum = 0.0f;
    if (present) {
        const size_t first = ((size_t)row * arguments.query_heads + head) * arguments.head_dim;
#pragma unroll
        for (int chunk = part; chunk < kChunks; chunk += kLanes) {
            if (chunk * 8 >= arguments.head_dim) break;
            float gradient[8], value[8];
            load_bf16x8(gradient, arguments.d_output + first + chunk * 8);
            load_bf16x8(value, arguments.output + first + chunk * 8);
#pragma unroll
            for (int i = 0; i < 8; i++) sum = fmaf(gradient[i], value[i], sum);
        }
    }
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance >>= 1) sum += __shfl_xor_sync(LT_ALL_LANES, sum, distance);
    if (present && part == 0) arguments.delta[(size_t)head * arguments.tokens + row] = sum;
}

// One tile of queries of one head on its way to attention_backward_keys: q and d_output as tiles, lse and delta beside them.
struct QueryTile {
    bf16* q;
    bf16* d_output;
    float* lse;
    float* delta;
};

// One of the two buffers, that of even or of odd tiles.
LT_DEVICE QueryTile query_tile_buffer(bf16* tiles, float* numbers, int count) {
    const int stage = count & 1;
    QueryTile tile;
    tile.q = tiles + stage * 2 * kKeysTile * kPitch;
    tile.d_output = tile.q + kKeysTile * kPitch;
    tile.lse = numbers + stage * 2 * kKeysTile;
    tile.delta = tile.lse + kKeysTile;
    return tile;
}

LT_DEVICE void load_query_tile(const QueryTile& tile, const AttentionGradients& arguments, int head, int first_query) {
    constexpr int kTile = kKeysTile, kThreads = kKeysThreads;
    const int pitch = arguments.query_heads * arguments.head_dim, queries = arguments.tokens - first_query;
    const size_t first = (size_t)first_query * pitch + head * arguments.head_dim;
    load_tile<kTile, kThreads>(tile.q, arguments.q + first, pitch, queries, arguments.head_dim);
    load_tile<kTile, kThreads>(tile.d_output, arguments.d_output + first, pitch, queries, arguments.head_dim);
    if (threadIdx.x < 2 * kTile) {
        const int query = threadIdx.x % kTile;
        const bool is_lse = threadIdx.x < kTile, present = query < queries;
        const float* const source = (is_lse ? arguments.lse : arguments.delta) + (size_t)head * arguments.tokens + first_query;
        cp_async4_or_zero((is_lse ? tile.lse : tile.delta) + query, source + (present ? query : 0), present);
    }
}

// Hides from rows that are keys, `first_row` and up for those of the warp, the queries before their own place.
template <int kTiles, int kColumns>
LT_DEVICE void hide_earlier_queries(float (&scores)[kTiles][kColumns][4], int first_query, int first_row, const Lane& lane) {
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int n = 0; n < kColumns; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int query = first_query + n * 8 + lane.column + (i & 1), key = first_row + m * 16 + (i >> 1) * 8 + lane.row;
                if (query < key) scores[m][n][i] = -LT_INFINITY;
            }
}

// Hides the queries past the last one and those whose first visible key comes after the key.
template <int kTiles, int kColumns>
LT_DEVICE void hide_other_queries(
    float (&scores)[kTiles][kColumns][4], int first_query, const int* positions, int window, int tokens, int first_row, const Lane& lane) {
#pragma unroll
    for (int n = 0; n < kColumns; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int query = first_query + n * 8 + lane.column + i;
            const int start = query < tokens ? first_visible(positions, window, query, query) : tokens;
#pragma unroll
            for (int m = 0; m < kTiles; m++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    if (first_row + m * 16 + half * 8 + lane.row < start) scores[m][n][2 * half + i] = -LT_INFINITY;
        }
}

// One warp's sums as the same lanes of another warp pick them up, 16 bytes at a time.
template <int kTiles, int kColumns> LT_DEVICE void send_sums(float* slot, const float (&sums)[kTiles][kColumns][4]) {
    float* const own = slot + (threadIdx.x & 31) * 4;
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int n = 0; n < kColumns; n++)
            store_f32x4(own + (m * kColumns + n) * 128, {sums[m][n][0], sums[m][n][1], sums[m][n][2], sums[m][n][3]});
}

template <int kTiles, int kColumns> LT_DEVICE void add_sums(float (&sums)[kTiles][kColumns][4], const float* slot) {
    const float* const own = slot + (threadIdx.x & 31) * 4;
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int n = 0; n < kColumns; n++) {
            const f32x4 other = load_f32x4(own + (m * kColumns + n) * 128);
            sums[m][n][0] += other.x, sums[m][n][1] += other.y, sums[m][n][2] += other.z, sums[m][n][3] += other.w;
        }
}

// dk and dv of a tile of keys. Block (x, y): key head x, y-th tile of keys; the first ones have the most queries. All products are
// turned so that keys are rows: then the sums of k q^T are, rounded, the left factor of P^T dO as they stand.
// Queries come in tiles, from the first key on to the end of the last key's document, once for each query head of the key head; the
// next tile is on its way while one is used.
extern "C" __global__ void __launch_bounds__(kKeysThreads, kHeadDim <= 64 ? 2 : 1)
attention_backward_keys(AttentionGradients arguments) {
    constexpr int kRows = kKeysRows, kTile = kKeysTile, kStep = kKeysStep, kThreads = kKeysThreads, kTiles = kKeysRowTiles;
    constexpr int kPartSteps = (kSteps + kKeysColumnParts - 1) / kKeysColumnParts;
    LT_SHARED(memory);
    bf16* const v_tile = (bf16*)memory;
    bf16* const query_tiles = v_tile + kRows * kPitch;
    bf16* const k_tile = query_tiles + (kKeysInRegisters ? 2 : 4) * kTile * kPitch;     // 2: it becomes the second buffer, once K is in registers
    float* const query_numbers = (float*)(v_tile + kKeysTileRows * kPitch);

    const Lane lane = this_lane();
    const int key_head = blockIdx.x, group = arguments.query_heads / arguments.key_heads;
    const int first_key = blockIdx.y * kRows;
    const int keys = min(kRows, arguments.tokens - first_key);
    const int head_dim = arguments.head_dim, pitch = arguments.key_heads * head_dim;
    const size_t first = (size_t)first_key * pitch + key_head * head_dim;
    load_tile<kRows, kThreads>(v_tile, arguments.v + first, pitch, keys, head_dim);
    load_tile<kRows, kThreads>(k_tile, arguments.k + first, pitch, keys, head_dim);
    const int first_tile = first_key / kTile;
    int head = key_head * group, query_tile = first_tile;
    load_query_tile(query_tile_buffer(query_tiles, query_numbers, 0), arguments, head, query_tile * kTile);
    cp_async_commit();

    // Queries from a key's own on see it, to its document's end or as far as the window: of the first and last key of the block, and of
    // the last one of the warp.
    const int warp_row = lane.warp / 2 * kKeysWarpRows, part = lane.warp % 2;
    const int first_step = kKeysColumnParts == 2 ? part * kPartSteps : 0, part_query = kKeysQueryParts == 2 ? part * kStep : 0;
    const int last_key = first_key + keys - 1, warp_key = min(first_key + warp_row + kTiles * 16 - 1, last_key);
    const int tokens = arguments.tokens, window = arguments.window, document = document_end(arguments.positions, tokens, first_key);
    const int first_end = visible_end(document, window, tokens, first_key);
    const int last_end = visible_end(last_key < document ? document : document_end(arguments.positions, tokens, last_key), window, tokens, last_key);
    const int warp_end = visible_end(warp_key < document ? document : document_end(arguments.positions, tokens, warp_key), window, tokens, warp_key);

    LeftRows<kTiles, kKeysInRegisters> k_rows;
    LeftRows<kTiles, false> v_rows;
    set_rows(v_rows, v_tile + warp_row * kPitch, lane);
    if constexpr (kKeysInRegisters) {
        cp_async_wait<0>();
        __syncthreads();
    }
    set_rows(k_rows, k_tile + warp_row * kPitch, lane);

    float d_k[kTiles][2 * kPartSteps][4], d_v[kTiles][2 * kPartSteps][4];
    clear(d_k);
    clear(d_v);
    const float scale2 = score_factor(arguments.scale, arguments.softcap);

    const int last_tile = (last_end - 1) / kTile, tile_count = (last_tile - first_tile + 1) * group;
    for (int count = 0; count < tile_count; count++) {
        const int first_query = query_tile * kTile + part_query;        // of this warp
        cp_async_wait<0>();
        __syncthreads();                             // this tile is there, and nobody reads the other one any more
        if (query_tile == last_tile) head++, query_tile = first_tile;
        else query_tile++;
        if (count + 1 < tile_count) {
            load_query_tile(query_tile_buffer(query_tiles, query_numbers, count + 1), arguments, head, query_tile * kTile);
            cp_async_commit();
        }
        const QueryTile tile = query_tile_buffer(query_tiles, query_numbers, count);
        if (first_query + kStep <= first_key + warp_row || first_query >= warp_end) continue;           // sees no key of this warp

        const bf16* const q = tile.q + part_query * kPitch;
        const bf16* const d_output = tile.d_output + part_query * kPitch;
        float weights[kTiles][kStep / 8][4], d_scores[kTiles][kStep / 8][4];
        multiply_rows(weights, k_rows, q, lane);
        if constexpr (kCapped) cap_scores(weights, arguments.scale, arguments.softcap);
        if (first_query < first_key + kRows - 1) hide_earlier_queries(weights, first_query, first_key + warp_row, lane);
        if (first_query + kStep > first_end)
            hide_other_queries(weights, first_query, arguments.positions, arguments.window, arguments.tokens, first_key + warp_row, lane);
        multiply_rows(d_scores, v_rows, d_output, lane);
#pragma unroll
        for (int n = 0; n < kStep / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int query = part_query + n * 8 + lane.column + i;
                const float lse2 = tile.lse[query] * kLog2E, delta = tile.delta[query];
#pragma unroll
                for (int m = 0; m < kTiles; m++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        float& weight = weights[m][n][2 * half + i];
                        float& d_score = d_scores[m][n][2 * half + i];
                        const float slope = kCapped ? cap_slope(weight) : 1.0f;
                        weight = fast_exp2(fmaf(weight, scale2, -lse2));
                        d_score = weight * (d_score - delta);
                        if constexpr (kCapped) d_score *= slope;
                    }
            }
        u32 left[kTiles][kStep / 16][4];
        round_to_left(left, weights);
        multiply_add(d_v, left, d_output, first_step, lane);
        round_to_left(left, d_scores);
        multiply_add(d_k, left, q, first_step, lane);
    }

    const auto store = [&](bf16* gradient, const float (&sums)[kTiles][2 * kPartSteps][4], float scale, bf16* scratch, int scratch_pitch) {
#pragma unroll
        for (int m = 0; m < kTiles; m++) {
            const int row = warp_row + m * 16;
            store_rows(gradient + first + (size_t)row * pitch, pitch, keys - row, head_dim, scratch + m * scratch_pitch, sums[m], scale, scale, first_step, lane);
        }
    };
    __syncthreads();                                 // nobody reads the tiles any more
    if constexpr (kKeysQueryParts == 2) {
        // One of the two warps finishes dv, the other dk. What it has picked up makes room for its rows.
        constexpr int kSlot = kKeysWarpRows * kHeadDim;
        float* const slots = (float*)query_tiles;
        float* const received = slots + (lane.warp ^ 1) * kSlot;
        if (part == 0) send_sums(slots + lane.warp * kSlot, d_k);
        else send_sums(slots + lane.warp * kSlot, d_v);
        __syncthreads();
        if (part == 0) {
            add_sums(d_v, received);
            store(arguments.d_v, d_v, 1.0f, (bf16*)received, 0);
        } else {
            add_sums(d_k, received);
            store(arguments.d_k, d_k, arguments.scale, (bf16*)received, 0);
        }
    } else {
        bf16* const scratch = v_tile + warp_row * kPitch;
        store(arguments.d_v, d_v, 1.0f, scratch, 16 * kPitch);
        store(arguments.d_k, d_k, arguments.scale, scratch, 16 * kPitch);
    }
}

// dq of a tile of queries. Block (x, y): query head x, and from the end of the stream the y-th tile of queries. K and V have two
// buffers each: the next tile is on its way while one is used.
extern "C" __global__ void __launch_bounds__(kQueriesThreads, kHeadDim <= 64 ? 2 : 1)
attention_backward_queries(AttentionGradients arguments) {
    constexpr int kRows = kQueriesRows, kTile = kQueriesTile, kStep = kQueriesStep, kThreads = kQueriesThreads, kTiles = kQueriesRowTiles;
    LT_SHARED(memory);
    bf16* const q_tile = (bf16*)memory;
    bf16* const d_output_tile = q_tile + kRows * kPitch;                // where both are kept in registers K and V take their place
    bf16* const key_tiles = kQueriesInRegisters ? q_tile : d_output_tile + kRows * kPitch;

    const Lane lane = this_lane();
    const int head = blockIdx.x, key_head = head / (arguments.query_heads / arguments.key_heads);
    const int first_query = ((int)gridDim.y - 1 - (int)blockIdx.y) * kRows;
    const int queries = min(kRows, arguments.tokens - first_query);
    const int head_dim = arguments.head_dim;
    const int q_pitch = arguments.query_heads * head_dim, kv_pitch = arguments.key_heads * head_dim;
    const size_t first = (size_t)first_query * q_pitch + head * head_dim;
    load_tile<kRows, kThreads>(q_tile, arguments.q + first, q_pitch, queries, head_dim);
    load_tile<kRows, kThreads>(d_output_tile, arguments.d_output + first, q_pitch, queries, head_dim);
    cp_async_commit();

    const int warp_row = lane.warp * kTiles * 16;
    float lse2[kTiles][2], delta[kTiles][2];
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {       // rows past the end repeat the last one; they are not stored
            const int query = min(first_query + warp_row + m * 16 + half * 8 + lane.row, arguments.tokens - 1);
            lse2[m][half] = arguments.lse[(size_t)head * arguments.tokens + query] * kLog2E;
            delta[m][half] = arguments.delta[(size_t)head * arguments.tokens + query];
        }
    const int last_query = first_query + queries - 1;
    const int latest_start = first_visible(arguments.positions, arguments.window, last_query, last_query);
    const int first_tile = first_visible(arguments.positions, arguments.window, first_query, first_query) / kTile, last_tile = last_query / kTile;

    const int warp_query = min(first_query + warp_row, last_query);
    const int warp_start = first_visible(arguments.positions, arguments.window, warp_query, warp_query);

    LeftRows<kTiles, kQueriesInRegisters> q_rows, d_output_rows;
    if constexpr (kQueriesInRegisters) {
        cp_async_wait<0>();
        __syncthreads();
    }
    set_rows(q_rows, q_tile + warp_row * kPitch, lane);
    set_rows(d_output_rows, d_output_tile + warp_row * kPitch, lane);
    if constexpr (kQueriesInRegisters) __syncthreads();

    float d_q[kTiles][kChunks][4];
    clear(d_q);
    const float scale2 = score_factor(arguments.scale, arguments.softcap);
    const bf16* const k = arguments.k + key_head * head_dim;
    const bf16* const v = arguments.v + key_head * head_dim;

    for (int tile = first_tile - 1; tile <= last_tile; tile++) {        // the first round only starts the first copies
        const int next_key = (tile + 1) * kTile;
        if (tile >= first_tile) {
            cp_async_wait<0>();
            __syncthreads();                         // this tile is there, and nobody reads the other one any more
        }
        if (tile < last_tile) {
            bf16* const next = key_tiles + 2 * ((tile + 1) & 1) * kTile * kPitch;
            const size_t first_element = (size_t)next_key * kv_pitch;
            load_tile<kTile, kThreads>(next, k + first_element, kv_pitch, arguments.tokens - next_key, head_dim);
            load_tile<kTile, kThreads>(next + kTile * kPitch, v + first_element, kv_pitch, arguments.tokens - next_key, head_dim);
            cp_async_commit();
        }
        if (tile < first_tile || next_key <= warp_start) continue;     // nothing to do yet, or before all that this warp sees
        const bf16* const k_tile = key_tiles + 2 * (tile & 1) * kTile * kPitch;
        const bf16* const v_tile = k_tile + kTile * kPitch;
#pragma unroll
        for (int step = 0; step < kTile; step += kStep) {
            const int first_key = tile * kTile + step;
            if (first_key > first_query + warp_row + kTiles * 16 - 1) break;            // after all queries of this warp
            float weights[kTiles][kStep / 8][4], d_scores[kTiles][kStep / 8][4];
            multiply_rows(weights, q_rows, k_tile + step * kPitch, lane);
            if constexpr (kCapped) cap_scores(weights, arguments.scale, arguments.softcap);
            multiply_rows(d_scores, d_output_rows, v_tile + step * kPitch, lane);
            if (first_key + kStep - 1 > first_query) hide_later_keys(weights, first_key, first_query + warp_row, lane);
            if (first_key < latest_start)
                hide_earlier_keys(weights, first_key, arguments.positions, arguments.window, first_query + warp_row, arguments.tokens, 0, lane);
#pragma unroll
            for (int m = 0; m < kTiles; m++)
#pragma unroll
                for (int n = 0; n < kStep / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const float weight = fast_exp2(fmaf(weights[m][n][i], scale2, -lse2[m][i >> 1]));
                        d_scores[m][n][i] = weight * (d_scores[m][n][i] - delta[m][i >> 1]);
                        if constexpr (kCapped) d_scores[m][n][i] *= cap_slope(weights[m][n][i]);
                    }
            u32 left[kTiles][kStep / 16][4];
            round_to_left(left, d_scores);
            multiply_add(d_q, left, k_tile + step * kPitch, 0, lane);
        }
    }

    __syncthreads();                                 // everybody is done with K and V
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
        const int row = warp_row + m * 16;
        store_rows(arguments.d_q + first + (size_t)row * q_pitch, q_pitch, queries - row, head_dim, q_tile + row * kPitch, d_q[m],
                   arguments.scale, arguments.scale, 0, lane);
    }
}
