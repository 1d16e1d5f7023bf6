"""Sums and joins over the GPUs of one machine, by kernels that write straight into each other's memory.

Each rank has a mailbox that all ranks can write. A program first sends its rows to the others' mailboxes, then a flag behind
them, then waits for the flags of the others: one way over the link, no barrier of all, no launch besides the norm that would
follow anyway. Every rank adds up in the order of the ranks, so that all have the same bits.

Rows have two places, taken in turn: who sends a row a second time has everybody's answer to the first, so nobody still reads
the place before. Flags count, and are never taken back. All ranks call the same functions in the same order with the same
numbers of rows; a rank that doesn't makes the others wait for ever, so that a lost rank has to end them all.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# A kernel's arguments are Triton's own types; compile-time constants are in capitals.
# ruff: noqa: N803

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from myna.kernels.launching import overlaps, processors
from myna.kernels.norm import begin_norm, chosen_row, round_and_keep, row_of_residual, store_normed, sum_of_parts

_PIECES = 8  # of a row of logits, which programs of their own send
_PIECE_BLOCK = 4096
_ALIGN = 512  # bytes


@triton.jit
def _wait_for(flag_ptr, number):
    """Until a flag has come so far. Whatever was sent before it is there then."""
    while tl.atomic_add(flag_ptr, 0, sem="acquire", scope="sys") - number < 0:  # the difference outlives an overflow
        pass


@triton.jit(do_not_specialize=["count"])
def _sum_and_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, output_ptr, rows_ptr, mailboxes_ptr, counts_ptr,
    count, eps, stride_part, stride_x, flags_at, mail_at,
    RANK: tl.constexpr, RANKS: tl.constexpr, MOST: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, ONE_PLUS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program p adds up rows p, p + programs and so on over all ranks, adds the residual's, and norms them."""
    offs = tl.arange(0, BLOCK)
    mask = offs < SIZE
    weight = begin_norm(weight_ptr, offs, mask, ONE_PLUS, PDL)
    for row in tl.range(tl.program_id(0), count, tl.num_programs(0)):
        token = chosen_row(rows_ptr, row, ROWS)
        number = tl.load(counts_ptr + row) + 1
        own = sum_of_parts(x_ptr, token, offs, mask, stride_part, stride_x, PARTS).to(weight_ptr.dtype.element_ty)
        place = ((number & 1).to(tl.int64) * RANKS + RANK) * MOST + row
        for rank in tl.static_range(RANKS):
            if rank != RANK:
                box = tl.load(mailboxes_ptr + rank)
                tl.store(
                    (box + mail_at).to(tl.pointer_type(weight_ptr.dtype.element_ty)) + place * SIZE + offs,
                    own,
                    mask=mask,
                )
        tl.debug_barrier()  # the whole row goes before its flag
        for rank in tl.static_range(RANKS):
            if rank != RANK:
                flag_ptr = (tl.load(mailboxes_ptr + rank) + flags_at).to(tl.pointer_type(tl.int32)) + RANK * MOST + row
                tl.atomic_xchg(flag_ptr, number, sem="release", scope="sys")
    here = tl.load(mailboxes_ptr + RANK)
    flags_ptr = (here + flags_at).to(tl.pointer_type(tl.int32))
    mail_ptr = (here + mail_at).to(tl.pointer_type(weight_ptr.dtype.element_ty))
    for row in tl.range(tl.program_id(0), count, tl.num_programs(0)):
        token = chosen_row(rows_ptr, row, ROWS)
        number = tl.load(counts_ptr + row) + 1
        own = sum_of_parts(x_ptr, token, offs, mask, stride_part, stride_x, PARTS).to(weight_ptr.dtype.element_ty)
        total = row_of_residual(residual_ptr, token, offs, mask, SIZE)  # while the others' shares are on their way
        shares = tl.zeros([BLOCK], tl.float32)
        for rank in tl.static_range(RANKS):
            if rank == RANK:
                shares += own.to(tl.float32)
            else:
                _wait_for(flags_ptr + rank * MOST + row, number)
                place = ((number & 1).to(tl.int64) * RANKS + rank) * MOST + row
                share = tl.load(mail_ptr + place * SIZE + offs, mask=mask, other=0.0, cache_modifier=".cg")
                shares += share.to(tl.float32)
        total = round_and_keep(total + shares, residual_ptr, token, offs, mask, SIZE, ROWS)
        store_normed(total, weight, output_ptr, row, offs, mask, eps, SIZE)
        tl.store(counts_ptr + row, number)


