// The end of a forward pass, included once per ISA by every kernel that has one: y = act(sum + bias + residual), in the
// accumulate type and in the store that writes y, so that it costs no second pass and rounds once. A NaN passes.

template <class T>
struct Finish {
  using A = acc_t<T>;
  const T* bias = nullptr;        // (OC,)
  const T* residual = nullptr;    // as y in shape and layout, and nowhere the same memory
  const T* y = nullptr;           // what a residual's place is counted from
  A floor = -A(__builtin_inf());  // 0 for relu
  A ceiling = A(__builtin_nan(""));

  Finish() = default;  // of the gradients: stores what it is given
  Finish(const Epilogue& e, const void* y)
      : bias(static_cast<const T*>(e.bias)), residual(static_cast<const T*>(e.residual)), y(static_cast<const T*>(y)) {
    if (e.relu) floor = 0, ceiling = A(e.ceiling);
  }

  bool plain() const { return !residual && floor == -A(__builtin_inf()) && ceiling != ceiling; }
  inline __attribute__((always_inline)) vec<A> clipped(vec<A> v) const {
    v = v < floor ? splat(floor) : v;
    return v > ceiling ? splat(ceiling) : v;
  }

  // `v` holds the bias already; `count` lanes of it are meant.
  inline __attribute__((always_inline)) void store(T* to, vec<A> v) const {
    if (residual) v += load_wide(residual + (to - y));
    store_narrow(to, clipped(v));
  }
  inline __attribute__((always_inline)) void store_first(T* to, vec<A> v, int64_t count) const {
    if (residual) v += load_wide_first(residual + (to - y), count);
    store_narrow_first(to, clipped(v), count);
  }
  inline __attribute__((always_inline)) void store_up_to(T* to, vec<A> v, int64_t count) const {
    if (count >= Vec<A>::size) {
      store(to, v);
    } else {
      store_first(to, v, count);
    }
  }
  inline __attribute__((always_inline)) void store_one(T* to, A v) const {
    if (residual) v += widen(residual[to - y]);
    v = v < floor ? floor : v;
    pyconv::store(to, v > ceiling ? ceiling : v);
  }
};
