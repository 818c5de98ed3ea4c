// batch_norm / reference.
// Computes  y = act((x - mean[c]) * r[c] * weight[c] + bias[c]),  r = 1/sqrt(var + eps),  for every value of channel c
//           act(v) = min(max(v + residual, 0), ceiling) with what of it is asked for
//           train  mean = sum x / M,  var = sum (x - mean)^2 / M  over the M = N*H*W values;  eval: both are given
//           dresidual = g = dy,  or after a relu dy where 0 < y < ceiling,  with xhat = (x - mean) * r
//           dbias = sum g,  dweight = sum g * xhat
//           dx = weight * r * (g - dbias/M - xhat * dweight/M) in training,  weight * r * g in eval
// Shapes    x, y, dy, dx (N,C,H,W), any layout, through index functions;  all others (C,)
// Cost      train reads x three times, its backward dy and x twice; no workspace. One thread owns a channel
// Limits    none: the floor under every other kernel, and never tuned. Two passes and sums in double: a mean that is
//           large beside the deviation costs no digits
// Source    Ioffe and Szegedy, Batch Normalization, arXiv:1502.03167, algorithm 1 and section 3
#include <cmath>

#include "cpu/batch_norm/batch_norm.h"
#include "cpu/parallel.h"

namespace pyconv::batch_norm {
namespace {

// body(offset) for every value of channel c.
template <class Body>
void for_channel(const NormShape& s, int64_t c, const Body& body) {
  const Index4 X = s.x_index();
  for (int64_t n = 0; n < s.N; n++) {
    for (int64_t h = 0; h < s.H; h++) {
      for (int64_t w = 0; w < s.W; w++) body(X(n, c, h, w));
    }
  }
}

template <class T>
void normalise(const NormShape& s, int64_t c, const T* x, double mean, double var, const acc_t<T>* weight,
               const acc_t<T>* bias, const Epilogue& e, T* y) {
  const double scale = (weight ? weight[c] : 1) / std::sqrt(var + s.eps), offset = bias ? bias[c] : 0;
  const T* residual = static_cast<const T*>(e.residual);
  for_channel(s, c, [&](int64_t i) {
    double v = (widen(x[i]) - mean) * scale + offset;
    if (residual) v += widen(residual[i]);
    store(&y[i], acc_t<T>(e.relu && v < 0 ? 0 : e.relu && v > e.ceiling ? e.ceiling : v));
  });
}

template <class T>
void train(const NormShape& s, const T* x, const acc_t<T>* weight, const acc_t<T>* bias, const Epilogue& e, T* y,
           acc_t<T>* mean, acc_t<T>* var) {
  const double M = at_least(s.per_channel(), 1);
  parallel_for(s.C, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) {
      double sum = 0, squares = 0;
      for_channel(s, c, [&](int64_t i) { sum += widen(x[i]); });
      for_channel(s, c, [&](int64_t i) {
        const double deviation = widen(x[i]) - sum / M;
        squares += deviation * deviation;
      });
      mean[c] = acc_t<T>(sum / M);
      var[c] = acc_t<T>(squares / M);
      normalise(s, c, x, sum / M, squares / M, weight, bias, e, y);
    }
  });
}

template <class T>
void eval(const NormShape& s, const T* x, const acc_t<T>* mean, const acc_t<T>* var, const acc_t<T>* weight,
          const acc_t<T>* bias, const Epilogue& e, T* y) {
  parallel_for(s.C, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) normalise(s, c, x, mean[c], var[c], weight, bias, e, y);
  });
}

template <class T>
void bwd(const NormShape& s, const Upstream& up, const T* x, const acc_t<T>* mean, const acc_t<T>* var,
         const acc_t<T>* weight, const Gradients& out) {
  const T *dy = static_cast<const T*>(up.dy), *y = static_cast<const T*>(up.y);
  const auto g = [&](int64_t i) {
    return y && (widen(y[i]) <= 0 || widen(y[i]) >= up.ceiling) ? acc_t<T>(0) : widen(dy[i]);
  };
  T *dx = static_cast<T*>(out.dx), *dresidual = static_cast<T*>(out.dresidual);
  acc_t<T>*dweight = static_cast<acc_t<T>*>(out.dweight), *dbias = static_cast<acc_t<T>*>(out.dbias);
  const double M = at_least(s.per_channel(), 1);
  parallel_for(s.C, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) {
      const double r = 1 / std::sqrt(var[c] + s.eps), scale = (weight ? weight[c] : 1) * r;
      double dy_sum = 0, dy_xhat_sum = 0;
      for_channel(s, c, [&](int64_t i) {
        dy_sum += g(i);
        dy_xhat_sum += g(i) * ((widen(x[i]) - mean[c]) * r);
      });
      dbias[c] = acc_t<T>(dy_sum);
      dweight[c] = acc_t<T>(dy_xhat_sum);
      const double through_mean = s.training ? dy_sum / M : 0, through_var = s.training ? dy_xhat_sum / M : 0;
      for_channel(s, c, [&](int64_t i) {
        const double xhat = (widen(x[i]) - mean[c]) * r;
        store(&dx[i], acc_t<T>((g(i) - through_mean - xhat * through_var) * scale));
        if (dresidual) store(&dresidual[i], g(i));
      });
    }
  });
}

}  // namespace

std::string reference_why_not(const NormShape&, Pass, Ask) { return ""; }

void reference_train(const NormShape& s, const void* x, const Affine& p, const Epilogue& e, void* y, void* mean,
                     void* var) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    train(s, static_cast<const T*>(x), static_cast<const A*>(p.weight), static_cast<const A*>(p.bias), e,
          static_cast<T*>(y), static_cast<A*>(mean), static_cast<A*>(var));
  });
}

void reference_eval(const NormShape& s, const void* x, const Statistics& given, const Affine& p, const Epilogue& e,
                    void* y) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    eval(s, static_cast<const T*>(x), static_cast<const A*>(given.mean), static_cast<const A*>(given.var),
         static_cast<const A*>(p.weight), static_cast<const A*>(p.bias), e, static_cast<T*>(y));
  });
}

void reference_bwd(const NormShape& s, const Upstream& up, const void* x, const Statistics& given, const void* weight,
                   const Gradients& out) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    bwd(s, up, static_cast<const T*>(x), static_cast<const A*>(given.mean), static_cast<const A*>(given.var),
        static_cast<const A*>(weight), out);
  });
}

}  // namespace pyconv::batch_norm
