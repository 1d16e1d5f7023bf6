"""An engine process over a model with random weights: `python -m tests.benchmarks.experiment.made --fd N --shape SHAPE`.

Shapes, batches and memory are those of real models; what is generated means nothing. Only the weights and the words are made:
admission, engine and server are the product's. `--shape default` is the default model, for options that its process lacks;
`--shape paced` takes a GPU's time and computes nothing (`paced.py`).
"""

from __future__ import annotations

import argparse
import gc
import signal
import socket
import sys
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from myna.engine import frames
from myna.engine.admission import admit
from myna.engine.engine import Engine, EngineConfig
from myna.engine.errors import EngineError
from myna.engine.interface import ModelRunner
from myna.engine.loading import load
from myna.engine.planner import SMALL_RUN
from myna.engine.process import EngineServer
from myna.engine.tokens import PromptTokenizer
from tests.benchmarks.experiment.paced import PacedModel
from tests.benchmarks.experiment.words import made_tokenizer
from tests.benchmarks.gpu_engine import LLAMA_3_8B

DEFAULT, PACED = "default", "paced"
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": LLAMA_3_8B,
    "llama-2-13b": {
        "vocab_size": 32_000,
        "hidden_size": 5120,
        "intermediate_size": 13_824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
    },
    PACED: LLAMA_3_8B,
    "tiny": {
        "vocab_size": 2048,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 65_536,
        "tie_word_embeddings": False,
    },
}


def network(shape: str, device: str, seed: int) -> Any:
    """A transformers model with random bfloat16 weights, made where it will run."""
    transformers_logging.set_verbosity_error()
    torch.manual_seed(seed)
    config = AutoConfig.for_model("llama", **SHAPES[shape], bos_token_id=1, eos_token_id=2)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def engine_of(options: argparse.Namespace) -> tuple[Engine, Any]:
    """The engine and its tokenizer. Raises `EngineError`."""
    model: ModelRunner
    if options.shape == DEFAULT:
        loaded = load(cache_dir=options.cache_dir)
        model, tokenizer = loaded.model, loaded.tokenizer
    elif options.shape == PACED:
        model, tokenizer = PacedModel(), made_tokenizer(SHAPES[PACED]["vocab_size"])
    else:
        model = admit(network(options.shape, options.device, options.seed), options.shape)
        tokenizer = made_tokenizer(SHAPES[options.shape]["vocab_size"])
    limits = model.suits.limits
    if options.max_sequences is not None:
        limits = replace(limits, max_sequences=options.max_sequences)
    if options.ahead_tokens is not None:
        limits = replace(limits, ahead_tokens=options.ahead_tokens)
    config = EngineConfig(kv_tokens=options.kv_tokens, limits=limits, small_run=options.small_run)
    return Engine(model, tokenizer, config), tokenizer


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="tests.benchmarks.experiment.made")
    made.add_argument("--fd", type=int, required=True)
    made.add_argument("--shape", choices=[DEFAULT, *SHAPES], required=True)
    made.add_argument("--cache-dir", default=None)
    made.add_argument("--device", default="cpu")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--kv-tokens", type=int, default=None)
    made.add_argument("--max-sequences", type=int, default=None)
    made.add_argument("--ahead-tokens", type=int, default=None, help="as the engine process has it")
    made.add_argument(
        "--small-run", type=int, default=SMALL_RUN, help="tokens from which a shared run is read once for all"
    )
    return made


def main() -> int:
    """Serve until the host is gone. Returns the exit status."""
    options = parser().parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=options.fd) as channel:
        try:
            engine, tokenizer = engine_of(options)
        except EngineError as error:
            channel.sendall(frames.encode(frames.FailedReport("", type(error).__name__, str(error))))
            return 1
        gc.collect()
        gc.freeze()
        EngineServer(engine, PromptTokenizer(tokenizer), channel).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
