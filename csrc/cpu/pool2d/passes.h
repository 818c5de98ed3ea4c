// The passes of channels.h and rows.h as pool2d.h declares them, once for each storage type; included by both.

void max_fwd(const Pool2dShape& s, const void* x, void* y, const pool2d::Where& where) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    if (where.indices) return max_fwd<indices>(s, (const T*)x, (T*)y, where);
    where.taps ? max_fwd<taps>(s, (const T*)x, (T*)y, where) : max_fwd<nothing>(s, (const T*)x, (T*)y, where);
  });
}

void max_bwd(const Pool2dShape& s, const void* dy, const pool2d::WhereWas& where, void* dx) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    where.taps ? max_bwd<taps>(s, (const T*)dy, where, (T*)dx) : max_bwd<indices>(s, (const T*)dy, where, (T*)dx);
  });
}

void avg_fwd(const Pool2dShape& s, const void* x, void* y) {
  with_type(s.dtype, [&](auto type) { avg_fwd(s, (const decltype(type)*)x, (decltype(type)*)y); });
}

void avg_bwd(const Pool2dShape& s, const void* dy, void* dx) {
  with_type(s.dtype, [&](auto type) { avg_bwd(s, (const decltype(type)*)dy, (decltype(type)*)dx); });
}
