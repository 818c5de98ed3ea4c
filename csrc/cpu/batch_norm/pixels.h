// batch_norm / pixels: channels_last, all channels of a pixel side by side.
// Computes  the formulas of reference.cpp. The pixels are cut into parts; each part finds the mean and the sum of squared
//           deviations of its own values, and two parts of n1 and n2 values merge, with delta = mean2 - mean1, into
//             mean = mean1 + delta * n2/n     m2 = m2_1 + m2_2 + delta^2 * n1*n2/n     n = n1 + n2
// Shapes    x (M,C), M = N*H*W pixels;  partial sums (parts,C) in double
// Tiling    thread: parts, whose number depends on the shape alone; registers: K vectors of neighbouring channels
// Cost      a part stays in cache for its second pass: train reads x twice, its backward dy and x twice
//           workspace: 16*C bytes per part, and four values per channel
// Limits    channels_last (else why_not says so). Sums run in acc_t<T> within a part, then in double
// Source    Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983, equation 2.1
namespace pixels {
namespace {

constexpr int64_t part_values = 16384;  // 64 KB of float
constexpr int64_t least_pixels = 32;    // of a part, to keep the partial sums small beside x
constexpr int64_t run = 32;             // pixels summed at a time: sums of short sums round less
constexpr int64_t serial_sums = 4096;

// K whole vectors of neighbouring channels, or the last `channels` that fill less than one.
template <class A, int K_>
struct Whole {
  static constexpr int K = K_;
  static constexpr int64_t channels = K * Vec<A>::size;
  template <class T>
  static vec<A> get(const T* p) {
    return load_wide(p);
  }
  template <class T>
  static void put(T* p, vec<A> v) {
    store_narrow(p, v);
  }
};
template <class A>
struct Last {
  static constexpr int K = 1;
  int64_t channels;
  template <class T>
  vec<A> get(const T* p) const {
    return load_wide_first(p, channels);
  }
  template <class T>
  void put(T* p, vec<A> v) const {
    store_narrow_first(p, v, channels);
  }
};

// body(c, block) until the blocks cover all channels; a block has at most K vectors.
template <class A, int K, class Body>
PYCONV_INLINE void for_blocks(int64_t C, const Body& body) {
  constexpr int64_t L = Vec<A>::size;
  int64_t c = 0;
  for (; c + K * L <= C; c += K * L) body(c, Whole<A, K>());
  for (; c + L <= C; c += L) body(c, Whole<A, 1>());
  if (c < C) body(c, Last<A>{C - c});
}

struct Parts {
  int64_t M, C, pixels, count;
  explicit Parts(const NormShape& s)
      : M(s.per_channel()),
        C(s.C),
        pixels(at_least(least_pixels, part_values / at_least(C, 1))),
        count(divide_up(M, pixels)) {}
  int64_t size(int64_t part) const { return at_most(pixels, M - part * pixels); }

  // body(offset of the first value, pixels, part) for every part, on all threads.
  template <class Body>
  void for_each(const Body& body) const {
    parallel_for(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; part++) body(part * pixels * C, size(part), part);
    });
  }

  // body(c) for every channel, on all threads: what puts the parts' sums together.
  template <class Body>
  void for_channels(const Body& body) const {
    parallel_for(C, divide_up(serial_sums, at_least(count, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; c++) body(c);
    });
  }
};

// Two sums of every part, each (parts,C).
struct Partial {
  double *first, *second;
  explicit Partial(const Parts& parts)
      : first(static_cast<double*>(scratch(0, 2 * sizeof(double) * parts.count * parts.C))),
        second(first + parts.count * parts.C) {}
};

// mean and m2 = sum (x - mean)^2 of each channel over `pixels` pixels.
template <class T>
void moments(const T* x, int64_t pixels, int64_t C, double* mean, double* m2) {
  using A = acc_t<T>;
  constexpr int64_t L = Vec<A>::size;
  for_blocks<A, 4>(C, [&](int64_t c, auto block) {
    constexpr int K = decltype(block)::K;
    vec<A> shift[K] = {}, sum[K] = {}, squares[K] = {};
    for (int64_t p = 0; p < pixels; p++) {
      for (int k = 0; k < K; k++) shift[k] += block.get(x + p * C + c + k * L);
    }
    for (int k = 0; k < K; k++) shift[k] /= A(pixels);
    for (int64_t p = 0; p < pixels;) {
      vec<A> run_sum[K] = {}, run_squares[K] = {};
      for (const int64_t end = at_most(p + run, pixels); p < end; p++) {
        for (int k = 0; k < K; k++) {
          const vec<A> d = block.get(x + p * C + c + k * L) - shift[k];
          run_sum[k] += d;
          run_squares[k] += d * d;
        }
      }
      for (int k = 0; k < K; k++) sum[k] += run_sum[k], squares[k] += run_squares[k];
    }
    for (int64_t i = 0; i < block.channels; i++) {
      const double rest = double(sum[i / L][i % L]) / pixels;  // what rounding took from shift
      mean[c + i] = shift[i / L][i % L] + rest;
      m2[c + i] = squares[i / L][i % L] - rest * rest * pixels;
    }
  });
}

