// self_tests.cpp - every primitive of the emulator against plain C++.
#include "client.h"
#include <functional>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

namespace {

int failures;

void expect(bool good, const std::string& what) {
    if (good) return;
    printf("FAILED: %s\n", what.c_str());
    failures++;
}
void expect_run(int status, const std::string& what) { expect(!status, what + ": " + (status ? lt_standin_last_error() : "")); }
template <class T> void expect_equal(const std::vector<T>& got, const std::vector<T>& expected, const std::string& what) {
    size_t wrong = 0, first = 0;
    for (size_t i = 0; i < expected.size(); i++)
        if (memcmp(&got[i], &expected[i], sizeof(T)) && !wrong++) first = i;
    expect(!wrong, what + ": " + std::to_string(wrong) + " of " + std::to_string(expected.size()) + " wrong, first at " + std::to_string(first));
}

void* kernels;

void test_shuffles(const std::string& mode) {
    numbers random;
    std::vector<float> x = random.floats(64);
    for (int width : {32, 16, 8, 4, 2, 1}) {
        buffer<float> dx(x), dy(256);
        expect_run(launch(find(kernels, "shuffles"), {}, {64}, 0, nullptr, dx.at, dy.at, width), "shuffles");
        std::vector<float> expected(256);
        for (int t = 0; t < 64; t++) {
            int warp = t / 32 * 32, lane = t % 32, start = lane / width * width, end = start + width;
            auto at = [&](int from) { return x[(size_t)(warp + from)]; };
            int wanted = t * 7 + 3, offset = ((wanted % width) + width) % width;
            expected[(size_t)t] = at(start + offset);
            // an exchange may reach down into an earlier segment, but not up into a later one
            expected[(size_t)(64 + t)] = (lane ^ 5) < end ? at(lane ^ 5) : at(lane);
            expected[(size_t)(128 + t)] = lane + 3 < end ? at(lane + 3) : at(lane);
            expected[(size_t)(192 + t)] = lane - 3 >= start ? at(lane - 3) : at(lane);
        }
        expect_equal(dy.values(), expected, mode + " shuffles of width " + std::to_string(width));
    }
    std::vector<double> d(32);
    std::vector<long long> i(32);
    for (int t = 0; t < 32; t++) d[(size_t)t] = 1.0 / (t + 3), i[(size_t)t] = (long long)random.bits() << 20;
    buffer<double> dd(d), de(32);
    buffer<long long> di(i), dj(32);
    expect_run(launch(find(kernels, "wide_shuffles"), {}, {32}, 0, nullptr, dd.at, de.at, di.at, dj.at), "wide_shuffles");
    std::vector<double> e(32);
    std::vector<long long> j(32);
    for (size_t t = 0; t < 32; t++) e[t] = d[t ^ 16], j[t] = i[t < 31 ? t + 1 : t];
    expect_equal(de.values(), e, mode + " shuffle of double");
    expect_equal(dj.values(), j, mode + " shuffle of long long");
}

void test_votes(const std::string& mode) {
    numbers random;
    std::vector<int> x(64);
    for (int& v : x) v = (int)(random.bits() % 200) - 100;
    buffer<int> dx(x);
    buffer<uint32_t> dy(256);
    expect_run(launch(find(kernels, "votes"), {}, {64}, 0, nullptr, dx.at, dy.at), "votes");
    std::vector<uint32_t> expected(256);
    for (int t = 0; t < 64; t++) {
        uint32_t positive = 0, any = 0, all = 1, parity = 0;
        for (int lane = 0; lane < 32; lane++) {
            int v = x[(size_t)(t / 32 * 32 + lane)];
            positive |= (uint32_t)(v > 0) << lane;
            any |= v > 90;
            all &= v > -101;
            if ((lane & 16) == (t & 16)) parity |= (uint32_t)((v & (t & 16 ? 1 : 2)) != 0) << lane;
        }
        expected[(size_t)t] = positive, expected[(size_t)(64 + t)] = any, expected[(size_t)(128 + t)] = all, expected[(size_t)(192 + t)] = parity;
    }
    expect_equal(dy.values(), expected, mode + " votes");
}

void test_indices(const std::string& mode) {
    extent3 grid{5, 3, 2}, block{7, 5, 3};
    size_t threads = 7 * 5 * 3, blocks = 5 * 3 * 2;
    buffer<uint32_t> y(threads * blocks);
    expect_run(launch(find(kernels, "indices"), grid, block, 0, nullptr, y.at), "indices");
    std::vector<uint32_t> expected(threads * blocks);
    for (size_t i = 0; i < expected.size(); i++) expected[i] = (uint32_t)(1000000 * (i / threads) + i % threads);
    expect_equal(y.values(), expected, mode + " indices");
}

// Where the PTX manual puts the elements of mma.m16n8k16 (.bf16), element i of a lane's fragment, written as it is written there.
struct position {
    int row, column;
};
position place_in_a(int lane, int i) {
    int group = lane >> 2, thread_in_group = lane % 4;
    int row = (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
    int column = i < 4 ? thread_in_group * 2 + (i & 1) : thread_in_group * 2 + (i & 1) + 8;
    return {row, column};
}
position place_in_b(int lane, int i) {
    int group = lane >> 2, thread_in_group = lane % 4;
    int row = i < 2 ? thread_in_group * 2 + (i & 1) : thread_in_group * 2 + (i & 1) + 8;
    return {row, group};
}
position place_in_c(int lane, int i) {
    int group = lane >> 2, thread_in_group = lane % 4;
    return {i < 2 ? group : group + 8, thread_in_group * 2 + (i & 1)};
}

void test_multiply(const std::string& mode) {
    numbers random;
    std::vector<uint16_t> a = random.bf16s(256), b = random.bf16s(128);
    std::vector<float> c = random.floats(128);
    std::vector<uint32_t> fa(128), fb(64);
    std::vector<float> fc(128), expected(128);
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 8; i++) {
            position p = place_in_a(lane, i);
            fa[(size_t)(lane * 4 + i / 2)] |= (uint32_t)a[(size_t)(p.row * 16 + p.column)] << (i % 2 * 16);
        }
        for (int i = 0; i < 4; i++) {
            position p = place_in_b(lane, i);
            fb[(size_t)(lane * 2 + i / 2)] |= (uint32_t)b[(size_t)(p.row * 8 + p.column)] << (i % 2 * 16);
        }
        for (int i = 0; i < 4; i++) {
            position p = place_in_c(lane, i);
            fc[(size_t)(lane * 4 + i)] = c[(size_t)(p.row * 8 + p.column)];
            double sum = fc[(size_t)(lane * 4 + i)];
            for (int k = 0; k < 16; k++) sum += (double)from_bf16(a[(size_t)(p.row * 16 + k)]) * from_bf16(b[(size_t)(k * 8 + p.column)]);
            expected[(size_t)(lane * 4 + i)] = (float)sum;
        }
    }
    buffer<uint32_t> da(fa), db(fb);
    buffer<float> dc(fc), dd(128);
    expect_run(launch(find(kernels, "multiply"), {}, {32}, 0, nullptr, da.at, db.at, dc.at, dd.at), "multiply");
    std::vector<float> got = dd.values();
    bool good = true;
    for (size_t i = 0; i < 128; i++) good = good && fabsf(got[i] - expected[i]) <= 4e-6f;
    expect(good, mode + " mma.m16n8k16");
}

