// client.h - a small C++ client of the stand-in libraries, for the emulator's own tests.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <utility>
#include <vector>

typedef unsigned long long address;
extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuDevicePrimaryCtxRelease_v2(int);
int cuCtxSetCurrent(void*);
int cuCtxSynchronize();
int cuMemAlloc_v2(address*, size_t);
int cuMemFree_v2(address);
int cuMemAllocManaged(address*, size_t, unsigned);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemFreeHost(void*);
int cuMemGetInfo_v2(size_t*, size_t*);
int cuMemcpyHtoD_v2(address, const void*, size_t);
int cuMemcpyDtoH_v2(void*, address, size_t);
int cuMemcpyHtoDAsync_v2(address, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, address, size_t, void*);
int cuMemcpyDtoDAsync_v2(address, address, size_t, void*);
int cuMemsetD8Async(address, unsigned char, size_t, void*);
int cuMemsetD32Async(address, unsigned, size_t, void*);
int cuStreamCreate(void**, unsigned);
int cuStreamDestroy_v2(void*);
int cuStreamSynchronize(void*);
int cuStreamWaitEvent(void*, void*, unsigned);
int cuEventCreate(void**, unsigned);
int cuEventDestroy_v2(void*);
int cuEventRecord(void*, void*);
int cuEventSynchronize(void*);
int cuEventQuery(void*);
int cuEventElapsedTime_v2(float*, void*, void*);
int cuModuleLoadData(void**, const void*);
int cuModuleUnload(void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuFuncGetAttribute(int*, int, void*);
int cuFuncGetParamInfo(void*, size_t, size_t*, size_t*);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int cuStreamBeginCapture_v2(void*, int);
int cuStreamEndCapture(void*, void**);
int cuGraphInstantiateWithFlags(void**, void*, unsigned long long);
int cuGraphLaunch(void*, void*);
int cuGraphExecDestroy(void*);
int cuGraphDestroy(void*);
void lt_standin_configure(int order, int copies, int lazy);
long long lt_standin_count(const char*);
void lt_standin_reset_counts();
const char* lt_standin_last_error();

int nvrtcCreateProgram(void**, const char*, const char*, int, const char* const*, const char* const*);
int nvrtcCompileProgram(void*, int, const char* const*);
int nvrtcGetProgramLogSize(void*, size_t*);
int nvrtcGetProgramLog(void*, char*);
int nvrtcGetCUBINSize(void*, size_t*);
int nvrtcGetCUBIN(void*, char*);
int nvrtcDestroyProgram(void**);
}

inline void must(int status, const char* what) {
    if (!status) return;
    printf("%s failed with %d: %s\n", what, status, lt_standin_last_error());
    exit(2);
}
#define MUST(call) must(call, #call)

std::string read_text(const std::string& path);  // exits when there is no such file
extern std::string own_folder, kernels_folder;   // where this program's .cu files and port.cuh are

// Opens the device, or opens it again after an error that sticks.
inline void open_device() {
    static bool opened;
    MUST(cuInit(0));
    if (opened) MUST(cuDevicePrimaryCtxRelease_v2(0));
    opened = true;
    void* context;
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
}

struct compiled {
    int status;
    std::string log, image;
};
inline compiled compile(const std::string& source, const std::string& name, std::vector<std::string> options = {}) {
    options.insert(options.begin(), "--gpu-architecture=sm_80");
    std::vector<const char*> option_pointers;
    for (auto& o : options) option_pointers.push_back(o.c_str());
    static const std::string port = read_text(kernels_folder + "/port.cuh");
    const char *header = port.c_str(), *header_name = "port.cuh";
    void* program;
    MUST(nvrtcCreateProgram(&program, source.c_str(), name.c_str(), 1, &header, &header_name));
    compiled result;
    result.status = nvrtcCompileProgram(program, (int)options.size(), option_pointers.data());
    size_t size;
    MUST(nvrtcGetProgramLogSize(program, &size));
    result.log.resize(size);
    MUST(nvrtcGetProgramLog(program, result.log.data()));
    result.log.resize(size - 1);
    if (!result.status) {
        MUST(nvrtcGetCUBINSize(program, &size));
        result.image.resize(size);
        MUST(nvrtcGetCUBIN(program, result.image.data()));
    }
    MUST(nvrtcDestroyProgram(&program));
    return result;
}

inline std::string compile_file(const std::string& name, std::vector<std::string> options = {}) {
    compiled result = compile(read_text(own_folder + "/" + name), name, std::move(options));
    if (!result.log.empty()) printf("%s", result.log.c_str());
    if (result.status) exit(2);
    return result.image;
}

inline void* load(const std::string& image) {
    void* module;
    MUST(cuModuleLoadData(&module, image.c_str()));
    return module;
}
inline void* find(void* module, const char* name) {
    void* function;
    MUST(cuModuleGetFunction(&function, module, name));
    return function;
}

template <class T> struct buffer {
    address at = 0;
    size_t count;
    explicit buffer(size_t count) : count(count) { MUST(cuMemAlloc_v2(&at, count * sizeof(T))); }
    explicit buffer(const std::vector<T>& values) : buffer(values.size()) { MUST(cuMemcpyHtoD_v2(at, values.data(), count * sizeof(T))); }
    buffer(const buffer&) = delete;
    // after an error that sticks nothing can be freed; the context takes it all when it goes
    ~buffer() { cuMemFree_v2(at); }
    std::vector<T> values() const {
        std::vector<T> result(count);
        MUST(cuMemcpyDtoH_v2(result.data(), at, count * sizeof(T)));
        return result;
    }
};

struct extent3 {
    unsigned x = 1, y = 1, z = 1;
};
template <class... Arguments> int launch(void* function, extent3 grid, extent3 block, unsigned shared_bytes, void* stream, Arguments... arguments) {
    void* pointers[] = {(void*)&arguments..., nullptr};
    return cuLaunchKernel(function, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes, stream, pointers, nullptr);
}

inline float from_bf16(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}
inline uint16_t to_bf16(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    return (uint16_t)((word + 0x7fffu + ((word >> 16) & 1)) >> 16);
}

// A generator that gives the same numbers everywhere.
struct numbers {
    uint64_t state = 1;
    uint32_t bits() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return (uint32_t)(state >> 32);
    }
    float uniform() { return (float)(bits() >> 8) / (float)(1 << 23) - 1.0f; }
    std::vector<float> floats(size_t count) {
        std::vector<float> v(count);
        for (float& x : v) x = uniform();
        return v;
    }
    std::vector<uint16_t> bf16s(size_t count) {
        std::vector<uint16_t> v(count);
        for (uint16_t& x : v) x = to_bf16(uniform());
        return v;
    }
};

// The parts of the program. Each returns the number of failures.
int run_self_tests();
int run_gemm_tests();
int run_misuse_tests();
int run_planted_mistakes();
void measure();
void measure_gemm();
