// The kernel list: how every op chooses what runs.
//
// A list is an ordered array of kernels, fastest first, the reference last. A kernel answers why_not(shape, pass) with
// a sentence, or with "" when it can and should run. The first "" runs. A name forces one kernel or raises its sentence.
// The lists are the single source of truth: dispatch, tests, benchmarks and explain() all iterate them.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace pyconv {

enum class Pass { fwd, bwd_input, bwd_weight };

inline const char* name_of(Pass pass) {
  return pass == Pass::fwd ? "fwd" : pass == Pass::bwd_input ? "bwd_input" : "bwd_weight";
}

// What a kernel's why_not may be asked: is it right (able), and is it the best choice (chosen)? Forcing a kernel asks
// only the first; a threshold set by a benchmark belongs to the second.
enum class Ask { able, chosen };

struct Answer {
  std::string kernel, source, why;  // why == "": it can, and in the order of the list it would
};

// Kernel needs: const char *name, *source; std::string (*why_not)(const Shape&, Pass, Ask).
template <class Kernel, size_t n, class Shape>
const Kernel& choose(const char* op, const Kernel (&list)[n], const Shape& shape, Pass pass,
                     const std::string& algorithm) {
  static const bool log = std::getenv("PYCONV_LOG") != nullptr;
  std::string names;
  for (const Kernel& kernel : list) {
    if (!algorithm.empty() && algorithm != kernel.name) {
      names += std::string(names.empty() ? "" : ", ") + kernel.name;
      continue;
    }
    const std::string why = kernel.why_not(shape, pass, algorithm.empty() ? Ask::chosen : Ask::able);
    if (log)
      std::fprintf(stderr, "pyconv: %s %s: %s: %s\n", op, name_of(pass), kernel.name,
                   why.empty() ? "runs" : why.c_str());
    if (why.empty()) return kernel;
    if (!algorithm.empty()) {
      throw std::invalid_argument(std::string(op) + ": algorithm \"" + algorithm + "\" cannot run " + name_of(pass) +
                                  " here: " + why);
    }
  }
  throw std::invalid_argument(std::string(op) + ": there is no algorithm \"" + algorithm + "\"; there are " + names);
}

// Every kernel in order with its answer ("" = would run).
template <class Kernel, size_t n, class Shape>
std::vector<Answer> ask_all(const Kernel (&list)[n], const Shape& shape, Pass pass, Ask ask) {
  std::vector<Answer> answers;
  for (const Kernel& kernel : list) answers.push_back({kernel.name, kernel.source, kernel.why_not(shape, pass, ask)});
  return answers;
}

template <class Kernel, size_t n>
std::vector<std::string> names_of(const Kernel (&list)[n]) {
  std::vector<std::string> names;
  for (const Kernel& kernel : list) names.emplace_back(kernel.name);
  return names;
}

}  // namespace pyconv
