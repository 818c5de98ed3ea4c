// Every batch norm kernel of the list against plain loops in double, over random shapes; no Python, no torch.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/batch_norm/batch_norm.h"
#include "cpu/cache.h"
#include "tests/check.h"

using namespace pyconv;

namespace {

struct Random {
  std::mt19937 engine{1};
  int64_t operator()(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
};

NormShape random_shape(Random& draw) {
  NormShape s;
  s.N = draw(0, 3), s.C = draw(1, 80), s.H = draw(1, 25), s.W = draw(1, 25);
  s.dtype = static_cast<DType>(draw(0, 3));
  s.layout = static_cast<Layout>(draw(0, 1));
  s.eps = 0.1;
  s.training = draw(0, 1);
  return s;
}

struct Act {
  bool relu, residual;
  double ceiling;
};

struct Expected {
  std::vector<double> y, dx, dresidual, dweight, dbias;
};

double stored(DType dtype, double y) {
  with_type(dtype, [&](auto type) {
    store(&type, acc_t<decltype(type)>(y));
    y = widen(type);
  });
  return y;
}

// mean and var are given, or found where s.training says so.
Expected plain_loops(const NormShape& s, const std::vector<double>& x, const std::vector<double>& dy,
                     const std::vector<double>& weight, const std::vector<double>& bias,
                     const std::vector<double>& residual, const Act& act, std::vector<double>& mean,
                     std::vector<double>& var) {
  const Index4 X = s.x_index();
  const double M = s.per_channel();
  Expected e{x, x, dy, mean, mean};
  for (int64_t c = 0; c < s.C; c++) {
    std::vector<int64_t> at;
    for (int64_t n = 0; n < s.N; n++)
      for (int64_t h = 0; h < s.H; h++)
        for (int64_t w = 0; w < s.W; w++) at.push_back(X(n, c, h, w));
    if (s.training) {
      long double sum = 0, squares = 0;
      for (int64_t i : at) sum += x[i];
      for (int64_t i : at) squares += (x[i] - sum / M) * (x[i] - sum / M);
      mean[c] = at.empty() ? 0 : sum / M, var[c] = at.empty() ? 0 : squares / M;
    }
    const double r = 1 / std::sqrt(var[c] + s.eps);
    e.dweight[c] = e.dbias[c] = 0;
    for (int64_t i : at) {
      e.y[i] = (x[i] - mean[c]) * r * weight[c] + bias[c] + (act.residual ? residual[i] : 0);
      if (act.relu && e.y[i] <= 0) e.y[i] = e.dresidual[i] = 0;
      if (act.relu && stored(s.dtype, e.y[i]) >= act.ceiling) e.y[i] = act.ceiling, e.dresidual[i] = 0;
      e.dbias[c] += e.dresidual[i], e.dweight[c] += e.dresidual[i] * (x[i] - mean[c]) * r;
    }
    for (int64_t i : at) {
      const double xhat = (x[i] - mean[c]) * r;
      e.dx[i] = weight[c] * r * (e.dresidual[i] - (s.training ? (e.dbias[c] + xhat * e.dweight[c]) / M : 0));
    }
  }
  return e;
}

double eps_of(double) { return 0x1p-52; }
double eps_of(float) { return 0x1p-23; }
double eps_of(f16) { return 0x1p-10; }
double eps_of(bf16) { return 0x1p-7; }

// Up to the rounding of the value to T, and `roundings` before that in the type of the sums.
template <class T>
bool close(const char* what, const Typed<T>& got, const std::vector<double>& expected, double roundings) {
  const double eps = eps_of(T()) + roundings * eps_of(acc_t<T>());
  for (size_t i = 0; i < expected.size(); i++) {
    const double value = widen(got.data()[i]);
    if (!(std::abs(value - expected[i]) <= eps * (std::abs(expected[i]) + 1))) {
      std::printf("  %s[%zu] is %g, expected %g\n", what, i, value, expected[i]);
      return false;
    }
  }
  return true;
}

template <class T>
bool check(const NormShape& s, const Act& act, const std::string& algorithm, Random& draw) {
  using A = acc_t<T>;
  const batch_norm::Kernel& kernel = batch_norm::choose(s, Pass::fwd, algorithm);
  std::vector<double> x(s.C * s.per_channel()), dy(x.size()), residual(x.size()), weight(s.C), bias(s.C), mean(s.C),
      var(s.C);
  for (auto* values : {&x, &dy, &residual, &weight, &bias, &mean, &var}) {
    for (double& v : *values) v = static_cast<double>(draw(-3, 3));
  }
  for (double& v : var) v += 4;
  const Expected e = plain_loops(s, x, dy, weight, bias, residual, act, mean, var);
  const Typed<T> tx(x), tdy(dy), tresidual(residual),
      given_y(e.y);  // so that no rounding decides what passed
  const Typed<A> tweight(weight), tbias(bias);
  const size_t alignment = draw(0, 1) ? 64 : 16;  // of 16, a vector may not be streamed
  Typed<T> y(x.size(), alignment), dx(x.size(), alignment), dresidual(x.size(), alignment);
  Typed<A> tmean(mean), tvar(var), dweight(s.C), dbias(s.C);
  const batch_norm::Affine affine = {tweight.data(), tbias.data()};
  const Epilogue epilogue = {nullptr, act.residual ? tresidual.data() : nullptr, act.relu, act.ceiling};
  if (s.training) {
    kernel.train(s, tx.data(), affine, epilogue, y.data(), tmean.data(), tvar.data());
  } else {
    kernel.eval(s, tx.data(), {tmean.data(), tvar.data()}, affine, epilogue, y.data());
  }
  kernel.bwd(s, {tdy.data(), act.relu ? given_y.data() : nullptr, act.ceiling}, tx.data(), {tmean.data(), tvar.data()},
             tweight.data(), {dx.data(), dweight.data(), dbias.data(), dresidual.data()});
  return close("mean", tmean, mean, 400) & close("var", tvar, var, 400) & close("y", y, e.y, 400) &
         close("dx", dx, e.dx, 400) & close("dresidual", dresidual, e.dresidual, 0) &
         close("dweight", dweight, e.dweight, 4000) & close("dbias", dbias, e.dbias, 400);
}

}  // namespace

int main() {
  if (!set_up()) return skipped;
  Random draw;
  int bad = 0, cases = 0;
  const int64_t cache = last_cache_bytes;
  for (int i = 0; i < 200; i++) {
    const NormShape s = random_shape(draw);
    const Act act = {draw(0, 1) == 1, draw(0, 1) == 1, draw(0, 1) ? 2 : std::nan("")};
    last_cache_bytes = draw(0, 1) ? 0 : cache;  // everything is too large for none
    for (const Answer& answer : batch_norm::ask(s, Pass::fwd, Ask::able)) {
      if (!answer.why.empty()) continue;
      cases++;
      bool good = false;
      with_type(s.dtype, [&](auto type) { good = check<decltype(type)>(s, act, answer.kernel, draw); });
      if (good) continue;
      bad++;
      std::printf("%s %s %s %s N%ld C%ld H%ld W%ld\n", answer.kernel.c_str(), s.training ? "train" : "eval",
                  name_of(s.dtype), name_of(s.layout), long(s.N), long(s.C), long(s.H), long(s.W));
    }
  }
  std::printf("%d batch norms on %s, %d wrong\n", cases, name_of(isa()), bad);
  return bad != 0;
}
