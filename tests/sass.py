"""What ptxas made of a kernel: instructions and the hottest loop, as cuobjdump prints them."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

INSTRUCTION = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;"
)
MATH = ("FFMA", "HMMA")


def tool(name):
    """A program of CUDA's: of $CUDA_HOME, of PATH, or of its nvidia-cuda-... package here; else None."""
    places = [Path(os.environ.get("CUDA_HOME", "."), "bin", name), shutil.which(name)]
    places += sorted(Path(sysconfig.get_path("purelib")).glob(f"nvidia/cu*/bin/{name}"))
    return next((str(p) for p in places if p and os.access(p, os.X_OK)), None)


def cuobjdump():
    """Of `tool`, if it has nvdisasm beside it, which it calls."""
    found = tool("cuobjdump")
    return found if found and Path(found).with_name("nvdisasm").exists() else None


@dataclass(frozen=True)
class Kernel:
    """name is mangled; code is (address, opcode, operands) in order."""

    name: str
    code: tuple

    def loops(self):
        """The instructions from the target of each backward branch to the branch."""
        for i, (address, opcode, operands) in enumerate(self.code):
            target = re.search(r"0x([0-9a-f]+)", operands)
            if opcode.startswith("BRA") and target and int(target[1], 16) < address:
                start = int(target[1], 16)
                yield [c for c in self.code[: i + 1] if c[0] >= start]

    def main_loop(self):
        """Counts of opcodes, up to the first dot, in the smallest loop with half of any loop's products."""
        counted = [Counter(op.split(".")[0] for _, op, _ in loop) for loop in self.loops()]
        products = [sum(c[m] for m in MATH) for c in counted]
        most = max(products, default=0)
        return min(
            (c for c, n in zip(counted, products) if n and 2 * n >= most),
            key=Counter.total,
            default=Counter(),
        )


@cache
def text_of(path, arch):
    """The machine code of an object file for one architecture, "sm_80"."""
    program = cuobjdump()
    command = [program, "-sass", "-arch", arch, str(path)]
    beside = {"PATH": f"{Path(program).parent}:/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=beside).stdout


def kernels(path, arch, pattern):
    """Every kernel whose mangled name has the pattern."""
    for part in text_of(path, arch).split("\t\tFunction : ")[1:]:
        name, _, body = part.partition("\n")
        if re.search(pattern, name):
            lines = map(INSTRUCTION.match, body.splitlines())
            yield Kernel(name.strip(), tuple((int(m[1], 16), m[2], m[3]) for m in lines if m))
