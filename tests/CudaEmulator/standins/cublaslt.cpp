// cublaslt.cpp - a stand-in for libcublasLt.so: the matrix products of a trainer (bf16 or fp32 factors, fp32 sums, column-major).
//
// An algorithm comes from the heuristic and carries a signature of the problem it was asked for: shapes, leading dimensions, types,
// transposes, epilogue, and the alignment that was promised. A product with another algorithm, or with addresses less aligned than
// promised, fails. The workspace is scribbled over, as a real algorithm may do.
#include "../emulator/runtime.h"
#include "gemm.h"
#include "standin.h"
#include <algorithm>
#include <mutex>
#include <set>
#include <stdlib.h>
#include <string.h>

typedef int cublasStatus_t;
#define API STANDIN_API cublasStatus_t

namespace {

enum : cublasStatus_t { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum : int { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
enum : int { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_16BF = 75, COMPUTE_32F_FAST_TF32 = 77 };
enum : uint32_t { EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4 };

struct layout {
    int type;
    uint64_t rows, columns;
    int64_t leading;
    int order = 0;  // column-major
    int batch = 1;
    int64_t batch_stride = 0;
};
struct description {
    int compute, scale;
    int pointer_mode = 0, transpose_a = 0, transpose_b = 0;
    uint32_t epilogue = EPILOGUE_DEFAULT;
    const void* bias = nullptr;
    int bias_type = -1;
};
struct preference {
    uint64_t max_workspace = 0;
    uint32_t reductions = ~0u;
    uint32_t alignment[4] = {256, 256, 256, 256};  // of A, B, C, D: what the real heuristic assumes when it is told nothing
};
struct algorithm {  // cublasLtMatmulAlgo_t: 64 opaque bytes
    uint64_t tag, signature;
    uint32_t alignment[4];
    uint64_t workspace;
    uint64_t unused[2];
    uint64_t checksum;
};
static_assert(sizeof(algorithm) == 64, "as in the real library");
struct heuristic_result {
    algorithm algo;
    size_t workspace;
    cublasStatus_t state;
    float waves;
    int reserved[4];
};
const uint64_t algorithm_tag = 0x31474c41454d5545ull;  // "EUMEALG1"
const size_t asked_workspace = 64 * 1024;              // so that the caller's workspace is exercised

std::mutex mutex;
std::set<const void*> handles;  // live handles, descriptions, layouts and preferences

template <class T> cublasStatus_t create(void** out, T* created) {
    std::lock_guard<std::mutex> lock(mutex);
    handles.insert(created);
    *out = created;
    return SUCCESS;
}
template <class T> cublasStatus_t destroy(void* handle, const char* function) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!handles.erase(handle)) {
        lt_internal_note(function, "not a live object");
        return INVALID_VALUE;
    }
    delete (T*)handle;
    return SUCCESS;
}
bool live(std::initializer_list<const void*> all) {
    std::lock_guard<std::mutex> lock(mutex);
    return std::all_of(all.begin(), all.end(), [](const void* h) { return handles.count(h) != 0; });
}

cublasStatus_t refuse(const char* function, cublasStatus_t status, const std::string& why) {
    lt_internal_note(function, why.c_str());
    return status;
}

size_t element_bytes(const layout& l) { return l.type == CUDA_R_16BF ? 2 : 4; }
size_t extent(const layout& l) {
    if (!l.rows || !l.columns) return 0;
    return ((size_t)(l.batch - 1) * (size_t)l.batch_stride + (size_t)l.leading * (l.columns - 1) + l.rows) * element_bytes(l);
}

struct product {
    description how;
    layout a, b, c, d;
    int64_t m() const { return (int64_t)d.rows; }
    int64_t n() const { return (int64_t)d.columns; }
    int64_t k() const { return (int64_t)(how.transpose_a ? a.rows : a.columns); }
};

// Why this product cannot be computed; empty when it can.
std::string problem_with(const product& p) {
    for (auto* l : {&p.a, &p.b, &p.c, &p.d})
        if (l->leading < (int64_t)l->rows) return "a leading dimension of " + std::to_string(l->leading) + " for " + std::to_string(l->rows) + " rows";
    uint64_t m = p.how.transpose_a ? p.a.columns : p.a.rows, n = p.how.transpose_b ? p.b.rows : p.b.columns, k = p.how.transpose_b ? p.b.columns : p.b.rows;
    auto shape = [](const char* name, uint64_t rows, uint64_t columns) { return std::string(name) + " (" + std::to_string(rows) + "," + std::to_string(columns) + ")"; };
    std::string shapes = shape("op(A)", m, (uint64_t)p.k()) + shape(" op(B)", k, n) + shape(" C", p.c.rows, p.c.columns) + shape(" D", p.d.rows, p.d.columns);
    if (k != (uint64_t)p.k() || p.d.rows != m || p.d.columns != n || p.c.rows != m || p.c.columns != n) return "the shapes do not fit: " + shapes;
    if (!m || !n || !k) return "an empty matrix: " + shapes;
    if (p.a.batch != p.d.batch || p.b.batch != p.d.batch || p.c.batch != p.d.batch) return "the batch counts differ";
    bool half = p.a.type == CUDA_R_16BF;
    if (p.a.type != p.b.type || p.c.type != p.d.type || (!half && p.d.type != CUDA_R_32F)) return "an unsupported combination of types";
    if (p.how.epilogue == EPILOGUE_BIAS && p.how.bias_type != -1 && p.how.bias_type != p.d.type) return "the bias has another type than D";
    return "";
}

uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9e3779b97f4a7c15ull;
    return hash ^ hash >> 29;
}
uint64_t signature(const product& p) {
    uint64_t h = mix(1, (uint64_t)p.how.compute);
    for (auto value : {(uint64_t)p.how.transpose_a, (uint64_t)p.how.transpose_b, (uint64_t)p.how.epilogue}) h = mix(h, value);
    for (auto* l : {&p.a, &p.b, &p.c, &p.d})
        for (auto value : {(uint64_t)l->type, l->rows, l->columns, (uint64_t)l->leading, (uint64_t)l->batch, (uint64_t)l->batch_stride}) h = mix(h, value);
    return h;
}
uint64_t checksum(const algorithm& algo) {
    const auto* words = (const uint64_t*)&algo;
    uint64_t h = 2;
    for (int i = 0; i < 7; i++) h = mix(h, words[i]);
    return h;
}