void test_load_matrices(const std::string& mode) {
    numbers random;
    std::vector<uint16_t> m(256);
    for (uint16_t& v : m) v = (uint16_t)random.bits();
    buffer<uint16_t> dm(m);
    buffer<uint32_t> plain(128), transposed(128);
    expect_run(launch(find(kernels, "load_matrices"), {}, {32}, 0, nullptr, dm.at, plain.at, transposed.at), "load_matrices");
    std::vector<uint32_t> expected(128), expected_transposed(128);
    // the manual: thread i holds of matrix j the row i / 4, elements 2 (i % 4) and 2 (i % 4) + 1; row r of matrix j is addressed by thread 8 j + r
    for (int lane = 0; lane < 32; lane++)
        for (int j = 0; j < 4; j++) {
            auto at = [&](int row, int column) { return (uint32_t)m[(size_t)((8 * j + row) * 8 + column)]; };
            int row = lane / 4, column = lane % 4 * 2;
            expected[(size_t)(lane * 4 + j)] = at(row, column) | at(row, column + 1) << 16;
            expected_transposed[(size_t)(lane * 4 + j)] = at(column, row) | at(column + 1, row) << 16;
        }
    expect_equal(plain.values(), expected, mode + " ldmatrix.x4");
    expect_equal(transposed.values(), expected_transposed, mode + " ldmatrix.x4.trans");
}

