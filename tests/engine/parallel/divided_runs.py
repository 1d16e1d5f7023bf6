"""What the tests of divided models run in a process of their own, and the followers that they start.

`python -m tests.engine.parallel.divided_runs --architecture NAME …` is a follower with its part of a tiny `GpuModel`.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from myna.engine.parallel import follower
from myna.engine.parallel.leader import DividedModel, gather
from myna.engine.parallel.ranks import Ranks
from tests.engine.gpu_runs import gpu_model, reference, tokens_differ

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def part(architecture: str, ranks: Ranks) -> Any:
    torch.set_num_threads(1)
    return gpu_model(architecture, fused=True, ranks=ranks, **HEADS)


def divided_tokens_differ(architecture: str, count: int) -> str:
    """Over two CPUs and Triton's interpreter: where an engine's greedy tokens aren't what transformers generates on one."""
    wanted = reference(architecture, count, **HEADS)
    command = [sys.executable, "-m", "tests.engine.parallel.divided_runs", "--architecture", architecture]
    with gather(["cpu", "cpu"], command, architecture) as group:
        return tokens_differ(DividedModel(part(architecture, group.ranks), group), wanted)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--architecture", required=True)
    follower.add_arguments(parser)
    options = parser.parse_args()
    sys.exit(follower.serve(options, lambda ranks: part(options.architecture, ranks)))
