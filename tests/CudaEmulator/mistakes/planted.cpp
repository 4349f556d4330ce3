// planted.cpp - runs every kernel of planted.cu, right and wrong, in each order and with late and early copies.
//
// A right kernel must give the expected numbers in every mode. A wrong one must be found in at least one: by an error, by numbers
// that differ from the expected ones, or by a difference between two modes.
#include "client.h"
#include <algorithm>
#include <functional>

namespace {

typedef std::vector<float> floats;

struct planted {
    const char* name;
    extent3 grid, block;
    int n = 256;
    size_t x_count = 2048, y_count = 256;
    std::function<floats(const floats& x)> expected;
    unsigned shared_bytes = 0;
    bool findable = true;
    bool y_starts_as_x = false, y_starts_as_zero = false;
    bool x_is_bf16 = false;
    bool once = false;  // run in one mode only: it takes long
};

floats each(size_t count, std::function<float(int)> value) {
    floats v(count);
    for (size_t i = 0; i < count; i++) v[i] = value((int)i);
    return v;
}
// sums of x over groups of 32, plus the constant that stands for n
floats warp_sums(const floats& x, int warps, float n) {
    return each((size_t)warps, [&](int w) {
        float sum = n;
        for (int i = 0; i < 32; i++) sum += x[(size_t)(w * 32 + i)];
        return sum;
    });
}
floats plus(const floats& x, size_t count, float n) {
    return each(count, [&](int i) { return x[(size_t)i] + n; });
}
// x holds bf16 numbers, two a float
float bf16_at(const floats& x, int i) {
    uint16_t bits;
    memcpy(&bits, (const char*)x.data() + 2 * i, 2);
    return from_bf16(bits);
}
floats product_16x8(const floats& x) {
    return each(128, [&](int i) {
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += bf16_at(x, i / 8 * 16 + k) * bf16_at(x, 256 + i % 8 * 16 + k);
        return sum;
    });
}
floats product_16x16(const floats& x) {
    return each(256, [&](int i) {
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += bf16_at(x, i / 16 * 16 + k) * bf16_at(x, 256 + k * 16 + i % 16);
        return sum;
    });
}

std::vector<planted> all_mistakes() {
    auto reversed = [](int count, int step) {
        return [=](const floats& x) { return each((size_t)count, [&](int i) { return x[(size_t)(step * 256 - 1 - i * step)]; }); };
    };
    auto pairs = [](float n) {
        return [=](const floats& x) { return each(256, [&](int i) { return x[(size_t)i] + x[(size_t)(i ^ 1)] + n; }); };
    };
    auto tiles = [](int count) {
        return [=](const floats& x) {
            return each(128, [&](int t) {
                float sum = 0;
                for (int tile = 0; tile < count; tile++) sum += x[(size_t)(tile * 512 + 511 - t * 4)];
                return sum;
            });
        };
    };
    auto total = [](const floats& x, int count) {
        float sum = 0;
        for (int i = 0; i < count; i++) sum += x[(size_t)i];
        return sum;
    };
    auto copied = [](size_t count, float n) { return [=](const floats& x) { return plus(x, count, n); }; };
    extent3 one, warp{32}, half{128}, whole{256};
    std::vector<planted> list;
    auto add = [&](const char* name, extent3 grid, extent3 block, int n, size_t y_count, std::function<floats(const floats&)> expected) -> planted& {
        planted p;
        p.name = name;
        p.grid = grid;
        p.block = block;
        p.n = n;
        p.y_count = y_count;
        p.expected = std::move(expected);
        list.push_back(p);
        return list.back();
    };
    add("barrier_in_divergent_branch", one, whole, 256, 256, [](const floats& x) { return each(256, [&](int i) { return x[(size_t)(i ^ 1)]; }); });
    add("two_different_barriers", one, whole, 256, 256, copied(256, 256));
    add("barrier_in_uneven_loop", one, whole, 700, 256, copied(256, 3));
    add("missing_barrier", one, whole, 256, 256, reversed(256, 1));
    add("missing_barrier_reads_lower", one, whole, 1, 256, [](const floats& x) { return each(256, [&](int i) { return x[(size_t)(i / 2)] + 1; }); });
    add("missing_barrier_before_reuse", one, whole, 3, 256, [](const floats& x) { return each(256, [&](int i) { return 6 * x[(size_t)(255 - i)]; }); });
    add("missing_barrier_after_block_sum", one, whole, 1, 256, [=](const floats& x) { return floats(256, 3 * total(x, 256) + 1); });
    add("missing_warp_barrier", one, whole, 1, 256, [](const floats& x) { return each(256, [&](int i) { return x[(size_t)(i ^ 1)] + 1; }); });
    add("missing_barrier_on_dynamic_memory", one, whole, 200, 256, [](const floats& x) { return floats(256, x[7]); }).shared_bytes = 4;
    add("one_mask_on_two_shuffles", one, whole, 1, 256, pairs(1));
    add("mask_without_the_caller", one, whole, 1, 256, pairs(1));
    add("overlapping_masks", one, whole, 1, 256, pairs(1));
    add("shuffle_from_outside_the_mask", one, warp, 1, 32, [](const floats& x) {
        return each(32, [&](int i) { return x[(size_t)(i < 8 ? i + 8 : i)] + 1; });
    });
    add("shuffle_after_some_lanes_left", one, whole, 1, 8, [](const floats& x) { return warp_sums(x, 8, 1); });
    add("half_warp_reduction", one, whole, 1, 8, [](const floats& x) { return warp_sums(x, 8, 1); });
    for (const char* name : {"missing_async_wait", "missing_async_commit", "async_wait_without_barrier", "async_misaligned"}) add(name, one, whole, 1024, 256, reversed(256, 4));
    for (const char* name : {"async_wait_for_one_group_too_few", "async_copy_into_a_stage_in_use"}) add(name, one, half, 4, 128, tiles(4));
    add("async_source_overwritten", one, whole, 256, 1024, copied(1024, 1)).y_starts_as_x = true;
    add("uninitialised_shared", one, whole, 256, 256, reversed(256, 1));
    add("uninitialised_dynamic_shared", one, whole, 256, 256, reversed(256, 1)).shared_bytes = 1024;
    add("output_left_unwritten", {4}, {64}, 250, 250, copied(250, 0));
    add("far_out_of_bounds", {3}, whole, 1, 256, copied(256, 1));
    add("one_past_the_end", one, whole, 200, 200, copied(200, 0));
    add("one_before_the_start", one, whole, 200, 200, copied(200, 0));
    add("read_past_the_end", one, warp, 200, 1, [=](const floats& x) { return floats{total(x, 200)}; }).x_count = 200;
    add("null_pointer", one, whole, 1, 256, copied(256, 1));
    add("misaligned_16_byte_load", one, warp, 1, 32, [](const floats& x) { return each(32, [&](int i) { return x[(size_t)i * 4] + 1; }); });
    add("misaligned_16_byte_store", one, warp, 32, 128, [](const floats& x) { return each(128, [&](int i) { return i % 4 ? 0 : x[(size_t)(i / 4)]; }); });
    add("past_a_static_shared_array", one, whole, 1, 256, copied(256, 1));
    add("past_dynamic_shared", one, whole, 256, 256, copied(256, 0)).shared_bytes = 1024;
    add("before_dynamic_shared", one, whole, 256, 256, reversed(256, 1)).shared_bytes = 1024;
    add("index_overflow", one, whole, 256, 256, [](const floats& x) { return floats(256, x[0]); });
    add("division_by_zero", one, whole, 256, 256, copied(256, 0));
    add("blocks_write_one_place", {4}, warp, 1, 4, [](const floats& x) { return floats{x[3] + 1, x[1] + 1, x[2] + 1, x[3] + 1}; }).y_starts_as_x = true;
    add("endless_loop", one, warp, 1, 32, copied(32, 0)).once = true;
    for (const char* name : {"fragments_of_a_swapped", "fragments_of_b_swapped", "fragments_of_d_swapped", "mma_in_a_branch"})
        add(name, one, warp, 1, 128, product_16x8).x_is_bf16 = true;
    add("missing_trans", one, warp, 24, 256, product_16x16).x_is_bf16 = true;
    add("ldmatrix_row_misaligned", one, warp, 24, 256, product_16x16).x_is_bf16 = true;
    add("causal_mask_off_by_one", one, {128}, 128, 128, [](const floats& x) {
        return each(128, [&](int row) {
            double sum = 0;
            for (int key = 0; key <= row; key++) sum += exp((double)x[(size_t)key]);
            return (float)log(sum);
        });
    });
    add("tail_not_masked", one, warp, 200, 1, [=](const floats& x) { return floats{total(x, 200)}; });
    add("second_block_sums_again", {2}, warp, 200, 2, [](const floats& x) {
        floats sums(2);
        for (int i = 0; i < 200; i++) sums[(size_t)(i / 32 % 2)] += x[(size_t)i];
        return sums;
    });
    planted& lost = add("lost_update", one, whole, 1, 1, [](const floats&) {
        uint32_t count = 256;
        floats v(1);
        memcpy(v.data(), &count, 4);
        return v;
    });
    lost.y_starts_as_zero = true;
    lost.findable = false;
    return list;
}

struct mode {
    const char* name;
    int order, copies;
};
const mode modes[] = {{"forward/late", 0, 0}, {"forward/early", 0, 1}, {"reverse/late", 1, 0}, {"reverse/early", 1, 1}};

struct observation {
    std::string error;  // of the driver
    floats y;
    std::string wrong;  // how the numbers differ from the expected ones; empty when they do not
};

std::string difference(const floats& got, const floats& expected) {
    size_t wrong = 0, nans = 0;
    for (size_t i = 0; i < got.size(); i++) {
        bool same = !memcmp(&got[i], &expected[i], 4) || fabsf(got[i] - expected[i]) <= 1e-5f * (1 + fabsf(expected[i]));
        wrong += !same;  // a NaN is never the same
        nans += got[i] != got[i];
    }
    if (!wrong) return "";
    return std::to_string(wrong) + " of " + std::to_string(got.size()) + " numbers wrong" + (nans ? ", " + std::to_string(nans) + " NaN" : "");
}

observation run(void* function, const planted& p, const mode& m) {
    lt_standin_configure(m.order, m.copies, 0);
    numbers random;
    floats x = random.floats(p.x_count);
    if (p.x_is_bf16) {
        std::vector<uint16_t> halves = random.bf16s(2 * p.x_count);
        memcpy(x.data(), halves.data(), 4 * p.x_count);
    }
    observation seen;
    {
        buffer<float> device_x(x), device_y(p.y_count);
        if (p.y_starts_as_x) MUST(cuMemcpyHtoD_v2(device_y.at, x.data(), 4 * p.y_count));
        if (p.y_starts_as_zero) MUST(cuMemsetD8Async(device_y.at, 0, 4 * p.y_count, nullptr));
        if (launch(function, p.grid, p.block, p.shared_bytes, nullptr, device_x.at, device_y.at, p.n)) {
            seen.error = lt_standin_last_error();
        } else {
            seen.y = device_y.values();
            seen.wrong = difference(seen.y, p.expected(x));
        }
    }
    return seen;
}

std::string json(const std::string& text) {
    std::string out = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c;
    }
    return out + "\"";
}

}  // namespace

