// gemm_tests.cpp - the stand-in cuBLASLt against plain loops in double, and the misuses it must refuse.
#include "client.h"
#include <algorithm>
#include <time.h>

extern "C" {
int cublasLtCreate(void**);
int cublasLtDestroy(void*);
int cublasLtMatmulDescCreate(void**, int, int);
int cublasLtMatmulDescDestroy(void*);
int cublasLtMatmulDescSetAttribute(void*, int, const void*, size_t);
int cublasLtMatrixLayoutCreate(void**, int, uint64_t, uint64_t, int64_t);
int cublasLtMatrixLayoutDestroy(void*);
int cublasLtMatrixLayoutSetAttribute(void*, int, const void*, size_t);
int cublasLtMatmulPreferenceCreate(void**);
int cublasLtMatmulPreferenceDestroy(void*);
int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t);
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*, int*);
int cublasLtMatmul(void*, void*, const float*, address, void*, address, void*, const float*, address, void*, address, void*, const void*, address, size_t, void*);
}

namespace {

const int f32 = 0, bf16 = 14;
int failures;

void expect(bool good, const std::string& what) {
    if (good) return;
    printf("FAILED: %s\n", what.c_str());
    failures++;
}

size_t bytes_of(int type) { return type == bf16 ? 2 : 4; }

// d (m,n) = alpha op(a) op(b) + beta d (+ bias); everything column-major, with leading dimensions longer than need be
struct problem {
    int m, n, k;
    bool transpose_a = false, transpose_b = false;
    int factors = bf16, result = f32;
    float alpha = 1, beta = 0;
    bool biased = false;
    int padding = 0, batch = 1;
    uint32_t alignment = 256;
};

struct heuristic {
    unsigned char algo[64];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

struct matrix {
    int type, rows, columns, leading, batch;
    std::vector<float> values;  // as stored, after rounding
    std::vector<unsigned char> bytes;
    matrix(int type, int rows, int columns, int padding, int batch, numbers& random) : type(type), rows(rows), columns(columns), leading(rows + padding), batch(batch) {
        size_t count = (size_t)leading * (size_t)columns * (size_t)batch;
        bytes.resize(count * bytes_of(type));
        for (size_t i = 0; i < count; i++) {
            float v = random.uniform();
            uint16_t half = to_bf16(v);
            if (type == bf16) v = from_bf16(half), memcpy(&bytes[2 * i], &half, 2);
            else memcpy(&bytes[4 * i], &v, 4);
            values.push_back(v);
        }
    }
    int64_t stride() const { return (int64_t)leading * columns; }
    float at(int b, int row, int column) const { return values[(size_t)(b * stride() + (int64_t)column * leading + row)]; }
    void* layout() const {
        void* l;
        MUST(cublasLtMatrixLayoutCreate(&l, type, (uint64_t)rows, (uint64_t)columns, leading));
        int64_t s = stride();
        if (batch > 1) {
            MUST(cublasLtMatrixLayoutSetAttribute(l, 5, &batch, 4));
            MUST(cublasLtMatrixLayoutSetAttribute(l, 6, &s, 8));
        }
        return l;
    }
};

// Everything a call needs, so that a test can spoil one part of it.
struct call {
    problem p;
    numbers random;
    matrix a, b, d, bias;
    buffer<unsigned char> da, db, dd, dbias, workspace;
    void *handle, *how, *la, *lb, *ld, *preference;
    heuristic found;

