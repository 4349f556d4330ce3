// misuse.cpp - what a host program can do wrong: the stand-in driver must say so. And lazy streams, which show a missing wait.
#include "client.h"
#include <thread>

namespace {

int failures, found;

void expect(bool good, const std::string& what) {
    if (good) return;
    printf("FAILED: %s\n", what.c_str());
    failures++;
}

std::string json(const std::string& text) {
    std::string out;
    for (char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c;
    }
    return out;
}

// The call must fail, with a message that holds the words.
void refused(const char* misuse, int status, const char* words) {
    std::string message = status ? lt_standin_last_error() : "";
    bool good = status && message.find(words) != std::string::npos;
    expect(good, std::string(misuse) + ": status " + std::to_string(status) + ", [" + message + "] lacks [" + words + "]");
    found += good;
    printf("{\"misuse\":\"%s\",\"found\":%s,\"how\":\"%s\"}\n", misuse, good ? "true" : "false", json(message).c_str());
}

const char source[] =
    "#include \"port.cuh\"\n"
    "extern \"C\" __global__ void __launch_bounds__(128) scale(float* y, const float* x, float factor, int n) {\n"
    "    int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
    "    if (i < n) y[i] = x[i] * factor;\n"
    "}\n"
    "struct Pointers { float* y; const float* x; int n; };\n"
    "extern \"C\" __global__ void copy_by_structure(Pointers p) { if ((int)threadIdx.x < p.n) p.y[threadIdx.x] = p.x[threadIdx.x]; }\n"
    "extern \"C\" __global__ void with_dynamic(float* y) { LT_SHARED(s); ((float*)s)[threadIdx.x] = 1.0f; y[threadIdx.x] = ((float*)s)[threadIdx.x]; }\n"
    "extern \"C\" __global__ void past_the_end(float* y, int n) { y[n] = 1.0f; }\n";

struct pointers {
    address y, x;
    int n;
};

void test_memory() {
    address p = 0, q = 0;
    MUST(cuMemAlloc_v2(&p, 1024));
    MUST(cuMemAlloc_v2(&q, 1024));
    char host[4096] = {};
    refused("copy past the end of a buffer", cuMemcpyHtoD_v2(p, host, 1025), "not inside one device buffer");
    refused("copy from the middle past the end", cuMemcpyDtoH_v2(host, p + 1000, 100), "byte 1000 of a buffer of 1024");
    refused("copy between host addresses", cuMemcpyHtoD_v2((address)host, host, 16), "outside device memory");
    refused("a device address as the host side of a copy", cuMemcpyHtoD_v2(p, (void*)q, 16), "is device memory");
    refused("a null host address", cuMemcpyDtoH_v2(nullptr, p, 16), "null");
    refused("memset past the end", cuMemsetD8Async(p, 0, 2000, nullptr), "not inside one device buffer");
    refused("memset of words at an odd address", cuMemsetD32Async(p + 2, 0, 4, nullptr), "not aligned");
    refused("free of an address inside a buffer", cuMemFree_v2(p + 256), "byte 256");
    MUST(cuMemFree_v2(p));
    refused("double free", cuMemFree_v2(p), "freed buffer");
    refused("copy from a freed buffer", cuMemcpyDtoH_v2(host, p, 16), "freed buffer");
    refused("allocation of zero bytes", cuMemAlloc_v2(&p, 0), "zero bytes");
    refused("more memory than the device has", cuMemAlloc_v2(&p, (size_t)1 << 40), "asked for");
    void* pinned;
    MUST(cuMemHostAlloc(&pinned, 100, 0));
    refused("free of pinned memory as device memory", cuMemFree_v2((address)pinned), "of this kind");
    refused("copy past the end of pinned memory", cuMemcpyHtoD_v2(q, pinned, 200), "leaves its pinned buffer");
    MUST(cuMemFreeHost(pinned));
    MUST(cuMemFree_v2(q));
    std::thread([&] { refused("a thread without a context", cuMemAlloc_v2(&p, 16), "no context is current"); }).join();
    buffer<float> fresh(100);
    for (float v : fresh.values()) expect(v != v, "new memory is NaN");
}

void test_launches(void* module) {
    void *scale = find(module, "scale"), *by_structure = find(module, "copy_by_structure"), *dynamic = find(module, "with_dynamic");
    buffer<float> x(std::vector<float>(128, 1.0f)), y(128);
    std::vector<float> host(128);
    void* nothing;
    refused("an unknown kernel", cuModuleGetFunction(&nothing, module, "scall"), "no extern \"C\" kernel named scall");
    refused("a host address as an argument", launch(scale, {}, {128}, 0, nullptr, y.at, host.data(), 1.0f, 128), "argument 1: not a device address");
    refused("an argument that is not there", [&] {
        float factor = 1;
        void* arguments[] = {&y.at, &x.at, &factor, nullptr};
        return cuLaunchKernel(scale, 1, 1, 1, 128, 1, 1, 0, nullptr, arguments, nullptr);
    }(), "argument 3 is missing");
    refused("a host address in a structure", launch(by_structure, {}, {128}, 0, nullptr, pointers{y.at, (address)host.data(), 128}), "byte 8 is a host address");
    refused("an empty grid", launch(scale, {0}, {128}, 0, nullptr, y.at, x.at, 1.0f, 128), "the grid (0,1,1)");
    refused("2048 threads", launch(scale, {}, {2048}, 0, nullptr, y.at, x.at, 1.0f, 128), "the block (2048,1,1)");
    refused("more threads than __launch_bounds__", launch(scale, {}, {256}, 0, nullptr, y.at, x.at, 1.0f, 128), "__launch_bounds__ of 128");
    refused("dynamic shared memory without asking", launch(dynamic, {}, {32}, 50000, nullptr, y.at), "allowed for this function");
    MUST(cuFuncSetAttribute(dynamic, 8, 50000));
    expect(!launch(dynamic, {}, {32}, 50000, nullptr, y.at), "dynamic shared memory after asking");
    refused("more dynamic shared memory than the device has", cuFuncSetAttribute(dynamic, 8, 200 * 1024), "more than the device's");
    refused("a stream that is none", launch(scale, {}, {128}, 0, &host, y.at, x.at, 1.0f, 128), "not a stream");
    {
        void* stream;
        MUST(cuStreamCreate(&stream, 1));
        MUST(cuStreamDestroy_v2(stream));
        refused("a destroyed stream", cuStreamSynchronize(stream), "destroyed");
    }
    refused("an event that is none", cuEventRecord(&host, nullptr), "not an event");
    {
        void *start, *end;
        float milliseconds;
        MUST(cuEventCreate(&start, 0));
        MUST(cuEventCreate(&end, 2));
        refused("time of an event without timing", cuEventElapsedTime_v2(&milliseconds, start, end), "without timing");
        cuEventDestroy_v2(start), cuEventDestroy_v2(end);
    }
    address gone;
    {
        buffer<float> short_lived(128);
        gone = short_lived.at;
    }
    refused("a freed buffer as an argument", launch(scale, {}, {128}, 0, nullptr, y.at, gone, 1.0f, 128), "freed buffer");
    refused("a freed buffer in a structure", launch(by_structure, {}, {128}, 0, nullptr, pointers{y.at, gone, 128}), "freed buffer");
    refused("after a fault every call fails", cuMemcpyDtoH_v2(host.data(), y.at, 4), "an earlier error sticks");
    open_device();
}

// What a fault of a kernel says: kernel, block, thread, source line, and where the address is.
void test_fault_message(void* module) {
    buffer<float> y(100);
    int status = launch(find(module, "past_the_end"), {}, {1}, 0, nullptr, y.at, 5000);
    refused("a write far past the end", status, "kernel past_the_end, block (0,0,0), thread (0,0,0)");
    std::string message = lt_standin_last_error();
    expect(status == 700 && message.find("misuse.cu:") != std::string::npos, "the fault names the source line: " + message);
    open_device();
}

void test_lazy_streams(void* scale) {
    const size_t count = 100;
    std::vector<float> ones(count, 1.0f), result(count, 0.0f);
    buffer<float> x(count), y(count);
    void *first, *second, *event;
    MUST(cuStreamCreate(&first, 1));
    MUST(cuStreamCreate(&second, 1));
    MUST(cuEventCreate(&event, 2));
    lt_standin_configure(0, 0, 1);
    auto scaled = [&](void* stream, address to, address from, float factor) { MUST(launch(scale, {1}, {128}, 0, stream, to, from, factor, (int)count)); };

    MUST(cuMemcpyHtoDAsync_v2(x.at, ones.data(), count * 4, first));
    scaled(first, y.at, x.at, 3.0f);
    MUST(cuMemcpyDtoHAsync_v2(result.data(), y.at, count * 4, first));
    expect(result[0] == 0.0f, "lazy: nothing has run before the wait");
    MUST(cuStreamSynchronize(first));
    expect(result[0] == 3.0f, "lazy: all has run after the wait");

    MUST(cuMemcpyHtoDAsync_v2(x.at, ones.data(), count * 4, first));
    for (float& v : ones) v = 7.0f;
    MUST(cuMemcpyDtoHAsync_v2(result.data(), x.at, count * 4, first));
    MUST(cuStreamSynchronize(first));
    expect(result[0] == 7.0f, "lazy: a host buffer reused too early shows");

    MUST(cuMemsetD32Async(x.at, 0x40000000, count, first));  // 2.0
    MUST(cuEventRecord(event, first));
    expect(cuEventQuery(event) == 600, "lazy: an event is not ready at once");
    MUST(cuStreamWaitEvent(second, event, 0));
    scaled(second, y.at, x.at, 5.0f);
    MUST(cuMemcpyDtoHAsync_v2(result.data(), y.at, count * 4, second));
    MUST(cuStreamSynchronize(second));
    expect(result[0] == 10.0f, "lazy: a stream waits for an event of another");

    MUST(cuMemsetD32Async(x.at, 0x3f800000, count, first));  // 1.0
    scaled(second, y.at, x.at, 5.0f);                        // not ordered with it
    MUST(cuMemcpyDtoHAsync_v2(result.data(), y.at, count * 4, second));
    MUST(cuStreamSynchronize(second));
    expect(result[0] == 10.0f, "lazy: a missing wait between streams shows");
    MUST(cuCtxSynchronize());
    lt_standin_configure(0, 0, 0);
    for (void* stream : {first, second}) MUST(cuStreamDestroy_v2(stream));
    MUST(cuEventDestroy_v2(event));
}

// Graphs: what is captured is not done, and is done at each launch; what a capture does not bear is refused and spoils it.
void test_graphs(void* scale) {
    const size_t count = 100;
    std::vector<float> result(count);
    buffer<float> x(std::vector<float>(count, 2.0f)), y(std::vector<float>(count, 0.0f)), z(std::vector<float>(count, 0.0f));
    void *first, *second, *fork, *joined, *graph, *executable, *pinned;
    MUST(cuStreamCreate(&first, 1));
    MUST(cuStreamCreate(&second, 1));
    MUST(cuEventCreate(&fork, 2));
    MUST(cuEventCreate(&joined, 2));
    MUST(cuMemHostAlloc(&pinned, count * 4, 0));
    auto scaled = [&](void* stream, address to, address from, float factor) { MUST(launch(scale, {1}, {128}, 0, stream, to, from, factor, (int)count)); };
    auto begin = [&] { MUST(cuStreamBeginCapture_v2(first, 1)); };
    auto read = [&](address from) {
        MUST(cuStreamSynchronize(first));
        MUST(cuMemcpyDtoH_v2(result.data(), from, count * 4));
        return result[0];
    };
    auto spoilt = [&](const char* misuse, int status, const char* words) {
        refused(misuse, status, words);
        refused("the end of a spoilt capture", cuStreamEndCapture(first, &graph), "not permitted");
        expect(!graph, "a spoilt capture gives no graph");
    };

    for (int lazy = 0; lazy < 3; lazy++) {
        lt_standin_configure(0, 0, lazy);
        MUST(cuMemsetD32Async(y.at, 0, count, first));
        begin();
        scaled(first, y.at, x.at, 3.0f);
        MUST(cuEventRecord(fork, first));
        MUST(cuStreamWaitEvent(second, fork, 0));
        scaled(second, z.at, y.at, 5.0f);  // beside what follows
        MUST(cuEventRecord(joined, second));
        MUST(cuStreamWaitEvent(first, joined, 0));
        scaled(first, y.at, z.at, 7.0f);
        MUST(cuStreamEndCapture(first, &graph));
        MUST(cuGraphInstantiateWithFlags(&executable, graph, 0));
        MUST(cuGraphDestroy(graph));
        expect(read(y.at) == 0.0f, "what is captured is not done");
        MUST(cuGraphLaunch(executable, first));
        expect(read(y.at) == 210.0f, "a launch does it");
        MUST(cuMemsetD32Async(x.at, 0x3f800000, count, first));  // 1.0
        MUST(cuGraphLaunch(executable, first));
        expect(read(y.at) == 105.0f, "another launch does it with what the memory holds then");
        MUST(cuMemsetD32Async(x.at, 0x40000000, count, first));  // 2.0
        MUST(cuGraphExecDestroy(executable));
    }
    refused("launch of a destroyed graph", cuGraphLaunch(executable, first), "destroyed");

    // A branch that is not waited for before its result is read: with lazy streams it comes too late. The real driver would let this pass.
    lt_standin_configure(0, 0, 1);
    MUST(cuMemsetD32Async(z.at, 0, count, first));
    begin();
    MUST(cuEventRecord(fork, first));
    MUST(cuStreamWaitEvent(second, fork, 0));
    scaled(second, z.at, x.at, 5.0f);
    scaled(first, y.at, z.at, 1.0f);
    MUST(cuEventRecord(joined, second));
    MUST(cuStreamWaitEvent(first, joined, 0));
    MUST(cuStreamEndCapture(first, &graph));
    MUST(cuGraphInstantiateWithFlags(&executable, graph, 0));
    MUST(cuGraphLaunch(executable, first));
    expect(read(y.at) == 0.0f, "lazy: a missing wait within a graph shows");
    MUST(cuGraphExecDestroy(executable));
    MUST(cuGraphDestroy(graph));
    lt_standin_configure(0, 0, 0);

    address p;
    float host[100];
    begin();
    refused("a capture in a capture", cuStreamBeginCapture_v2(first, 1), "capturing already");
    spoilt("a wait in a capture", cuStreamSynchronize(first), "the stream is capturing");
    begin();
    spoilt("an allocation in a capture", cuMemAlloc_v2(&p, 16), "not permitted while work is captured");
    begin();
    spoilt("a copy that waits in a capture", cuMemcpyDtoH_v2(host, x.at, 16), "not permitted while work is captured");
    begin();
    spoilt("a copy from pageable memory in a capture", cuMemcpyHtoDAsync_v2(x.at, host, 16, first), "not page-locked");
    MUST(cuEventRecord(fork, second));
    begin();
    spoilt("a wait for work that is not captured", cuStreamWaitEvent(first, fork, 0), "not captured");
    begin();
    MUST(cuEventRecord(fork, first));
    spoilt("the host waits for a captured event", cuEventSynchronize(fork), "last recorded in a capture");
    begin();
    MUST(cuEventRecord(fork, first));
    MUST(cuStreamWaitEvent(second, fork, 0));
    scaled(second, z.at, x.at, 5.0f);
    refused("a capture that leaves a stream alone", cuStreamEndCapture(first, &graph), "was not waited for");
    refused("the end of no capture", cuStreamEndCapture(first, &graph), "not capturing");
    refused("capture of the default stream", cuStreamBeginCapture_v2(nullptr, 1), "default stream");
    MUST(cuMemcpyHtoDAsync_v2(x.at, pinned, 16, second));
    MUST(cuStreamSynchronize(second));
    expect(lt_standin_count("live_graphs") == 0, "no graph is left");
    MUST(cuMemFreeHost(pinned));
    for (void* event : {fork, joined}) MUST(cuEventDestroy_v2(event));
    for (void* stream : {first, second}) MUST(cuStreamDestroy_v2(stream));
}

// With copies from the host first, one that does not wait for the work before it comes too early.
void test_uploads_first(void* scale) {
    const size_t count = 100;
    std::vector<float> result(count);
    buffer<float> x(std::vector<float>(count, 1.0f)), y(count);
    void *first, *second, *read, *pinned;
    MUST(cuStreamCreate(&first, 1));
    MUST(cuStreamCreate(&second, 1));
    MUST(cuEventCreate(&read, 2));
    MUST(cuMemHostAlloc(&pinned, count * 4, 0));
    for (size_t i = 0; i < count; i++) ((float*)pinned)[i] = 4.0f;
    lt_standin_configure(0, 0, 2);
    for (bool waits : {true, false}) {
        MUST(launch(scale, {1}, {128}, 0, first, y.at, x.at, 2.0f, (int)count));
        MUST(cuEventRecord(read, first));
        if (waits) MUST(cuStreamWaitEvent(second, read, 0));
        MUST(cuMemcpyHtoDAsync_v2(x.at, pinned, count * 4, second));
        MUST(cuStreamSynchronize(first));
        MUST(cuMemcpyDtoH_v2(result.data(), y.at, count * 4));
        expect(result[0] == (waits ? 2.0f : 8.0f), "uploads first: one that should have waited shows");
        for (size_t i = 0; i < count; i++) ((float*)pinned)[i] = 1.0f;
        MUST(cuMemcpyHtoDAsync_v2(x.at, pinned, count * 4, second));
        MUST(cuStreamSynchronize(second));
        for (size_t i = 0; i < count; i++) ((float*)pinned)[i] = 4.0f;
    }
    lt_standin_configure(0, 0, 0);
    MUST(cuMemFreeHost(pinned));
    MUST(cuEventDestroy_v2(read));
    for (void* stream : {first, second}) MUST(cuStreamDestroy_v2(stream));
}

void test_counts(void* scale) {
    long long live = lt_standin_count("live_allocations");
    lt_standin_reset_counts();
    {
        buffer<float> x(std::vector<float>(128, 1.0f)), y(128);
        for (int i = 0; i < 3; i++) MUST(launch(scale, {}, {128}, 0, nullptr, y.at, x.at, 1.0f, 128));
        MUST(cuMemcpyDtoDAsync_v2(y.at, x.at, 4, nullptr));
        y.values();
        MUST(cuCtxSynchronize());
        expect(lt_standin_count("live_allocations") == live + 2, "the count of live allocations");
    }
    expect(lt_standin_count("scale") == 3 && lt_standin_count("copies_to_host") == 1 && lt_standin_count("copies_to_device") == 1 && lt_standin_count("copies_on_device") == 1, "the counts of launches and copies");
    expect(lt_standin_count("synchronizations") == 3, "the count of waits: two copies that wait and one call");
    expect(lt_standin_count("cuLaunchKernel") == 3 && lt_standin_count("cuMemAlloc_v2") == 2 && lt_standin_count("allocations") == 2 && lt_standin_count("cuCtxSynchronize") == 1, "each call counts under its name");
    expect(lt_standin_count("blocking_copies") == 2, "the count of copies that the host waits for");
    expect(lt_standin_count("live_allocations") == live, "no allocation is left");
}

}  // namespace

int run_misuse_tests() {
    failures = found = 0;
    compiled image = compile(source, "misuse.cu");
    expect(!image.status, image.log);
    auto module = [&] { return load(image.image); };
    test_memory();
    test_launches(module());
    test_fault_message(module());
    test_lazy_streams(find(module(), "scale"));
    test_graphs(find(module(), "scale"));
    test_uploads_first(find(module(), "scale"));
    test_counts(find(module(), "scale"));
    printf("%d misuses found\n", found);
    return failures;
}
