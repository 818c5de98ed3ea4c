// Instances of rows.h for every ISA and storage type, and when they can run.
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/pool2d/pool2d.h"
#include "cpu/scratch.h"

#define PYCONV_KERNEL "cpu/pool2d/rows.h"
#include "cpu/for_each_isa.inc"

namespace pyconv::pool2d {

namespace {

std::string rows_why_not(const Pool2dShape& s) {
  if (s.layout != Layout::nchw) return "its lanes are columns, which lie apart in channels_last";
  return "";
}

bool is_adaptive(const Pool2dShape& s) { return s.h.adaptive() || s.w.adaptive(); }

}  // namespace

std::string rows_avg_why_not(const Pool2dShape& s, Pass, Ask) {
  if (is_adaptive(s)) return "it steps by a stride, and adaptive windows have none";
  return rows_why_not(s);
}

std::string rows_max_why_not(const Pool2dShape& s, Pass pass, Ask) {
  if (pass == Pass::bwd_input) return rows_why_not(s);  // a scatter, which asks nothing of the windows
  if (is_adaptive(s)) return "it steps by a stride, and adaptive windows have none";
  if (s.h.in * s.w.in > INT32_MAX) return "its indices are 32-bit and the plane has 2^31 pixels or more";
  if ((s.h.padding && s.h.dilation > 1) || (s.w.padding && s.w.dilation > 1)) {
    return "a dilated window that starts in the padding may hold no pixel";
  }
  return rows_why_not(s);
}

void rows_max_fwd(const Pool2dShape& s, const void* x, void* y, const Where& where) {
  PYCONV_PER_ISA(pool2d_rows::max_fwd)(s, x, y, where);
}

void rows_max_bwd(const Pool2dShape& s, const void* dy, const WhereWas& where, void* dx) {
  PYCONV_PER_ISA(pool2d_rows::max_bwd)(s, dy, where, dx);
}

void rows_avg_fwd(const Pool2dShape& s, const void* x, void* y) { PYCONV_PER_ISA(pool2d_rows::avg_fwd)(s, x, y); }

void rows_avg_bwd(const Pool2dShape& s, const void* dy, void* dx) { PYCONV_PER_ISA(pool2d_rows::avg_bwd)(s, dy, dx); }

}  // namespace pyconv::pool2d
