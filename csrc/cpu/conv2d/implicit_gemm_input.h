// The input gradient of implicit_gemm.h, included by it: the forward product with dy in the place of x and the weights
// turned, for each phase of the stride.

// rows (G, IC, (tap, oc)) of the taps of a phase, from w (G, OC, IC, KH, KW).
template <class T>
void turn_weights(const Conv2dShape& s, const Axis& h, const Axis& w, const T* weights, T* rows) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  const int64_t C = s.oc_per_group(), M = s.ic_per_group(), K = s.KH * s.KW, J = C * h.taps * w.taps;
  const auto position = [](const Axis& a, int64_t k) {  // of a kernel row among the taps of the phase
    const int64_t t = a.taps > 1 ? (k - a.tap0) / a.tap_step : 0;
    return a.taps > 0 && t >= 0 && t < a.taps && a.tap0 + t * a.tap_step == k ? t : -1;
  };
  const int64_t blocks = divide_up(C, L);
  parallel_for(s.G * blocks, divide_up(serial_flops, 4 * L * M * K + 1), [&](int64_t begin, int64_t end) {
    A turned[L * L];
    for (int64_t i = begin; i < end; i++) {
      const int64_t g = i / blocks, oc = i % blocks * L;
      const T* from = weights + (g * C + oc) * M * K;
      for (int64_t e = 0; e < M * K; e += L) {  // (ic, tap) lie side by side
        load_columns(from + e, M * K, C - oc, M * K - e, turned, L);
        for (int64_t k = e; k < at_most(e + L, M * K); k++) {
          const int64_t th = position(h, k % K / s.KW), tw = position(w, k % s.KW);
          if (th < 0 || tw < 0) continue;
          store_up_to(rows + (g * M + k / K) * J + (th * w.taps + tw) * C + oc, load(turned + (k - e) * L), C - oc);
        }
      }
    }
  });
}

// panels (G, IC / BN, (tap, oc), BN) of the taps of a phase, from w (G, OC, KH, KW, IC).
template <class T, class P>
void copy_weights(const Conv2dShape& s, const Axis& h, const Axis& w, const T* weights, P* panels) {
  constexpr int64_t L = Vec<acc_t<T>>::size, BN = 2 * L;
  const int64_t C = s.oc_per_group(), M = s.ic_per_group(), J = C * h.taps * w.taps, blocks = divide_up(M, BN);
  parallel_for(s.G * blocks, divide_up(serial_flops, 4 * J * BN + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t g = i / blocks, m = i % blocks * BN;
      const Run lanes = {m, 0, at_most(BN, M - m)};
      P* to = panels + i * (J + L) * BN;
      int64_t row[KC], n = 0;
      for (int64_t t = 0; t < h.taps * w.taps; t++) {
        const int64_t kh = h.tap0 + t / w.taps * h.tap_step, kw = w.tap0 + t % w.taps * w.tap_step;
        for (int64_t c = 0; c < C; c++) {
          row[n++] = (((g * C + c) * s.KH + kh) * s.KW + kw) * M;
          if (n < KC) continue;
          pack_b(weights, row, n, &lanes, 1, to);
          to += n * BN, n = 0;
        }
      }
      pack_b(weights, row, n, &lanes, 1, to);
    }
  });
}

// Some phase of a stride meets no tap of K.
inline bool phase_without_taps(int64_t K, int64_t stride, int64_t dilation) {
  for (int64_t phase = 0; phase < stride; phase++) {
    bool met = false;
    for (int64_t k = 0; k < K; k++) met = met || (phase - k * dilation) % stride == 0;
    if (!met) return true;
  }
  return false;
}

template <class T>
void bwd_input(const Conv2dShape& given, const T* dy, const T* w, T* dx) {
  using P = panel_t<T>;
  const Conv2dShape s = on_a_line(given);
  constexpr int64_t L = Vec<acc_t<T>>::size, BN = 2 * L;
  const bool gaps = phase_without_taps(s.KH, s.SH, s.DH) || phase_without_taps(s.KW, s.SW, s.DW);
  if (gaps) {  // pixels that no output sees
    const int64_t lines = s.N * s.IC * s.IH;
    parallel_for(lines, divide_up(serial_flops, at_least(s.IW, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin * s.IW; k < end * s.IW; k++) dx[k] = T();
    });
  }
  for (int64_t ph = 0; ph < s.SH; ph++) {
    for (int64_t pw = 0; pw < s.SW; pw++) {
      const Axis h = phase_axis(ph, s.IH, s.KH, s.SH, s.PH, s.DH, s.OH),
                 v = phase_axis(pw, s.IW, s.KW, s.SW, s.PW, s.DW, s.OW);
      if (gaps && h.taps * v.taps == 0) continue;
      Problem<T> p = problem<T>(s, true, h, v, dy, dx, {});
      const int64_t channels = s.layout == Layout::nchw ? p.M : round_up(p.M, BN);
      void* weights = scratch(0, (s.layout == Layout::nchw ? sizeof(T) : sizeof(P)) * s.G * channels * (p.J + L));
      if (s.layout == Layout::nchw) {
        turn_weights(s, h, v, w, static_cast<T*>(weights));
        p.rows = static_cast<const T*>(weights);
      } else {
        copy_weights(s, h, v, w, static_cast<P*>(weights));
        p.panels = static_cast<const P*>(weights);
      }
      p.run();
    }
  }
}
