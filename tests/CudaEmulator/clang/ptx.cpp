// ptx.cpp - reads PTX text.
//   ptx twins PORT_CUH TWINS_PTX       compares the inline PTX of every wrapper in port.cuh with its twin
//   ptx inline KERNEL_FILE...          fails where a kernel file holds inline PTX of its own
//   ptx entries PTX_FILE...            prints the parameters of every kernel as JSON
#include <algorithm>
#include <ctype.h>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <stdio.h>
#include <string>
#include <vector>

typedef std::vector<std::string> words;

static std::string read(const std::string& path) {
    std::ifstream file(path);
    if (!file) {
        fprintf(stderr, "cannot read %s\n", path.c_str());
        exit(2);
    }
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

static int line_of(const std::string& text, size_t at) { return 1 + (int)std::count(text.begin(), text.begin() + (long)at, '\n'); }

// Takes comments out and keeps the lines.
static std::string without_comments(std::string text) {
    for (size_t at = 0; at + 1 < text.size(); at++) {
        bool line = text[at] == '/' && text[at + 1] == '/', block = text[at] == '/' && text[at + 1] == '*';
        if (!line && !block) continue;
        size_t end = line ? text.find('\n', at) : text.find("*/", at + 2);
        end = end == std::string::npos ? text.size() : block ? end + 2 : end;
        for (size_t i = at; i < end; i++)
            if (text[i] != '\n') text[i] = ' ';
    }
    return text;
}

// ---- the wrappers ----
struct wrapper {
    std::string name;
    std::string head;  // the instruction's name up to its first dot, such as "ldmatrix"
    int line;
};

static std::vector<wrapper> find_wrappers(const std::string& path) {
    std::string text = without_comments(read(path));
    const std::regex function(R"((\w+)\s*\([^;{}()]*(?:\([^()]*\)[^;{}()]*)*\)\s*\{)"), statement(R"(\basm\b\s*(?:volatile\s*)?\(\s*\"([a-z0-9]+(?:\.[a-z]+)?))");
    std::map<size_t, std::string> functions;
    for (std::sregex_iterator i(text.begin(), text.end(), function), end; i != end; ++i) {
        std::string name = (*i)[1];
        if (name != "if" && name != "for" && name != "while" && name != "switch") functions[(size_t)i->position()] = name;
    }
    std::vector<wrapper> found;
    for (std::sregex_iterator i(text.begin(), text.end(), statement), end; i != end; ++i) {
        auto after = functions.upper_bound((size_t)i->position());
        std::string head = (*i)[1];
        if (head.rfind("cp.", 0) != 0) head = head.substr(0, head.find('.'));  // cp.async has two words
        found.push_back({after == functions.begin() ? "?" : std::prev(after)->second, head, line_of(text, (size_t)i->position())});
    }
    return found;
}

// The statements of a kernel that begin with the head, with registers replaced by their class.
static words instructions(const std::string& ptx, const std::string& kernel, const std::string& head) {
    size_t start = ptx.find(".entry " + kernel + "(");
    words found;
    if (start == std::string::npos) return found;
    size_t end = ptx.find("\n}", start);
    std::string body = without_comments(ptx.substr(start, end - start));
    std::istringstream statements(body);
    for (std::string s; std::getline(statements, s, ';');) {
        s = std::regex_replace(s, std::regex(R"(\s+)"), " ");
        s.erase(0, s.find_first_not_of(' ') == std::string::npos ? s.size() : s.find_first_not_of(' '));
        s = std::regex_replace(s, std::regex(R"(^\{ ?)"), "");
        if (s.rfind(head + ".", 0) != 0) continue;
        s = std::regex_replace(s, std::regex(R"((%[a-z]+)\d+)"), "$1");
        // an address in shared memory may be 32 or 64 bits wide
        s = std::regex_replace(s, std::regex(R"(\[ ?%rd?( ?\+ ?\d+)? ?\])"), "[address]");
        // a name of a variable, with its offset, is an address too
        s = std::regex_replace(s, std::regex(R"(\[ ?\w+( ?\+ ?\d+)? ?\])"), "[address]");
        s = std::regex_replace(s, std::regex(R"( ?([,{}]) ?)"), "$1");
        s.erase(s.find_last_not_of(' ') + 1);
        found.push_back(s);
    }
    return found;
}

static std::string joined(const words& list) {
    std::string text;
    for (auto& w : list) text += (text.empty() ? "" : "; ") + w;
    return text.empty() ? "nothing" : text;
}

static int compare_twins(const std::string& port, const std::string& ptx_path) {
    std::string ptx = read(ptx_path);
    std::vector<wrapper> wrappers = find_wrappers(port);
    int failures = 0;
    for (const wrapper& w : wrappers) {
        std::string place = port + ":" + std::to_string(w.line) + ": " + w.name + ": ";
        words ours = instructions(ptx, "ours_" + w.name, w.head), twin = instructions(ptx, "twin_" + w.name, w.head);
        bool missing = ptx.find(".entry twin_" + w.name + "(") == std::string::npos;
        if (missing) printf("%sthe inline PTX has no twin in twins.cu\n", place.c_str());
        else if (ours.empty() || ours != twin) printf("%sours is [%s], LLVM's is [%s]\n", place.c_str(), joined(ours).c_str(), joined(twin).c_str());
        failures += missing || ours.empty() || ours != twin;
    }
    if (wrappers.empty()) printf("%s: no inline PTX found; the check checks nothing\n", port.c_str());
    return failures || wrappers.empty();
}

static int find_inline(const words& files) {
    int failures = 0;
    for (auto& path : files) {
        std::string text = without_comments(read(path));
        const std::regex statement(R"(\basm\b\s*(volatile\s*)?\()");
        for (std::sregex_iterator i(text.begin(), text.end(), statement), end; i != end; ++i, failures++)
            printf("%s:%d: inline PTX outside of port.cuh\n", path.c_str(), line_of(text, (size_t)i->position()));
    }
    return failures != 0;
}

// ---- the parameters of kernels ----
static void print_entries(const words& files) {
    std::map<std::string, std::string> entries;
    for (auto& path : files) {
        std::string text = read(path);
        // ".param .u64 .ptr .global .align 4 name" or ".param .align 8 .b8 name[56]"
        const std::regex entry(R"(\.entry (\w+)\(([^)]*)\))"), parameter(R"(\.param ((?:\.align \d+ )?)\.([a-z]+)(\d+)[^,\[]*(?:\[(\d+)\])?)");
        for (std::sregex_iterator i(text.begin(), text.end(), entry), end; i != end; ++i) {
            std::string list = (*i)[2], types;
            for (std::sregex_iterator p(list.begin(), list.end(), parameter); p != end; ++p) {
                std::string type = (*p)[4].matched ? "b8[" + std::string((*p)[4]) + "]" : std::string((*p)[2]) + std::string((*p)[3]);
                types += (types.empty() ? "\"" : ", \"") + type + "\"";
            }
            entries[(*i)[1]] = "[" + types + "]";
        }
    }
    printf("{\n");
    size_t left = entries.size();
    for (auto& e : entries) printf("  \"%s\": %s%s\n", e.first.c_str(), e.second.c_str(), --left ? "," : "");
    printf("}\n");
}

int main(int count, char** arguments) {
    std::string what = count > 2 ? arguments[1] : "";
    words files(arguments + std::min(2, count), arguments + count);
    if (what == "twins" && files.size() == 2) return compare_twins(files[0], files[1]);
    if (what == "inline") return find_inline(files);
    if (what == "entries") {
        print_entries(files);
        return 0;
    }
    fprintf(stderr, "usage: ptx twins PORT_CUH TWINS_PTX | ptx inline KERNEL_FILE... | ptx entries PTX_FILE...\n");
    return 2;
}