    explicit call(const problem& p)
        : p(p), a(p.factors, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.padding, p.batch, random),
          b(p.factors, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.padding, p.batch, random), d(p.result, p.m, p.n, p.padding, p.batch, random),
          bias(p.result, p.m, 1, 0, 1, random), da(a.bytes), db(b.bytes), dd(d.bytes), dbias(bias.bytes), workspace(1 << 20) {
        MUST(cublasLtCreate(&handle));
        MUST(cublasLtMatmulDescCreate(&how, 68, 0));
        int one = 1;
        uint32_t with_bias = 4;
        if (p.transpose_a) MUST(cublasLtMatmulDescSetAttribute(how, 3, &one, 4));
        if (p.transpose_b) MUST(cublasLtMatmulDescSetAttribute(how, 4, &one, 4));
        if (p.biased) {
            MUST(cublasLtMatmulDescSetAttribute(how, 7, &with_bias, 4));
            MUST(cublasLtMatmulDescSetAttribute(how, 8, &dbias.at, 8));
        }
        la = a.layout(), lb = b.layout(), ld = d.layout();
        MUST(cublasLtMatmulPreferenceCreate(&preference));
        uint64_t most = 1 << 20;
        MUST(cublasLtMatmulPreferenceSetAttribute(preference, 1, &most, 8));
        for (int i = 5; i <= 8; i++) MUST(cublasLtMatmulPreferenceSetAttribute(preference, i, &p.alignment, 4));
        int count = 0;
        MUST(cublasLtMatmulAlgoGetHeuristic(handle, how, la, lb, ld, ld, preference, 1, &found, &count));
    }
    ~call() {
        cublasLtMatmulPreferenceDestroy(preference);
        for (void* l : {la, lb, ld}) cublasLtMatrixLayoutDestroy(l);
        cublasLtMatmulDescDestroy(how);
        cublasLtDestroy(handle);
    }
    int run(void* stream = nullptr) {
        return cublasLtMatmul(handle, how, &p.alpha, da.at, la, db.at, lb, &p.beta, dd.at, ld, dd.at, ld, found.algo, workspace.at, workspace.count, stream);
    }
    // the largest error, relative to what rounding the result may do
    double error() {
        std::vector<unsigned char> got = dd.values();
        double worst = 0;
        for (int q = 0; q < p.batch; q++)
            for (int j = 0; j < p.n; j++)
                for (int i = 0; i < p.m; i++) {
                    double sum = 0, size = 0;
                    for (int k = 0; k < p.k; k++) {
                        double term = (double)(p.transpose_a ? a.at(q, k, i) : a.at(q, i, k)) * (p.transpose_b ? b.at(q, j, k) : b.at(q, k, j));
                        sum += term, size += fabs(term);
                    }
                    double expected = p.alpha * sum + (p.beta != 0 ? p.beta * d.at(q, i, j) : 0) + (p.biased ? bias.values[(size_t)i] : 0);
                    size_t index = (size_t)(q * d.stride() + (int64_t)j * d.leading + i);
                    float value;
                    uint16_t half;
                    if (p.result == bf16) memcpy(&half, &got[2 * index], 2), value = from_bf16(half);
                    else memcpy(&value, &got[4 * index], 4);
                    double allowed = 1e-5 * (size + fabs(expected)) + (p.result == bf16 ? fabs(expected) / 256 : 0) + 1e-30;
                    double e = fabs(value - expected) / allowed;
                    worst = e > worst || e != e ? e : worst;
                }
        return worst;
    }
};

std::string name(const problem& p) {
    return "gemm " + std::to_string(p.m) + "x" + std::to_string(p.n) + "x" + std::to_string(p.k) + (p.transpose_a ? " T" : " N") + (p.transpose_b ? "T" : "N") + (p.factors == bf16 ? " bf16" : " f32") +
           (p.result == bf16 ? "->bf16" : "->f32") + (p.biased ? " bias" : "") + " padding " + std::to_string(p.padding) + " batch " + std::to_string(p.batch);
}

void test_products() {
    std::vector<problem> all;
    const int shapes[][3] = {{1, 1, 1}, {3, 5, 7}, {32, 12, 16}, {33, 13, 300}, {100, 7, 64}, {7, 100, 64}, {130, 200, 70}, {400, 30, 513}, {16, 700, 40}};
    for (auto& s : shapes)
        for (int transposes = 0; transposes < 4; transposes++) {
            problem p{s[0], s[1], s[2]};
            p.transpose_a = transposes & 1;
            p.transpose_b = transposes & 2;
            all.push_back(p);
            p.padding = 3, p.result = bf16, p.alpha = 0.5f, p.beta = 2.0f, p.biased = true, p.alignment = 2;
            all.push_back(p);
            p.factors = p.result = f32, p.beta = 0, p.alpha = -1.0f, p.batch = 2, p.biased = false;
            all.push_back(p);
        }
    for (const problem& p : all) {
        call c(p);
        int status = c.run();
        expect(!status, name(p) + ": " + (status ? lt_standin_last_error() : ""));
        double error = status ? 0 : c.error();
        expect(error <= 1, name(p) + ": the error is " + std::to_string(error) + " times what is allowed");
    }
}

// The same bits when the rows of the problem are computed with others beside them: the chain of an element depends on k alone.
void test_fixed_order() {
    problem large{300, 200, 700}, small{300, 5, 700};
    call c(large), s(small);
    MUST(c.run());
    MUST(cuMemcpyDtoDAsync_v2(s.da.at, c.da.at, c.da.count, nullptr));
    MUST(cuMemcpyDtoDAsync_v2(s.db.at, c.db.at, s.db.count, nullptr));
    MUST(s.run());
    std::vector<unsigned char> first = c.dd.values(), second = s.dd.values();
    expect(!memcmp(first.data(), second.data(), second.size()), "the same column has the same bits in a small and a large product");
}

void test_refusals() {
    auto refused = [](const char* what, const problem& p, void (*spoil)(call&)) {
        call c(p);
        spoil(c);
        expect(c.run() != 0, std::string("not refused: ") + what);
    };
    problem p{64, 32, 48};
    refused("an algorithm of 64 zeros", p, [](call& c) { memset(c.found.algo, 0, 64); });
    refused("an algorithm with one bit changed", p, [](call& c) { c.found.algo[17] ^= 1; });
    refused("a shape that the algorithm was not made for", p, [](call& c) {
        cublasLtMatrixLayoutDestroy(c.lb), cublasLtMatrixLayoutDestroy(c.ld);
        MUST(cublasLtMatrixLayoutCreate(&c.lb, bf16, 48, 31, 48));
        MUST(cublasLtMatrixLayoutCreate(&c.ld, f32, 64, 31, 64));
    });
    refused("shapes that do not fit", p, [](call& c) {
        cublasLtMatrixLayoutDestroy(c.lb);
        MUST(cublasLtMatrixLayoutCreate(&c.lb, bf16, 47, 32, 48));
    });
    refused("a leading dimension shorter than the rows", p, [](call& c) {
        int64_t leading = 40;
        MUST(cublasLtMatrixLayoutSetAttribute(c.la, 4, &leading, 8));
    });
    refused("a buffer that is too small", p, [](call& c) { c.da.at += 256; });
    refused("a host address", p, [](call& c) { c.da.at = (address)c.a.bytes.data(); });
    refused("an address less aligned than promised", problem{64, 32, 44}, [](call& c) { c.dd.at += 4; });
    refused("a workspace on the host", p, [](call& c) { c.workspace.at = (address)c.a.bytes.data(); });
    refused("a workspace that is too small", p, [](call& c) { c.workspace.count = 16; });
    refused("a result on top of a factor", p, [](call& c) { c.dd.at = c.da.at; });
    refused("a destroyed layout", p, [](call& c) {
        void* other;
        cublasLtMatrixLayoutDestroy(c.la);
        MUST(cublasLtMatrixLayoutCreate(&other, bf16, 64, 48, 64));  // the destroyed one's address may come again
        c.la = (char*)other + 1;
    });
}

}  // namespace

int run_gemm_tests() {
    failures = 0;
    test_products();
    test_fixed_order();
    test_refusals();
    return failures;
}

void measure_gemm() {
    for (int size : {64, 256, 512, 1024, 2048}) {
        problem p{size, size, size};
        p.transpose_a = true, p.result = bf16;
        call c(p);
        double best = 1e9;
        for (int i = 0; i < 5; i++) {
            auto now = [] {
                timespec t;
                clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
                return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
            };
            double start = now();
            MUST(c.run());
            best = std::min(best, now() - start);
        }
        printf("{\"cost\":\"gemm bf16 TN %d^3\",\"value\":%.1f,\"unit\":\"GFLOP/s a core\"}\n", size, 2.0 * size * size * size / best / 1e9);
    }
}
