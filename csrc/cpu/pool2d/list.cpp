// Which pooling kernel runs, and why: fastest first, the first kernel that does not refuse.
#include "cpu/pool2d/pool2d.h"

namespace pyconv::pool2d {
namespace {

// clang-format off
constexpr MaxKernel max_list[] = {
    {"channels",   "csrc/cpu/pool2d/channels.h",    channels_max_why_not,   channels_max_fwd,   channels_max_bwd},
    {"transposed", "csrc/cpu/pool2d/transposed.h",  transposed_max_why_not, transposed_max_fwd, transposed_max_bwd},
    {"rows",       "csrc/cpu/pool2d/rows.h",        rows_max_why_not,       rows_max_fwd,       rows_max_bwd},
    {"reference",  "csrc/cpu/pool2d/reference.cpp", reference_why_not,      reference_max_fwd,  reference_max_bwd},
};
constexpr AvgKernel avg_list[] = {
    {"channels",   "csrc/cpu/pool2d/channels.h",    channels_avg_why_not,   channels_avg_fwd,   channels_avg_bwd},
    {"planes",     "csrc/cpu/pool2d/planes.h",      planes_avg_why_not,     planes_avg_fwd,     planes_avg_bwd},
    {"transposed", "csrc/cpu/pool2d/transposed.h",  transposed_avg_why_not, transposed_avg_fwd, transposed_avg_bwd},
    {"rows",       "csrc/cpu/pool2d/rows.h",        rows_avg_why_not,       rows_avg_fwd,       rows_avg_bwd},
    {"reference",  "csrc/cpu/pool2d/reference.cpp", reference_why_not,      reference_avg_fwd,  reference_avg_bwd},
};
constexpr UnpoolKernel unpool_list[] = {
    {"offsets",   "csrc/cpu/pool2d/unpool.cpp",    reference_why_not, offsets_unpool_fwd,   offsets_unpool_bwd},
    {"reference", "csrc/cpu/pool2d/reference.cpp", reference_why_not, reference_unpool_fwd, reference_unpool_bwd},
};
// clang-format on

}  // namespace

const MaxKernel& choose_max(const char* op, const Pool2dShape& s, Pass pass, const std::string& algorithm) {
  return choose(op, max_list, s, pass, algorithm);
}

const AvgKernel& choose_avg(const char* op, const Pool2dShape& s, Pass pass, const std::string& algorithm) {
  return choose(op, avg_list, s, pass, algorithm);
}

const UnpoolKernel& choose_unpool(const char* op, const Pool2dShape& s, Pass pass, const std::string& algorithm) {
  return choose(op, unpool_list, s, pass, algorithm);
}

std::vector<std::string> max_algorithms() { return names_of(max_list); }
std::vector<std::string> avg_algorithms() { return names_of(avg_list); }
std::vector<std::string> unpool_algorithms() { return names_of(unpool_list); }

std::vector<Answer> ask_max(const Pool2dShape& s, Pass pass, Ask what) { return ask_all(max_list, s, pass, what); }

std::vector<Answer> ask_avg(const Pool2dShape& s, Pass pass, Ask what) { return ask_all(avg_list, s, pass, what); }

std::vector<Answer> ask_unpool(const Pool2dShape& s, Pass pass, Ask what) {
  return ask_all(unpool_list, s, pass, what);
}

}  // namespace pyconv::pool2d
