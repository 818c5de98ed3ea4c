// batch_norm and batch_norm_relu in training and in eval, and the gradients of each: tensors to shapes and pointers.
#include "cpu/batch_norm/batch_norm.h"

#include "cuda/batch_norm/batch_norm.h"
#include "ops/device.h"
#include "ops/ops.h"

namespace pyconv::ops {
namespace {

// One operand and what the call keeps per channel: float32, or float64 for float64 data.
struct Call {
  const char* op;
  NormShape shape;
  Layout layout;  // of x and of the output
  ScalarType per_channel;
  Tensor x;

  Call(const char* op, const Tensor& input, double eps, bool training)
      : op(op), layout(layout_of(input)), per_channel(ScalarType::Float), x(input) {
    require(input.dim() == 4, op, "x must be 4-D");
    const DType dtype = dtype_of(input, op);
    if (dtype == DType::f64) per_channel = ScalarType::Double;
    x = dense(input, layout);
    shape = {x.size(0), x.size(1), x.size(2), x.size(3), dtype, layout, eps, training};
    // Where both layouts are the same memory, take the one with lanes to fill.
    if (shape.C == 1) shape.layout = Layout::nchw;
    if (shape.C > 1 && shape.plane() == 1) shape.layout = Layout::nhwc;
  }

  Tensor like_x() const { return empty(shape.N, shape.C, shape.H, shape.W, layout, x.scalar_type(), x); }

  Tensor one_per_channel() const { return empty(shape.C, per_channel, x); }

  Tensor channels(const Tensor& t) const {
    require(t.dim() == 1 && t.size(0) == shape.C && t.scalar_type() == per_channel, op,
            "weight, bias, mean and var must be (C,), float64 for float64 data and float32 for all other");
    return dense(t, Layout::nchw);
  }

  OptionalTensor channels(const OptionalTensor& t) const { return t ? OptionalTensor(channels(*t)) : std::nullopt; }

  Tensor alike(const Tensor& t) const {
    require(t.dim() == 4 && t.size(0) == x.size(0) && t.size(1) == x.size(1) && t.size(2) == x.size(2) &&
                t.size(3) == x.size(3) && t.scalar_type() == x.scalar_type(),
            op, "dy, y and residual must have the shape and the dtype of x");
    return dense(t, layout);
  }