bool make_product(void* how, void* a, void* b, void* c, void* d, product& p) {
    if (!live({how, a, b, c, d})) return false;
    p = {*(description*)how, *(layout*)a, *(layout*)b, *(layout*)c, *(layout*)d};
    return true;
}

std::string address_error(const product& p, const void* const addresses[4], const algorithm& algo, bool reads_c) {
    const layout* layouts[] = {&p.a, &p.b, &p.c, &p.d};
    const char* names[] = {"A", "B", "C", "D"};
    for (int i = 0; i < 4; i++) {
        if (i == 2 && !reads_c) continue;
        if (!lt_internal_device_range(addresses[i], extent(*layouts[i])))
            return std::string(names[i]) + ": " + std::to_string(extent(*layouts[i])) + " bytes from there are not inside one device buffer";
        if ((uintptr_t)addresses[i] % algo.alignment[i])
            return std::string(names[i]) + ": the address is not aligned to the " + std::to_string(algo.alignment[i]) + " bytes that the heuristic was promised";
    }
    auto overlap = [&](int i, int j) {
        const char *x = (const char*)addresses[i], *y = (const char*)addresses[j];
        return x < y + extent(*layouts[j]) && y < x + extent(*layouts[i]);
    };
    if (overlap(3, 0) || overlap(3, 1)) return "D overlaps A or B";
    bool same = addresses[2] == addresses[3] && p.c.leading == p.d.leading;
    if (reads_c && !same && overlap(3, 2)) return "D overlaps C and is not C";
    return "";
}

