"""``python -m benchmarks conv2d | steps | overhead | report``."""

from __future__ import annotations

import argparse
import sys

from benchmarks import conv2d, overhead, report, steps


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in (
        ("conv2d", conv2d),
        ("steps", steps),
        ("overhead", overhead),
        ("report", report),
    ):
        summary = str(module.__doc__).split(".")[0].split(":")[0]
        module.add_arguments(commands.add_parser(name, help=summary))
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
