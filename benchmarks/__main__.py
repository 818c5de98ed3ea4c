"""``python -m benchmarks conv2d | steps | ... | report``, which is also ``python -m pyconv bench``."""

from __future__ import annotations

import argparse
import sys

from pyconv import ShapeError

from . import conv2d, everything, instructions, memory, memory_bound, overhead, report, sizes, steps

COMMANDS = {
    "conv2d": conv2d,
    "memory_bound": memory_bound,
    "steps": steps,
    "sizes": sizes,
    "memory": memory,
    "overhead": overhead,
    "instructions": instructions,
    "all": everything,
    "report": report,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the commands to a parser."""
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = str(module.__doc__).split("\n")[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=module.__doc__))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks")
    add_arguments(made)
    return made


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except ShapeError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