// sum dy and sum dy * d, d = x - mean, of each channel over `pixels` pixels.
template <class T, class A>
void products(const T* dy, const T* x, const A* mean, int64_t pixels, int64_t C, double* dy_sum, double* dy_d_sum) {
  constexpr int64_t L = Vec<A>::size;
  for_blocks<A, 4>(C, [&](int64_t c, auto block) {
    constexpr int K = decltype(block)::K;
    vec<A> shift[K], sum[K] = {}, product[K] = {};
    for (int k = 0; k < K; k++) shift[k] = block.get(mean + c + k * L);
    for (int64_t p = 0; p < pixels;) {
      vec<A> run_sum[K] = {}, run_product[K] = {};
      for (const int64_t end = at_most(p + run, pixels); p < end; p++) {
        for (int k = 0; k < K; k++) {
          const vec<A> g = block.get(dy + p * C + c + k * L);
          run_sum[k] += g;
          run_product[k] += g * (block.get(x + p * C + c + k * L) - shift[k]);
        }
      }
      for (int k = 0; k < K; k++) sum[k] += run_sum[k], product[k] += run_product[k];
    }
    for (int64_t i = 0; i < block.channels; i++) {
      dy_sum[c + i] = sum[i / L][i % L];
      dy_d_sum[c + i] = product[i / L][i % L];
    }
  });
}

// y = (x - shift) * scale + offset, or dx = dy * factor + (x - shift) * scale + offset: four values per channel.
template <class A>
struct Line {
  A *shift, *scale, *offset, *factor;
  explicit Line(int64_t C)
      : shift(static_cast<A*>(scratch(1, 4 * sizeof(A) * C))),
        scale(shift + C),
        offset(scale + C),
        factor(offset + C) {}
  // A mean that A cannot hold arrives as a rounded shift and the rest in offset, as in planes.h.
  void set(int64_t c, double mean, double slope, double bias) const {
    shift[c] = A(mean);
    scale[c] = A(slope);
    offset[c] = A(bias - (mean - shift[c]) * slope);
  }
};

template <class T, class A>
void apply(const Parts& parts, const Line<A>& line, const T* x, T* y) {
  constexpr int64_t L = Vec<A>::size;
  parts.for_each([&](int64_t at, int64_t pixels, int64_t) {
    for_blocks<A, 4>(parts.C, [&](int64_t c, auto block) {
      constexpr int K = decltype(block)::K;
      vec<A> shift[K], scale[K], offset[K];
      for (int k = 0; k < K; k++) {
        shift[k] = block.get(line.shift + c + k * L);
        scale[k] = block.get(line.scale + c + k * L);
        offset[k] = block.get(line.offset + c + k * L);
      }
      for (int64_t p = 0; p < pixels; p++) {
        const int64_t pixel = at + p * parts.C + c;
        for (int k = 0; k < K; k++) {
          block.put(y + pixel + k * L, (block.get(x + pixel + k * L) - shift[k]) * scale[k] + offset[k]);
        }
      }
    });
  });
}

template <class T, class A>
void apply_bwd(const Parts& parts, const Line<A>& line, const T* dy, const T* x, T* dx) {
  constexpr int64_t L = Vec<A>::size;
  parts.for_each([&](int64_t at, int64_t pixels, int64_t) {
    for_blocks<A, 2>(parts.C, [&](int64_t c, auto block) {
      constexpr int K = decltype(block)::K;
      vec<A> shift[K], scale[K], offset[K], factor[K];
      for (int k = 0; k < K; k++) {
        shift[k] = block.get(line.shift + c + k * L);
        scale[k] = block.get(line.scale + c + k * L);
        offset[k] = block.get(line.offset + c + k * L);
        factor[k] = block.get(line.factor + c + k * L);
      }
      for (int64_t p = 0; p < pixels; p++) {
        const int64_t pixel = at + p * parts.C + c;
        for (int k = 0; k < K; k++) {
          const vec<A> d = block.get(x + pixel + k * L) - shift[k];
          block.put(dx + pixel + k * L, block.get(dy + pixel + k * L) * factor[k] + (d * scale[k] + offset[k]));
        }
      }
    });
  });
}