@triton.jit(do_not_specialize=["count"])
def _join_kernel(
    x_ptr, mailboxes_ptr, counts_ptr, count, columns, stride, flags_at, logits_at,
    RANK: tl.constexpr, RANKS: tl.constexpr, MOST: tl.constexpr, PIECES: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program p sends pieces p, p + programs and so on of this rank's columns to all ranks, and waits for theirs."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    size = tl.cdiv(columns, PIECES)
    for piece in tl.range(tl.program_id(0), count * PIECES, tl.num_programs(0)):
        row = tl.cast(piece // PIECES, tl.int64)
        begin = piece % PIECES * size
        end = tl.minimum(begin + size, columns)
        number = tl.load(counts_ptr + piece) + 1
        for at in tl.range(begin, end, BLOCK):
            offs = at + tl.arange(0, BLOCK)
            mask = offs < end
            values = tl.load(x_ptr + row * stride + offs, mask=mask)
            for rank in tl.static_range(RANKS):
                box = tl.load(mailboxes_ptr + rank)
                logits_ptr = (box + logits_at).to(tl.pointer_type(x_ptr.dtype.element_ty))
                tl.store(logits_ptr + (row * RANKS + RANK) * columns + offs, values, mask=mask)
        tl.debug_barrier()
        for rank in tl.static_range(RANKS):
            if rank != RANK:
                flags_ptr = (tl.load(mailboxes_ptr + rank) + flags_at).to(tl.pointer_type(tl.int32))
                tl.atomic_xchg(flags_ptr + RANK * MOST * PIECES + piece, number, sem="release", scope="sys")
    flags_ptr = (tl.load(mailboxes_ptr + RANK) + flags_at).to(tl.pointer_type(tl.int32))
    for piece in tl.range(tl.program_id(0), count * PIECES, tl.num_programs(0)):
        number = tl.load(counts_ptr + piece) + 1
        for rank in tl.static_range(RANKS):
            if rank != RANK:
                _wait_for(flags_ptr + rank * MOST * PIECES + piece, number)
        tl.store(counts_ptr + piece, number)


@dataclass(frozen=True, slots=True)
class MailboxShape:
    """What mailboxes have room for: `rows` rows of `size` numbers from each of `ranks`, and `logit_rows` rows of logits, of
    which each rank computes `columns`."""

    ranks: int
    rows: int
    size: int
    logit_rows: int
    columns: int
    dtype: torch.dtype

    @property
    def mail_at(self) -> int:
        """Where rows begin, behind their flags; all in bytes."""
        return _aligned(4 * self.ranks * self.rows)

    @property
    def logit_flags_at(self) -> int:
        """Where the flags of logits begin."""
        return self.mail_at + _aligned(2 * self.ranks * self.rows * self.size * self.dtype.itemsize)

    @property
    def logits_at(self) -> int:
        """Where logits begin."""
        return self.logit_flags_at + _aligned(4 * self.ranks * self.logit_rows * _PIECES)

    @property
    def bytes(self) -> int:
        """A mailbox in all."""
        return self.logits_at + _aligned(self.logit_rows * self.ranks * self.columns * self.dtype.itemsize)


class Exchange:
    """One rank's side of the exchange.

    `mailbox`: this rank's, uint8 [shape.bytes], zeroed before any rank begins. `addresses`: where the mailboxes of all ranks,
    in their order, lie for this rank's device, while `keep` is kept.
    """

    def __init__(
        self, shape: MailboxShape, rank: int, mailbox: Tensor, addresses: Sequence[int], *, keep: object = None
    ) -> None:
        assert mailbox.shape == (shape.bytes,)
        assert len(addresses) == shape.ranks
        device = mailbox.device
        self._keep = keep
        self._shape = shape
        self._rank = rank
        self._mailboxes = torch.tensor(addresses, dtype=torch.int64, device=device)
        self._counts = torch.zeros(shape.rows, dtype=torch.int32, device=device)
        self._logit_counts = torch.zeros(shape.logit_rows * _PIECES, dtype=torch.int32, device=device)
        logits = mailbox[shape.logits_at :].view(shape.dtype)
        self._logits = logits[: shape.logit_rows * shape.ranks * shape.columns].view(shape.logit_rows, -1)
        self._programs = 2 * processors(device)  # all of them run at once: they wait for one another

    def takes(self, rows: int) -> bool:
        """Whether there is room for so many rows to be added up."""
        return rows <= self._shape.rows

    def joins(self, rows: int) -> bool:
        """Whether there is room for so many rows of logits."""
        return rows <= self._shape.logit_rows

    def sum_and_norm(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        residual: Tensor,
        *,
        one_plus: bool = False,
        rows: Tensor | None = None,
    ) -> Tensor:
        """`fused.rms_norm` of the sum over all ranks' `x` [T, N] or [S, T, N], with `residual` [T, N], which is every rank's.

        Shares are rounded to `weight`'s dtype before they are added up. Returns [T, N], or [R, N] of `rows` [R]. See `takes`.
        """
        parts = x.shape[0] if x.dim() == 3 else 1
        count, size = x.shape[-2:]
        assert x.stride(-1) == 1
        assert weight.shape == (size,)
        assert (size, weight.dtype) == (self._shape.size, self._shape.dtype)
        assert residual.shape == (count, size)
        assert residual.is_contiguous()
        count = count if rows is None else rows.shape[0]
        assert self.takes(count)
        output = torch.empty((count, size), dtype=weight.dtype, device=x.device)
        block = triton.next_power_of_2(size)
        pdl = overlaps(x.device)
        _sum_and_norm_kernel[(min(count, self._programs),)](
            x, residual, weight, output, weight if rows is None else rows, self._mailboxes, self._counts,
            count, eps, x.stride(0), x.stride(-2), 0, self._shape.mail_at,
            RANK=self._rank, RANKS=self._shape.ranks, MOST=self._shape.rows, SIZE=size, BLOCK=block,
            PARTS=parts, ROWS=rows is not None, ONE_PLUS=one_plus,
            PDL=pdl, num_warps=min(16, max(1, block // 512)), launch_pdl=pdl,
        )  # fmt: skip
        return output

    def join(self, columns: Tensor) -> Tensor:
        """Every rank's columns [R, V], side by side in the order of the ranks: [R, ranks * V]. Good until the next call."""
        count, width = columns.shape
        assert columns.stride(1) == 1
        assert (width, columns.dtype) == (self._shape.columns, self._shape.dtype)
        assert self.joins(count)
        pdl = overlaps(columns.device)
        _join_kernel[(min(count * _PIECES, self._programs),)](
            columns, self._mailboxes, self._logit_counts, count, width, columns.stride(0),
            self._shape.logit_flags_at, self._shape.logits_at,
            RANK=self._rank, RANKS=self._shape.ranks, MOST=self._shape.logit_rows, PIECES=_PIECES, BLOCK=_PIECE_BLOCK,
            PDL=pdl, num_warps=8, launch_pdl=pdl,
        )  # fmt: skip
        return self._logits[:count]


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
