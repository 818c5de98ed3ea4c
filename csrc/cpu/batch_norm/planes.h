// batch_norm / planes: NCHW, a vector holds neighbouring pixels of one channel.
// Computes  the formulas of reference.cpp, act(v) = min(max(v + residual, 0), ceiling) where asked. Sums of d = x - shift:
//             mean = shift + sum d / M        var = (sum d^2 - (sum d)^2 / M) / M
//           where shift is the mean of some values. Should it lie so far from the mean that var loses digits, the channel
//           is summed again around its mean
// Shapes    x (N,C,H*W): a channel is N runs of H*W adjacent values
// Tiling    evaluation: one run of values, wherever planes end. Training, thread: a block of channels that stays in cache
//           from its sums to its results, or a part of a channel's images where channels are few; as many channels as make
//           a run of some KB in each image. registers: U vectors for each of two sums
// Cost      x is read once from memory and once more from cache, backward dy and x; workspace: 16 values per channel
// Limits    NCHW (else why_not says so). Sums run in acc_t<T> for some `run` values, then in double
// Source    Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983, equation 1.7
namespace planes {
namespace {

#include "cpu/batch_norm/channel.h"

constexpr int U = 4;           // independent sums, enough to hide the latency of an addition
constexpr int64_t run = 4096;  // values: summed in acc_t<T>, rounded up to whole planes; adjacent in a block
constexpr int64_t block_values = 65536;
constexpr int64_t serial_values = 16384;
// Results are fetched this many values before they are stored where a tensor has more than far_values. With `run` rounded
// up, not down, to whole planes, 8x256x56x56 trains in 0.85 of the time and its gradient takes 0.9; 512 values ahead, at any
// size, made 8x1024x14x14 train 1.07 times as long, and evaluation, which stores one run, took 1.18 times as long on
// 1x64x284x284 (two Zen 5 cores, 32 MB of L3).
constexpr int64_t fetched = 1024, far_values = 4 << 20;
constexpr int64_t none = -1;

// Loads a whole vector, or the last `count` values of a plane with `rest` in the lanes beyond.
struct Whole {
  template <class T>
  vec<acc_t<T>> operator()(const T* p, vec<acc_t<T>>) const {
    return load_wide(p);
  }
  template <class T>
  void put(T* p, vec<acc_t<T>> v) const {
    store_narrow(p, v);
  }
};
template <class A>
struct Last {
  typedef decltype(vec<A>{} < vec<A>{}) Mask;
  int64_t count;
  Mask beyond;
  explicit Last(int64_t count) : count(count) {
    for (int64_t i = 0; i < Vec<A>::size; i++) beyond[i] = i < count ? 0 : -1;
  }
  template <class T>
  vec<A> operator()(const T* p, vec<A> rest) const {
    return beyond ? rest : load_wide_first(p, count);
  }
  template <class T>
  void put(T* p, vec<A> v) const {
    store_narrow_first(p, v, count);
  }
};

// Channels [c0, c1) of images [n0, n1).
struct Block {
  int64_t c0, c1, n0, n1;
};

// Two sums of every channel of a block: term(get, i, c, first, second) adds the vector that get() loads at offset i.
template <class A, class Term>
PYCONV_INLINE void sum_block(const NormShape& s, const Block& block, const Term& term, Sums sums) {
  constexpr int64_t L = Vec<A>::size;
  const int64_t C = s.C, size = s.plane(), channels = block.c1 - block.c0;
  const Last<A> last(size % L);
  vec<A>* short_sums = static_cast<vec<A>*>(scratch(2, 2 * sizeof(vec<A>) * channels));
  for (int64_t c = block.c0; c < block.c1; c++) sums.first[c] = sums.second[c] = 0;
  for (int64_t k = 0; k < 2 * channels; k++) short_sums[k] = vec<A>{};
  int64_t pending = 0;
  for (int64_t n = block.n0; n < block.n1; n++) {
    int64_t i = (n * C + block.c0) * size;
    for (int64_t k = 0; k < channels; k++) {
      const int64_t c = block.c0 + k, end = i + size;
      vec<A> first[U] = {}, second[U] = {};
      for (; i + U * L <= end; i += U * L) {
        _Pragma("GCC unroll 4") for (int u = 0; u < U; u++) term(Whole(), i + u * L, c, first[u], second[u]);
      }
      _Pragma("GCC unroll 3") for (int u = 0; u < U - 1; u++) {
        if (i + L > end) break;
        term(Whole(), i, c, first[u], second[u]);
        i += L;
      }
      if (i < end) term(last, i, c, first[U - 1], second[U - 1]);
      i = end;
      short_sums[2 * k] += (first[0] + first[1]) + (first[2] + first[3]);
      short_sums[2 * k + 1] += (second[0] + second[1]) + (second[2] + second[3]);
    }
    pending += size;
    if (pending < run && n + 1 < block.n1) continue;
    for (int64_t k = 0; k < channels; k++) {
      sums.first[block.c0 + k] += sum_lanes<A>(short_sums[2 * k]);
      sums.second[block.c0 + k] += sum_lanes<A>(short_sums[2 * k + 1]);
      short_sums[2 * k] = short_sums[2 * k + 1] = vec<A>{};
    }
    pending = 0;
  }
}

// put(i, value(get, i)) for vectors that cover [i, end) of a plane, the last overlapping the one before it rather than be
// partial: what it is computed from is read before any is stored, as dx may take the place of g.
template <class A, class Value, class Put>
PYCONV_INLINE void for_run(int64_t i, int64_t end, const Value& value, const Put& put) {
  constexpr int64_t L = Vec<A>::size;
  if (const int64_t count = end - i; count < L) return put(i, value(Last<A>(count), i), count);
  const bool rest = (end - i) % L != 0;
  const vec<A> last = rest ? value(Whole(), end - L) : vec<A>{};
  _Pragma("GCC unroll 4") for (; i + L <= end; i += L) put(i, value(Whole(), i), L);
  if (rest) put(end - L, last, L);
}

// What is stored `distance` values after those of [i0, i1), when `next`, or none, begins the run that the same thread
// stores then: no prefetcher knows where that is.
struct Ahead {
  int64_t distance, last, skip;
  Ahead(const NormShape& s, int64_t i0, int64_t i1, int64_t next)
      : distance(next >= 0 && s.C * s.per_channel() > far_values ? at_most(fetched, i1 - i0) : 0),
        last(i1 - distance),
        skip(next - i1) {}
  template <class T>
  inline __attribute__((always_inline)) void fetch(const T* p, int64_t i) const {
    if (distance != 0) __builtin_prefetch(p + i + distance + (i < last ? 0 : skip), 1);
  }
};

// f(c, i, end) for every plane, or part of one, of values [i0, i1) of the tensor.
template <class F>
PYCONV_INLINE void for_planes(const NormShape& s, int64_t i0, int64_t i1, const F& f) {
  const int64_t C = s.C, size = s.plane();
  int64_t c = i0 / at_least(size, 1) % C, next = i0 - i0 % at_least(size, 1) + size;
  for (int64_t i = i0; i < i1; i = next, next += size) {
    f(c, i, at_most(next, i1));
    if (++c == C) c = 0;
  }
}

// The blocks of a shape, cut by the shape alone: `each` parts of a channel, or `together` channels.
struct Blocks {
  NormShape s;
  int64_t together, each, count;
  explicit Blocks(const NormShape& s)
      : s(s),
        together(at_most(divide_up(run, at_least(s.plane(), 1)), block_values / at_least(s.per_channel(), 1))),
        each(at_least(at_most(16 / at_least(s.C, 1), s.N), 1)) {
    together = at_least(at_most(together, s.C / 16), 1);
    count = each > 1 ? s.C * each : divide_up(s.C, together);
  }
  Block operator()(int64_t i) const {
    if (each > 1) return {i / each, i / each + 1, s.N * (i % each) / each, s.N * (i % each + 1) / each};
    return {i * together, at_most((i + 1) * together, s.C), 0, s.N};
  }

