// batch_norm in training and in eval, and the gradients of each: tensors to shapes and pointers.
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

  Tensor one_per_channel() const { return torch::stable::new_empty(x, {shape.C}, per_channel); }

  Tensor channels(const Tensor& t) const {
    require(t.dim() == 1 && t.size(0) == shape.C && t.scalar_type() == per_channel, op,
            "weight, bias, mean and var must be (C,), float64 for float64 data and float32 for all other");
    return dense(t, Layout::nchw);
  }

  OptionalTensor channels(const OptionalTensor& t) const { return t ? OptionalTensor(channels(*t)) : std::nullopt; }
};

Tensor3 bwd(const Call& call, const Tensor& dy, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
            const std::string& algorithm) {
  const Tensor& x = call.x;
  require(dy.dim() == 4 && dy.size(0) == x.size(0) && dy.size(1) == x.size(1) && dy.size(2) == x.size(2) &&
              dy.size(3) == x.size(3) && dy.scalar_type() == x.scalar_type(),
          call.op, "dy must have the shape and the dtype of x");
  const Tensor dyd = dense(dy, call.layout), md = call.channels(mean), vd = call.channels(var);
  const OptionalTensor wd = call.channels(weight);
  Tensor dx = call.like_x(), dweight = call.one_per_channel(), dbias = call.one_per_channel();
  Device on(x);
  const Statistics given = {on.in("mean", md), on.in("var", vd)};
  const Gradients out = {on.out("dx", dx), on.out("dweight", dweight), on.out("dbias", dbias)};
  on.run(cuda::batch_norm::bwd, batch_norm::bwd, call.shape, on.in("dy", dyd), on.in("x", x), given,
         on.in("weight", wd), out, algorithm);
  return {dx, dweight, dbias};
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

}  // namespace pyconv::ops
