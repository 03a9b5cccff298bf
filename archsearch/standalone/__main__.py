"""The command line of a model.

python -m MODEL               is this copy whole, and does it compute what it did? (check.py)
python -m MODEL "a prompt"    continues a text, a byte at a time
"""

import argparse
import sys

from . import check, config, load
from .prompting import continued


def main() -> None:
    """Reads the arguments; checks, or streams a continuation to stdout."""
    parser = argparse.ArgumentParser(description=config["summary"])
    parser.add_argument("prompt", nargs="?", help="what to continue; without it, a self-check")
    parser.add_argument("--steps", type=int, default=200, help="tokens to add")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: always the likeliest")
    parser.add_argument("--top-k", type=int, help="draw from so many of the likeliest")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest that add up to it")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    prompt = given.pop("prompt")
    if prompt is None:
        check.main()
        return
    try:
        for piece in continued(load(), prompt, config["reads"]["vocab"], **given):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