  // add(block, sums) of all blocks; then found(c0, c1, sums) of all channels, and then(i0, i1) for their runs of values,
  // the last image first: what was read last is in cache.
  template <class Add, class Found, class Then>
  void run_all(const Add& add, const Found& found, const Then& then) const {
    const int64_t C = s.C, grain = divide_up(serial_values, at_least(s.per_channel() * together / each, 1));
    double* memory = static_cast<double*>(scratch(0, sizeof(double) * each * 2 * C));
    const auto sums = [&](int64_t part) { return Sums{memory + part * 2 * C, memory + (part * 2 + 1) * C}; };
    const auto start = [&](const Block& b, int64_t n) { return (n * C + b.c0) * s.plane(); };
    const auto finish = [&](const Block& b, const Block& next) {
      for (int64_t n = b.n1 - 1; n >= b.n0; n--) {
        then(start(b, n), start(b, n) + (b.c1 - b.c0) * s.plane(),
             n > b.n0 ? start(b, n - 1) : start(next, next.n1 - 1));
      }
    };
    if (each == 1) {
      return parallel_for(count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
          const Block b = (*this)(i);
          add(b, sums(0));
          found(b.c0, b.c1, sums(0));
          finish(b, (*this)(at_most(i + 1, end - 1)));
        }
      });
    }
    parallel_for(count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) add((*this)(i), sums(i % each));
    });
    for (int64_t k = 2 * C; k < each * 2 * C; k++) memory[k % (2 * C)] += memory[k];
    found(0, C, sums(0));
    parallel_for(count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = end - 1; i >= begin; i--) finish((*this)(i), (*this)(at_least(i - 1, begin)));
    });
  }
};