  OptionalTensor alike(const OptionalTensor& t) const { return t ? OptionalTensor(alike(*t)) : std::nullopt; }
};

Tensor3 bwd(const Call& call, const Tensor& dy, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
            const std::string& algorithm) {
  const Tensor dyd = call.alike(dy), md = call.channels(mean), vd = call.channels(var);
  const OptionalTensor wd = call.channels(weight);
  Tensor dx = call.like_x(), dweight = call.one_per_channel(), dbias = call.one_per_channel();
  Device on(call.x);
  const Statistics given = {on.in("mean", md), on.in("var", vd)};
  const Gradients out = {on.out("dx", dx), on.out("dweight", dweight), on.out("dbias", dbias)};
  on.run(cuda::batch_norm::bwd, batch_norm::bwd, call.shape, on.in("dy", dyd), on.in("x", call.x), given,
         on.in("weight", wd), out, algorithm);
  return {dx, dweight, dbias};
}

// batch_norm_relu: kernels for the CPU alone. pyconv.ops puts the operator together elsewhere.

void require_cpu(const Call& call) { require(!Device(call.x).cuda(), call.op, "there is no CUDA kernel"); }

const void* pointer(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

Tensor4 relu_bwd(const Call& call, const Tensor& dy, const Tensor& y, const Tensor& mean, const Tensor& var,
                 const OptionalTensor& weight, bool residual, double ceiling, const std::string& algorithm) {
  require_cpu(call);
  const Tensor dyd = call.alike(dy), yd = call.alike(y), md = call.channels(mean), vd = call.channels(var);
  const OptionalTensor wd = call.channels(weight);
  Tensor dx = call.like_x(), dweight = call.one_per_channel(), dbias = call.one_per_channel();
  Tensor dresidual = residual ? call.like_x() : torch::stable::new_empty(call.x, {0});
  batch_norm::choose(call.shape, Pass::bwd_input, algorithm)
      .bwd(call.shape, {dyd.const_data_ptr(), yd.const_data_ptr(), ceiling_in(call.shape.dtype, ceiling)},
           call.x.const_data_ptr(), {md.const_data_ptr(), vd.const_data_ptr()}, pointer(wd),
           {dx.mutable_data_ptr(), dweight.mutable_data_ptr(), dbias.mutable_data_ptr(),
            residual ? dresidual.mutable_data_ptr() : nullptr});
  return {dx, dresidual, dweight, dbias};
}

}  // namespace

Tensor3 batch_norm_train(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                         const std::string& algorithm) {
  const Call call("pyconv::batch_norm_train", x, eps, true);
  const OptionalTensor wd = call.channels(weight), bd = call.channels(bias);
  Tensor y = call.like_x(), mean = call.one_per_channel(), var = call.one_per_channel();
  Device on(x);
  const Affine p = {on.in("weight", wd), on.in("bias", bd)};
  on.run(cuda::batch_norm::train, batch_norm::train, call.shape, on.in("x", call.x), p, on.out("y", y),
         on.out("mean", mean), on.out("var", var), algorithm);
  return {y, mean, var};
}

Tensor batch_norm_eval(const Tensor& x, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
                       const OptionalTensor& bias, double eps, const std::string& algorithm) {
  const Call call("pyconv::batch_norm_eval", x, eps, false);
  const Tensor md = call.channels(mean), vd = call.channels(var);
  const OptionalTensor wd = call.channels(weight), bd = call.channels(bias);
  Tensor y = call.like_x();
  Device on(x);
  const Statistics given = {on.in("mean", md), on.in("var", vd)};
  const Affine p = {on.in("weight", wd), on.in("bias", bd)};
  on.run(cuda::batch_norm::eval, batch_norm::eval, call.shape, on.in("x", call.x), given, p, on.out("y", y), algorithm);
  return y;
}

Tensor3 batch_norm_train_bwd(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var,
                             const OptionalTensor& weight, double eps, const std::string& algorithm) {
  return bwd(Call("pyconv::batch_norm_train_bwd", x, eps, true), dy, mean, var, weight, algorithm);
}

Tensor3 batch_norm_eval_bwd(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var,
                            const OptionalTensor& weight, double eps, const std::string& algorithm) {
  return bwd(Call("pyconv::batch_norm_eval_bwd", x, eps, false), dy, mean, var, weight, algorithm);
}

Tensor3 batch_norm_relu_train(const Tensor& x, const OptionalTensor& residual, const OptionalTensor& weight,
                              const OptionalTensor& bias, double eps, double ceiling, const std::string& algorithm) {
  const Call call("pyconv::batch_norm_relu_train", x, eps, true);
  require_cpu(call);
  const OptionalTensor rd = call.alike(residual), wd = call.channels(weight), bd = call.channels(bias);
  Tensor y = call.like_x(), mean = call.one_per_channel(), var = call.one_per_channel();
  batch_norm::choose(call.shape, Pass::fwd, algorithm)
      .train(call.shape, call.x.const_data_ptr(), {pointer(wd), pointer(bd)},
             {nullptr, pointer(rd), true, ceiling_in(call.shape.dtype, ceiling)}, y.mutable_data_ptr(),
             mean.mutable_data_ptr(), var.mutable_data_ptr());
  return {y, mean, var};
}

Tensor batch_norm_relu_eval(const Tensor& x, const OptionalTensor& residual, const Tensor& mean, const Tensor& var,
                            const OptionalTensor& weight, const OptionalTensor& bias, double eps, double ceiling,
                            const std::string& algorithm) {
  const Call call("pyconv::batch_norm_relu_eval", x, eps, false);
  require_cpu(call);
  const Tensor md = call.channels(mean), vd = call.channels(var);
  const OptionalTensor rd = call.alike(residual), wd = call.channels(weight), bd = call.channels(bias);
  Tensor y = call.like_x();
  batch_norm::choose(call.shape, Pass::fwd, algorithm)
      .eval(call.shape, call.x.const_data_ptr(), {md.const_data_ptr(), vd.const_data_ptr()}, {pointer(wd), pointer(bd)},
            {nullptr, pointer(rd), true, ceiling_in(call.shape.dtype, ceiling)}, y.mutable_data_ptr());
  return y;
}

Tensor4 batch_norm_relu_train_bwd(const Tensor& dy, const Tensor& y, const Tensor& x, const Tensor& mean,
                                  const Tensor& var, const OptionalTensor& weight, bool residual, double eps,
                                  double ceiling, const std::string& algorithm) {
  const Call call("pyconv::batch_norm_relu_train_bwd", x, eps, true);
  return relu_bwd(call, dy, y, mean, var, weight, residual, ceiling, algorithm);
}

Tensor4 batch_norm_relu_eval_bwd(const Tensor& dy, const Tensor& y, const Tensor& x, const Tensor& mean,
                                 const Tensor& var, const OptionalTensor& weight, bool residual, double eps,
                                 double ceiling, const std::string& algorithm) {
  const Call call("pyconv::batch_norm_relu_eval_bwd", x, eps, false);
  return relu_bwd(call, dy, y, mean, var, weight, residual, ceiling, algorithm);
}

}  // namespace pyconv::ops