matrix_view view(const layout& l, const void* data, bool transposed, int batch) {
    char* start = (char*)data + (size_t)batch * (size_t)l.batch_stride * element_bytes(l);
    element type = l.type == CUDA_R_16BF ? element::bf16 : element::f32;
    return transposed ? matrix_view{start, type, l.leading, 1} : matrix_view{start, type, 1, l.leading};
}

template <class T> cublasStatus_t set(const char* function, T& field, const void* value, size_t bytes) {
    if (!value || bytes != sizeof(T)) return refuse(function, INVALID_VALUE, "the attribute has " + std::to_string(sizeof(T)) + " bytes, not " + std::to_string(bytes));
    memcpy(&field, value, sizeof(T));
    return SUCCESS;
}

}  // namespace

// ---- the library ----
API cublasLtCreate(void** handle) {
    if (!handle) return INVALID_VALUE;
    if (lt_internal_enter(__func__)) return NOT_INITIALIZED;
    return create(handle, new int(0));
}
API cublasLtDestroy(void* handle) { return destroy<int>(handle, __func__); }
STANDIN_API size_t cublasLtGetVersion() { return 130000; }
STANDIN_API size_t cublasLtGetCudartVersion() { return 13000; }
API cublasLtGetProperty(int property, int* value) {
    const int version[] = {13, 0, 0};
    if (!value || property < 0 || property > 2) return INVALID_VALUE;
    *value = version[property];
    return SUCCESS;
}
STANDIN_API const char* cublasLtGetStatusName(cublasStatus_t status) {
    switch (status) {
    case SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "unknown";
    }
}

// ---- descriptions ----
API cublasLtMatmulDescCreate(void** how, int compute, int scale) {
    if (!how) return INVALID_VALUE;
    bool known = compute == COMPUTE_32F || compute == COMPUTE_32F_PEDANTIC || compute == COMPUTE_32F_FAST_16BF || compute == COMPUTE_32F_FAST_TF32;
    if (!known || scale != CUDA_R_32F) return refuse(__func__, NOT_SUPPORTED, "an unsupported compute or scale type");
    auto* created = new description();
    created->compute = compute;
    created->scale = scale;
    return create(how, created);
}
API cublasLtMatmulDescDestroy(void* how) { return destroy<description>(how, __func__); }
API cublasLtMatmulDescSetAttribute(void* how, int attribute, const void* value, size_t bytes) {
    if (!live({how})) return refuse(__func__, INVALID_VALUE, "not a live description");
    auto* d = (description*)how;
    cublasStatus_t status;
    switch (attribute) {
    case 2: status = set(__func__, d->pointer_mode, value, bytes); return status ? status : d->pointer_mode ? refuse(__func__, NOT_SUPPORTED, "alpha and beta on the device") : SUCCESS;
    case 3: status = set(__func__, d->transpose_a, value, bytes); return status ? status : (unsigned)d->transpose_a > 1 ? INVALID_VALUE : SUCCESS;
    case 4: status = set(__func__, d->transpose_b, value, bytes); return status ? status : (unsigned)d->transpose_b > 1 ? INVALID_VALUE : SUCCESS;
    case 7:
        status = set(__func__, d->epilogue, value, bytes);
        return status ? status : d->epilogue != EPILOGUE_DEFAULT && d->epilogue != EPILOGUE_BIAS ? refuse(__func__, NOT_SUPPORTED, "an unsupported epilogue") : SUCCESS;
    case 8: return set(__func__, d->bias, value, bytes);
    case 26: return set(__func__, d->bias_type, value, bytes);
    default: return refuse(__func__, NOT_SUPPORTED, "an unsupported attribute of a description: " + std::to_string(attribute));
    }
}