void test_async(const std::string& mode, bool early) {
    numbers random;
    std::vector<float> x = random.floats(256);
    buffer<float> dx(x), dy(96);
    expect_run(launch(find(kernels, "async_groups"), {}, {32}, 0, nullptr, dx.at, dy.at), "async_groups");
    std::vector<float> got = dy.values();
    bool first = true, second = true, third = true;
    for (size_t t = 0; t < 32; t++) {
        first = first && got[t] == x[t * 4];
        second = second && (early ? got[32 + t] == x[128 + t * 4] : got[32 + t] != got[32 + t]);
        third = third && got[64 + t] == x[128 + t * 4];
    }
    expect(first, mode + " cp.async: the group waited for has arrived");
    expect(second, mode + " cp.async: the group not waited for is " + (early ? "there" : "not there"));
    expect(third, mode + " cp.async: all groups have arrived");
}

void test_shared(const std::string& mode) {
    buffer<uint32_t> y(128 * 8);
    expect_run(launch(find(kernels, "shared_at_start"), {8}, {64}, 256, nullptr, y.at), "shared_at_start");
    expect_equal(y.values(), std::vector<uint32_t>(128 * 8, 0xffffffffu), mode + " shared memory starts as NaN in every block");
}

void test_atomics(const std::string& mode) {
    buffer<int> y(std::vector<int>{5, 0, 0});
    buffer<unsigned long long> z(std::vector<unsigned long long>{7});
    expect_run(launch(find(kernels, "integer_atomics"), {20}, {100}, 0, nullptr, y.at, z.at), "integer_atomics");
    expect_equal(y.values(), {5 + 1999000, 1999, -1999}, mode + " atomics on int");
    expect_equal(z.values(), {7ull + (1999000ull << 32)}, mode + " atomics on 64 bits");
}

void test_arithmetic(const std::string& mode) {
    std::vector<float> x = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 1e20f, -1e20f, NAN, 2147483648.0f, 4294967296.0f, 3e9f, -3.7f, 3.7f};
    numbers random;
    while (x.size() < 34) x.push_back(random.uniform() * 1000);
    buffer<float> dx(x), dz(64);
    buffer<int> dy(64);
    buffer<uint32_t> du(64);
    expect_run(launch(find(kernels, "conversions"), {}, {32}, 0, nullptr, dx.at, dy.at, du.at), "conversions");
    std::vector<int> y = dy.values();
    std::vector<uint32_t> u = du.values();
    const int to_nearest[] = {0, 2, 2, 0, -2, 2147483647, -2147483647 - 1, 0, 2147483647}, to_zero[] = {0, 1, 2, 0, -1, 2147483647, -2147483647 - 1, 0, 2147483647};
    expect(!memcmp(y.data(), to_nearest, sizeof to_nearest), mode + " __float2int_rn");
    expect(!memcmp(y.data() + 32, to_zero, sizeof to_zero) && y[32 + 11] == -3 && y[32 + 12] == 3, mode + " __float2int_rz");
    expect(u[6] == 0 && u[9] == 0xffffffffu && u[10] == 3000000000u && u[1] == 2, mode + " __float2uint_rn");
    uint32_t bits;
    memcpy(&bits, &x[10], 4);
    expect(u[32 + 10] == (uint32_t)((uint64_t)bits * 0xdeadbeefu >> 32), mode + " __umulhi");
    expect_run(launch(find(kernels, "contraction"), {}, {32}, 0, nullptr, dx.at, dz.at), "contraction");
    std::vector<float> z = dz.values();
    bool good = true;
    for (size_t t = 13; t < 32; t++) {
        volatile float product = x[t] * x[t + 1];
        volatile float sum = product + x[t + 2];
        good = good && z[t] == sum && z[32 + t] == fmaf(x[t], x[t + 1], x[t + 2]);
    }
    expect(good, mode + " __fmul_rn and __fadd_rn are not contracted, fmaf is fused");
}

