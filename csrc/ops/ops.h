// Every op, as bindings.cpp registers it. One file per family in this folder has the bodies.
#pragma once
#include <tuple>

#include "ops/tensor.h"

namespace pyconv::ops {

using OptionalTensor = std::optional<Tensor>;
using Tensor2 = std::tuple<Tensor, Tensor>;
using Tensor3 = std::tuple<Tensor, Tensor, Tensor>;
using Tensor4 = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// conv2d.cpp
Tensor conv2d(const Tensor& x, const Tensor& w, const OptionalTensor& b, int64_t SH, int64_t SW, int64_t PH, int64_t PW,
              int64_t DH, int64_t DW, int64_t G, const std::string& algorithm);
Tensor conv2d_fused(const Tensor& x, const Tensor& w, const OptionalTensor& b, const OptionalTensor& residual,
                    bool relu, double ceiling, int64_t SH, int64_t SW, int64_t PH, int64_t PW, int64_t DH, int64_t DW,
                    int64_t G, const OptionalTensor& packed, const std::string& algorithm);
Tensor conv2d_pack(const Tensor& x, const Tensor& w, int64_t SH, int64_t SW, int64_t PH, int64_t PW, int64_t DH,
                   int64_t DW, int64_t G, const std::string& algorithm);
Tensor conv2d_bwd_input(const Tensor& dy, const Tensor& w, int64_t IH, int64_t IW, int64_t SH, int64_t SW, int64_t PH,
                        int64_t PW, int64_t DH, int64_t DW, int64_t G, bool channels_last,
                        const std::string& algorithm);
Tensor conv2d_bwd_weight(const Tensor& dy, const Tensor& x, int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH,
                         int64_t PW, int64_t DH, int64_t DW, int64_t G, bool channels_last,
                         const std::string& algorithm);
// (dx, dw, db): dx where w is given, dw where x is, db where it is asked for, and empty tensors elsewhere.
Tensor3 conv2d_bwd(const Tensor& dy, const OptionalTensor& x, const OptionalTensor& w, int64_t IH, int64_t IW,
                   int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH, int64_t PW, int64_t DH, int64_t DW,
                   int64_t G, bool channels_last, bool bias, const std::string& algorithm);

// pool2d.cpp; indices are int64 offsets ih*IW + iw into the plane
Tensor2 max_pool2d(const Tensor& x, int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH, int64_t PW, int64_t DH,
                   int64_t DW, bool ceil_mode, const std::string& algorithm);
Tensor max_pool2d_bwd(const Tensor& dy, const Tensor& indices, int64_t IH, int64_t IW, int64_t KH, int64_t KW,
                      int64_t SH, int64_t SW, int64_t PH, int64_t PW, int64_t DH, int64_t DW, bool channels_last,
                      const std::string& algorithm);
Tensor2 max_pool2d_taps(const Tensor& x, int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH, int64_t PW,
                        int64_t DH, int64_t DW, bool ceil_mode, const std::string& algorithm);
Tensor max_pool2d_values(const Tensor& x, int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH, int64_t PW,
                         int64_t DH, int64_t DW, bool ceil_mode, const std::string& algorithm);
Tensor max_pool2d_taps_bwd(const Tensor& dy, const Tensor& taps, int64_t IH, int64_t IW, int64_t KH, int64_t KW,
                           int64_t SH, int64_t SW, int64_t PH, int64_t PW, bool channels_last,
                           const std::string& algorithm);
Tensor avg_pool2d(const Tensor& x, int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH, int64_t PW,
                  bool ceil_mode, bool count_include_pad, int64_t divisor, const std::string& algorithm);
Tensor avg_pool2d_bwd(const Tensor& dy, int64_t IH, int64_t IW, int64_t KH, int64_t KW, int64_t SH, int64_t SW,
                      int64_t PH, int64_t PW, bool count_include_pad, int64_t divisor, bool channels_last,
                      const std::string& algorithm);
Tensor2 adaptive_max_pool2d(const Tensor& x, int64_t OH, int64_t OW, const std::string& algorithm);
Tensor adaptive_max_pool2d_bwd(const Tensor& dy, const Tensor& indices, int64_t IH, int64_t IW, bool channels_last,
                               const std::string& algorithm);
Tensor adaptive_avg_pool2d(const Tensor& x, int64_t OH, int64_t OW, const std::string& algorithm);
Tensor adaptive_avg_pool2d_bwd(const Tensor& dy, int64_t IH, int64_t IW, bool channels_last,
                               const std::string& algorithm);
Tensor max_unpool2d(const Tensor& x, const Tensor& indices, int64_t OH, int64_t OW, const std::string& algorithm);
Tensor max_unpool2d_bwd(const Tensor& dy, const Tensor& indices, const std::string& algorithm);

// batch_norm.cpp; mean and var are of the statistics' type: float32, or float64 for float64 data
Tensor3 batch_norm_train(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                         const std::string& algorithm);
Tensor batch_norm_eval(const Tensor& x, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
                       const OptionalTensor& bias, double eps, const std::string& algorithm);
Tensor3 batch_norm_train_bwd(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var,
                             const OptionalTensor& weight, double eps, const std::string& algorithm);
Tensor3 batch_norm_eval_bwd(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var,
                            const OptionalTensor& weight, double eps, const std::string& algorithm);
Tensor3 batch_norm_relu_train(const Tensor& x, const OptionalTensor& residual, const OptionalTensor& weight,
                              const OptionalTensor& bias, double eps, double ceiling, const std::string& algorithm);
Tensor batch_norm_relu_eval(const Tensor& x, const OptionalTensor& residual, const Tensor& mean, const Tensor& var,
                            const OptionalTensor& weight, const OptionalTensor& bias, double eps, double ceiling,
                            const std::string& algorithm);
Tensor4 batch_norm_relu_train_bwd(const Tensor& dy, const Tensor& y, const Tensor& x, const Tensor& mean,
                                  const Tensor& var, const OptionalTensor& weight, bool residual, double eps,
                                  double ceiling, const std::string& algorithm);
Tensor4 batch_norm_relu_eval_bwd(const Tensor& dy, const Tensor& y, const Tensor& x, const Tensor& mean,
                                 const Tensor& var, const OptionalTensor& weight, bool residual, double eps,
                                 double ceiling, const std::string& algorithm);
// running = (1 - momentum) * running + momentum * batch in place, with var * values / (values - 1) for the variance.
void batch_norm_move(Tensor running_mean, Tensor running_var, const Tensor& mean, const Tensor& var, int64_t values,
                     double momentum);

}  // namespace pyconv::ops
