// Pooling, its gradients and unpooling: tensors to shapes and pointers.
#include "cpu/pool2d/pool2d.h"

#include "cuda/pool2d/pool2d.h"
#include "ops/device.h"
#include "ops/ops.h"

namespace pyconv::ops {
namespace {

int64_t output_size(const PoolAxis& axis, bool ceil_mode) {
  const int64_t room =
      axis.in + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1 + (ceil_mode ? axis.stride - 1 : 0);
  if (room < 0) return 0;
  const int64_t out = room / axis.stride + 1;
  // A ceil_mode window that would start in the padding past the end is dropped.
  return ceil_mode && (out - 1) * axis.stride >= axis.in + axis.padding ? out - 1 : out;
}

void require_axis(const char* op, const PoolAxis& axis) {
  require(axis.kernel >= 1 && axis.stride >= 1 && axis.dilation >= 1, op,
          "kernel, stride and dilation must be positive");
  require(axis.padding >= 0 && axis.padding <= axis.kernel / 2, op, "padding must be within half the kernel");
}

// The axis with its output size; the input must hold a window.
PoolAxis forward_axis(const char* op, PoolAxis axis, bool ceil_mode) {
  require_axis(op, axis);
  axis.out = output_size(axis, ceil_mode);
  require(axis.out >= 1, op, "the kernel must fit into the padded input");
  return axis;
}

// The axis of a backward pass, whose output size dy brings: that of floor or of ceil mode.
PoolAxis backward_axis(const char* op, const PoolAxis& axis) {
  require_axis(op, axis);
  require(
      axis.in >= 1 && axis.out >= 1 && (axis.out == output_size(axis, false) || axis.out == output_size(axis, true)),
      op, "dy must have the output's shape");
  return axis;
}

// Windows of one size where there are such: kernels that step by a stride then serve adaptive pooling too.
PoolAxis adaptive_axis(int64_t in, int64_t out) {
  if (out > 0 && in % out == 0) return {in, out, in / out, in / out, 0, 1};
  return {in, out, 0, 1, 0, 1};
}

void require_image(const char* op, const Tensor& x) {
  require(x.dim() == 4, op, "the input must be 4-D");
  require(x.size(1) >= 1 && x.size(2) >= 1 && x.size(3) >= 1, op, "only the batch may be empty");
}

void require_indices(const char* op, const Tensor& t, const Tensor& indices) {
  require(t.dim() == 4 && indices.dim() == 4 && indices.scalar_type() == ScalarType::Long, op,
          "indices must be 4-D and int64");
  for (int d = 0; d < 4; d++) require(indices.size(d) == t.size(d), op, "indices must have the pooled shape");
}

// Indices read from memory address memory: kernels pass over what points elsewhere and say so. Those on a GPU do not, for
// the call would have to wait for them.
[[noreturn]] void refuse_indices(const char* op, const int64_t* indices, int64_t least, const Pool2dShape& s) {
  while (*indices >= least && *indices < s.h.in * s.w.in) indices++;
  throw std::invalid_argument(std::string(op) + ": indices must lie in a plane of " + std::to_string(s.h.in) + " x " +
                              std::to_string(s.w.in) + " pixels, got index " + std::to_string(*indices));
}

Layout layout(bool channels_last) { return channels_last ? Layout::nhwc : Layout::nchw; }

Tensor empty_x(const Pool2dShape& s, const Tensor& like) {
  return empty(s.N, s.C, s.h.in, s.w.in, s.layout, like.scalar_type(), like);
}

Tensor empty_y(const Pool2dShape& s, ScalarType type, const Tensor& like) {
  return empty(s.N, s.C, s.h.out, s.w.out, s.layout, type, like);
}

const int64_t* int64s(const void* p) { return static_cast<const int64_t*>(p); }

// The CPU's list and the kernel it chooses as one function, of the signature that cuda::pool2d has.
void cpu_max_fwd(const char* op, const Pool2dShape& s, const void* x, void* y, int64_t* indices,
                 const std::string& algorithm) {
  pool2d::choose_max(op, s, Pass::fwd, algorithm).fwd(s, x, y, {indices, nullptr});
}

void cpu_max_bwd(const char* op, const Pool2dShape& s, const void* dy, const int64_t* indices, void* dx,
                 const std::string& algorithm) {
  pool2d::choose_max(op, s, Pass::bwd_input, algorithm).bwd(s, dy, {indices, nullptr}, dx);
}

void cpu_avg_fwd(const char* op, const Pool2dShape& s, const void* x, void* y, const std::string& algorithm) {
  pool2d::choose_avg(op, s, Pass::fwd, algorithm).fwd(s, x, y);
}

void cpu_avg_bwd(const char* op, const Pool2dShape& s, const void* dy, void* dx, const std::string& algorithm) {
  pool2d::choose_avg(op, s, Pass::bwd_input, algorithm).bwd(s, dy, dx);
}

void cpu_unpool_fwd(const char* op, const Pool2dShape& s, const void* x, const int64_t* indices, void* y,
                    const std::string& algorithm) {
  if (!pool2d::choose_unpool(op, s, Pass::fwd, algorithm).fwd(s, x, indices, y)) refuse_indices(op, indices, 0, s);
}

void cpu_unpool_bwd(const char* op, const Pool2dShape& s, const void* dy, const int64_t* indices, void* dx,
                    const std::string& algorithm) {
  if (!pool2d::choose_unpool(op, s, Pass::bwd_input, algorithm).bwd(s, dy, indices, dx)) {
    refuse_indices(op, indices, -1, s);
  }
}

Tensor2 max_fwd(const char* op, const Pool2dShape& s, const Tensor& x, const std::string& algorithm) {
  const Tensor xd = dense(x, s.layout);
  Tensor y = empty_y(s, x.scalar_type(), x), indices = empty_y(s, ScalarType::Long, x);
  Device on(x);
  on.run(cuda::pool2d::max_fwd, cpu_max_fwd, op, s, on.in("x", xd), on.out("y", y),
         static_cast<int64_t*>(on.out("indices", indices)), algorithm);
  return {y, indices};
}

Tensor max_bwd(const char* op, const Pool2dShape& s, const Tensor& dy, const Tensor& indices,
               const std::string& algorithm) {
  const Tensor dyd = dense(dy, s.layout), id = dense(indices, s.layout);
  Tensor dx = empty_x(s, dy);
  Device on(dy);
  on.run(cuda::pool2d::max_bwd, cpu_max_bwd, op, s, on.in("dy", dyd), int64s(on.in("indices", id)), on.out("dx", dx),
         algorithm);
  return dx;
}

// Taps are for the CPU alone, where indices, eight bytes each, cost more than the maxima.
void require_taps(const char* op, const Pool2dShape& s) {
  require(s.h.dilation == 1 && s.w.dilation == 1 && s.h.kernel * s.w.kernel <= pool2d::most_taps, op,
          "taps are of undilated windows of at most 255 pixels");
}

Pool2dShape max_shape(const char* op, const Tensor& x, PoolAxis h, PoolAxis w, bool ceil_mode) {
  require_image(op, x);
  h.in = x.size(2), w.in = x.size(3);
  return {x.size(0),       x.size(1),   forward_axis(op, h, ceil_mode), forward_axis(op, w, ceil_mode),
          dtype_of(x, op), layout_of(x)};
}

// On the CPU, without indices.
Tensor maxima(const char* op, const Pool2dShape& s, const Tensor& x, uint8_t* taps, const std::string& algorithm) {
  require(!x.is_cuda(), op, "taps are for the CPU");
  const pool2d::MaxKernel& kernel = pool2d::choose_max(op, s, Pass::fwd, algorithm);
  const Tensor xd = dense(x, s.layout);
  Tensor y = empty_y(s, x.scalar_type(), x);
  kernel.fwd(s, xd.const_data_ptr(), y.mutable_data_ptr(), {nullptr, taps});
  return y;
}

Tensor avg_fwd(const char* op, const Pool2dShape& s, const Tensor& x, const std::string& algorithm) {
  const Tensor xd = dense(x, s.layout);
  Tensor y = empty_y(s, x.scalar_type(), x);
  Device on(x);
  on.run(cuda::pool2d::avg_fwd, cpu_avg_fwd, op, s, on.in("x", xd), on.out("y", y), algorithm);
  return y;
}

Tensor avg_bwd(const char* op, const Pool2dShape& s, const Tensor& dy, const std::string& algorithm) {
  const Tensor dyd = dense(dy, s.layout);
  Tensor dx = empty_x(s, dy);
  Device on(dy);
  on.run(cuda::pool2d::avg_bwd, cpu_avg_bwd, op, s, on.in("dy", dyd), on.out("dx", dx), algorithm);
  return dx;
}

}  // namespace

Tensor2 max_pool2d(const Tensor& x, int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH, int64_t PW, int64_t DH,
                   int64_t DW, bool ceil_mode, const std::string& algorithm) {
  const char* op = "max_pool2d";
  return max_fwd(op, max_shape(op, x, {0, 0, KH, SH, PH, DH}, {0, 0, KW, SW, PW, DW}, ceil_mode), x, algorithm);
}

Tensor2 max_pool2d_taps(const Tensor& x, int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH, int64_t PW,
                        int64_t DH, int64_t DW, bool ceil_mode, const std::string& algorithm) {
  const char* op = "max_pool2d";
  const Pool2dShape s = max_shape(op, x, {0, 0, KH, SH, PH, DH}, {0, 0, KW, SW, PW, DW}, ceil_mode);
  require_taps(op, s);
  Tensor taps = empty_y(s, ScalarType::Byte, x);
  const Tensor y = maxima(op, s, x, static_cast<uint8_t*>(taps.mutable_data_ptr()), algorithm);
  return {y, taps};
}

Tensor max_pool2d_values(const Tensor& x, int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH, int64_t PW,
                         int64_t DH, int64_t DW, bool ceil_mode, const std::string& algorithm) {
  const char* op = "max_pool2d";
  const Pool2dShape s = max_shape(op, x, {0, 0, KH, SH, PH, DH}, {0, 0, KW, SW, PW, DW}, ceil_mode);
  return maxima(op, s, x, nullptr, algorithm);
}

Tensor max_pool2d_taps_bwd(const Tensor& dy, const Tensor& taps, int64_t IH, int64_t IW, int64_t KH, int64_t KW,
                           int64_t SH, int64_t SW, int64_t PH, int64_t PW, bool channels_last,
                           const std::string& algorithm) {
  const char* op = "max_pool2d_taps_bwd";
  require(!dy.is_cuda(), op, "taps are for the CPU");
  require(dy.dim() == 4 && taps.dim() == 4 && taps.scalar_type() == ScalarType::Byte, op, "taps must be 4-D and uint8");
  for (int d = 0; d < 4; d++) require(dy.size(d) == taps.size(d), op, "taps must have the pooled shape");
  const Pool2dShape s = {dy.size(0),
                         dy.size(1),
                         backward_axis(op, {IH, dy.size(2), KH, SH, PH, 1}),
                         backward_axis(op, {IW, dy.size(3), KW, SW, PW, 1}),
                         dtype_of(dy, op),
                         layout(channels_last)};
  require_taps(op, s);
  const pool2d::MaxKernel& kernel = pool2d::choose_max(op, s, Pass::bwd_input, algorithm);
  const Tensor dyd = dense(dy, s.layout), td = dense(taps, s.layout);
  Tensor dx = empty_x(s, dy);
  kernel.bwd(s, dyd.const_data_ptr(), {nullptr, static_cast<const uint8_t*>(td.const_data_ptr())},
             dx.mutable_data_ptr());
  return dx;
}

Tensor max_pool2d_bwd(const Tensor& dy, const Tensor& indices, int64_t IH, int64_t IW, int64_t KH, int64_t KW,
                      int64_t SH, int64_t SW, int64_t PH, int64_t PW, int64_t DH, int64_t DW, bool channels_last,
                      const std::string& algorithm) {
  const char* op = "max_pool2d_bwd";
  require_indices(op, dy, indices);
  const Pool2dShape s = {dy.size(0),
                         dy.size(1),
                         backward_axis(op, {IH, dy.size(2), KH, SH, PH, DH}),
                         backward_axis(op, {IW, dy.size(3), KW, SW, PW, DW}),
                         dtype_of(dy, op),
                         layout(channels_last)};
  return max_bwd(op, s, dy, indices, algorithm);
}

Tensor avg_pool2d(const Tensor& x, int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH, int64_t PW,
                  bool ceil_mode, bool count_include_pad, int64_t divisor, const std::string& algorithm) {
  const char* op = "avg_pool2d";
  require_image(op, x);
  const Pool2dShape s = {x.size(0),
                         x.size(1),
                         forward_axis(op, {x.size(2), 0, KH, SH, PH, 1}, ceil_mode),
                         forward_axis(op, {x.size(3), 0, KW, SW, PW, 1}, ceil_mode),
                         dtype_of(x, op),
                         layout_of(x),
                         count_include_pad,
                         divisor};
  return avg_fwd(op, s, x, algorithm);
}

Tensor avg_pool2d_bwd(const Tensor& dy, int64_t IH, int64_t IW, int64_t KH, int64_t KW, int64_t SH, int64_t SW,
                      int64_t PH, int64_t PW, bool count_include_pad, int64_t divisor, bool channels_last,
                      const std::string& algorithm) {
  const char* op = "avg_pool2d_bwd";
  require(dy.dim() == 4, op, "dy must be 4-D");
  const Pool2dShape s = {dy.size(0),
                         dy.size(1),
                         backward_axis(op, {IH, dy.size(2), KH, SH, PH, 1}),
                         backward_axis(op, {IW, dy.size(3), KW, SW, PW, 1}),
                         dtype_of(dy, op),
                         layout(channels_last),
                         count_include_pad,
                         divisor};
  return avg_bwd(op, s, dy, algorithm);
}

Tensor2 adaptive_max_pool2d(const Tensor& x, int64_t OH, int64_t OW, const std::string& algorithm) {
  const char* op = "adaptive_max_pool2d";
  require_image(op, x);
  require(OH >= 0 && OW >= 0, op, "the output size must not be negative");
  const Pool2dShape s = {x.size(0),       x.size(1),   adaptive_axis(x.size(2), OH), adaptive_axis(x.size(3), OW),
                         dtype_of(x, op), layout_of(x)};
  return max_fwd(op, s, x, algorithm);
}

// For any indices, not only those of adaptive windows: the adjoint of max_unpool2d_bwd. Hence no adaptive_axis() here,
// whose strides would let a kernel assume where an index can point.
Tensor adaptive_max_pool2d_bwd(const Tensor& dy, const Tensor& indices, int64_t IH, int64_t IW, bool channels_last,
                               const std::string& algorithm) {
  const char* op = "adaptive_max_pool2d_bwd";
  require_indices(op, dy, indices);
  require(IH >= 1 && IW >= 1, op, "the input's size must be positive");
  const Pool2dShape s = {
      dy.size(0),       dy.size(1),           {IH, dy.size(2), 0, 1, 0, 1}, {IW, dy.size(3), 0, 1, 0, 1},
      dtype_of(dy, op), layout(channels_last)};
  return max_bwd(op, s, dy, indices, algorithm);
}

Tensor adaptive_avg_pool2d(const Tensor& x, int64_t OH, int64_t OW, const std::string& algorithm) {
  const char* op = "adaptive_avg_pool2d";
  require_image(op, x);
  require(OH >= 0 && OW >= 0, op, "the output size must not be negative");
  const Pool2dShape s = {x.size(0),       x.size(1),   adaptive_axis(x.size(2), OH), adaptive_axis(x.size(3), OW),
                         dtype_of(x, op), layout_of(x)};
  return avg_fwd(op, s, x, algorithm);
}

Tensor adaptive_avg_pool2d_bwd(const Tensor& dy, int64_t IH, int64_t IW, bool channels_last,
                               const std::string& algorithm) {
  const char* op = "adaptive_avg_pool2d_bwd";
  require(dy.dim() == 4, op, "dy must be 4-D");
  require(IH >= 1 && IW >= 1, op, "the input's size must be positive");
  const Pool2dShape s = {
      dy.size(0),       dy.size(1),           adaptive_axis(IH, dy.size(2)), adaptive_axis(IW, dy.size(3)),
      dtype_of(dy, op), layout(channels_last)};
  return avg_bwd(op, s, dy, algorithm);
}

Tensor max_unpool2d(const Tensor& x, const Tensor& indices, int64_t OH, int64_t OW, const std::string& algorithm) {
  const char* op = "max_unpool2d";
  require_indices(op, x, indices);
  require(OH >= 0 && OW >= 0, op, "the output size must not be negative");
  const Pool2dShape s = {x.size(0),       x.size(1),   {OH, x.size(2), 0, 1, 0, 1}, {OW, x.size(3), 0, 1, 0, 1},
                         dtype_of(x, op), layout_of(x)};
  const Tensor xd = dense(x, s.layout), id = dense(indices, s.layout);
  Tensor y = empty_x(s, x);
  Device on(x);
  on.run(cuda::pool2d::unpool_fwd, cpu_unpool_fwd, op, s, on.in("x", xd), int64s(on.in("indices", id)), on.out("y", y),
         algorithm);
  return y;
}

Tensor max_unpool2d_bwd(const Tensor& dy, const Tensor& indices, const std::string& algorithm) {
  const char* op = "max_unpool2d_bwd";
  require(dy.dim() == 4 && indices.dim() == 4 && indices.scalar_type() == ScalarType::Long, op,
          "indices must be 4-D and int64");
  require(dy.size(0) == indices.size(0) && dy.size(1) == indices.size(1), op,
          "indices must have the images and channels of dy");
  const Pool2dShape s = {dy.size(0),
                         dy.size(1),
                         {dy.size(2), indices.size(2), 0, 1, 0, 1},
                         {dy.size(3), indices.size(3), 0, 1, 0, 1},
                         dtype_of(dy, op),
                         layout_of(dy)};
  const Tensor dyd = dense(dy, s.layout), id = dense(indices, s.layout);
  Tensor dx = empty_y(s, dy.scalar_type(), dy);
  Device on(dy);
  on.run(cuda::pool2d::unpool_bwd, cpu_unpool_bwd, op, s, on.in("dy", dyd), int64s(on.in("indices", id)),
         on.out("dx", dx), algorithm);
  return dx;
}

}  // namespace pyconv::ops
