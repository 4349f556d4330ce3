// gemm.h - the arithmetic of the stand-in cuBLASLt.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum class element { f32, bf16 };

// A column-major matrix as it lies in memory, seen transposed or not: element (row, column) of the view.
struct matrix_view {
    void* data;
    element type;
    int64_t row_stride, column_stride;  // in elements
};

struct gemm_problem {
    int64_t m, n, k;
    matrix_view a, b, c, d;  // (m,k) (k,n) (m,n) (m,n)
    float alpha, beta;       // where beta is 0, c is not read
    const void* bias;        // m numbers of d's type, or null
};

// d = alpha a b + beta c + bias. Every element is one chain of fused multiply-adds over ascending k, then alpha, beta, bias: the same bits
// for any number of threads and any alignment.
void gemm(const gemm_problem& problem, int threads);
