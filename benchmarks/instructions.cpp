// Calls every convolution kernel once on each layer of stdin, inside a function that callgrind can find; for
// benchmarks/instructions.py. No torch, no Python, one thread.
//
//   stdin   name N G IC IH IW OC KH KW SH SW PH PW DH DW      a line for each layer
//   stdout  compiler VERSION, then for each call: name layout pass algorithm, and "chosen" behind the list's choice
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "cpu/conv2d/conv2d.h"

using namespace pyconv;

namespace {

struct Call {
  const Conv2dShape& s;
  Pass pass;
  std::string algorithm;
  const float *x, *w, *dy;
  float *y, *dx, *dw;

  void run() const {
    if (pass == Pass::fwd) return conv2d::fwd(s, x, w, {}, y, algorithm);
    if (pass == Pass::bwd_input) return conv2d::bwd_input(s, dy, w, dx, algorithm);
    conv2d::bwd_weight(s, dy, x, dw, algorithm);
  }
};

}  // namespace

extern "C" __attribute__((noinline)) void counted(const Call& call) { call.run(); }

int main() {
  std::printf("compiler %s\n", __VERSION__);
  std::string name;
  Conv2dShape s{};
  s.dtype = DType::f32;
  while (std::cin >> name >> s.N >> s.G >> s.IC >> s.IH >> s.IW >> s.OC >> s.KH >> s.KW >> s.SH >> s.SW >> s.PH >>
         s.PW >> s.DH >> s.DW) {
    s.OH = (s.IH + 2 * s.PH - s.DH * (s.KH - 1) - 1) / s.SH + 1;
    s.OW = (s.IW + 2 * s.PW - s.DW * (s.KW - 1) - 1) / s.SW + 1;
    const std::vector<float> x(s.N * s.IC * s.IH * s.IW, 1), w(s.OC * s.ic_per_group() * s.KH * s.KW, 1);
    const std::vector<float> dy(s.N * s.OC * s.OH * s.OW, 1);
    std::vector<float> y(dy.size()), dx(x.size()), dw(w.size());
    for (const Layout layout : {Layout::nchw, Layout::nhwc}) {
      s.layout = layout;
      for (const Pass pass : {Pass::fwd, Pass::bwd_input, Pass::bwd_weight}) {
        std::string chosen;
        for (const Answer& answer : conv2d::ask(s, pass, Ask::chosen)) {
          if (answer.why.empty() && chosen.empty()) chosen = answer.kernel;
        }
        for (const Answer& answer : conv2d::ask(s, pass, Ask::able)) {
          if (!answer.why.empty() || answer.kernel == "reference") continue;
          const Call call{s, pass, answer.kernel, x.data(), w.data(), dy.data(), y.data(), dx.data(), dw.data()};
          call.run();  // allocates the scratch memory
          counted(call);
          std::printf("%s %s %s %s%s\n", name.c_str(), name_of(layout), name_of(pass), answer.kernel.c_str(),
                      answer.kernel == chosen ? " chosen" : "");
        }
      }
    }
  }
}