void test_sums(const std::string& mode) {
    numbers random;
    std::vector<float> x = random.floats(3000);
    double sum = 0;
    for (float v : x) sum += v;
    buffer<float> dx(x), partial(3);
    buffer<double> dy(1);
    expect_run(launch(find(kernels, "sums_in_double"), {}, {224}, 0, nullptr, dx.at, dy.at, 3000), "sums_in_double");
    expect(fabs(dy.values()[0] - fabs(sum)) < 1e-9, mode + " a sum in double");
    int leavers = 44;
    expect_run(launch(find(kernels, "tree_sum"), {3}, {300}, 1024, nullptr, dx.at, partial.at, leavers), "tree_sum");
    for (int block = 0; block < 3; block++) {
        double expected = 0;
        for (int i = 0; i < 256; i++) expected += x[(size_t)(block * 300 + i)];
        expect(fabs(partial.values()[(size_t)block] - expected) < 1e-4, mode + " a sum by barriers, with threads that left");
    }
}

// ---- the way of a kernel through the stand-ins ----
struct pair_argument {
    address x, y;
    int n;
    float scale;
    long long offset;
};

void test_parameters() {
    void* function = find(kernels, "by_structure");
    size_t offset, size;
    const size_t expected[][2] = {{0, 32}, {32, 1}, {40, 8}};
    for (size_t i = 0; i < 3; i++) expect(!cuFuncGetParamInfo(function, i, &offset, &size) && offset == expected[i][0] && size == expected[i][1], "cuFuncGetParamInfo " + std::to_string(i));
    expect(cuFuncGetParamInfo(function, 3, &offset, &size) == 1, "cuFuncGetParamInfo past the last");
    std::vector<float> x = numbers().floats(32), y(32);
    buffer<float> dx(x), dy(64);
    pair_argument argument{dx.at, dy.at, 32, 2.0f, 10};
    expect_run(launch(function, {}, {64}, 0, nullptr, argument, (unsigned char)3, 0.5), "by_structure");
    std::vector<float> got = dy.values();
    for (size_t i = 0; i < 32; i++) y[i] = x[i] * 2.0f * 3.0f * 0.5f;
    expect_equal(std::vector<float>(got.begin() + 10, got.begin() + 42), y, "a structure, a byte and a double as arguments");
    int threads = 0;
    expect(!cuFuncGetAttribute(&threads, 0, find(kernels, "bounded")) && threads == 128, "__launch_bounds__ is known");
    void* none;
    expect(cuModuleGetFunction(&none, kernels, "left_out") == 500, "a kernel that the preprocessor left out is not there");
    expect(cuModuleGetFunction(&none, kernels, "commented_out") == 500, "a kernel in a comment is not there");
    buffer<float> three(32);
    expect_run(launch(find(kernels, "made_by_macro"), {}, {32}, 0, nullptr, three.at), "made_by_macro");
    expect_equal(three.values(), std::vector<float>(32, 3.0f), "a kernel made by a macro");
}

void test_compiler() {
    auto refused = [](const std::string& source, const std::string& wanted, std::vector<std::string> options = {}) {
        compiled result = compile(source, "broken.cu", std::move(options));
        expect(result.status && result.log.find(wanted) != std::string::npos, "the compiler's answer to [" + source + "] lacks [" + wanted + "]: " + result.log);
    };
    const std::string start = "#include \"port.cuh\"\n\n", kernel = "extern \"C\" __global__ void k(float* y) { ";
    refused(start + kernel + "y[0] = undeclared; }", "broken.cu:3");
    refused(start + "#include <vector>\n" + kernel + "y[0] = 1.0f; }", "cannot open source file \"vector\"");
    refused(start + "#include \"missing.cuh\"\n", "missing.cuh");
    refused(start + kernel + "atomicAdd(y, 1.0f); }", "atomicAdd");
    refused(start + kernel + "threadIdx.x = 1; }", "read-only");
    refused(start + kernel + "y[0] = VALUE; }", "VALUE");
    refused(start + kernel + "y[0] = 1.0f; }", "unrecognized option --no-such-option", {"--no-such-option"});
    refused(start + kernel + "y[0] = 1.0f; }", "gpu-architecture", {"--gpu-architecture=sm_81"});
    expect(compile(start + kernel + "y[0] = VALUE; }", "good.cu", {"-DVALUE=(1.0f + 2.0f)", "--std=c++17", "-default-device", "--ptxas-options=-v"}).status == 0, "-D with brackets and spaces");
    void* module;
    expect(cuModuleLoadData(&module, ".version 7.8\n.target sm_80\n") == 200, "PTX text is refused");
    void* function;
    std::string mangled = compile(start + "__global__ void no_extern_c(float* y) { y[0] = 1.0f; }", "mangled.cu").image;
    expect(cuModuleGetFunction(&function, load(mangled), "no_extern_c") == 500, "a kernel without extern \"C\" is not found by its plain name");
}

