// gemm.cpp - packed, register-blocked matrix product with the compiler's vector types.
//
// Columns of d are shared between the threads. A thread packs a block of b (depth x block_columns) and, for each block of a
// (block_rows x depth), multiplies panels of both in the micro kernel, which keeps a tile of sums in registers. Sums between two blocks
// of k wait in a buffer in fp32, so the chain of additions of an element is never broken up.
#include "gemm.h"
#include <algorithm>
#include <string.h>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
const int vector_floats = 16, tile_vectors = 2, tile_columns = 12;
#else
const int vector_floats = 8, tile_vectors = 2, tile_columns = 6;
#endif
typedef float vector __attribute__((vector_size(vector_floats * 4)));
typedef float stored_vector __attribute__((vector_size(vector_floats * 4), aligned(4), may_alias));

const int tile_rows = vector_floats * tile_vectors;
const int64_t depth = 256, block_rows = tile_rows * 6, block_columns = tile_columns * 32;

float from_bf16(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}
uint16_t to_bf16(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (uint16_t)((word + 0x7fffu + ((word >> 16) & 1)) >> 16);
}

float load(const matrix_view& v, int64_t row, int64_t column) {
    int64_t at = row * v.row_stride + column * v.column_stride;
    return v.type == element::bf16 ? from_bf16(((const uint16_t*)v.data)[at]) : ((const float*)v.data)[at];
}
void store(const matrix_view& v, int64_t row, int64_t column, float value) {
    int64_t at = row * v.row_stride + column * v.column_stride;
    if (v.type == element::bf16) ((uint16_t*)v.data)[at] = to_bf16(value);
    else ((float*)v.data)[at] = value;
}

// `count` lines of `length` elements, `width` lines a panel: panel p holds element i of its lines side by side. Missing lines are 0.
// T is the element type; along: the distance between elements of a line, across: between lines.
template <class T, class Convert>
void pack(float* to, const T* from, int64_t across, int64_t along, int64_t count, int64_t length, int64_t width, Convert convert) {
    for (int64_t first = 0; first < count; first += width, to += width * length) {
        int64_t lines = std::min(width, count - first);
        const T* panel = from + first * across;
        if (lines < width) memset(to, 0, (size_t)(width * length) * sizeof(float));
        if (across == 1) {
            for (int64_t i = 0; i < length; i++)
                for (int64_t line = 0; line < lines; line++) to[i * width + line] = convert(panel[i * along + line]);
        } else {
            // a few elements of each line at a time, so that the lines being written stay in the cache
            for (int64_t start = 0; start < length; start += 16)
                for (int64_t line = 0; line < lines; line++)
                    for (int64_t i = start; i < std::min(start + 16, length); i++) to[i * width + line] = convert(panel[line * across + i * along]);
        }
    }
}
void pack(float* to, const matrix_view& v, int64_t at, int64_t across, int64_t along, int64_t count, int64_t length, int64_t width) {
    if (v.type == element::bf16) pack(to, (const uint16_t*)v.data + at, across, along, count, length, width, from_bf16);
    else pack(to, (const float*)v.data + at, across, along, count, length, width, [](float x) { return x; });
}

