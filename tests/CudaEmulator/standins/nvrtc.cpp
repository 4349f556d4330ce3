// nvrtc.cpp - a stand-in for libnvrtc.so: compiles a kernel file with g++ into a library for the emulator.
//
// The "cubin" (or PTX) it returns names that library; the stand-in driver loads it. Compiled libraries are kept in a folder by
// the hash of all that went into them, so a second process finds them there. Like the real compiler it sees no header but those it
// was given, and refuses options it does not know. With LT_EMULATOR_CHECKED=1 undefined behaviour (a misaligned vector access, an
// index outside a static array, a signed overflow) becomes a fault that names its source line.
#include <algorithm>
#include <cctype>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fstream>
#include <mutex>
#include <signal.h>
#include <set>
#include <spawn.h>
#include <sstream>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

extern char** environ;

// The device language header travels inside this library: build.sh defines EMU_HEADER as its path.
asm(".section .rodata\n"
    ".global lt_emu_header\n.hidden lt_emu_header\nlt_emu_header:\n.incbin \"" EMU_HEADER "\"\n"
    ".byte 0\n.previous\n");
extern "C" const char lt_emu_header[];

typedef int nvrtcResult;
#define API extern "C" __attribute__((visibility("default"))) nvrtcResult

namespace {

enum : nvrtcResult {
    SUCCESS = 0,
    PROGRAM_CREATION_FAILURE = 2,
    INVALID_INPUT = 3,
    INVALID_PROGRAM = 4,
    INVALID_OPTION = 5,
    COMPILATION = 6,
    INTERNAL_ERROR = 11,
};

const int architectures[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

struct program {
    std::string source, name, log, image;
    std::vector<std::pair<std::string, std::string>> headers;  // name, text
    bool real_architecture = false;                            // sm_NN and not compute_NN: only then there is a cubin
};
std::mutex programs_mutex;
std::set<program*> programs;  // the live ones

typedef std::vector<std::string> words;

// ---- files and processes ----
std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}
bool write_file(const std::string& path, const std::string& text) {
    std::ofstream file(path, std::ios::binary);
    file << text;
    return (bool)file.flush();
}
bool make_folders(const std::string& path) {
    for (size_t at = 1; at != std::string::npos;) {
        at = path.find('/', at + 1);
        if (mkdir(path.substr(0, at).c_str(), 0777) && errno != EEXIST) return false;
    }
    return true;
}

// Runs a command without a shell; its output goes to a file. Returns the exit status.
int run(const words& command, const std::string& output) {
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back((char*)word.c_str());
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    // a host may ignore or block signals that a compiler counts on
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t none, standard;
    sigemptyset(&none);
    sigemptyset(&standard);
    sigaddset(&standard, SIGCHLD);
    sigaddset(&standard, SIGPIPE);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &standard);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    pid_t child;
    int status = posix_spawnp(&child, arguments[0], &actions, &attributes, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (status) return 127;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return 127;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

std::string replaced(std::string text, const std::string& what, const std::string& with) {
    for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += with.size()) text.replace(at, what.size(), with);
    return text;
}

// FNV-1a in two lanes: names a cache entry, nothing more.
std::string hash(const std::string& text) {
    unsigned long long a = 0xcbf29ce484222325ull, b = 0x9ae16a3b2f90404full;
    for (unsigned char c : text) {
        a = (a ^ c) * 0x100000001b3ull;
        b = (b ^ (c + 0x9e)) * 0x100000001b3ull + (a >> 47);
    }
    char digits[33];
    snprintf(digits, sizeof digits, "%016llx%016llx", a, b);
    return digits;
}

// ---- options ----
bool starts_with(const std::string& text, const std::string& start) { return text.rfind(start, 0) == 0; }

bool known_architecture(std::string name, bool& real) {
    real = starts_with(name, "sm_");
    if (!real && !starts_with(name, "compute_")) return false;
    name.erase(0, name.find('_') + 1);
    if (!name.empty() && (name.back() == 'a' || name.back() == 'f')) name.pop_back();
    return std::any_of(std::begin(architectures), std::end(architectures), [&](int a) { return name == std::to_string(a); });
}

// Brings "-x value" and "--long=value" into one form.
struct option {
    std::string name, value;
};
std::vector<option> read_options(int count, const char* const* options) {
    static const char* const separate[] = {"-arch", "--gpu-architecture", "-D", "--define-macro", "-U", "--undefine-macro", "-I", "--include-path", "-std", "--std"};
    std::vector<option> result;
    for (int i = 0; i < count; i++) {
        std::string word = options[i];
        size_t equals = word.find('=');
        bool attached = starts_with(word, "-D") || starts_with(word, "-U") || starts_with(word, "-I");
        if (attached && word.size() > 2) result.push_back({word.substr(0, 2), word.substr(2)});
        else if (std::find(std::begin(separate), std::end(separate), word) != std::end(separate) && i + 1 < count) result.push_back({word, options[++i]});
        else if (equals != std::string::npos) result.push_back({word.substr(0, equals), word.substr(equals + 1)});
        else result.push_back({word, ""});
    }
    return result;
}

bool is_one_of(const std::string& name, std::initializer_list<const char*> names) {
    return std::any_of(names.begin(), names.end(), [&](const char* n) { return name == n; });
}

// Turns NVRTC's options into g++'s; false with a message when one is unknown or the architecture is missing.
bool translate_options(program& p, int count, const char* const* options, words& flags) {
    bool architecture = false;
    // the real compiler contracts a*b+c unless told not to, and so does g++ with "fast"
    std::string contraction = "-ffp-contract=fast";
    for (const option& o : read_options(count, options)) {
        if (is_one_of(o.name, {"-D", "--define-macro"})) flags.push_back("-D" + o.value);
        else if (is_one_of(o.name, {"-U", "--undefine-macro"})) flags.push_back("-U" + o.value);
        else if (is_one_of(o.name, {"-fmad", "--fmad"})) contraction = o.value == "false" ? "-ffp-contract=off" : "-ffp-contract=fast";
        else if (is_one_of(o.name, {"-arch", "--gpu-architecture"})) {
            architecture = known_architecture(o.value, p.real_architecture);
            if (architecture) continue;
            p.log = "nvrtc: error: invalid value for --gpu-architecture (-arch): " + o.value + "\n";
            return false;
        } else if (!is_one_of(o.name, {"-std", "--std", "-I", "--include-path", "-lineinfo", "--generate-line-info", "-G", "--device-debug", "-w", "--disable-warnings",
                                       "-Xptxas", "--ptxas-options", "-maxrregcount", "--maxrregcount", "-default-device", "--device-as-default-execution-space",
                                       "-ftz", "--ftz", "-prec-sqrt", "--prec-sqrt", "-prec-div", "--prec-div", "-use_fast_math", "--use_fast_math",
                                       "-restrict", "--restrict", "-dopt", "--dopt", "-opt-info", "-no-cache", "--no-cache", "-extra-device-vectorization", "--extra-device-vectorization",
                                       "-diag-suppress", "--diag-suppress", "-diag-error", "--diag-error", "-err-no", "--display-error-number", "-no-err-no"})) {
            p.log = "nvrtc: error: unrecognized option " + o.name + " found\n";
            return false;
        }
    }
    flags.push_back(contraction);
    if (!architecture) p.log = "nvrtc (stand-in): error: name an architecture (--gpu-architecture=sm_80)\n";
    return architecture;
}

bool is_set(const char* name) {
    const char* value = getenv(name);
    return value && *value == '1';
}

words compiler_flags() {
    words flags = {"-std=c++17", "-O2", "-march=native", "-fPIC", "-g1", "-fno-strict-aliasing", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DLT_EMULATOR"};
    if (is_set("LT_EMULATOR_DEBUG")) flags.insert(flags.end(), {"-O0", "-g"});
    if (is_set("LT_EMULATOR_CHECKED")) {
        flags.push_back("-fsanitize=alignment,bounds-strict,shift,signed-integer-overflow,integer-divide-by-zero,null,vla-bound,unreachable,return");
        flags.push_back("-fsanitize-undefined-trap-on-error");
    }
    return flags;
}

std::string compiler() {
    const char* named = getenv("LT_EMULATOR_CXX");
    return named && *named ? named : "g++";
}

// ---- reading the preprocessed text ----
// A marker "# LINE "FILE" FLAGS" says where what follows comes from. Flag 1: a file begins.
struct marker {
    int line = 0;
    std::string file, flags;
};
bool read_marker(const std::string& text, marker& m) {
    if (!starts_with(text, "# ") || text.size() < 3 || !isdigit((unsigned char)text[2])) return false;
    size_t open = text.find('"'), close = text.rfind('"');
    if (open == std::string::npos || close == open) return false;
    m.line = atoi(text.c_str() + 2);
    m.file = text.substr(open + 1, close - open - 1);
    m.flags = text.substr(close + 1);
    return true;
}

// The real compiler finds only the headers it was given. Says which other one the program includes, or nothing.
std::string foreign_header(const std::string& preprocessed, const program& p, const std::string& folder) {
    std::istringstream lines(preprocessed);
    std::string line, current;
    auto belongs = [&](const std::string& file) {
        if (file == p.name) return true;
        return std::any_of(p.headers.begin(), p.headers.end(), [&](auto& h) { return file == folder + "/given/" + h.first || file == h.first; });
    };
    marker m;
    while (std::getline(lines, line)) {
        if (!read_marker(line, m)) continue;
        bool begins = m.flags.find(" 1") != std::string::npos;
        bool allowed = belongs(m.file) || m.file == folder + "/emu/emu.h" || m.file[0] == '<' || m.file.find("stdc-predef.h") != std::string::npos;
        if (begins && belongs(current) && !allowed) return current + ": error: cannot open source file \"" + m.file.substr(m.file.rfind('/') + 1) + "\"\n";
        current = m.file;
    }
    return "";
}

struct kernel {
    std::string name, bound;
};

bool word_character(char c) { return isalnum((unsigned char)c) || c == '_'; }

size_t end_of_brackets(const std::string& text, size_t open) {
    int depth = 0;
    for (size_t at = open; at < text.size(); at++) {
        if (text[at] == '(') depth++;
        if (text[at] == ')' && --depth == 0) return at + 1;
    }
    return text.size();
}

// Takes EMU_GLOBAL and EMU_LAUNCH_BOUNDS(...) out of the text (the lines stay) and lists the kernels they stand at.
std::vector<kernel> take_kernels(std::string& text) {
    std::vector<kernel> kernels;
    const std::string global = "EMU_GLOBAL", bounds = "EMU_LAUNCH_BOUNDS";
    auto blank = [&](size_t from, size_t to) {
        for (size_t i = from; i < to; i++)
            if (text[i] != '\n') text[i] = ' ';
    };
    for (size_t at = 0; (at = text.find(global, at)) != std::string::npos;) {
        blank(at, at + global.size());
        kernel k;
        k.bound = "1024";
        // The name is the last word in front of the bracket that opens the parameters.
        for (size_t i = at; i < text.size(); i++) {
            if (text.compare(i, bounds.size(), bounds) == 0) {
                size_t open = text.find('(', i), end = end_of_brackets(text, open);
                std::string inside = text.substr(open + 1, end - open - 2);
                int depth = 0;
                size_t comma = 0;
                while (comma < inside.size() && (inside[comma] != ',' || depth)) depth += (inside[comma] == '(') - (inside[comma] == ')'), comma++;
                k.bound = inside.substr(0, comma);
                blank(i, end);
                i = end - 1;
            } else if (text[i] == '#' && (i == 0 || text[i - 1] == '\n')) {
                i = std::min(text.find('\n', i), text.size() - 1);  // a marker
            } else if (text[i] == '(') {
                size_t end = i;
                while (end > at && isspace((unsigned char)text[end - 1])) end--;
                size_t start = end;
                while (start > at && word_character(text[start - 1])) start--;
                k.name = text.substr(start, end - start);
                break;
            } else if (text[i] == ';' || text[i] == '{') {
                break;
            }
        }
        if (!k.name.empty() && std::none_of(kernels.begin(), kernels.end(), [&](const kernel& other) { return other.name == k.name; })) kernels.push_back(k);
    }
    return kernels;
}

std::string kernel_table(const std::vector<kernel>& kernels) {
    std::string entries, pointers;
    for (const kernel& k : kernels) {
        entries += "static const emu_kernel emu_kernel_" + k.name + " = emu_entry<&" + k.name + ">::describe(\"" + k.name + "\", (int)(" + k.bound + "), emu_shared_probe);\n";
        pointers += "&emu_kernel_" + k.name + ", ";
    }
    return "\n# 1 \"kernel table\"\n" + entries + "extern \"C\" __attribute__((visibility(\"default\"))) const emu_kernel* const emu_module_kernels[];\n" +
           "const emu_kernel* const emu_module_kernels[] = {" + pointers + "nullptr};\n";
}

// ---- the cache ----
std::string cache_folder() {
    const char* named = getenv("LT_EMULATOR_CACHE");
    if (named && *named) return named[0] == '/' ? named : std::string(getcwd(nullptr, 0)) + "/" + named;
    const char* temporary = getenv("TMPDIR");
    return std::string(temporary && *temporary ? temporary : "/tmp") + "/lt-emulator-cache-" + std::to_string(getuid());
}

// A library made for this processor must not be taken on another.
std::string processor() {
    std::string text = read_file("/proc/cpuinfo");
    std::string found;
    for (const char* key : {"model name", "flags"}) {
        size_t at = text.find(key);
        if (at != std::string::npos) found += text.substr(at, text.find('\n', at) - at) + "\n";
    }
    return found;
}

std::string own_folder() {
    Dl_info info;
    dladdr((void*)lt_emu_header, &info);
    std::string path = info.dli_fname;
    char* real = realpath(path.c_str(), nullptr);
    if (real) path = real;
    free(real);
    return path.substr(0, path.rfind('/'));
}

std::string cache_key(const program& p, const words& flags) {
    static const std::string fixed = processor() + lt_emu_header + compiler() + __VERSION__;
    std::string all = fixed + '\0' + p.name + '\0' + p.source;
    for (auto& h : p.headers) all += '\0' + h.first + '\0' + h.second;
    for (auto& f : flags) all += '\0' + f;
    return hash(all);
}

// Compiles in a folder of its own and moves the finished library into place, so two processes cannot disturb each other.
nvrtcResult compile_into(program& p, const words& flags, const std::string& folder, const std::string& library) {
    make_folders(folder + "/given");
    make_folders(folder + "/emu");
    write_file(folder + "/emu/emu.h", lt_emu_header);
    for (auto& h : p.headers) {
        std::string path = folder + "/given/" + h.first;
        make_folders(path.substr(0, path.rfind('/')));
        write_file(path, h.second);
    }
    write_file(folder + "/kernel.cpp", "#line 1 \"" + p.name + "\"\n" + p.source + "\n");

    words preprocess = {compiler(), "-E", "-DEMU_KEEP_MARKS", "-I" + folder + "/given", "-I" + folder + "/emu"};
    preprocess.insert(preprocess.end(), flags.begin(), flags.end());
    preprocess.insert(preprocess.end(), {folder + "/kernel.cpp", "-o", folder + "/kernel.full.cpp"});
    int status = run(preprocess, folder + "/log");
    p.log = replaced(replaced(read_file(folder + "/log"), folder + "/given/", ""), folder + "/kernel.cpp", p.name);
    if (status == 127) p.log = "the stand-in NVRTC could not run " + compiler() + "\n";
    if (status) return COMPILATION;

    std::string text = read_file(folder + "/kernel.full.cpp");
    p.log = foreign_header(text, p, folder);
    if (!p.log.empty()) return COMPILATION;
    std::vector<kernel> kernels = take_kernels(text);
    write_file(folder + "/kernel.marked.cpp", text + kernel_table(kernels));

    std::string finished = folder + "/kernel.so", driver_folder = own_folder();
    words compile = {compiler(), "-shared", "-fpreprocessed", "-fdirectives-only"};
    compile.insert(compile.end(), flags.begin(), flags.end());
    compile.insert(compile.end(), {folder + "/kernel.marked.cpp", "-o", finished, "-L" + driver_folder, "-l:libcuda.so.1", "-Wl,-z,defs"});
    status = run(compile, folder + "/log");
    p.log = replaced(replaced(read_file(folder + "/log"), folder + "/given/", ""), folder + "/kernel.marked.cpp", p.name);
    if (status) return COMPILATION;
    write_file(library + ".log", p.log);
    return rename(finished.c_str(), library.c_str()) ? INTERNAL_ERROR : SUCCESS;
}

nvrtcResult compile(program& p, const words& flags) {
    std::string cache = cache_folder(), library = cache + "/" + cache_key(p, flags) + ".so";
    nvrtcResult result = SUCCESS;
    if (access(library.c_str(), R_OK) == 0) {
        p.log = read_file(library + ".log");
    } else {
        if (!make_folders(cache)) {
            p.log = "the stand-in NVRTC cannot create " + cache + "\n";
            return INTERNAL_ERROR;
        }
        std::string pattern = cache + "/compile-XXXXXX";
        if (!mkdtemp(pattern.data())) {
            p.log = "the stand-in NVRTC cannot write into " + cache + "\n";
            return INTERNAL_ERROR;
        }
        result = compile_into(p, flags, pattern, library);
        if (!is_set("LT_EMULATOR_KEEP") && !is_set("LT_EMULATOR_DEBUG")) run({"rm", "-rf", pattern}, "/dev/null");
    }
    p.image = result ? "" : "LT-EMULATOR-MODULE\n" + library + "\n";
    return result;
}

bool valid(program* p) {
    std::lock_guard<std::mutex> lock(programs_mutex);
    return programs.count(p) != 0;
}

nvrtcResult give_size(const std::string& text, size_t* size) {
    if (!size) return INVALID_INPUT;
    *size = text.size() + 1;
    return SUCCESS;
}
nvrtcResult give_text(const std::string& text, char* to) {
    if (!to) return INVALID_INPUT;
    memcpy(to, text.c_str(), text.size() + 1);
    return SUCCESS;
}

}  // namespace

API nvrtcVersion(int* major, int* minor) {
    if (!major || !minor) return INVALID_INPUT;
    *major = 13;
    *minor = 0;
    return SUCCESS;
}
API nvrtcGetNumSupportedArchs(int* count) {
    if (!count) return INVALID_INPUT;
    *count = (int)(sizeof architectures / sizeof *architectures);
    return SUCCESS;
}
API nvrtcGetSupportedArchs(int* list) {
    if (!list) return INVALID_INPUT;
    std::copy(std::begin(architectures), std::end(architectures), list);
    return SUCCESS;
}
API nvrtcCreateProgram(program** created, const char* source, const char* name, int header_count, const char* const* headers, const char* const* include_names) {
    if (!created || !source || header_count < 0 || (header_count && (!headers || !include_names))) return INVALID_INPUT;
    auto* p = new program{source, name && *name ? name : "default_program", "", "", {}, false};
    for (int i = 0; i < header_count; i++) p->headers.push_back({include_names[i], headers[i]});
    std::lock_guard<std::mutex> lock(programs_mutex);
    programs.insert(p);
    *created = p;
    return SUCCESS;
}
API nvrtcDestroyProgram(program** p) {
    if (!p || !valid(*p)) return INVALID_PROGRAM;
    std::lock_guard<std::mutex> lock(programs_mutex);
    programs.erase(*p);
    delete *p;
    *p = nullptr;
    return SUCCESS;
}
API nvrtcCompileProgram(program* p, int option_count, const char* const* options) {
    if (!valid(p)) return INVALID_PROGRAM;
    if (option_count < 0 || (option_count && !options)) return INVALID_INPUT;
    p->log.clear();
    words flags = compiler_flags();
    if (!translate_options(*p, option_count, options, flags)) return INVALID_OPTION;
    return compile(*p, flags);
}
API nvrtcGetProgramLogSize(program* p, size_t* size) { return valid(p) ? give_size(p->log, size) : INVALID_PROGRAM; }
API nvrtcGetProgramLog(program* p, char* log) { return valid(p) ? give_text(p->log, log) : INVALID_PROGRAM; }
API nvrtcGetPTXSize(program* p, size_t* size) { return !valid(p) || p->image.empty() ? INVALID_PROGRAM : give_size(p->image, size); }
API nvrtcGetPTX(program* p, char* ptx) { return !valid(p) || p->image.empty() ? INVALID_PROGRAM : give_text(p->image, ptx); }
API nvrtcGetCUBINSize(program* p, size_t* size) {
    if (!valid(p) || !size || p->image.empty()) return INVALID_PROGRAM;
    *size = p->real_architecture ? p->image.size() + 1 : 0;  // none for a virtual architecture, as in the real one
    return SUCCESS;
}
API nvrtcGetCUBIN(program* p, char* cubin) {
    if (!valid(p) || p->image.empty() || !p->real_architecture) return INVALID_PROGRAM;
    return give_text(p->image, cubin);
}
extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(nvrtcResult result) {
    switch (result) {
    case SUCCESS: return "NVRTC_SUCCESS";
    case 1: return "NVRTC_ERROR_OUT_OF_MEMORY";
    case PROGRAM_CREATION_FAILURE: return "NVRTC_ERROR_PROGRAM_CREATION_FAILURE";
    case INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
    case INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
    case INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
    case COMPILATION: return "NVRTC_ERROR_COMPILATION";
    case INTERNAL_ERROR: return "NVRTC_ERROR_INTERNAL_ERROR";
    default: return "NVRTC_ERROR unknown";
    }
}
