// The index of the project: every op's schema, the tables of both devices, and the host services Python asks for.
//
// Each op has two names for one function. pyconv::conv2d carries the autograd formula, the autocast rule and what
// torch.compile needs, all registered in pyconv/_register; pyconv::_conv2d carries none and is what the eager
// autograd.Function calls, because passing through a registered formula costs 4 us a call even when no gradient is
// wanted (measured on torch 2.13).
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "cpu/batch_norm/batch_norm.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/pool2d/pool2d.h"
#include "cpu/roofline.h"
#include "cpu/scratch.h"
#include "cuda/batch_norm/batch_norm.h"
#include "cuda/conv2d/conv2d.h"
#include "cuda/pool2d/pool2d.h"
#include "ops/device.h"
#include "ops/ops.h"

// Symbolic where they are traced; and reading an "int" takes the dispatcher 0.04 us more than reading a "SymInt".
#define KERNEL "SymInt kh, SymInt kw, "
#define STRIDE_PADDING "SymInt sh, SymInt sw, SymInt ph, SymInt pw, "
#define CONV STRIDE_PADDING "SymInt dh, SymInt dw, SymInt groups, "
#define MAX_POOL KERNEL STRIDE_PADDING "SymInt dh, SymInt dw, "
#define AVG_POOL KERNEL STRIDE_PADDING
#define PLANE "SymInt ih, SymInt iw, "
#define BATCH_NORM_BWD                                                                           \
  "(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, float eps, str algorithm) -> " \
  "(Tensor dx, Tensor dweight, Tensor dbias)"
#define BATCH_NORM_RELU_BWD                                                                             \
  "(Tensor dy, Tensor y, Tensor x, Tensor mean, Tensor var, Tensor? weight, bool residual, float eps, " \
  "float ceiling, str algorithm) "                                                                      \
  "-> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)"

// OP(name, arguments -> returns)
#define PYCONV_OPS(OP)                                                                                               \
  OP(conv2d, "(Tensor x, Tensor w, Tensor? b, " CONV "str algorithm) -> Tensor")                                     \
  OP(conv2d_fused, "(Tensor x, Tensor w, Tensor? b, Tensor? residual, bool relu, float ceiling, " CONV               \
                   "Tensor? packed, str algorithm) -> Tensor")                                                       \
  OP(conv2d_pack, "(Tensor x, Tensor w, " CONV "str algorithm) -> Tensor")                                           \
  OP(conv2d_bwd_input,                                                                                               \
     "(Tensor dy, Tensor w, SymInt ih, SymInt iw, " CONV "bool channels_last, str algorithm) -> Tensor")             \
  OP(conv2d_bwd_weight,                                                                                              \
     "(Tensor dy, Tensor x, SymInt kh, SymInt kw, " CONV "bool channels_last, str algorithm) -> Tensor")             \
  OP(max_pool2d, "(Tensor x, " MAX_POOL "bool ceil_mode, str algorithm) -> (Tensor y, Tensor indices)")              \
  OP(max_pool2d_bwd, "(Tensor dy, Tensor indices, " PLANE MAX_POOL "bool channels_last, str algorithm) -> Tensor")   \
  OP(max_pool2d_taps, "(Tensor x, " MAX_POOL "bool ceil_mode, str algorithm) -> (Tensor y, Tensor taps)")            \
  OP(max_pool2d_taps_bwd, "(Tensor dy, Tensor taps, " PLANE AVG_POOL "bool channels_last, str algorithm) -> Tensor") \
  OP(avg_pool2d,                                                                                                     \
     "(Tensor x, " AVG_POOL "bool ceil_mode, bool count_include_pad, int divisor, str algorithm) -> Tensor")         \
  OP(avg_pool2d_bwd, "(Tensor dy, " PLANE AVG_POOL                                                                   \
                     "bool count_include_pad, int divisor, bool channels_last, str algorithm) -> Tensor")            \
  OP(adaptive_max_pool2d, "(Tensor x, SymInt oh, SymInt ow, str algorithm) -> (Tensor y, Tensor indices)")           \
  OP(adaptive_max_pool2d_bwd, "(Tensor dy, Tensor indices, " PLANE "bool channels_last, str algorithm) -> Tensor")   \
  OP(adaptive_avg_pool2d, "(Tensor x, SymInt oh, SymInt ow, str algorithm) -> Tensor")                               \
  OP(adaptive_avg_pool2d_bwd, "(Tensor dy, " PLANE "bool channels_last, str algorithm) -> Tensor")                   \
  OP(max_unpool2d, "(Tensor x, Tensor indices, SymInt oh, SymInt ow, str algorithm) -> Tensor")                      \
  OP(max_unpool2d_bwd, "(Tensor dy, Tensor indices, str algorithm) -> Tensor")                                       \
  OP(batch_norm_train,                                                                                               \
     "(Tensor x, Tensor? weight, Tensor? bias, float eps, str algorithm) -> (Tensor y, Tensor mean, Tensor var)")    \
  OP(batch_norm_eval,                                                                                                \
     "(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, str algorithm) -> Tensor")        \
  OP(batch_norm_train_bwd, BATCH_NORM_BWD)                                                                           \
  OP(batch_norm_eval_bwd, BATCH_NORM_BWD)                                                                            \
  OP(batch_norm_relu_train,                                                                                          \
     "(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps, float ceiling, str algorithm) -> "       \
     "(Tensor y, Tensor mean, Tensor var)")                                                                          \
  OP(batch_norm_relu_eval,                                                                                           \
     "(Tensor x, Tensor? residual, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, "               \
     "float ceiling, str algorithm) -> Tensor")                                                                      \
  OP(batch_norm_relu_train_bwd, BATCH_NORM_RELU_BWD)                                                                 \
  OP(batch_norm_relu_eval_bwd, BATCH_NORM_RELU_BWD)

