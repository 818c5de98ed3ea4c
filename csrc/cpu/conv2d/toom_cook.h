// The three matrices of a minimal filtering algorithm F(M, R), made by the compiler from a list of points.
// Computes  y = AT [(G g) * (BT d)]: M outputs y of a filter g of R taps over N = M + R - 1 inputs d, with N products.
//           Polynomials multiply by their values: with p_0 .. p_{N-2} finite and the last point infinity,
//             AT[i][j] = p_j^i              G[j][k] = p_j^k / prod_{l != j} (p_j - p_l)
//             BT[j][:] = coefficients of prod_{l != j} (x - p_l)     at infinity: prod_l (x - p_l), AT and G pick the
//                                                                    highest power
// Shapes    AT (M, N);  G (N, R);  BT (N, N)
// Limits    points in the order 0, p, -p, q, -q, ..., infinity. Then the rows of BT and G that belong to p and -p have
//           equal even and opposite odd entries, and so have the columns of AT: each pair costs little more than one.
// Source    Lavin and Gray, arXiv:1509.09308; Toom-Cook as in Barabasz et al., arXiv:1803.10986, which also shows that
//           the points decide the error. (0, +-5/8, +-3/2, infinity) errs 1.8 to 2.4 times less than the usual
//           (0, +-1, +-2, infinity) on random data, at the same cost.
#pragma once

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

// 4 x 4 outputs of a 3 x 3 filter, and the same points for 3 x 3 outputs of a 4 x 4 filter (the weight gradient, whose
// filter is the gradient of the output): both read 6 x 6 inputs through one BT.
constexpr double winograd_points[5] = {0, 0.625, -0.625, 1.5, -1.5};
constexpr ToomCook<4, 3> winograd_4x3(winograd_points);
constexpr ToomCook<3, 4> winograd_3x4(winograd_points);
static_assert(winograd_4x3.bt[1][2] == winograd_4x3.bt[2][2] && winograd_4x3.bt[1][3] == -winograd_4x3.bt[2][3],
              "points of a pair must be opposite");

}  // namespace pyconv::conv2d
