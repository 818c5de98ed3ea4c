// The passes of planes.h and pixels.h as batch_norm.h declares them, once for each storage type; included by both.

void train(const NormShape& s, const void* x, const batch_norm::Affine& p, const Epilogue& e, void* y, void* mean,
           void* var) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    train<T, A>(s, (const T*)x, (const A*)p.weight, (const A*)p.bias, {e, y}, (T*)y, (A*)mean, (A*)var);
  });
}

void eval(const NormShape& s, const void* x, const batch_norm::Statistics& given, const batch_norm::Affine& p,
          const Epilogue& e, void* y) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    eval<T, A>(s, (const T*)x, (const A*)given.mean, (const A*)given.var, (const A*)p.weight, (const A*)p.bias, {e, y},
               (T*)y);
  });
}

void bwd(const NormShape& s, const batch_norm::Upstream& up, const void* x, const batch_norm::Statistics& given,
         const void* weight, const batch_norm::Gradients& out) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const auto run = [&](auto relu) {
      constexpr bool is_relu = decltype(relu)::value != 0;
      bwd<T, A, is_relu>(s, {(const T*)up.dy, (const T*)up.y, A(up.ceiling)}, (const T*)x, (const A*)given.mean,
                         (const A*)given.var, (const A*)weight, (T*)out.dx, (T*)out.dresidual, (A*)out.dweight,
                         (A*)out.dbias);
    };
    up.y ? run(Int<1>()) : run(Int<0>());
  });
}
