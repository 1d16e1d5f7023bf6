"""From a name to a model that can serve: find the weights, load them in a dtype that suits the machine, admit them.

A GGUF file is converted once: dequantised weights as safetensors beside a clean configuration and the tokenizer, in a
cache folder keyed by the file's digest, so that the next load takes a second or two. A folder there is complete or
absent: it is written under another name and renamed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from myna.engine import default_weights
from myna.engine.admission import admit
from myna.engine.default_weights import DEFAULT_MODEL
from myna.engine.errors import ModelRefused, NoRoom
from myna.engine.model import Model

if TYPE_CHECKING:
    from myna.engine.gpu_model import GpuModel
    from myna.engine.parallel.ranks import Ranks

_CACHE_FORMAT = 1
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with the tokenizer that it was trained with (a transformers tokenizer)."""

    model: Model | GpuModel
    tokenizer: Any


def load(
    reference: str | Path = DEFAULT_MODEL,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    cache_dir: str | Path | None = None,
    ranks: Ranks | None = None,
) -> Loaded:
    """Load and admit a model.

    `reference`: a Hugging Face id, a local folder (safetensors), the path of a .gguf file, or `DEFAULT_MODEL`.
    `device`: torch's name for it: "cpu", "cuda", "cuda:1". `dtype`: "float32", "bfloat16", "float16", or "auto": bfloat16 on
    a GPU and on a CPU that multiplies it in hardware, else float32.
    `cache_dir`: where converted weights are kept; by default `myna` in the user's cache folder. `ranks`: among which the model is
    divided; all of them load it together, and `device` is this one's (see `parallel.leader.load_divided`).
    Raises `ModelRefused`, naming the file or layer and the reason.
    """
    name = str(reference)
    place = resolve_device(name, device)
    weights = _resolve_dtype(name, dtype, place)
    source = _find(name, Path(cache_dir) if cache_dir is not None else _default_cache())
    if ranks is None:
        network, tokenizer = _read(name, source, weights, place)
        return Loaded(admit(network, _served_name(name)), tokenizer)
    from myna.engine.parallel.division import divide

    network, tokenizer = _read(name, source, weights, torch.device("cpu"))  # no device ever holds the whole
    division = divide(network, _served_name(name), ranks)
    return Loaded(admit(_sent(network, name, place), _served_name(name), division), tokenizer)


def _served_name(reference: str) -> str:
    """The name by which calls ask for the model: a hub id as it is, a folder's or file's own name."""
    path = Path(reference)
    if reference.endswith(".gguf"):
        return path.stem
    return path.resolve().name if path.is_dir() else reference


def resolve_device(name: str, device: str) -> torch.device:
    """A device that is there and that we know how to run on. Raises `ModelRefused`, about the model `name`."""
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelRefused(name, f"unknown device {device!r}; one of cpu, cuda, cuda:1") from error
    if place.type == "cpu":
        return place
    if place.type != "cuda":
        raise ModelRefused(name, f"there is no attention implementation for device {device!r}; use cpu or cuda")
    if not torch.cuda.is_available():
        raise ModelRefused(name, f"device {device!r} is asked for, and torch finds no CUDA device here")
    index = 0 if place.index is None else place.index
    if index >= torch.cuda.device_count():
        raise ModelRefused(name, f"device {device!r} is asked for, and there are {torch.cuda.device_count()}")
    return torch.device("cuda", index)


def automatic_dtype(device: torch.device) -> torch.dtype:
    """The dtype of "auto" on a device.

    bfloat16 where AMX or AVX512-BF16 multiply it: half the bytes of a decode step and, with AMX, about seven times the
    float32 rate in prefill (figures in kernels/NOTES.md). Elsewhere bfloat16 is emulated and slower than float32.
    """
    if device.type != "cpu":
        return torch.bfloat16
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def _resolve_dtype(name: str, dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return automatic_dtype(device)
    if dtype not in _DTYPES:
        raise ModelRefused(name, f"unknown dtype {dtype!r}; one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _default_cache() -> Path:
    """Where nothing is said. What is said comes as an argument: settings are read in `actors/config`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "myna"


def _find(name: str, cache: Path) -> str:
    """What transformers can read: a local folder, or a hub id."""
    if name == DEFAULT_MODEL:
        return str(_converted(default_weights.find(cache), cache))
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelRefused(name, "there is no such file")
        return str(_converted(path, cache))
    return name


def _read(name: str, source: str, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    try:
        with _quiet():
            where = {} if device.type == "cpu" else {"device_map": device}
            network = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **where)
            tokenizer = AutoTokenizer.from_pretrained(source)
    except torch.cuda.OutOfMemoryError as error:
        raise NoRoom(name, f"its weights don't fit the memory of {device}: {error}") from error
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelRefused(name, f"it can't be loaded: {error}") from error
    return network, tokenizer


def _sent(network: Any, name: str, device: torch.device) -> Any:
    try:
        return network.to(device)
    except torch.cuda.OutOfMemoryError as error:
        raise NoRoom(name, f"its part doesn't fit the memory of {device}: {error}") from error


def _converted(gguf: Path, cache: Path) -> Path:
    """The folder of a converted GGUF file, made now if it isn't there."""
    folder = cache / "gguf" / f"{_digest(gguf)}-transformers-{transformers.__version__}-{_CACHE_FORMAT}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        _convert(gguf, temporary)
        _publish(temporary, folder)
    except Exception as error:  # a damaged file can make its parser raise anything
        raise ModelRefused(str(gguf), f"the GGUF file can't be converted: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _publish(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name. Another process may have been faster; then its folder is as good."""
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _convert(gguf: Path, folder: Path) -> None:
    with _quiet():
        network = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    config = network.config
    del config.quantization_config  # says that the weights are still those of the GGUF file
    config.architectures = [type(network).__name__]
    config.save_pretrained(folder)
    network.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(_distinct(network.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})


def _distinct(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state without second names of tied tensors, which safetensors refuses."""
    seen: set[int] = set()
    distinct: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            distinct[key] = tensor.contiguous()
    return distinct


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without progress bars and notes, for a while."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
