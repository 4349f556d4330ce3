// main.cpp - the emulator's own tests: mistakes KERNELS_FOLDER OWN_FOLDER [self|gemm|misuse|planted|measure]
#include "client.h"

std::string own_folder, kernels_folder;

std::string read_text(const std::string& path) {
    FILE* file = fopen(path.c_str(), "rb");
    if (!file) {
        printf("cannot read %s\n", path.c_str());
        exit(2);
    }
    std::string text;
    char part[4096];
    for (size_t n; (n = fread(part, 1, sizeof part, file)) > 0;) text.append(part, n);
    fclose(file);
    return text;
}

int main(int count, char** arguments) {
    if (count < 3) {
        printf("usage: mistakes KERNELS_FOLDER OWN_FOLDER [self|gemm|misuse|planted|measure]\n");
        return 2;
    }
    setvbuf(stdout, nullptr, _IOLBF, 0);
    kernels_folder = arguments[1];
    own_folder = arguments[2];
    std::string only = count > 3 ? arguments[3] : "";
    if (only == "measure") {
        measure();
        measure_gemm();
        return 0;
    }
    struct part {
        const char* name;
        int (*run)();
    };
    const part parts[] = {{"self", run_self_tests}, {"gemm", run_gemm_tests}, {"misuse", run_misuse_tests}, {"planted", run_planted_mistakes}};
    int failures = 0;
    for (const part& p : parts) {
        if (!only.empty() && only != p.name) continue;
        open_device();
        int failed = p.run();
        printf("%s tests: %s\n", p.name, failed ? (std::to_string(failed) + " FAILED").c_str() : "all passed");
        failures += failed;
    }
    return failures ? 1 : 0;
}