// The mean of some values of channel c: near enough to the mean that sums of squares around it keep their digits.
template <class T>
acc_t<T> some_mean(const NormShape& s, int64_t c, const T* x) {
  const int64_t size = s.plane();
  if (s.per_channel() == 0) return 0;
  const T* plane = x + c * size;
  return (widen(plane[0]) + widen(plane[size / 4]) + widen(plane[size / 2]) + widen(plane[size - 1 - size / 4])) / 4;
}

template <class T, class A>
PYCONV_NOINLINE void deviations(NormShape s, Block block, const T* x, Lines<A> lines, Sums sums) {
  const auto term = [&](auto get, int64_t i, int64_t c, vec<A>& sum, vec<A>& squares) {
    const vec<A> shift = splat(lines.shift[c]), d = get(x + i, shift) - shift;
    sum += d;
    squares += d * d;
  };
  sum_block<A>(s, block, term, sums);
}

// y = act((x - shift) * factor + offset) of a run.
template <class T, class A>
PYCONV_NOINLINE void normalise(NormShape s, int64_t i0, int64_t i1, int64_t next, const T* x, Lines<A> lines,
                               Finish<T> finish, T* y) {
  const Ahead ahead(s, i0, i1, next);
  for_planes(s, i0, i1, [&](int64_t c, int64_t begin, int64_t end) {
    const A shift = lines.shift[c], factor = lines.factor[c], offset = lines.offset[c];
    for_run<A>(
        begin, end, [&](auto get, int64_t i) { return (get(x + i, vec<A>{}) - shift) * factor + offset; },
        [&](int64_t i, vec<A> v, int64_t count) {
          ahead.fetch(y, i);
          finish.store_up_to(y + i, v, count);
        });
  });
}