API cublasLtMatrixLayoutCreate(void** created, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    if (!created) return INVALID_VALUE;
    if (type != CUDA_R_32F && type != CUDA_R_16BF) return refuse(__func__, NOT_SUPPORTED, "an unsupported type of a matrix");
    auto* l = new layout();
    l->type = type;
    l->rows = rows;
    l->columns = columns;
    l->leading = leading;
    return create(created, l);
}
API cublasLtMatrixLayoutDestroy(void* l) { return destroy<layout>(l, __func__); }
API cublasLtMatrixLayoutSetAttribute(void* handle, int attribute, const void* value, size_t bytes) {
    if (!live({handle})) return refuse(__func__, INVALID_VALUE, "not a live layout");
    auto* l = (layout*)handle;
    cublasStatus_t status;
    switch (attribute) {
    case 0: return set(__func__, l->type, value, bytes);
    case 1: status = set(__func__, l->order, value, bytes); return status ? status : l->order ? refuse(__func__, NOT_SUPPORTED, "only column-major matrices") : SUCCESS;
    case 2: return set(__func__, l->rows, value, bytes);
    case 3: return set(__func__, l->columns, value, bytes);
    case 4: return set(__func__, l->leading, value, bytes);
    case 5: status = set(__func__, l->batch, value, bytes); return status ? status : l->batch < 1 ? INVALID_VALUE : SUCCESS;
    case 6: return set(__func__, l->batch_stride, value, bytes);
    default: return refuse(__func__, NOT_SUPPORTED, "an unsupported attribute of a layout: " + std::to_string(attribute));
    }
}

API cublasLtMatmulPreferenceCreate(void** created) { return created ? create(created, new preference()) : INVALID_VALUE; }
API cublasLtMatmulPreferenceDestroy(void* p) { return destroy<preference>(p, __func__); }
API cublasLtMatmulPreferenceSetAttribute(void* handle, int attribute, const void* value, size_t bytes) {
    if (!live({handle})) return refuse(__func__, INVALID_VALUE, "not a live preference");
    auto* p = (preference*)handle;
    if (attribute >= 5 && attribute <= 8) {
        uint32_t& alignment = p->alignment[attribute - 5];
        cublasStatus_t status = set(__func__, alignment, value, bytes);
        if (status) return status;
        return alignment && !(alignment & (alignment - 1)) ? SUCCESS : refuse(__func__, INVALID_VALUE, "an alignment is a power of two");
    }
    uint32_t ignored;
    float ignored_waves;
    uint64_t ignored_mask;
    switch (attribute) {
    case 0: return set(__func__, ignored, value, bytes);  // search mode
    case 1: return set(__func__, p->max_workspace, value, bytes);
    case 3: return set(__func__, p->reductions, value, bytes);
    case 9: return set(__func__, ignored_waves, value, bytes);
    case 12: return set(__func__, ignored_mask, value, bytes);  // implementations
    default: return refuse(__func__, NOT_SUPPORTED, "an unsupported attribute of a preference: " + std::to_string(attribute));
    }
}

// ---- algorithms ----
API cublasLtMatmulAlgoGetHeuristic(void* handle, void* how, void* a, void* b, void* c, void* d, void* preferred, int requested, heuristic_result* results, int* returned) {
    product p;
    if (!results || !returned || requested < 1 || !live({handle, preferred}) || !make_product(how, a, b, c, d, p)) return refuse(__func__, INVALID_VALUE, "a missing argument, or one that is not live");
    *returned = 0;
    std::string bad = problem_with(p);
    if (!bad.empty()) return refuse(__func__, INVALID_VALUE, bad);
    const auto& wish = *(const preference*)preferred;
    memset(results, 0, sizeof *results);
    algorithm& algo = results->algo;
    algo.tag = algorithm_tag;
    algo.signature = signature(p);
    memcpy(algo.alignment, wish.alignment, sizeof algo.alignment);
    algo.workspace = std::min<uint64_t>(wish.max_workspace / 256 * 256, asked_workspace);
    algo.checksum = checksum(algo);
    results->workspace = algo.workspace;
    results->waves = 1;
    *returned = 1;
    return SUCCESS;
}