STABLE_TORCH_LIBRARY(pyconv, m) {
#define DEFINE(name, signature) m.def(#name signature), m.def("_" #name signature);
  PYCONV_OPS(DEFINE)
  // All gradients of a convolution in one call, for a backward pass of which no derivative is wanted.
  m.def("_conv2d_bwd(Tensor dy, Tensor? x, Tensor? w, " PLANE KERNEL CONV
        "bool channels_last, bool bias, str algorithm) -> (Tensor dx, Tensor dw, Tensor db)");
  // The maxima alone, of which no derivative is wanted.
  m.def("_max_pool2d_values(Tensor x, " MAX_POOL "bool ceil_mode, str algorithm) -> Tensor");
  // Both running statistics in one call: three calls of torch cost twice as much as the batch norm of a small image.
  m.def(
      "_batch_norm_move(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, "
      "int values, float momentum) -> ()");
}

namespace {

// torch's own conversion to std::string, as of 2.13, never frees the string that it makes. 48 bytes a call are
// little, but they lie between the tensors of a training step, whose places the heap could then not use again: ResNet-20
// grew by 50 MB a step. A kernel is boxed with the string's handle instead.
std::string unboxed(StringHandle handle) {
  size_t length;
  const char* data;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
  const std::string text(data, length);
  STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return text;
}
template <class T>
T& unboxed(T& value) {
  return value;
}

template <class T>
using Boxed = std::conditional_t<std::is_same_v<T, const std::string&>, StringHandle, T>;
template <auto op>
struct Kernel;
template <class Result, class... Arguments, Result (*op)(Arguments...)>
struct Kernel<op> {
  static Result call(Boxed<Arguments>... arguments) { return op(unboxed(arguments)...); }
};
#define BOX(name) TORCH_BOX(&Kernel<&pyconv::ops::name>::call)

}  // namespace

#define IMPLEMENT(name, signature) m.impl(#name, BOX(name)), m.impl("_" #name, BOX(name));

STABLE_TORCH_LIBRARY_IMPL(pyconv, CPU, m) {
  PYCONV_OPS(IMPLEMENT)
  m.impl("_conv2d_bwd", BOX(conv2d_bwd));
  m.impl("_max_pool2d_values", BOX(max_pool2d_values));
  m.impl("_batch_norm_move", BOX(batch_norm_move));
}

STABLE_TORCH_LIBRARY_IMPL(pyconv, CUDA, m) { PYCONV_OPS(IMPLEMENT) }