// Two processes that compile the same new file at the same time both succeed.
void test_two_compilers() {
    std::string source = "extern \"C\" __global__ void k(int* y) { *y = " + std::to_string(getpid()) + "; }\n";
    source = "#include \"port.cuh\"\n" + source;
    pid_t children[2];
    for (pid_t& child : children)
        if (!(child = fork())) _exit(compile(source, "same.cu").status);
    for (pid_t child : children) {
        int status;
        waitpid(child, &status, 0);
        expect(status == 0, "one of two processes that compile the same file");
    }
    buffer<int> y(1);
    expect_run(launch(find(load(compile(source, "same.cu").image), "k"), {}, {1}, 0, nullptr, y.at), "same.cu");
    expect_equal(y.values(), {(int)getpid()}, "what two processes compiled");
}

// Processor time of this process: other load on the machine does not count.
double seconds() {
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

}  // namespace

int run_self_tests() {
    failures = 0;
    std::string image = compile_file("primitives.cu");
    kernels = load(image);
    for (int order = 0; order < 3; order++)
        for (int early = 0; early < 2; early++) {
            std::string mode = std::string(order == 0 ? "forward" : order == 1 ? "reverse" : "random") + (early ? "/early" : "/late");
            lt_standin_configure(order, early, 0);
            test_shuffles(mode);
            test_votes(mode);
            test_indices(mode);
            test_multiply(mode);
            test_load_matrices(mode);
            test_async(mode, early);
            test_shared(mode);
            test_atomics(mode);
            test_arithmetic(mode);
            test_sums(mode);
        }
    lt_standin_configure(0, 0, 0);
    test_parameters();
    test_compiler();
    test_two_compilers();
    return failures;
}

// Prints one line of JSON per cost, in processor time: the best of many runs.
void measure() {
    open_device();
    lt_standin_configure(0, 0, 0);
    void* module = load(compile_file("primitives.cu"));
    buffer<float> p(1 << 20);
    MUST(cuMemsetD8Async(p.at, 0, p.count * 4, nullptr));
    auto time = [&](const char* name, unsigned blocks, unsigned threads, unsigned shared_bytes, int n) {
        void* function = find(module, name);
        double best = 1e9;
        for (int i = 0; i < 30; i++) {
            double start = seconds();
            MUST(n < 0 ? launch(function, {blocks}, {threads}, shared_bytes, nullptr, p.at) : launch(function, {blocks}, {threads}, shared_bytes, nullptr, p.at, n));
            best = std::min(best, seconds() - start);
        }
        return best;
    };
    auto print = [](const char* what, double nanoseconds, const char* unit) { printf("{\"cost\":\"%s\",\"value\":%.1f,\"unit\":\"%s\"}\n", what, nanoseconds, unit); };
    print("launch of one block of 32 threads", time("measure_empty", 1, 32, 0, -1) * 1e6, "us");
    for (unsigned threads : {128u, 256u, 1024u}) {
        double count = 8.0 * threads, empty = time("measure_empty", 8, threads, 0, -1);
        std::string at = " (" + std::to_string(threads) + " threads a block)";
        print(("start and end of a thread" + at).c_str(), empty / count * 1e9, "ns");
        print(("__syncthreads" + at).c_str(), (time("measure_barrier", 8, threads, 0, 100) - empty) / count * 1e7, "ns a thread");
        print(("shuffle" + at).c_str(), (time("measure_shuffle", 8, threads, 0, 100) - empty) / count * 1e7, "ns a lane");
        print(("mma.m16n8k16" + at).c_str(), (time("measure_mma", 8, threads, 0, 100) - empty) / (count / 32) * 1e7, "ns a warp");
        print(("ldmatrix.x4" + at).c_str(), (time("measure_ldmatrix", 8, threads, 4096, 100) - empty) / (count / 32) * 1e7, "ns a warp");
        print(("load and add, shared" + at).c_str(), (time("measure_shared", 8, threads, 0, 1000) - empty) / count * 1e6, "ns a thread");
    }
}