// sums (tile_columns columns of tile_rows) += panel of a times panel of b. Every loop over the tile is unrolled, so that the tile is a
// set of registers and not an array.
void multiply_panels(float* sums, const float* a, const float* b, int64_t length) {
    static_assert(tile_vectors == 2, "rows are spelled out");
    stored_vector* stored = (stored_vector*)sums;  // auto would drop the alignment
    vector tile[tile_columns * 2];
#pragma GCC unroll 24
    for (int i = 0; i < tile_columns * 2; i++) tile[i] = stored[i];
    for (int64_t i = 0; i < length; i++, a += tile_rows, b += tile_columns) {
        vector upper = ((const stored_vector*)a)[0], lower = ((const stored_vector*)a)[1];
#pragma GCC unroll 12
        for (int column = 0; column < tile_columns; column++) {
            tile[2 * column] += upper * b[column];
            tile[2 * column + 1] += lower * b[column];
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < tile_columns * 2; i++) stored[i] = tile[i];
}

struct work_space {
    std::vector<float> a, b, sums;
};

void write_tile(const gemm_problem& p, const float* sums, int64_t row, int64_t column) {
    int64_t rows = std::min<int64_t>(tile_rows, p.m - row), columns = std::min<int64_t>(tile_columns, p.n - column);
    for (int64_t j = 0; j < columns; j++)
        for (int64_t i = 0; i < rows; i++) {
            float value = sums[j * tile_rows + i] * p.alpha;
            if (p.beta != 0.0f) value = __builtin_fmaf(p.beta, load(p.c, row + i, column + j), value);
            if (p.bias) value += p.d.type == element::bf16 ? from_bf16(((const uint16_t*)p.bias)[row + i]) : ((const float*)p.bias)[row + i];
            store(p.d, row + i, column + j, value);
        }
}

// All rows of the columns [from, from + count), count at most block_columns.
void multiply_columns(const gemm_problem& p, int64_t from, int64_t count, work_space& space) {
    int64_t column_tiles = (count + tile_columns - 1) / tile_columns, row_tiles = (p.m + tile_rows - 1) / tile_rows;
    const int64_t tile = tile_rows * tile_columns;
    space.sums.assign((size_t)(column_tiles * row_tiles * tile), 0.0f);
    for (int64_t start = 0; start < p.k; start += depth) {
        int64_t length = std::min(depth, p.k - start);
        space.b.resize((size_t)(column_tiles * tile_columns * length));
        pack(space.b.data(), p.b, start * p.b.row_stride + from * p.b.column_stride, p.b.column_stride, p.b.row_stride, count, length, tile_columns);
        for (int64_t row = 0; row < p.m; row += block_rows) {
            int64_t rows = std::min(block_rows, p.m - row), tiles = (rows + tile_rows - 1) / tile_rows;
            space.a.resize((size_t)(tiles * tile_rows * length));
            pack(space.a.data(), p.a, row * p.a.row_stride + start * p.a.column_stride, p.a.row_stride, p.a.column_stride, rows, length, tile_rows);
            for (int64_t j = 0; j < column_tiles; j++)
                for (int64_t i = 0; i < tiles; i++)
                    multiply_panels(&space.sums[(size_t)(((row / tile_rows + i) * column_tiles + j) * tile)], &space.a[(size_t)(i * tile_rows * length)],
                                    &space.b[(size_t)(j * tile_columns * length)], length);
        }
    }
    for (int64_t i = 0; i < row_tiles; i++)
        for (int64_t j = 0; j < column_tiles; j++) write_tile(p, &space.sums[(size_t)((i * column_tiles + j) * tile)], i * tile_rows, from + j * tile_columns);
}

void multiply_range(const gemm_problem& p, int64_t from, int64_t to) {
    work_space space;
    for (int64_t column = from; column < to; column += block_columns) multiply_columns(p, column, std::min(block_columns, to - column), space);
}

}  // namespace

void gemm(const gemm_problem& problem, int threads) {
    const double worth_a_thread = 4e6;  // floating point operations; starting a thread costs some tens of microseconds
    gemm_problem p = problem;
    if (p.n < p.m / 2 && !p.bias) {
        // The columns are what is shared out: take the long side. (A B)^T = B^T A^T, element by element the same chain.
        auto transposed = [](matrix_view v) {
            std::swap(v.row_stride, v.column_stride);
            return v;
        };
        p = {problem.n, problem.m, problem.k, transposed(problem.b), transposed(problem.a), transposed(problem.c), transposed(problem.d), problem.alpha, problem.beta, nullptr};
    }
    double operations = 2.0 * (double)p.m * (double)p.n * (double)p.k;
    int64_t shares = std::max<int64_t>(1, std::min<int64_t>({threads, (int64_t)(operations / worth_a_thread), (p.n + tile_columns - 1) / tile_columns}));
    int64_t share = ((p.n + shares - 1) / shares + tile_columns - 1) / tile_columns * tile_columns;
    std::vector<std::thread> others;
    for (int64_t from = share; from < p.n; from += share) others.emplace_back(multiply_range, std::cref(p), from, std::min(from + share, p.n));
    multiply_range(p, 0, std::min(share, p.n));
    for (std::thread& other : others) other.join();
}
