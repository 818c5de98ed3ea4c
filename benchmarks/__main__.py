"""``python -m benchmarks conv2d | steps | overhead | report``."""

from __future__ import annotations

import argparse
import sys

from benchmarks import conv2d, overhead


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    conv2d.add_arguments(commands.add_parser("conv2d", help=conv2d.__doc__))
    commands.add_parser("overhead", help=overhead.__doc__).set_defaults(run=overhead.main)
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