namespace {

namespace py = pybind11;
using pyconv::Ask, pyconv::DType, pyconv::Layout, pyconv::Pass;

template <class Value>
Value named(const char* what, const std::string& name, std::initializer_list<Value> values) {
  for (Value value : values) {
    if (name == name_of(value)) return value;
  }
  throw std::invalid_argument(std::string("pyconv: there is no ") + what + " \"" + name + "\"");
}

DType dtype_named(const std::string& name) {
  return named("dtype", name, {DType::f64, DType::f32, DType::bf16, DType::f16});
}

Pass pass_named(const std::string& name) { return named("pass", name, {Pass::fwd, Pass::bwd_input, Pass::bwd_weight}); }

using Axis = std::array<int64_t, 6>;  // a PoolAxis

pyconv::PoolAxis axis(const Axis& a) { return {a[0], a[1], a[2], a[3], a[4], a[5]}; }

Layout layout_of(bool channels_last) { return channels_last ? Layout::nhwc : Layout::nchw; }

// Each kernel of an op's list with its source file and its answer to `able` and to `chosen`, for explain().
template <class Shape>
py::list answers(std::vector<pyconv::Answer> (*ask)(const Shape&, Pass, Ask), const Shape& s, const std::string& pass) {
  py::list rows;
  const auto able = ask(s, pass_named(pass), Ask::able), chosen = ask(s, pass_named(pass), Ask::chosen);
  for (size_t i = 0; i < able.size(); i++) {
    rows.append(py::make_tuple(able[i].kernel, able[i].source, able[i].why, chosen[i].why));
  }
  return rows;
}

pyconv::Pool2dShape pool_shape(int64_t N, int64_t C, const Axis& h, const Axis& w, const std::string& dtype,
                               bool channels_last) {
  return {N, C, axis(h), axis(w), dtype_named(dtype), layout_of(channels_last)};
}

pyconv::NormShape norm_shape(int64_t N, int64_t C, int64_t H, int64_t W, const std::string& dtype, bool channels_last,
                             bool training) {
  return {N, C, H, W, dtype_named(dtype), layout_of(channels_last), 0, training};
}

// What call(queue) would launch from the shared object at `path`, of operands that are aligned: for each launch the offset
// of the kernel in that object, the grid, the block and the bytes of shared memory. Nothing runs.
template <class Call>
py::list launches(const std::string& path, const Call& call) {
  static std::vector<pyconv::Launch> noted;
  noted.clear();
  const pyconv::cuda::Library& library = pyconv::cuda::load(path);
  library.note([](const pyconv::Launch& launch) { noted.push_back(launch); });
  const auto allocate = [](void*, int64_t) -> void* { return nullptr; };
  try {
    call(pyconv::cuda::Queue{&library, nullptr, allocate, nullptr});
  } catch (...) {
    library.note(nullptr);
    throw;
  }
  library.note(nullptr);
  py::list rows;
  for (const pyconv::Launch& l : noted) {
    Dl_info object;
    dladdr(l.kernel, &object);
    const auto offset = static_cast<const char*>(l.kernel) - static_cast<const char*>(object.dli_fbase);
    rows.append(py::make_tuple(offset, py::make_tuple(l.grid[0], l.grid[1], l.grid[2]),
                               py::make_tuple(l.block[0], l.block[1], l.block[2]), l.shared_bytes));
  }
  return rows;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  pyconv::parallel_hook = torch_parallel_for;
  pyconv::threads_hook = [] {
    uint32_t threads = 1;
    return torch_get_num_threads(&threads) == 0 ? int64_t(threads) : int64_t(1);
  };

  m.def("isa", [] { return std::string(name_of(pyconv::isa())); });
  m.def("available_isas", pyconv::available_isas);
  m.def("set_isa", pyconv::set_isa);
  m.def("allow_winograd", [] { return pyconv::conv2d::allow_winograd; });
  m.def("set_allow_winograd", [](bool allow) { pyconv::conv2d::allow_winograd = allow; });
  m.def("allow_tf32", [] { return pyconv::cuda::conv2d::allow_tf32; });
  m.def("set_allow_tf32", [](bool allow) { pyconv::cuda::conv2d::allow_tf32 = allow; });

  py::class_<pyconv::Conv2dShape>(m, "Conv2dShape")
      .def(py::init([](int64_t N, int64_t G, int64_t IC, int64_t IH, int64_t IW, int64_t OC, int64_t KH, int64_t KW,
                       int64_t OH, int64_t OW, int64_t SH, int64_t SW, int64_t PH, int64_t PW, int64_t DH, int64_t DW,
                       const std::string& dtype, bool channels_last) {
             return pyconv::Conv2dShape{N,
                                        G,
                                        IC,
                                        IH,
                                        IW,
                                        OC,
                                        KH,
                                        KW,
                                        OH,
                                        OW,
                                        SH,
                                        SW,
                                        PH,
                                        PW,
                                        DH,
                                        DW,
                                        dtype_named(dtype),
                                        channels_last ? Layout::nhwc : Layout::nchw};
           }),
           py::arg("N"), py::arg("G"), py::arg("IC"), py::arg("IH"), py::arg("IW"), py::arg("OC"), py::arg("KH"),
           py::arg("KW"), py::arg("OH"), py::arg("OW"), py::arg("SH"), py::arg("SW"), py::arg("PH"), py::arg("PW"),
           py::arg("DH"), py::arg("DW"), py::arg("dtype"), py::arg("channels_last"))
      .def_property_readonly("flops", &pyconv::Conv2dShape::flops)
      .def_property_readonly("bytes", &pyconv::Conv2dShape::bytes);
  m.def("ask",
        [](const pyconv::Conv2dShape& s, const std::string& pass) { return answers(pyconv::conv2d::ask, s, pass); });
  m.def("ask_pool2d", [](const std::string& family, int64_t N, int64_t C, const Axis& h, const Axis& w,
                         const std::string& dtype, bool channels_last, const std::string& pass) {
    const auto s = pool_shape(N, C, h, w, dtype, channels_last);
    if (family == "unpool") return answers(pyconv::pool2d::ask_unpool, s, pass);
    return answers(family == "max" ? pyconv::pool2d::ask_max : pyconv::pool2d::ask_avg, s, pass);
  });
  m.def("ask_batch_norm", [](int64_t N, int64_t C, int64_t H, int64_t W, const std::string& dtype, bool channels_last,
                             bool training, const std::string& pass) {
    return answers(pyconv::batch_norm::ask, norm_shape(N, C, H, W, dtype, channels_last, training), pass);
  });
  // The same of the kernels that run on CUDA tensors and in the emulator.
  m.def("ask_cuda", [](const pyconv::Conv2dShape& s, const std::string& pass) {
    return answers(pyconv::cuda::conv2d::ask, s, pass);
  });
  m.def("ask_cuda_pool2d", [](const std::string& family, int64_t N, int64_t C, const Axis& h, const Axis& w,
                              const std::string& dtype, bool channels_last, const std::string& pass) {
    namespace lists = pyconv::cuda::pool2d;
    const auto s = pool_shape(N, C, h, w, dtype, channels_last);
    if (family == "unpool") return answers(lists::ask_unpool, s, pass);
    return answers(family == "max" ? lists::ask_max : lists::ask_avg, s, pass);
  });
  m.def("ask_cuda_batch_norm", [](int64_t N, int64_t C, int64_t H, int64_t W, const std::string& dtype,
                                  bool channels_last, bool training, const std::string& pass) {
    return answers(pyconv::cuda::batch_norm::ask, norm_shape(N, C, H, W, dtype, channels_last, training), pass);
  });
  m.def("launches", [](const std::string& path, const std::string& algorithm, const pyconv::Conv2dShape& s,
                       const std::string& pass) {
    namespace lists = pyconv::cuda::conv2d;
    return launches(path, [&](const pyconv::cuda::Queue& q) {
      if (pass == "fwd") return lists::fwd(q, s, nullptr, nullptr, {}, nullptr, algorithm);
      if (pass == "bwd_input") return lists::bwd_input(q, s, nullptr, nullptr, nullptr, algorithm);
      lists::bwd_weight(q, s, nullptr, nullptr, nullptr, algorithm);
    });
  });
  m.def("launches_pool2d",
        [](const std::string& path, const std::string& algorithm, const std::string& family, int64_t N, int64_t C,
           const Axis& h, const Axis& w, const std::string& dtype, bool channels_last, const std::string& pass) {
          namespace lists = pyconv::cuda::pool2d;
          const auto s = pool_shape(N, C, h, w, dtype, channels_last);
          const char* op = family.c_str();
          return launches(path, [&](const pyconv::cuda::Queue& q) {
            const bool fwd = pass == "fwd";
            if (family == "avg") return (fwd ? lists::avg_fwd : lists::avg_bwd)(q, op, s, nullptr, nullptr, algorithm);
            if (family == "unpool")
              return (fwd ? lists::unpool_fwd : lists::unpool_bwd)(q, op, s, nullptr, nullptr, nullptr, algorithm);
            if (fwd) return lists::max_fwd(q, op, s, nullptr, nullptr, nullptr, algorithm);
            lists::max_bwd(q, op, s, nullptr, nullptr, nullptr, algorithm);
          });
        });
  m.def("launches_batch_norm",
        [](const std::string& path, const std::string& algorithm, int64_t N, int64_t C, int64_t H, int64_t W,
           const std::string& dtype, bool channels_last, bool training, const std::string& pass) {
          namespace lists = pyconv::cuda::batch_norm;
          const auto s = norm_shape(N, C, H, W, dtype, channels_last, training);
          return launches(path, [&](const pyconv::cuda::Queue& q) {
            if (pass != "fwd") return lists::bwd(q, s, {}, nullptr, {}, nullptr, {}, algorithm);
            if (training) return lists::train(q, s, nullptr, {}, {}, nullptr, nullptr, nullptr, algorithm);
            lists::eval(q, s, nullptr, {}, {}, {}, nullptr, algorithm);
          });
        });
  m.def("use_gpu_kernels", [](const std::string& path) { pyconv::gpu_library = &pyconv::cuda::load(path); });
  // From now on CPU tensors run on the emulated kernels of this shared object; "" for the CPU's kernels again.
  m.def("emulate_cuda",
        [](const std::string& path) { pyconv::emulated_library = path.empty() ? nullptr : &pyconv::cuda::load(path); });
  m.def("measured_flops", [](const std::string& dtype, int threads, double seconds) {
    py::gil_scoped_release release;
    return pyconv::measured_flops(dtype_named(dtype), threads, seconds);
  });
  m.def("scratch_asked", pyconv::scratch_asked);
  m.def("round_trip_nanoseconds", pyconv::round_trip_nanoseconds, py::call_guard<py::gil_scoped_release>());

  m.attr("algorithms") = py::dict(py::arg("conv2d") = pyconv::conv2d::algorithms(),
                                  py::arg("max_pool2d") = pyconv::pool2d::max_algorithms(),
                                  py::arg("avg_pool2d") = pyconv::pool2d::avg_algorithms(),
                                  py::arg("adaptive_max_pool2d") = pyconv::pool2d::max_algorithms(),
                                  py::arg("adaptive_avg_pool2d") = pyconv::pool2d::avg_algorithms(),
                                  py::arg("max_unpool2d") = pyconv::pool2d::unpool_algorithms(),
                                  py::arg("batch_norm") = pyconv::batch_norm::algorithms());
  m.attr("cuda_algorithms") = py::dict(py::arg("conv2d") = pyconv::cuda::conv2d::algorithms(),
                                       py::arg("max_pool2d") = pyconv::cuda::pool2d::max_algorithms(),
                                       py::arg("avg_pool2d") = pyconv::cuda::pool2d::avg_algorithms(),
                                       py::arg("adaptive_max_pool2d") = pyconv::cuda::pool2d::max_algorithms(),
                                       py::arg("adaptive_avg_pool2d") = pyconv::cuda::pool2d::avg_algorithms(),
                                       py::arg("max_unpool2d") = pyconv::cuda::pool2d::unpool_algorithms(),
                                       py::arg("batch_norm") = pyconv::cuda::batch_norm::algorithms());
  m.attr("build") = py::dict(py::arg("compiler") = __VERSION__, py::arg("torch") = PYCONV_BUILD_TORCH);
}
