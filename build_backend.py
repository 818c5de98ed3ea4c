"""PEP 517 backend: setuptools, building against the torch that the target environment has.

pip builds in an isolated environment. A static requirement on torch would fetch one there, with
CUDA several gigabytes, beside the one already installed. The extension uses torch's stable ABI, so
any torch >= 2.10 is right to build against: use the target's when there is one, ask otherwise.

pip isolates by PYTHONPATH and a sitecustomize, run by the target's own interpreter; the same
interpreter started with -E therefore sees the target. uv and `build` use a virtual environment of
their own: there the ordinary requirement is the answer.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (every hook not replaced below)

MINIMUM = (2, 10)  # as TORCH_TARGET_VERSION in setup.py and the dependency in pyproject.toml
PROBE = """
import importlib.metadata, importlib.util, json, sys
found = importlib.util.find_spec("torch") is not None
print(json.dumps([importlib.metadata.version("torch") if found else "0.0", sys.path]))
"""


def find_torch():
    """(version, sys.path) of an interpreter that has a usable torch, or None."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONNOUSERSITE"}
    for options, env in (([], None), (["-E"], environment)):
        with tempfile.TemporaryDirectory() as empty:  # a source tree could shadow torch
            command = [sys.executable, *options, "-c", PROBE]
            probe = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True)
        if probe.returncode == 0:
            release, path = json.loads(probe.stdout)
            if tuple(map(int, re.findall(r"\d+", release)[:2])) >= MINIMUM:
                return release, path
    return None


def torch_requirement(config_settings=None):
    return [] if find_torch() else ["torch>={}.{}".format(*MINIMUM)]


def with_torch(hook):
    """The setuptools hook, run where `import torch` finds the torch of the target."""

    def run(*args, **kwargs):
        _, path = find_torch() or ("", [])
        sys.path += [entry for entry in path if entry and entry not in sys.path]
        for stale in Path("build").glob("lib*"):  # setuptools would pack modules deleted since
            shutil.rmtree(stale)
        return hook(*args, **kwargs)

    return run


get_requires_for_build_wheel = get_requires_for_build_editable = torch_requirement
build_wheel = with_torch(build_meta.build_wheel)
build_editable = with_torch(build_meta.build_editable)


def get_requires_for_build_sdist(config_settings=None):
    return []
