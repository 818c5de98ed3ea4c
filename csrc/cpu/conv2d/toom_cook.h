// The three matrices of a minimal filtering algorithm F(M, R), made by the compiler from a list of points.
// Computes  y = AT [(G g) * (BT d)]: M outputs y of a filter g of R taps over N = M + R - 1 inputs d, with N products.
//           Polynomials multiply by their values: with p_0 .. p_{N-2} finite and the last point infinity,
//             AT[i][j] = p_j^i              G[j][k] = p_j^k / prod_{l != j} (p_j - p_l)
//             BT[j][:] = coefficients of prod_{l != j} (x - p_l)     at infinity: prod_l (x - p_l), AT and G pick the
//                                                                    highest power
// Shapes    AT (M, N);  G (N, R);  BT (N, N), the same for every F of N points
// Limits    points in the order 0, p, -p, q, -q, ..., infinity. Then the rows of BT and G that belong to p and -p have
//           equal even and opposite odd entries, and so have the columns of AT: each pair costs little more than one.
// Source    Lavin and Gray, arXiv:1509.09308; Toom-Cook as in Barabasz et al., arXiv:1803.10986, which also shows that
//           the points decide the error.
#pragma once
#include <cstdint>

namespace pyconv::conv2d {

template <int M, int R>
struct ToomCook {
  static constexpr int N = M + R - 1;
  double at[M][N] = {}, g[N][R] = {}, bt[N][N] = {};

  explicit constexpr ToomCook(const double (&point)[N - 1]) {
    for (int j = 0; j < N - 1; j++) {
      double scale = 1;
      for (int l = 0; l < N - 1; l++) scale *= l == j ? 1 : point[j] - point[l];
      for (int i = 0; i < M; i++) at[i][j] = power(point[j], i);
      for (int k = 0; k < R; k++) g[j][k] = power(point[j], k) / scale;
      multiply_roots(point, j, bt[j]);
    }
    at[M - 1][N - 1] = 1;
    g[N - 1][R - 1] = 1;
    multiply_roots(point, N - 1, bt[N - 1]);
  }

 private:
  static constexpr double power(double p, int exponent) {
    double product = 1;
    for (int i = 0; i < exponent; i++) product *= p;
    return product;
  }
  // row = coefficients of prod_{l != without} (x - point[l]), lowest power first.
  static constexpr void multiply_roots(const double (&point)[N - 1], int without, double (&row)[N]) {
    row[0] = 1;
    for (int l = 0; l < N - 1; l++) {
      if (l == without) continue;
      for (int k = N - 1; k > 0; k--) row[k] = row[k - 1] - point[l] * row[k];
      row[0] *= -point[l];
    }
  }
};

// Errors of two axes in float32 against float64 on random data, 16 channels: with these 6 points F(4, 3) 5.0e-7, F(2, 5)
// 6.0e-7; the usual (0, +-1, +-2) err 1.8 to 2.4 times as much. With these 8 points F(4, 5) 1.8e-6, F(2, 7) 2.6e-6,
// F(6, 3) 2.2e-6, the least of 150 choices; along one axis 4.5e-7 to 5.3e-7. Smaller tiles err less: F(3, 3) 4.3e-7,
// F(2, 3) 1.8e-7.
constexpr double winograd_points4[3] = {0, 1, -1};
constexpr double winograd_points5[4] = {0, 0.75, -0.75, 2};  // 2 has no opposite: none of these count as pairs
constexpr double winograd_points6[5] = {0, 0.625, -0.625, 1.5, -1.5};
constexpr double winograd_points8[7] = {0, 0.5, -0.5, 1, -1, 2, -2};

template <int M, int R>
constexpr ToomCook<M, R> toom_cook() {
  constexpr int N = M + R - 1;
  static_assert((N >= 4 && N <= 6) || N == 8, "points are chosen for 4, 5, 6 and 8");
  if constexpr (N == 4) {
    return ToomCook<M, R>(winograd_points4);
  } else if constexpr (N == 5) {
    return ToomCook<M, R>(winograd_points5);
  } else if constexpr (N == 6) {
    return ToomCook<M, R>(winograd_points6);
  } else {
    return ToomCook<M, R>(winograd_points8);
  }
}
// A filter of R taps gives M outputs: winograd<M, R>. In the weight gradient the M gradients of the outputs are the
// filter, and the R taps what it gives: winograd<R, M>.
template <int M, int R>
constexpr ToomCook<M, R> winograd = toom_cook<M, R>();

// Tiles of `step` outputs, `dilation` apart, along an axis of `size`.
constexpr int64_t winograd_tiles(int64_t size, int64_t step, int64_t dilation) {
  const int64_t left = size % (step * dilation);
  return size / (step * dilation) * dilation + (left < dilation ? left : dilation);
}
// Outputs of a tile for so many taps along an axis. Of 3 taps it is what leaves the fewest products: 4, but on 6 or 9
// pixels 3, on 2 pixels 2.
constexpr int64_t winograd_step(int64_t taps, int64_t size, int64_t dilation) {
  if (taps != 3) return taps == 1 ? 1 : taps == 7 ? 2 : taps == 5 ? 4 : 5;
  int64_t best = 4;
  for (int64_t step = 3; step >= 2; step--) {
    const int64_t products = winograd_tiles(size, step, dilation) * (step + 2);
    if (products < winograd_tiles(size, best, dilation) * (best + 2)) best = step;
  }
  return best;
}
// Products along that axis, of all its tiles.
constexpr int64_t winograd_products(int64_t taps, int64_t size, int64_t dilation) {
  const int64_t step = winograd_step(taps, size, dilation);
  return winograd_tiles(size, step, dilation) * (step + taps - 1);
}

static_assert(winograd<4, 3>.bt[1][2] == winograd<4, 3>.bt[2][2] && winograd<4, 3>.bt[1][3] == -winograd<4, 3>.bt[2][3],
              "points of a pair must be opposite");

}  // namespace pyconv::conv2d
