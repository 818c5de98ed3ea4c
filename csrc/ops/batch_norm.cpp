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
    require(training ? eps > 0 : eps >= 0, op, "eps must be positive in training and not negative in eval");
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

// What follows the normalisation: a residual, or none, and a relu up to a ceiling.
struct Act {
  OptionalTensor residual;
  bool relu;
  double ceiling;

  Act() : relu(false), ceiling(__builtin_nan("")) {}
  Act(const Call& call, const OptionalTensor& residual, double ceiling)
      : residual(call.alike(residual)), relu(true), ceiling(ceiling_in(call.shape.dtype, ceiling)) {}
  Epilogue on(const Device& device) const { return {nullptr, device.in("residual", residual), relu, ceiling}; }
};

Tensor3 train(const Call& call, const OptionalTensor& weight, const OptionalTensor& bias, const Act& act,
              const std::string& algorithm) {
  require(call.shape.N * call.shape.plane() != 1, call.op, "training needs more than one value per channel");
  const OptionalTensor wd = call.channels(weight), bd = call.channels(bias);
  Tensor y = call.like_x(), mean = call.one_per_channel(), var = call.one_per_channel();
  Device on(call.x);
  const Affine p = {on.in("weight", wd), on.in("bias", bd)};
  on.run(cuda::batch_norm::train, batch_norm::train, call.shape, on.in("x", call.x), p, act.on(on), on.out("y", y),
         on.out("mean", mean), on.out("var", var), algorithm);
  return {y, mean, var};
}

Tensor eval(const Call& call, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
            const OptionalTensor& bias, const Act& act, const std::string& algorithm) {
  const Tensor md = call.channels(mean), vd = call.channels(var);
  const OptionalTensor wd = call.channels(weight), bd = call.channels(bias);
  Tensor y = call.like_x();
  Device on(call.x);
  const Statistics given = {on.in("mean", md), on.in("var", vd)};
  const Affine p = {on.in("weight", wd), on.in("bias", bd)};
  on.run(cuda::batch_norm::eval, batch_norm::eval, call.shape, on.in("x", call.x), given, p, act.on(on), on.out("y", y),
         algorithm);
  return y;
}

// After a relu, y is its output; a residual's gradient where one is asked for, else of no values.
Tensor4 bwd(const Call& call, const Tensor& dy, const OptionalTensor& y, double ceiling, const Tensor& mean,
            const Tensor& var, const OptionalTensor& weight, bool residual, const std::string& algorithm) {
  const Tensor dyd = call.alike(dy), md = call.channels(mean), vd = call.channels(var);
  const OptionalTensor yd = call.alike(y), wd = call.channels(weight);
  Tensor dx = call.like_x(), dweight = call.one_per_channel(), dbias = call.one_per_channel();
  Tensor dresidual = residual ? call.like_x() : torch::stable::new_empty(call.x, {0});
  Device on(call.x);
  const Statistics given = {on.in("mean", md), on.in("var", vd)};
  const Upstream up = {on.in("dy", dyd), on.in("y", yd), ceiling_in(call.shape.dtype, ceiling)};
  const Gradients out = {on.out("dx", dx), on.out("dweight", dweight), on.out("dbias", dbias),
                         residual ? on.out("dresidual", dresidual) : nullptr};
  on.run(cuda::batch_norm::bwd, batch_norm::bwd, call.shape, up, on.in("x", call.x), given, on.in("weight", wd), out,
         algorithm);
  return {dx, dresidual, dweight, dbias};
}

Tensor3 bwd(const Call& call, const Tensor& dy, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
            const std::string& algorithm) {
  const auto [dx, _, dweight, dbias] =
      bwd(call, dy, std::nullopt, __builtin_inf(), mean, var, weight, false, algorithm);
  return {dx, dweight, dbias};
}

// As torch's lerp: from the nearer end, so that a momentum of 1 gives the batch's value itself.
template <class T>
void move(Tensor& running, const Tensor& batch, double factor, double momentum) {
  T* const r = static_cast<T*>(running.mutable_data_ptr());
  const T* const b = static_cast<const T*>(batch.const_data_ptr());
  const T f = T(factor), m = T(momentum);
  for (int64_t c = 0; c < batch.numel(); c++) {
    const T target = b[c] * f, way = target - r[c];
    r[c] = m < T(0.5) ? r[c] + m * way : target - (1 - m) * way;
  }
}

}  // namespace

void batch_norm_move(Tensor running_mean, Tensor running_var, const Tensor& mean, const Tensor& var, int64_t values,
                     double momentum) {
  const ScalarType type = mean.scalar_type();
  const bool wide = type == ScalarType::Double;
  for (const Tensor& t : {running_mean, running_var, mean, var}) {
    require(t.dim() == 1 && t.size(0) == mean.size(0) && t.is_contiguous() && t.scalar_type() == type &&
                (wide || type == ScalarType::Float),
            "pyconv::batch_norm_move", "statistics must be dense, of one size, all of float32 or all of float64");
  }
  const auto move_one = wide ? move<double> : move<float>;
  move_one(running_mean, mean, 1, momentum);
  move_one(running_var, var, double(values) / double(values - 1), momentum);
}

Tensor3 batch_norm_train(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                         const std::string& algorithm) {
  return train(Call("pyconv::batch_norm_train", x, eps, true), weight, bias, {}, algorithm);
}

Tensor batch_norm_eval(const Tensor& x, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
                       const OptionalTensor& bias, double eps, const std::string& algorithm) {
  return eval(Call("pyconv::batch_norm_eval", x, eps, false), mean, var, weight, bias, {}, algorithm);
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
  return train(call, weight, bias, {call, residual, ceiling}, algorithm);
}

Tensor batch_norm_relu_eval(const Tensor& x, const OptionalTensor& residual, const Tensor& mean, const Tensor& var,
                            const OptionalTensor& weight, const OptionalTensor& bias, double eps, double ceiling,
                            const std::string& algorithm) {
  const Call call("pyconv::batch_norm_relu_eval", x, eps, false);
  return eval(call, mean, var, weight, bias, {call, residual, ceiling}, algorithm);
}

Tensor4 batch_norm_relu_train_bwd(const Tensor& dy, const Tensor& y, const Tensor& x, const Tensor& mean,
                                  const Tensor& var, const OptionalTensor& weight, bool residual, double eps,
                                  double ceiling, const std::string& algorithm) {
  const Call call("pyconv::batch_norm_relu_train_bwd", x, eps, true);
  return bwd(call, dy, y, ceiling, mean, var, weight, residual, algorithm);
}

Tensor4 batch_norm_relu_eval_bwd(const Tensor& dy, const Tensor& y, const Tensor& x, const Tensor& mean,
                                 const Tensor& var, const OptionalTensor& weight, bool residual, double eps,
                                 double ceiling, const std::string& algorithm) {
  const Call call("pyconv::batch_norm_relu_eval_bwd", x, eps, false);
  return bwd(call, dy, y, ceiling, mean, var, weight, residual, algorithm);
}

}  // namespace pyconv::ops
