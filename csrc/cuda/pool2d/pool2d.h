// Pooling on CUDA: the kernels, and the lists that choose among them (list.cpp). No CUDA header, as in cuda/conv2d.
#pragma once
#include <string>
#include <vector>

#include "common/kernel_list.h"
#include "cuda/library.h"

namespace pyconv::cuda::pool2d {

// Operands as on the CPU: indices are offsets ih*IW + iw into the plane, -1 where a window holds no pixel. `op` is the name
// a refusal speaks of: max_pool2d or adaptive_max_pool2d.
void max_fwd(const Queue& q, const char* op, const Pool2dShape& s, const void* x, void* y, int64_t* indices,
             const std::string& algorithm);
void max_bwd(const Queue& q, const char* op, const Pool2dShape& s, const void* dy, const int64_t* indices, void* dx,
             const std::string& algorithm);
void avg_fwd(const Queue& q, const char* op, const Pool2dShape& s, const void* x, void* y,
             const std::string& algorithm);
void avg_bwd(const Queue& q, const char* op, const Pool2dShape& s, const void* dy, void* dx,
             const std::string& algorithm);
void unpool_fwd(const Queue& q, const char* op, const Pool2dShape& s, const void* x, const int64_t* indices, void* y,
                const std::string& algorithm);
void unpool_bwd(const Queue& q, const char* op, const Pool2dShape& s, const void* dy, const int64_t* indices, void* dx,
                const std::string& algorithm);

std::vector<std::string> max_algorithms();
std::vector<std::string> avg_algorithms();
std::vector<std::string> unpool_algorithms();
std::vector<Answer> ask_max(const Pool2dShape& s, Pass pass, Ask what);
std::vector<Answer> ask_avg(const Pool2dShape& s, Pass pass, Ask what);
std::vector<Answer> ask_unpool(const Pool2dShape& s, Pass pass, Ask what);

}  // namespace pyconv::cuda::pool2d
