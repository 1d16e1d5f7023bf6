"""Launches tree attention: work arrays go to the device in one copy, then every layer is two launches, nothing more.

Shapes and strides. `query`, `output` [T, Hq, D], a row's heads and numbers contiguous. `keys`, `values`
[pages, page_size, Hkv, D], any strides for page, token and head, D contiguous; where `Shape.tma` is set, all strides are
multiples of the token's, which is D, and a page's tokens follow one another. The pool must hold finite numbers
everywhere (zero it once): what is masked is multiplied by zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, Protocol

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from myna.kernels.tree_attention import merge_kernel, tree_attention_kernel

_LOG2_E = 1.4426950408889634
_SECTIONS = ("slot_begin", "units", "pages", "rows", "parts", "positions", "merged", "merge_begin")
_ALIGN = 32  # int32 entries: sections begin at multiples of 128 bytes
_MERGED_AT_ONCE = 8
_MANY_HEADS = 8192
_MERGED_NUMBERS = 1024  # that one warp keeps in registers


class WorkLike(Protocol):
    """The units of a step (`myna.engine.work.Work` is one, and says what the arrays hold)."""

    @property
    def slot_begin(self) -> NDArray[np.int32]: ...  # noqa: D102
    @property
    def units(self) -> NDArray[np.int32]: ...  # noqa: D102
    @property
    def pages(self) -> NDArray[np.int32]: ...  # noqa: D102
    @property
    def rows(self) -> NDArray[np.int32]: ...  # noqa: D102
    @property
    def parts(self) -> NDArray[np.int32]: ...  # noqa: D102
    @property
    def positions(self) -> NDArray[np.int32]: ...  # noqa: D102
    @property
    def merged(self) -> NDArray[np.int32]: ...  # noqa: D102
    @property
    def merge_begin(self) -> NDArray[np.int32]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Shape:
    """A kernel for one kind of layer: heads, sizes, and how it is tiled.

    `group` query heads for each of `kv_heads`. Tiles are `small_rows` or `large_rows` query rows x `keys` keys, `stages`
    of them in flight; `programs` are resident on each multiprocessor. `tma`: tiles are loaded by the copy engine.
    `pdl`: the launches overlap the end of the one before (programmatic dependent launch). Both need sm_90.
    """

    kv_heads: int
    group: int
    head_dim: int
    page_size: int
    dtype: torch.dtype
    small_rows: int = 16
    large_rows: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 3
    programs: int = 2
    tma: bool = True
    pdl: bool = True

    @property
    def block_d(self) -> int:
        """`head_dim` rounded up to a power of two."""
        return int(triton.next_power_of_2(self.head_dim))


def choose_shape(
    kv_heads: int, group: int, head_dim: int, page_size: int, dtype: torch.dtype, *, hopper: bool = True
) -> Shape:
    """The shape that ran best (kernels/NOTES.md). Raises ValueError for what no kernel is made for."""
    if head_dim not in range(16, 257, 8):
        raise ValueError(f"head size {head_dim}: the kernel takes multiples of 8 from 16 to 256")
    if group > 32:
        raise ValueError(f"{group} query heads for a KV head: the kernel takes up to 32")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{dtype}: the kernel takes float32, float16 and bfloat16")
    shape = Shape(kv_heads, group, head_dim, page_size, dtype, pdl=hopper)
    if dtype == torch.float32:  # no tensor cores: the tiles are multiplied in registers
        return replace(shape, keys=32 if head_dim <= 128 else 16, warps=8, stages=2, programs=1, tma=False)
    if head_dim > 128:
        shape = replace(shape, small_rows=32, keys=32, warps=8, programs=1)
    if hopper and page_size % shape.keys == 0:
        return shape
    return replace(shape, tma=False, warps=8, programs=1)  # addresses take registers


class Partials:
    """Memory for partial results, [entries, D] and [entries], float32. Layers and steps that follow one another share it."""

    def __init__(self, entries: int, head_dim: int, device: torch.device) -> None:
        self.entries = entries
        self.values = torch.empty((entries, head_dim), dtype=torch.float32, device=device)
        self.log_sum = torch.empty(entries, dtype=torch.float32, device=device)


class WorkBuffer:
    """Device memory for a step's work arrays, at fixed addresses, and for its partial results.

    `limits`: the largest length of each section (`capacity` makes one from a Work). `load` copies a Work there. Memory for
    partial results is its own, as much as the limits may need, or `partials`.
    """

    def __init__(
        self, limits: dict[str, int], shape: Shape, device: torch.device, partials: Partials | None = None
    ) -> None:
        begins, end = {}, 0
        for name in _SECTIONS:
            begins[name] = end
            end += -(-limits[name] // _ALIGN) * _ALIGN
        self._begins = begins
        self._limits = limits
        # Two of them take turns: while one is being copied, the next step's work goes into the other.
        pinned = device.type == "cuda"
        self._hosts = cycle([torch.zeros(end, dtype=torch.int32, pin_memory=pinned) for _ in range(2)])
        self._device = torch.zeros(end, dtype=torch.int32, device=device)
        self.sections = {name: self._device[begins[name] : begins[name] + limits[name]] for name in _SECTIONS}
        entries = max(limits["parts"], 1) * shape.group
        partials = partials or Partials(entries, shape.head_dim, device)
        self._most_parts = partials.entries // shape.group
        self.partial = partials.values
        self.log_sum = partials.log_sum
        self.rows_merged = min(limits["merged"], limits["merge_begin"] - 1)
        """How many pairs of row and head the merge has to look at: all that there is room for, or what `load` says."""
        self.works = True
        """Whether there may be any units."""

    @staticmethod
    def capacity(works: Sequence[WorkLike], slack: float = 1.0) -> dict[str, int]:
        """Limits that hold each of the works, and works that are larger by a factor of `slack`."""
        limits = {name: max(getattr(work, name).size for work in works) for name in _SECTIONS}
        # Never nothing: a kernel without units still looks at the first, and an empty tensor has no address.
        return {name: size if name == "slot_begin" else max(int(size * slack), _ALIGN) for name, size in limits.items()}

    def holds(self, work: WorkLike) -> bool:
        """Whether each section of a work fits, and its partial results."""
        return work.parts.size <= self._most_parts and all(
            getattr(work, name).size <= self._limits[name] for name in _SECTIONS
        )

    def load(self, work: WorkLike, *, alone: bool = False) -> None:
        """Copy a work to the device, in stream order. The last but one must have been copied.

        `alone`: launches are for this work alone, and may be left out where it has nothing for them. Raises ValueError if a
        section is too small. Rows past the work's own have no units and nothing to merge.
        """
        pinned = next(self._hosts)
        host = pinned.numpy()
        for name in _SECTIONS:
            array = getattr(work, name).reshape(-1)
            most = min(self._limits[name], self._most_parts) if name == "parts" else self._limits[name]
            if array.size > most:
                raise ValueError(f"work has {array.size} {name}, the buffer holds {most}")
            begin = self._begins[name]
            host[begin : begin + array.size] = array
            if name == "merge_begin":
                host[begin + array.size : begin + self._limits[name]] = array[-1]
        self._device.copy_(pinned, non_blocking=True)
        if alone:
            self.rows_merged, self.works = len(work.merged), bool(work.units.size)


def tree_attention(
    query: Tensor,
    keys: Any,
    values: Any,
    output: Tensor,
    buffer: WorkBuffer,
    shape: Shape,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    upcast: bool = False,
) -> Tensor:
    """Attention of one layer into `output`; returns it. Shapes and strides: see the module.

    `window` must be the one that the buffer's work was made with. `sinks` [Hq]. `upcast`: multiply in float32, for
    Triton's interpreter, which can't multiply bfloat16. Rows without a unit are left as they are.
    """
    _check(query, keys, values, output, buffer, shape, sinks)
    if not buffer.works:
        return output
    at = buffer.sections
    slots = at["slot_begin"].numel() - 1
    stride_page, stride_token, stride_head = keys.stride()[:3]
    if softcap is None:
        scale, cap = scaling * _LOG2_E, 0.0
    else:  # cap * tanh(x * scaling / cap), by exp2
        scale, cap = 2.0 * scaling / softcap * _LOG2_E, softcap * _LOG2_E
    tree_attention_kernel[(slots,)](
        query, _source(keys, shape), _source(values, shape), output, buffer.partial, buffer.log_sum,
        query if sinks is None else sinks,
        at["slot_begin"], at["units"], at["pages"], at["rows"], at["parts"], at["positions"],
        scale, cap, window or 0, query.stride(0), output.stride(0), stride_page, stride_token, stride_head,
        G=shape.group, D=shape.head_dim, BLOCK_D=shape.block_d, PAGE=shape.page_size, KEYS=shape.keys,
        SMALL_ROWS=shape.small_rows, LARGE_ROWS=shape.large_rows,
        STAGES=shape.stages,
        TMA=shape.tma, WINDOW=window is not None, SOFTCAP=softcap is not None, SINKS=sinks is not None, UPCAST=upcast,
        PDL=shape.pdl, num_warps=shape.warps, launch_pdl=shape.pdl,
    )  # fmt: skip
    if not buffer.rows_merged:
        return output
    # Programs of one warp, small enough to be many: a head each, or all heads of a KV head where rows are many.
    many = buffer.rows_merged * shape.group >= _MANY_HEADS
    heads = min(triton.next_power_of_2(shape.group), max(1, _MERGED_NUMBERS // shape.block_d)) if many else 1
    merge_kernel[(buffer.rows_merged, triton.cdiv(shape.group, heads))](
        output, buffer.partial, buffer.log_sum, query if sinks is None else sinks, at["merged"], at["merge_begin"],
        output.stride(0),
        KV_HEADS=shape.kv_heads, G=shape.group, HEADS=heads, D=shape.head_dim, BLOCK_D=shape.block_d,
        PARTS=max(1, _MERGED_AT_ONCE // heads), SINKS=sinks is not None,
        PDL=shape.pdl, num_warps=1, launch_pdl=shape.pdl,
    )  # fmt: skip
    return output


def _source(pool: Tensor, shape: Shape) -> Any:
    """What the kernel loads tiles from: the pool as [rows, D] behind a TMA descriptor, or a plain pointer."""
    if not shape.tma:
        return pool
    size = shape.head_dim
    rows = (
        1 + sum((count - 1) * stride for count, stride in zip(pool.shape[:3], pool.stride()[:3], strict=True)) // size
    )
    return TensorDescriptor(
        pool.as_strided((rows, size), (size, 1)), [rows, size], [size, 1], [shape.keys, shape.block_d]
    )


def _check(
    query: Tensor, keys: Tensor, values: Tensor, output: Tensor, buffer: WorkBuffer, shape: Shape, sinks: Tensor | None
) -> None:
    heads = shape.kv_heads * shape.group
    assert query.shape[1:] == output.shape[1:] == (heads, shape.head_dim), (query.shape, output.shape, shape)
    assert query.stride()[1:] == output.stride()[1:] == (shape.head_dim, 1), "heads of a row must be contiguous"
    assert query.dtype == output.dtype == keys.dtype == values.dtype == shape.dtype
    assert query.shape[0] == output.shape[0] <= buffer.sections["positions"].numel()
    assert keys.shape == values.shape
    assert keys.stride() == values.stride()
    assert keys.shape[1:] == (shape.page_size, shape.kv_heads, shape.head_dim), (keys.shape, shape)
    assert keys.stride(3) == 1
    assert sinks is None or (sinks.shape == (heads,) and sinks.is_contiguous())
    if shape.tma:
        assert shape.page_size % shape.keys == 0
        assert keys.stride(1) == shape.head_dim
        assert not any(stride % shape.head_dim for stride in keys.stride()[:3])
        assert keys.data_ptr() % 16 == values.data_ptr() % 16 == shape.head_dim * keys.element_size() % 16 == 0