static std::string algorithm_error(const product& p, const algorithm* algo) {
    if (!algo) return "no algorithm; take one from the heuristic";
    if (algo->tag != algorithm_tag || algo->checksum != checksum(*algo)) return "the algorithm did not come from the heuristic";
    if (algo->signature != signature(p)) return "the algorithm was made for another problem (shape, leading dimension, type, transpose or epilogue)";
    return "";
}
API cublasLtMatmulAlgoCheck(void* handle, void* how, void* a, void* b, void* c, void* d, const algorithm* algo, heuristic_result* result) {
    product p;
    if (!result || !live({handle}) || !make_product(how, a, b, c, d, p)) return refuse(__func__, INVALID_VALUE, "a missing argument, or one that is not live");
    std::string bad = problem_with(p);
    if (bad.empty()) bad = algorithm_error(p, algo);
    if (!bad.empty()) return refuse(__func__, NOT_SUPPORTED, bad);
    memset(result, 0, sizeof *result);
    result->algo = *algo;
    result->workspace = algo->workspace;
    result->waves = 1;
    return SUCCESS;
}

API cublasLtMatmul(void* handle, void* how, const float* alpha, const void* a, void* layout_a, const void* b, void* layout_b, const float* beta, const void* c, void* layout_c,
                   void* d, void* layout_d, const algorithm* algo, void* workspace, size_t workspace_bytes, void* stream) {
    if (lt_internal_enter(__func__)) return NOT_INITIALIZED;
    product p;
    if (!live({handle}) || !make_product(how, layout_a, layout_b, layout_c, layout_d, p)) return refuse(__func__, INVALID_VALUE, "an argument that is not live");
    if (!alpha || !beta) return refuse(__func__, INVALID_VALUE, "no alpha or beta");
    std::string bad = problem_with(p);
    if (!bad.empty()) return refuse(__func__, INVALID_VALUE, bad);
    bad = algorithm_error(p, algo);
    if (!bad.empty()) return refuse(__func__, NOT_SUPPORTED, bad);
    const void* addresses[] = {a, b, c, d};
    bad = address_error(p, addresses, *algo, *beta != 0.0f);
    if (!bad.empty()) return refuse(__func__, INVALID_VALUE, bad);
    if (workspace_bytes < algo->workspace) return refuse(__func__, INVALID_VALUE, "the workspace is smaller than the algorithm asked for");
    if (algo->workspace && ((uintptr_t)workspace % 256 || !lt_internal_device_range(workspace, workspace_bytes)))
        return refuse(__func__, INVALID_VALUE, "the workspace is not in device memory, or not aligned to 256 bytes");
    bool biased = p.how.epilogue == EPILOGUE_BIAS;
    if (biased && !lt_internal_device_range(p.how.bias, p.d.rows * element_bytes(p.d))) return refuse(__func__, INVALID_VALUE, "the bias is not inside one device buffer");

    lt_internal_count("gemms");
    float scale = *alpha, keep = *beta;
    size_t scribbled = algo->workspace;
    stream_work work = [=] {
        memset(workspace, 0xff, scribbled);
        for (int i = 0; i < p.d.batch; i++)
            gemm({p.m(), p.n(), p.k(), view(p.a, a, p.how.transpose_a, i), view(p.b, b, p.how.transpose_b, i), view(p.c, c, false, i), view(p.d, d, false, i), scale, keep,
                  biased ? p.how.bias : nullptr}, std::min(emu_workers(), 2));
        return outcome{};
    };
    return lt_internal_enqueue(__func__, stream, &work) ? EXECUTION_FAILED : SUCCESS;
}
