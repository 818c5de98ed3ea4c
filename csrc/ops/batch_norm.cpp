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

// batch_norm_relu has kernels for the CPU alone; elsewhere pyconv.ops puts it together.
struct CallOnCpu : Call {
  CallOnCpu(const char* op, const Tensor& input, double eps, bool training) : Call(op, input, eps, training) {
    require(!input.is_cuda(), op, "the operands must be on the CPU");
  }
};

const void* pointer(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

// A tensor beside x: of its shape, dtype and layout.
Tensor alike(const Call& call, const char* what, const Tensor& t) {
  const Tensor& x = call.x;
  require(t.dim() == 4 && t.size(0) == x.size(0) && t.size(1) == x.size(1) && t.size(2) == x.size(2) &&
              t.size(3) == x.size(3) && t.scalar_type() == x.scalar_type(),
          call.op, what);
  return dense(t, call.layout);
}

OptionalTensor alike(const Call& call, const char* what, const OptionalTensor& t) {
  if (!t) return std::nullopt;
  return alike(call, what, *t);
}

constexpr const char* residual_fits = "the residual must have the shape and the dtype of x";

Tensor3 relu_train(const Call& call, const OptionalTensor& residual, const OptionalTensor& weight,
                   const OptionalTensor& bias, const std::string& algorithm) {
  const batch_norm::Kernel& kernel = batch_norm::choose(call.shape, Pass::fwd, algorithm);
  const OptionalTensor wd = call.channels(weight), bd = call.channels(bias), rd = alike(call, residual_fits, residual);
  Tensor y = call.like_x(), mean = call.one_per_channel(), var = call.one_per_channel();
  kernel.train(call.shape, call.x.const_data_ptr(), {pointer(wd), pointer(bd)}, {nullptr, pointer(rd), true},
               y.mutable_data_ptr(), mean.mutable_data_ptr(), var.mutable_data_ptr());
  return {y, mean, var};
}

Tensor relu_eval(const Call& call, const OptionalTensor& residual, const Tensor& mean, const Tensor& var,
                 const OptionalTensor& weight, const OptionalTensor& bias, const std::string& algorithm) {
  const batch_norm::Kernel& kernel = batch_norm::choose(call.shape, Pass::fwd, algorithm);
  const Tensor md = call.channels(mean), vd = call.channels(var);
  const OptionalTensor wd = call.channels(weight), bd = call.channels(bias), rd = alike(call, residual_fits, residual);
  Tensor y = call.like_x();
  kernel.eval(call.shape, call.x.const_data_ptr(), {md.const_data_ptr(), vd.const_data_ptr()},
              {pointer(wd), pointer(bd)}, {nullptr, pointer(rd), true}, y.mutable_data_ptr());
  return y;
}

// dresidual is empty where no residual asks for it.
Tensor4 relu_bwd(const Call& call, const Tensor& dy, const Tensor& y, bool residual, const Tensor& mean,
                 const Tensor& var, const OptionalTensor& weight, const std::string& algorithm) {
  const batch_norm::Kernel& kernel = batch_norm::choose(call.shape, Pass::bwd_input, algorithm);
  const Tensor dyd = alike(call, "dy must have the shape and the dtype of x", dy);
  const Tensor yd = alike(call, "y must have the shape and the dtype of x", y);
  const Tensor md = call.channels(mean), vd = call.channels(var);
  const OptionalTensor wd = call.channels(weight);
  Tensor dx = call.like_x(), dweight = call.one_per_channel(), dbias = call.one_per_channel();
  Tensor dresidual = residual ? call.like_x() : torch::stable::new_empty(call.x, {0});
  kernel.bwd(call.shape, {dyd.const_data_ptr(), yd.const_data_ptr()}, call.x.const_data_ptr(),
             {md.const_data_ptr(), vd.const_data_ptr()}, pointer(wd),
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
                              const OptionalTensor& bias, double eps, const std::string& algorithm) {
  return relu_train(CallOnCpu("pyconv::batch_norm_relu_train", x, eps, true), residual, weight, bias, algorithm);
}

Tensor batch_norm_relu_eval(const Tensor& x, const OptionalTensor& residual, const Tensor& mean, const Tensor& var,
                            const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                            const std::string& algorithm) {
  const CallOnCpu call("pyconv::batch_norm_relu_eval", x, eps, false);
  return relu_eval(call, residual, mean, var, weight, bias, algorithm);
}

Tensor4 batch_norm_relu_train_bwd(const Tensor& dy, const Tensor& y, const Tensor& x, const Tensor& mean,
                                  const Tensor& var, const OptionalTensor& weight, bool residual, double eps,
                                  const std::string& algorithm) {
  const CallOnCpu call("pyconv::batch_norm_relu_train_bwd", x, eps, true);
  return relu_bwd(call, dy, y, residual, mean, var, weight, algorithm);
}

Tensor4 batch_norm_relu_eval_bwd(const Tensor& dy, const Tensor& y, const Tensor& x, const Tensor& mean,
                                 const Tensor& var, const OptionalTensor& weight, bool residual, double eps,
                                 const std::string& algorithm) {
  const CallOnCpu call("pyconv::batch_norm_relu_eval_bwd", x, eps, false);
  return relu_bwd(call, dy, y, residual, mean, var, weight, algorithm);
}

}  // namespace pyconv::ops