template <class A>
double scale_of(const NormShape& s, int64_t c, double var, const A* weight) {
  return (weight ? weight[c] : 1) / __builtin_sqrt(var + s.eps);
}

template <class T, class A>
void train(const NormShape& s, const T* x, const A* weight, const A* bias, T* y, A* mean, A* var) {
  const Parts parts(s);
  const Partial partial(parts);  // mean, m2
  const Line<A> line(s.C);
  parts.for_each([&](int64_t at, int64_t pixels, int64_t part) {
    moments(x + at, pixels, s.C, partial.first + part * s.C, partial.second + part * s.C);
  });
  parts.for_channels([&](int64_t c) {
    double m = 0, m2 = 0, values = 0;
    for (int64_t part = 0; part < parts.count; part++) {
      const double more = parts.size(part), delta = partial.first[part * s.C + c] - m;
      m += delta * more / (values + more);
      m2 += partial.second[part * s.C + c] + delta * delta * values * more / (values + more);
      values += more;
    }
    const double v = m2 / at_least(parts.M, 1);
    mean[c] = A(m);
    var[c] = A(v);
    line.set(c, m, scale_of(s, c, v, weight), bias ? bias[c] : 0);
  });
  apply(parts, line, x, y);
}

template <class T, class A>
void eval(const NormShape& s, const T* x, const A* mean, const A* var, const A* weight, const A* bias, T* y) {
  const Line<A> line(s.C);
  for (int64_t c = 0; c < s.C; c++) line.set(c, mean[c], scale_of(s, c, var[c], weight), bias ? bias[c] : 0);
  apply(Parts(s), line, x, y);
}

template <class T, class A>
void bwd(const NormShape& s, const T* dy, const T* x, const A* mean, const A* var, const A* weight, T* dx, A* dweight,
         A* dbias) {
  const Parts parts(s);
  const Partial partial(parts);  // sum dy, sum dy * d
  const Line<A> line(s.C);
  parts.for_each([&](int64_t at, int64_t pixels, int64_t part) {
    products(dy + at, x + at, mean, pixels, s.C, partial.first + part * s.C, partial.second + part * s.C);
  });
  parts.for_channels([&](int64_t c) {
    double dy_sum = 0, dy_d_sum = 0;
    for (int64_t part = 0; part < parts.count; part++) {
      dy_sum += partial.first[part * s.C + c];
      dy_d_sum += partial.second[part * s.C + c];
    }
    const double r = 1 / __builtin_sqrt(var[c] + s.eps), scale = scale_of(s, c, var[c], weight);
    dbias[c] = A(dy_sum);
    dweight[c] = A(dy_d_sum * r);
    if (!s.training) return line.set(c, 0, scale, 0);
    // dx = scale * (dy - dbias/M - d * r^2 * sum(dy*d)/M)
    line.shift[c] = mean[c];
    line.scale[c] = A(-scale * r * r * dy_d_sum / parts.M);
    line.offset[c] = A(-scale * dy_sum / parts.M);
    line.factor[c] = A(scale);
  });
  if (s.training) {
    apply_bwd(parts, line, dy, x, dx);
  } else {
    apply(parts, line, dy, dx);
  }
}

}  // namespace

void train(const NormShape& s, const void* x, const batch_norm::Affine& p, void* y, void* mean, void* var) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    train(s, (const T*)x, (const A*)p.weight, (const A*)p.bias, (T*)y, (A*)mean, (A*)var);
  });
}

void eval(const NormShape& s, const void* x, const batch_norm::Statistics& given, const batch_norm::Affine& p,
          void* y) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    eval(s, (const T*)x, (const A*)given.mean, (const A*)given.var, (const A*)p.weight, (const A*)p.bias, (T*)y);
  });
}

void bwd(const NormShape& s, const void* dy, const void* x, const batch_norm::Statistics& given, const void* weight,
         const batch_norm::Gradients& out) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    bwd(s, (const T*)dy, (const T*)x, (const A*)given.mean, (const A*)given.var, (const A*)weight, (T*)out.dx,
        (A*)out.dweight, (A*)out.dbias);
  });
}

}  // namespace pixels
