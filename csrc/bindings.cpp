// The index of the project: every op's schema, the CPU table, and the host services Python asks for.
//
// Each op has two names for one function. pyconv::conv2d carries the autograd formula, the autocast rule and what
// torch.compile needs, all registered in pyconv/_register; pyconv::_conv2d carries none and is what the eager
// autograd.Function calls, because passing through a registered formula costs 4 us a call even when no gradient is
// wanted (measured on torch 2.13).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/batch_norm/batch_norm.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/pool2d/pool2d.h"
#include "ops/ops.h"

#define KERNEL "int kh, int kw, "
#define STRIDE_PADDING "int sh, int sw, int ph, int pw, "
#define CONV STRIDE_PADDING "int dh, int dw, int groups, "
#define MAX_POOL KERNEL STRIDE_PADDING "int dh, int dw, "
#define AVG_POOL KERNEL STRIDE_PADDING
#define PLANE "SymInt ih, SymInt iw, "
#define BATCH_NORM_BWD                                                                           \
  "(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, float eps, str algorithm) -> " \
  "(Tensor dx, Tensor dweight, Tensor dbias)"

// OP(name, arguments -> returns)
#define PYCONV_OPS(OP)                                                                                             \
  OP(conv2d, "(Tensor x, Tensor w, Tensor? b, " CONV "str algorithm) -> Tensor")                                   \
  OP(conv2d_bwd_input,                                                                                             \
     "(Tensor dy, Tensor w, SymInt ih, SymInt iw, " CONV "bool channels_last, str algorithm) -> Tensor")           \
  OP(conv2d_bwd_weight,                                                                                            \
     "(Tensor dy, Tensor x, SymInt kh, SymInt kw, " CONV "bool channels_last, str algorithm) -> Tensor")           \
  OP(max_pool2d, "(Tensor x, " MAX_POOL "bool ceil_mode, str algorithm) -> (Tensor y, Tensor indices)")            \
  OP(max_pool2d_bwd, "(Tensor dy, Tensor indices, " PLANE MAX_POOL "bool channels_last, str algorithm) -> Tensor") \
  OP(avg_pool2d,                                                                                                   \
     "(Tensor x, " AVG_POOL "bool ceil_mode, bool count_include_pad, int divisor, str algorithm) -> Tensor")       \
  OP(avg_pool2d_bwd, "(Tensor dy, " PLANE AVG_POOL                                                                 \
                     "bool count_include_pad, int divisor, bool channels_last, str algorithm) -> Tensor")          \
  OP(adaptive_max_pool2d, "(Tensor x, SymInt oh, SymInt ow, str algorithm) -> (Tensor y, Tensor indices)")         \
  OP(adaptive_max_pool2d_bwd, "(Tensor dy, Tensor indices, " PLANE "bool channels_last, str algorithm) -> Tensor") \
  OP(adaptive_avg_pool2d, "(Tensor x, SymInt oh, SymInt ow, str algorithm) -> Tensor")                             \
  OP(adaptive_avg_pool2d_bwd, "(Tensor dy, " PLANE "bool channels_last, str algorithm) -> Tensor")                 \
  OP(max_unpool2d, "(Tensor x, Tensor indices, SymInt oh, SymInt ow, str algorithm) -> Tensor")                    \
  OP(max_unpool2d_bwd, "(Tensor dy, Tensor indices, str algorithm) -> Tensor")                                     \
  OP(batch_norm_train,                                                                                             \
     "(Tensor x, Tensor? weight, Tensor? bias, float eps, str algorithm) -> (Tensor y, Tensor mean, Tensor var)")  \
  OP(batch_norm_eval,                                                                                              \
     "(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, str algorithm) -> Tensor")      \
  OP(batch_norm_train_bwd, BATCH_NORM_BWD)                                                                         \
  OP(batch_norm_eval_bwd, BATCH_NORM_BWD)

STABLE_TORCH_LIBRARY(pyconv, m) {
#define DEFINE(name, signature) m.def(#name signature), m.def("_" #name signature);
  PYCONV_OPS(DEFINE)
}

STABLE_TORCH_LIBRARY_IMPL(pyconv, CPU, m) {
#define IMPLEMENT(name, signature) \
  m.impl(#name, TORCH_BOX(&pyconv::ops::name)), m.impl("_" #name, TORCH_BOX(&pyconv::ops::name));
  PYCONV_OPS(IMPLEMENT)
}

PYBIND11_MODULE(_C, m) {
  pyconv::parallel_hook = torch_parallel_for;

  m.def("isa", [] { return std::string(name_of(pyconv::isa())); });
  m.def("available_isas", pyconv::available_isas);
  m.def("set_isa", pyconv::set_isa);

  m.attr("algorithms") = pybind11::dict(pybind11::arg("conv2d") = pyconv::conv2d::algorithms(),
                                        pybind11::arg("max_pool2d") = pyconv::pool2d::max_algorithms(),
                                        pybind11::arg("avg_pool2d") = pyconv::pool2d::avg_algorithms(),
                                        pybind11::arg("adaptive_max_pool2d") = pyconv::pool2d::max_algorithms(),
                                        pybind11::arg("adaptive_avg_pool2d") = pyconv::pool2d::avg_algorithms(),
                                        pybind11::arg("max_unpool2d") = pyconv::pool2d::unpool_algorithms(),
                                        pybind11::arg("batch_norm") = pyconv::batch_norm::algorithms());
  m.attr("build") =
      pybind11::dict(pybind11::arg("compiler") = __VERSION__, pybind11::arg("torch") = PYCONV_BUILD_TORCH);
}
