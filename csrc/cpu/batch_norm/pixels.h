// batch_norm / pixels: float32, channels_last, all channels of a pixel side by side.
// Computes  the formulas of reference.cpp. The pixels are cut into parts; each part finds the mean and the sum of squared
//           deviations of its own values, and two parts of n1 and n2 values merge, with delta = mean2 - mean1, into
//             mean = mean1 + delta * n2/n     m2 = m2_1 + m2_2 + delta^2 * n1*n2/n     n = n1 + n2
// Shapes    x (M,C), M = N*H*W pixels;  partial sums (parts,C) in double
// Tiling    thread: parts, whose number depends on the shape alone; registers: K vectors of neighbouring channels
// Cost      a part stays in cache for its second pass: train reads x twice, its backward dy and x twice
//           workspace: 16*C bytes per part, and six values per channel
// Limits    float32 and channels_last (else why_not says so). Sums run in float within a part, then in double
// Source    Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983, equation 2.1
namespace pixels {
namespace {

constexpr int64_t L = Vec<float>::size;  // lanes: channels
constexpr int64_t part_values = 16384;   // 64 KB
constexpr int64_t least_pixels = 32;     // of a part, to keep the partial sums small beside x
constexpr int64_t run = 32;              // pixels summed at a time: sums of short sums round less
constexpr int64_t serial_sums = 4096;
using V = vec<float>;

// K whole vectors of neighbouring channels, or the last `channels` that fill less than one.
template <int K_>
struct Whole {
  static constexpr int K = K_;
  static constexpr int64_t channels = K * L;
  static V get(const float* p) { return load(p); }
  static void put(float* p, V v) { store(p, v); }
};
struct Last {
  static constexpr int K = 1;
  int64_t channels;
  V get(const float* p) const { return load_first(p, channels); }
  void put(float* p, V v) const { store_first(p, v, channels); }
};

// body(c, block) until the blocks cover all channels; a block has at most K vectors.
template <int K, class Body>
PYCONV_INLINE void for_blocks(int64_t C, const Body& body) {
  int64_t c = 0;
  for (; c + K * L <= C; c += K * L) body(c, Whole<K>());
  for (; c + L <= C; c += L) body(c, Whole<1>());
  if (c < C) body(c, Last{C - c});
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
};

// Per channel, first (parts,C) and second (parts,C) doubles in scratch slot 0.
struct Partial {
  double *first, *second;
  explicit Partial(const Parts& parts) : first(static_cast<double*>(scratch(0, 2 * parts.count * parts.C * 8))) {
    second = first + parts.count * parts.C;
  }
};

// mean and m2 = sum (x - mean)^2 of each channel over `pixels` pixels.
void moments(const float* x, int64_t pixels, int64_t C, double* mean, double* m2) {
  for_blocks<4>(C, [&](int64_t c, auto block) {
    constexpr int K = decltype(block)::K;
    V shift[K] = {}, sum[K] = {}, squares[K] = {};
    for (int64_t p = 0; p < pixels; p++) {
      for (int k = 0; k < K; k++) shift[k] += block.get(x + p * C + c + k * L);
    }
    for (int k = 0; k < K; k++) shift[k] /= float(pixels);
    for (int64_t p = 0; p < pixels;) {
      V run_sum[K] = {}, run_squares[K] = {};
      for (const int64_t end = at_most(p + run, pixels); p < end; p++) {
        for (int k = 0; k < K; k++) {
          const V d = block.get(x + p * C + c + k * L) - shift[k];
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
void products(const float* dy, const float* x, const float* mean, int64_t pixels, int64_t C, double* dy_sum,
              double* dy_d_sum) {
  for_blocks<4>(C, [&](int64_t c, auto block) {
    constexpr int K = decltype(block)::K;
    V shift[K], sum[K] = {}, product[K] = {};
    for (int k = 0; k < K; k++) shift[k] = block.get(mean + c + k * L);
    for (int64_t p = 0; p < pixels;) {
      V run_sum[K] = {}, run_product[K] = {};
      for (const int64_t end = at_most(p + run, pixels); p < end; p++) {
        for (int k = 0; k < K; k++) {
          const V g = block.get(dy + p * C + c + k * L);
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

// y = (x - shift) * scale + offset, each of the three (C,).
struct Line {
  float *shift, *scale, *offset;
  explicit Line(int64_t C) : shift(static_cast<float*>(scratch(1, 3 * C * 4))), scale(shift + C), offset(scale + C) {}
  // As in planes.h: a mean that float cannot hold arrives as a rounded shift and the rest in offset.
  void set(int64_t c, double mean, double factor, double bias) const {
    shift[c] = float(mean);
    scale[c] = float(factor);
    offset[c] = float(bias - (mean - shift[c]) * factor);
  }
};

void apply(const Parts& parts, const Line& line, const float* x, float* y) {
  parts.for_each([&](int64_t at, int64_t pixels, int64_t) {
    for_blocks<4>(parts.C, [&](int64_t c, auto block) {
      constexpr int K = decltype(block)::K;
      V shift[K], scale[K], offset[K];
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

// dx = dy * a + (x - mean) * b + k, where line has mean, b and k.
void apply_bwd(const Parts& parts, const Line& line, const float* factor, const float* dy, const float* x, float* dx) {
  parts.for_each([&](int64_t at, int64_t pixels, int64_t) {
    for_blocks<2>(parts.C, [&](int64_t c, auto block) {
      constexpr int K = decltype(block)::K;
      V shift[K], a[K], b[K], rest[K];
      for (int k = 0; k < K; k++) {
        shift[k] = block.get(line.shift + c + k * L);
        a[k] = block.get(factor + c + k * L);
        b[k] = block.get(line.scale + c + k * L);
        rest[k] = block.get(line.offset + c + k * L);
      }
      for (int64_t p = 0; p < pixels; p++) {
        const int64_t pixel = at + p * parts.C + c;
        for (int k = 0; k < K; k++) {
          const V d = block.get(x + pixel + k * L) - shift[k];
          block.put(dx + pixel + k * L, block.get(dy + pixel + k * L) * a[k] + (d * b[k] + rest[k]));
        }
      }
    });
  });
}

double scale_of(const NormShape& s, int64_t c, double var, const void* weight) {
  return (weight ? ((const float*)weight)[c] : 1) / __builtin_sqrt(var + s.eps);
}

template <class Body>
void for_channels(const NormShape& s, const Parts& parts, const Body& body) {
  parallel_for(s.C, divide_up(serial_sums, at_least(parts.count, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) body(c);
  });
}

}  // namespace

void train(const NormShape& s, const void* x_, const batch_norm::Affine& p, void* y, void* mean, void* var) {
  const float *x = (const float*)x_, *bias = (const float*)p.bias;
  const Parts parts(s);
  const Partial partial(parts);  // mean, m2
  const Line line(s.C);
  parts.for_each([&](int64_t at, int64_t pixels, int64_t part) {
    moments(x + at, pixels, s.C, partial.first + part * s.C, partial.second + part * s.C);
  });
  for_channels(s, parts, [&](int64_t c) {
    double m = 0, m2 = 0, values = 0;
    for (int64_t part = 0; part < parts.count; part++) {
      const double more = parts.size(part), delta = partial.first[part * s.C + c] - m;
      m += delta * more / (values + more);
      m2 += partial.second[part * s.C + c] + delta * delta * values * more / (values + more);
      values += more;
    }
    const double v = m2 / at_least(parts.M, 1);
    ((float*)mean)[c] = float(m);
    ((float*)var)[c] = float(v);
    line.set(c, m, scale_of(s, c, v, p.weight), bias ? bias[c] : 0);
  });
  apply(parts, line, x, (float*)y);
}

void eval(const NormShape& s, const void* x, const batch_norm::Statistics& given, const batch_norm::Affine& p,
          void* y) {
  const float *mean = (const float*)given.mean, *var = (const float*)given.var, *bias = (const float*)p.bias;
  const Line line(s.C);
  for (int64_t c = 0; c < s.C; c++) line.set(c, mean[c], scale_of(s, c, var[c], p.weight), bias ? bias[c] : 0);
  apply(Parts(s), line, (const float*)x, (float*)y);
}

void bwd(const NormShape& s, const void* dy_, const void* x_, const batch_norm::Statistics& given, const void* weight,
         const batch_norm::Gradients& out) {
  const float *dy = (const float*)dy_, *x = (const float*)x_;
  const float *mean = (const float*)given.mean, *var = (const float*)given.var;
  const Parts parts(s);
  const Partial partial(parts);  // sum dy, sum dy * d
  const Line line(s.C);
  float* factor = (float*)scratch(2, 4 * s.C);
  parts.for_each([&](int64_t at, int64_t pixels, int64_t part) {
    products(dy + at, x + at, mean, pixels, s.C, partial.first + part * s.C, partial.second + part * s.C);
  });
  for_channels(s, parts, [&](int64_t c) {
    double dy_sum = 0, dy_d_sum = 0;
    for (int64_t part = 0; part < parts.count; part++) {
      dy_sum += partial.first[part * s.C + c];
      dy_d_sum += partial.second[part * s.C + c];
    }
    const double r = scale_of(s, c, var[c], nullptr), scale = scale_of(s, c, var[c], weight);
    ((float*)out.dbias)[c] = float(dy_sum);
    ((float*)out.dweight)[c] = float(dy_d_sum * r);
    if (!s.training) return line.set(c, 0, scale, 0);
    // dx = scale * (dy - dbias/M - d * r^2 * sum(dy*d)/M)
    factor[c] = float(scale);
    line.shift[c] = mean[c];
    line.scale[c] = float(-scale * r * r * dy_d_sum / parts.M);
    line.offset[c] = float(-scale * dy_sum / parts.M);
  });
  if (s.training) {
    apply_bwd(parts, line, factor, dy, x, (float*)out.dx);
  } else {
    apply(parts, line, dy, (float*)out.dx);
  }
}

}  // namespace pixels
