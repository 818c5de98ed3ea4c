#!/bin/sh
# An object compiled through cpu/for_each_isa.inc may define a weak function only under one of its ISA namespaces. Any
# other weak function is shared with the whole program, and the linker could give a plain x86-64 caller the AVX-512 copy.
#
#   isa_objects.sh NM SOURCE_DIR OBJECT...        (objects as CMake names them: .../<target>.dir/<source>.o)
set -u
nm=$1 root=$2
shift 2

checked=0 failed=0
for object in "$@"; do
  source=${object##*.dir/}
  source=$root/${source%.o}
  grep -q '#include "cpu/for_each_isa.inc"' "$source" || continue
  checked=$((checked + 1))
  leaks=$("$nm" --defined-only --demangle "$object" | grep ' W ' | grep -vE 'pyconv::(portable|avx2|avx512|avx512_bf16)::') || continue
  failed=1
  printf '%s defines weak functions that the program shares:\n%s\n' "$source" "$leaks"
done
echo "$checked objects checked"
[ "$checked" -gt 0 ] && [ "$failed" -eq 0 ]