int run_planted_mistakes() {
    std::string image[2] = {compile_file("planted.cu"), compile_file("planted.cu", {"-DLT_WRONG"})};
    int failures = 0, found_count = 0, findable_count = 0;
    std::vector<std::string> lines;
    printf("\n%-35s %-14s %-14s %-14s %-14s %s\n", "planted mistake", modes[0].name, modes[1].name, modes[2].name, modes[3].name, "how");
    for (const planted& p : all_mistakes()) {
        void* function = find(load(image[0]), p.name);
        std::string right_failed;
        for (const mode& m : modes) {
            observation seen = run(function, p, m);
            if (!seen.error.empty()) {
                open_device();
                function = find(load(image[0]), p.name);
            }
            if (right_failed.empty() && !(seen.error + seen.wrong).empty()) right_failed = std::string(m.name) + ": " + seen.error + seen.wrong;
        }
        std::string how, found_in, row;
        for (const mode& m : modes) {
            if (p.once && &m != modes) {
                row += "               ";
                continue;
            }
            observation seen = run(find(load(image[1]), p.name), p, m);
            if (!seen.error.empty()) open_device();
            bool found = !(seen.error + seen.wrong).empty();
            if (found) found_in += (found_in.empty() ? "" : ",") + json(m.name);
            if (found && (how.empty() || (!seen.error.empty() && how.find("numbers") != std::string::npos))) how = seen.error + seen.wrong;
            char cell[32];
            snprintf(cell, sizeof cell, "%-15s", !seen.error.empty() ? "error" : found ? "numbers" : "-");
            row += cell;
        }
        bool found = !found_in.empty(), bad = !right_failed.empty() || found != p.findable;
        std::string note = how;
        size_t start = note.find("cuLaunchKernel: ");
        if (start == 0) note.erase(0, strlen("cuLaunchKernel: "));
        if (!p.findable) note = "cannot be found: threads are not preempted";
        printf("%-35s %s%s\n", p.name, row.c_str(), note.c_str());
        if (!right_failed.empty()) printf("    FAILED: the right kernel: %s\n", right_failed.c_str());
        if (found != p.findable) printf("    FAILED: %s\n", found ? "found, though it is listed as not findable" : "the mistake was not found");
        failures += bad;
        findable_count += p.findable;
        found_count += found;
        lines.push_back("{\"mistake\":" + json(p.name) + ",\"findable\":" + (p.findable ? "true" : "false") + ",\"found\":" + (found ? "true" : "false") + ",\"modes\":[" + found_in +
                        "],\"right_twin\":" + json(right_failed.empty() ? "ok" : right_failed) + ",\"how\":" + json(note) + "}");
    }
    printf("%d of %d findable mistakes found\n\n", found_count, findable_count);
    for (const std::string& line : lines) printf("%s\n", line.c_str());
    return failures;
}
