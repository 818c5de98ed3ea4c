// conv2d, its input gradient and its weight gradient: tensors to shapes and pointers.
#include "cpu/conv2d/conv2d.h"

#include "cuda/conv2d/conv2d.h"
#include "ops/device.h"
#include "ops/ops.h"

namespace pyconv::ops {
namespace {

struct Geometry {
  int64_t SH, SW, PH, PW, DH, DW, G;
};

int64_t output_size(int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = in + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

Conv2dShape shape_of(const char* op, int64_t N, int64_t IC, int64_t IH, int64_t IW, int64_t OC, int64_t KH, int64_t KW,
                     const Geometry& g, DType dtype, Layout layout) {
  require(g.G >= 1 && g.SH >= 1 && g.SW >= 1 && g.DH >= 1 && g.DW >= 1 && g.PH >= 0 && g.PW >= 0, op,
          "stride, dilation and groups must be positive, padding not negative");
  require(IC >= 1 && OC >= 1 && KH >= 1 && KW >= 1 && IC % g.G == 0 && OC % g.G == 0, op,
          "channels must be positive multiples of groups, kernels not empty");
  const int64_t OH = output_size(IH, KH, g.SH, g.PH, g.DH), OW = output_size(IW, KW, g.SW, g.PW, g.DW);
  require(OH >= 1 && OW >= 1, op, "the kernel must fit into the padded input");
  return {N, g.G, IC, IH, IW, OC, KH, KW, OH, OW, g.SH, g.SW, g.PH, g.PW, g.DH, g.DW, dtype, layout};
}

void require_pair(const char* op, const Tensor& a, const Tensor& b) {
  require(a.dim() == 4 && b.dim() == 4, op, "both operands must be 4-D");
  require(a.scalar_type() == b.scalar_type(), op, "both operands must have one dtype");
}

void require_output(const char* op, const Conv2dShape& s, const Tensor& t) {
  require(t.size(0) == s.N && t.size(1) == s.OC && t.size(2) == s.OH && t.size(3) == s.OW, op,
          "dy and residual must have the output's shape");
}

Conv2dShape forward_shape(const char* op, const Tensor& x, const Tensor& w, const Geometry& g) {
  require_pair(op, x, w);
  const Conv2dShape s = shape_of(op, x.size(0), x.size(1), x.size(2), x.size(3), w.size(0), w.size(2), w.size(3), g,
                                 dtype_of(x, op), either(layout_of(x), layout_of(w)));
  require(w.size(1) == s.ic_per_group(), op, "weight must be (OC, IC/groups, KH, KW)");
  return s;
}

// y = act(conv(x, w) + b + residual): both forward ops.
Tensor forward(const char* op, const Tensor& x, const Tensor& w, const OptionalTensor& b,
               const OptionalTensor& residual, bool relu, double ceiling, const Geometry& g,
               const OptionalTensor& packed, const std::string& algorithm) {
  const Conv2dShape s = forward_shape(op, x, w, g);
  require(!b || (b->dim() == 1 && b->size(0) == s.OC && b->scalar_type() == x.scalar_type()), op,
          "bias must be (OC,) of the input's dtype");
  if (residual) {
    require_pair(op, x, *residual);
    require_output(op, s, *residual);
  }

  const Tensor xd = dense(x, s.layout), wd = dense(w, s.layout);
  OptionalTensor bd, rd;
  if (b) bd = dense(*b, Layout::nchw);
  if (residual) rd = dense(*residual, s.layout);
  Tensor y = empty(s.N, s.OC, s.OH, s.OW, s.layout, x.scalar_type(), x);
  Device on(x);
  const Epilogue e = {on.in("bias", bd), on.in("residual", rd), relu, ceiling_in(s.dtype, ceiling)};
  if (packed && !on.cuda()) {
    require(packed->scalar_type() == ScalarType::Byte && packed->is_contiguous(), op, "packed must be conv2d_pack's");
    conv2d::fwd_packed(s, xd.const_data_ptr(), wd.const_data_ptr(), packed->const_data_ptr(), packed->numel(), e,
                       y.mutable_data_ptr(), algorithm);
  } else {
    on.run(cuda::conv2d::fwd, conv2d::fwd, s, on.in("x", xd), on.in("w", wd), e, on.out("y", y), algorithm);
  }
  return y;
}

}  // namespace

Tensor conv2d(const Tensor& x, const Tensor& w, const OptionalTensor& b, int64_t SH, int64_t SW, int64_t PH, int64_t PW,
              int64_t DH, int64_t DW, int64_t G, const std::string& algorithm) {
  return forward("pyconv::conv2d", x, w, b, OptionalTensor(), false, __builtin_inf(), {SH, SW, PH, PW, DH, DW, G},
                 OptionalTensor(), algorithm);
}

Tensor conv2d_fused(const Tensor& x, const Tensor& w, const OptionalTensor& b, const OptionalTensor& residual,
                    bool relu, double ceiling, int64_t SH, int64_t SW, int64_t PH, int64_t PW, int64_t DH, int64_t DW,
                    int64_t G, const OptionalTensor& packed, const std::string& algorithm) {
  return forward("pyconv::conv2d_fused", x, w, b, residual, relu, ceiling, {SH, SW, PH, PW, DH, DW, G}, packed,
                 algorithm);
}

Tensor conv2d_pack(const Tensor& x, const Tensor& w, int64_t SH, int64_t SW, int64_t PH, int64_t PW, int64_t DH,
                   int64_t DW, int64_t G, const std::string& algorithm) {
  const Conv2dShape s = forward_shape("pyconv::conv2d_pack", x, w, {SH, SW, PH, PW, DH, DW, G});
  const Tensor wd = dense(w, s.layout);
  const int64_t bytes = Device(x).cuda() ? 0 : conv2d::packed_bytes(s, algorithm);
  Tensor packed = empty(bytes, 1, 1, 1, Layout::nchw, ScalarType::Byte, w);
  if (packed.numel() > 0) conv2d::pack(s, wd.const_data_ptr(), packed.mutable_data_ptr(), algorithm);
  return packed;
}

Tensor conv2d_bwd_input(const Tensor& dy, const Tensor& w, int64_t IH, int64_t IW, int64_t SH, int64_t SW, int64_t PH,
                        int64_t PW, int64_t DH, int64_t DW, int64_t G, bool channels_last,
                        const std::string& algorithm) {
  const char* op = "pyconv::conv2d_bwd_input";
  require_pair(op, dy, w);
  const Layout layout = channels_last ? Layout::nhwc : Layout::nchw;
  const Conv2dShape s = shape_of(op, dy.size(0), w.size(1) * G, IH, IW, w.size(0), w.size(2), w.size(3),
                                 {SH, SW, PH, PW, DH, DW, G}, dtype_of(dy, op), layout);
  require_output(op, s, dy);

  const Tensor dyd = dense(dy, layout), wd = dense(w, layout);
  Tensor dx = empty(s.N, s.IC, s.IH, s.IW, layout, dy.scalar_type(), dy);
  Device on(dy);
  on.run(cuda::conv2d::bwd_input, conv2d::bwd_input, s, on.in("dy", dyd), on.in("w", wd), on.out("dx", dx), algorithm);
  return dx;
}

Tensor conv2d_bwd_weight(const Tensor& dy, const Tensor& x, int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH,
                         int64_t PW, int64_t DH, int64_t DW, int64_t G, bool channels_last,
                         const std::string& algorithm) {
  const char* op = "pyconv::conv2d_bwd_weight";
  require_pair(op, dy, x);
  const Layout layout = channels_last ? Layout::nhwc : Layout::nchw;
  const Conv2dShape s = shape_of(op, x.size(0), x.size(1), x.size(2), x.size(3), dy.size(1), KH, KW,
                                 {SH, SW, PH, PW, DH, DW, G}, dtype_of(dy, op), layout);
  require_output(op, s, dy);

  const Tensor dyd = dense(dy, layout), xd = dense(x, layout);
  Tensor dw = empty(s.OC, s.ic_per_group(), KH, KW, layout, dy.scalar_type(), dy);
  Device on(dy);
  on.run(cuda::conv2d::bwd_weight, conv2d::bwd_weight, s, on.in("dy", dyd), on.in("x", xd), on.out("dw", dw),
         algorithm);
  return dw;
}

Tensor3 conv2d_bwd(const Tensor& dy, const OptionalTensor& x, const OptionalTensor& w, int64_t IH, int64_t IW,
                   int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH, int64_t PW, int64_t DH, int64_t DW,
                   int64_t G, bool channels_last, bool bias, const std::string& algorithm) {
  const char* op = "pyconv::conv2d_bwd";
  require(dy.dim() == 4, op, "dy must be 4-D");
  const Layout layout = channels_last ? Layout::nhwc : Layout::nchw;
  const Tensor dyd = dense(dy, layout);
  const auto none = [&] { return empty(0, dy.scalar_type(), dy); };
  const Tensor dx = w ? conv2d_bwd_input(dyd, *w, IH, IW, SH, SW, PH, PW, DH, DW, G, channels_last, algorithm) : none();
  const Tensor dw =
      x ? conv2d_bwd_weight(dyd, *x, KH, KW, SH, SW, PH, PW, DH, DW, G, channels_last, algorithm) : none();
  if (!bias) return {dx, dw, none()};

  require(!Device(dy).cuda(), op, "there is no CUDA kernel for the bias");
  Conv2dShape s = {};
  s.N = dy.size(0), s.OC = dy.size(1), s.OH = dy.size(2), s.OW = dy.size(3);
  s.dtype = dtype_of(dy, op), s.layout = layout;
  Tensor db = empty(s.OC, dy.scalar_type(), dy);
  conv2d::bwd_bias(s, dyd.const_data_ptr(), db.mutable_data_ptr());
  return {dx, dw, db};
}

}  // namespace pyconv::ops
