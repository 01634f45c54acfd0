"""The command line: `python -m nestar sample | samples | train | extrapolate | assemble | push | …`."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Sequence

from nestar.cli.common import INTERRUPTED
from nestar.cli.measuring import add_evaluate, add_experiment, add_index
from nestar.cli.publishing import add_assemble, add_push
from nestar.cli.sampling import add_sample, add_samples
from nestar.cli.training import add_extrapolate, add_train
from nestar.settings import SettingsError

READER_LEFT = 141
"""Exit status where nobody reads the output any more: a shell's of a command that SIGPIPE ended."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk, a share of it or a file may grow no further."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a refusal is one sentence on standard error and exit status 2."""
    arguments = command_parser().parse_args(argv)
    from nestar.model import WeightsError

    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except (SettingsError, WeightsError) as error:
        print(f"nestar: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads standard output any more, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        return READER_LEFT
    except Exception as error:
        if _no_memory(error):
            said = (
                "The GPU has no memory left: fewer samples at once take less, and in training a larger "
                "--accumulate or --checkpoint-activations."
            )
        elif _no_room(error):
            said = f"The disk is full ({error}). What was whole before still is: make room and call again."
        elif isinstance(error, OSError) and error.filename is not None:  # a file or folder that was given
            said = f"{error.filename} cannot be used ({error.strerror})."
        else:
            raise
        print(f"nestar: {said}", file=sys.stderr)
    return 2


def _no_memory(error: Exception) -> bool:
    """Whether a device's memory was too small."""
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _no_room(error: Exception) -> bool:
    """Whether a file could not be written for lack of room, which libraries say in ways of their own."""
    from safetensors import SafetensorError

    said = str(error)
    if isinstance(error, OSError):
        return error.errno in NO_ROOM or re.fullmatch(r"\d+ requested and \d+ written", said) is not None
    return isinstance(error, SafetensorError) and any(f"(os error {each})" in said for each in NO_ROOM)


def command_parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    parser = argparse.ArgumentParser(prog="python -m nestar", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_sample(commands.add_parser("sample", help="make one picture, or up to sixteen"))
    add_samples(commands.add_parser("samples", help="many pictures as an npz, for outside evaluators"))
    add_train(commands.add_parser("train", help="train a part, or the family of nestings"))
    add_extrapolate(
        commands.add_parser("extrapolate", help="move a nesting's weights on beyond their training")
    )
    add_assemble(commands.add_parser("assemble", help="put trained parts together into a checkpoint folder"))
    add_push(commands.add_parser("push", help="publish a checkpoint folder on the Hugging Face Hub"))
    add_evaluate(commands.add_parser("evaluate", help="measure a nesting's samples against Tiny Worlds"))
    add_index(commands.add_parser("index", help="describe training pictures, so that copies would be found"))
    add_experiment(commands.add_parser("experiment", help="one of the paper's questions, with a figure"))
    return parser
