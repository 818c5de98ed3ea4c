"""What is said in several files says the same in all of them, and README.md's examples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text()


def found(pattern: str, name: str) -> str:
    match = re.search(pattern, text(name), re.M)
    assert match, f"{name} has no {pattern}"
    return match[1]


def test_every_source_file_is_listed_once():
    listed = [line for line in text("csrc/sources.txt").split("\n") if line.endswith(".cpp")]
    present = [str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp")]
    assert sorted(listed) == sorted(present)


def test_oldest_torch_is_one_number():
    target = int(found(r'^TORCH_TARGET_VERSION = "(\w+)"', "setup.py"), 16)
    oldest = f"{target >> 56}.{target >> 48 & 255}"
    assert found(r'"torch>=([\d.]+)"', "pyproject.toml") == oldest
    assert found(r"^MINIMUM = \((\d+, \d+)\)", "build_backend.py").replace(", ", ".") == oldest
    assert found(r"TORCH_TARGET_VERSION=(\w+)", "CMakeLists.txt") == f"0x{target:016x}"


def test_version_is_one_number():
    version = found(r'^version = "(.+)"', "pyproject.toml")
    assert found(r"^version: (.+)", "CITATION.cff") == version


def test_constraints_hold_every_tool_of_the_dev_extra():
    extra = set(re.findall(r'"([\w-]+)', found(r"^dev = \[([^\]]*)\]", "pyproject.toml")))
    pinned = set(re.findall(r"^([\w-]+)==", text("constraints.txt"), re.M))
    assert extra
    assert extra <= pinned


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", text("README.md"), re.S))
def test_readme_example_runs(block):
    run = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
