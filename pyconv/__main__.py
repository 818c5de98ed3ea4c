"""The command line: ``python -m pyconv train | demo | explain | bench | info``."""

from __future__ import annotations

import argparse
import sys

from pyconv._bench import add_arguments as add_bench_arguments
from pyconv._explain import add_arguments as add_explain_arguments
from pyconv._shapes import ShapeError
from pyconv.data import DataError
from pyconv.info import add_arguments as add_info_arguments
from pyconv.train import UsageError, cli, demo, distributed


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 2 for a mistake of the user, 128 + signal."""
    parser = argparse.ArgumentParser(prog="python -m pyconv")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary, add_arguments in (
        ("train", "train a model on real images", cli.add_arguments),
        ("demo", "train LeNet-5 on our layers beside its torch twin", demo.add_arguments),
        (
            "explain",
            "which kernel runs a convolution, why, and the roofline",
            add_explain_arguments,
        ),
        ("bench", "time layers and networks beside torch and others", add_bench_arguments),
        ("info", "versions, instruction sets, kernels, and what is missing", add_info_arguments),
    ):
        add_arguments(commands.add_parser(name, help=summary))
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (DataError, ShapeError, UsageError) as error:
        if distributed.local_rank() == 0:  # once for each machine
            print(f"pyconv {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