template <class T, class A>
void train(const NormShape& s, const T* x, const A* weight, const A* bias, const Finish<T>& finish, T* y, A* mean,
           A* var) {
  const double M = at_least(s.per_channel(), 1);
  const Lines<A> lines(s.C, s.C);
  const Blocks blocks(s);
  const auto guess = [&](int64_t c0, int64_t c1) {
    for (int64_t c = c0; c < c1; c++) lines.shift[c] = some_mean(s, c, x);
  };
  if (blocks.each > 1) guess(0, s.C);
  blocks.run_all(
      [&](const Block& b, Sums sums) {
        if (blocks.each == 1) guess(b.c0, b.c1);
        deviations(s, b, x, lines, sums);
      },
      [&](int64_t c0, int64_t c1, Sums sums) {
        sums.become_moments(c0, c1, lines.shift, M);
        for (int64_t c = c0; c < c1; c++) {
          if (sums.far(c, lines.shift[c], 8)) {  // not 64: one channel is soon summed again
            lines.shift[c] = A(sums.first[c]);
            deviations(s, {c, c + 1, 0, s.N}, x, lines, sums);
            sums.become_moments(c, c + 1, lines.shift, M);
          }
          mean[c] = A(sums.first[c]), var[c] = A(sums.second[c]);
        }
        lines.of_statistics(s, c0, c1, sums.first, sums.second, weight, bias);
      },
      [&](int64_t i0, int64_t i1, int64_t next) { normalise(s, i0, i1, next, x, lines, finish, y); });
}

template <class T, class A>
void eval(const NormShape& s, const T* x, const A* mean, const A* var, const A* weight, const A* bias,
          const Finish<T>& finish, T* y) {
  const Lines<A> lines(s.C, s.C);
  lines.of_statistics(s, 0, s.C, mean, var, weight, bias);
  parallel_for(s.C * s.per_channel(), serial_values,
               [&](int64_t i0, int64_t i1) { normalise(s, i0, i1, none, x, lines, finish, y); });
}

// sum g and sum g * (x - shift).
template <class T, class A, bool relu>
PYCONV_NOINLINE void products(NormShape s, Block block, Upstream<T, relu> up, const T* x, const A* mean, T* kept,
                              Sums sums) {
  const auto term = [&](auto get, int64_t i, int64_t c, vec<A>& g_sum, vec<A>& g_d_sum) {
    const vec<A> g = up(get, i), shift = splat(mean[c]);
    if (kept) get.put(kept + i, g);
    g_sum += g;
    g_d_sum += g * (get(x + i, shift) - shift);
  };
  sum_block<A>(s, block, term, sums);
}

// dx = g * factor + (x - shift) * slope + offset of a run.
template <class T, class A>
PYCONV_NOINLINE void finish_bwd(NormShape s, int64_t i0, int64_t i1, int64_t next, const T* g, const T* x,
                                Lines<A> lines, T* dx) {
  const bool training = s.training;
  const Finish<T> plain;
  const Ahead ahead(s, i0, i1, next);
  for_planes(s, i0, i1, [&](int64_t c, int64_t begin, int64_t end) {
    const A shift = lines.shift[c], slope = lines.slope[c], factor = lines.factor[c], offset = lines.offset[c];
    for_run<A>(
        begin, end,
        [&](auto get, int64_t i) {
          const vec<A> d = training ? get(x + i, vec<A>{}) - shift : vec<A>{};
          return get(g + i, vec<A>{}) * factor + (d * slope + offset);
        },
        [&](int64_t i, vec<A> v, int64_t count) {
          ahead.fetch(dx, i);
          plain.store_up_to(dx + i, v, count);
        });
  });
}

template <class T, class A, bool relu>
void bwd(const NormShape& s, const Upstream<T, relu>& up, const T* x, const A* mean, const A* var, const A* weight,
         T* dx, T* dresidual, A* dweight, A* dbias) {
  const Lines<A> lines(s.C, s.C);
  // A masked gradient is read again from where it is kept, dy and y are not: 0.7 to 0.85 of the time.
  T* kept = dresidual ? dresidual : relu ? dx : nullptr;
  const T* g = kept ? kept : up.dy;
  Blocks(s).run_all(
      [&](const Block& b, Sums sums) { products<T, A, relu>(s, b, up, x, mean, kept, sums); },
      [&](int64_t c0, int64_t c1, Sums sums) { lines.of_gradient(s, c0, c1, mean, var, weight, sums, dweight, dbias); },
      [&](int64_t i0, int64_t i1, int64_t next) { finish_bwd<T, A>(s, i0, i1, next, g, x, lines, dx); });
}

}  // namespace

#include "cpu/batch_norm/passes.h"

}  // namespace planes
