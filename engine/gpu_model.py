"""A model on a GPU: steps are begun, not waited for, and small ones are replayed as CUDA graphs.

A step of at most `BUCKETS[-1]` tokens is padded to a bucket and runs at fixed addresses: its plan lies in device memory, its
tokens come from there or from what the step before has drawn. So a graph captured once serves every plan that fits.
Larger steps, prefills, run as they are: there the GPU takes longer than Python does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from myna.engine import sampler
from myna.engine.device import Moment
from myna.engine.errors import NoRoom
from myna.engine.interface import BatchLimits, ModelSpec, StepUnderWay, Suits
from myna.engine.plan import Span, StepPlan
from myna.engine.sampler import Row
from myna.engine.triton_attention import Frame, TritonAttention, TritonStep
from myna.kernels.pick import largest

if TYPE_CHECKING:
    from myna.engine.parallel.ranks import Ranks

_SMALL = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
BUCKETS = (*_SMALL, 640, 768, 896, 1024, 1152)
"""Tokens that a small step is padded to. To launch a step takes Python 25 ms, in which a GPU computes about 1,000 tokens."""

_PROMPT_DRAWS = 64
"""Draws of a step that is mostly prompts: of more than `_SMALL` tokens."""

_SUITS = Suits(
    page_size=64,
    limits=BatchLimits(
        max_sequences=256,
        step_tokens=132 * 128,
        mixed_tokens=33 * 128 - 64,
        joint_tokens=132 * 16,
        ahead_tokens=64,
        leading_tokens=512,
        calm=0.02,
        step_price=230,
    ),
)
"""132 multiprocessors take products in tiles of 128 rows: these steps, the second with 64 decodes on top, leave none idle; one of
half the second has the same rate. A step of 512 rows takes two and a half times as long as decodes alone, and is one of
`BUCKETS`, so that no row of it is padding. (One of 448, three and a half tiles, takes longer: 17 ms against 14.6 in many chains.)
A call whose input has just come arrives some 3 ms later: a step for nobody would hold it up for longer. The least step takes the
time of 230 tokens of a prompt."""

_SPARE_SHARE = 0.02
_SPARE_BYTES = 256 * 2**20
"""Left free of what is left for KV: the allocator's own losses, and libraries that allocate late."""


class GpuNetwork(Protocol):
    """What turns a packed row of tokens into logits, calling `step` once in every layer."""

    def __call__(self, token_ids: Tensor, positions: Tensor, logit_rows: Tensor, step: TritonStep) -> Tensor:
        """`token_ids` int64 [T], `positions` int32 [T], `logit_rows` int32 [R]. Returns logits [R, vocabulary]."""


class GpuModel:
    """A decoder with its KV pool; implements `interface.ModelRunner`. Made by `admission.admit`, not by hand."""

    spec: ModelSpec
    suits = _SUITS
    ahead = 1

    def __init__(
        self, network: GpuNetwork, attention: TritonAttention, spec: ModelSpec, ranks: Ranks | None = None
    ) -> None:
        """`ranks`: among which the model is divided; then all of them do each step, and the leader draws."""
        self.spec = spec
        self._ranks = ranks
        self._network = network
        self._attention = attention
        self._device = torch.device(spec.device)
        self._drawn = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._limits = BatchLimits(1, 1)
        self._graphs = False
        self._frames: dict[int, _PaddedStep] = {}
        self._inputs: _Inputs | None = None

    @torch.inference_mode()
    def prepare(self, limits: BatchLimits, *, graphs: bool) -> int:
        """Get ready for steps up to these limits. Returns the bytes that there are for KV, found by trying a largest step.

        Raises NoRoom if nothing is left.
        """
        self._limits = limits
        self._graphs = graphs and self._device.type == "cuda"
        self._inputs = None
        self._drawn = torch.zeros(limits.max_sequences, dtype=torch.int64, device=self._device)
        if self._device.type == "cpu":
            return _SPARE_BYTES
        used = self._bytes_of_a_large_step()
        captured = sum(self._draws(bucket) for bucket in self._buckets()) * self.spec.vocab_size * 2
        free = torch.cuda.mem_get_info(self._device)[0]
        left = int((free - used - captured - 2 * _SPARE_BYTES) * (1 - _SPARE_SHARE))
        if self._ranks is not None:
            left = self._ranks.least(left) * self._ranks.size
        if left < self.suits.page_size * self.spec.kv_bytes_per_token:
            raise NoRoom(
                self.spec.name,
                f"{free / 2**30:.1f} GiB of memory are free, a step needs {used / 2**30:.1f}: none is left for KV",
            )
        return left

    @torch.inference_mode()
    def allocate(self, pages: int, page_size: int) -> None:
        """Make the KV pool: `pages` pages of `page_size` tokens, zeroed, and capture small steps. Raises NoRoom."""
        self._frames = {}
        self._inputs = None
        try:
            self._attention.allocate(pages, page_size)
            if self._graphs:
                pool = torch.cuda.graph_pool_handle()
                for bucket in reversed(self._buckets()):
                    self._frame(bucket).capture(pool)
        except torch.cuda.OutOfMemoryError as error:
            self._frames = {}
            self._attention.allocate(0, page_size)
            torch.cuda.empty_cache()
            raise NoRoom(self.spec.name, f"{pages} KV pages don't fit the memory that is left: {error}") from error

    def release(self) -> None:
        """Let go of captured steps."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._frames = {}

    @torch.inference_mode()
    def copy_page(self, source: int, target: int) -> None:
        """Copy a KV page in all layers."""
        self._attention.copy_page(source, target)

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> Tensor:
        """Run one step by itself, unpadded. Returns logits, float32 [len(plan.logit_rows), vocabulary]."""
        return self._run(plan).float()

    @torch.inference_mode()
    def begin(self, plan: StepPlan, rows: Sequence[Row]) -> StepUnderWay:
        """Begin a step that draws a token for each of `rows`, one for each of the plan's logit rows."""
        logits, greedy = self._logits(plan)
        if not rows:
            return _Silent(self._device)
        drawing = sampler.begin(logits, rows, greedy)
        self._drawn[: len(rows)].copy_(drawing.tokens)
        if self._ranks is not None:
            self._ranks.hear(self._drawn)
        return drawing

    @torch.inference_mode()
    def follow(self, plan: StepPlan) -> StepUnderWay:
        """Begin a step as one of the leader's followers, which draw nothing and hear what it has drawn."""
        assert self._ranks is not None
        self._logits(plan)
        if plan.logit_rows:
            self._ranks.hear(self._drawn)
        return _Silent(self._device)

    def _logits(self, plan: StepPlan) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """A step's logits, with the largest of each row and its place if there are any."""
        draws = len(plan.logit_rows)
        bucket = next((bucket for bucket in self._buckets() if bucket >= len(plan.token_ids)), None)
        if bucket is None or not (frame := self._frame(bucket)).load(plan):
            logits = self._run(plan)
            return logits, largest(logits) if draws else None
        logits, best, places = (part[:draws] for part in frame.run())
        return logits, (best, places)

    def _run(self, plan: StepPlan) -> Tensor:
        tokens, rows = len(plan.token_ids), len(plan.logit_rows)
        inputs = self._inputs_for(tokens, rows)
        inputs.load(plan, tokens, rows)
        views = inputs.views(tokens, rows)
        step = self._attention.compile(plan, views.slots)
        token_ids = inputs.token_ids(views) if plan.fed else views.ids.long()
        return self._network(token_ids, views.positions, views.logit_rows, step)

    def _inputs_for(self, tokens: int, rows: int) -> _Inputs:
        """The inputs of steps, with room for so many. Frames keep those that they were made with."""
        found = self._inputs
        if found is None or found.tokens < tokens or found.rows < rows:
            most = self._limits.step_tokens + self._limits.max_sequences
            room = max(tokens, most), max(rows, self._limits.max_sequences)
            size = self._attention.page_size
            scratch = range(self._attention.pages * size, (self._attention.pages + 1) * size)
            found = self._inputs = _Inputs(*room, self._drawn, scratch)
        return found

    def _buckets(self) -> list[int]:
        """The buckets that steps may need."""
        most = max(self._limits.max_sequences, self._limits.step_tokens)
        return [bucket for below, bucket in pairwise((0, *BUCKETS)) if below < most]

    def _draws(self, bucket: int) -> int:
        """Draws that a padded step has room for."""
        return min(bucket if bucket <= _SMALL[-1] else _PROMPT_DRAWS, self._limits.max_sequences)

    def _frame(self, bucket: int) -> _PaddedStep:
        frame = self._frames.get(bucket)
        if frame is None:
            rows = self._draws(bucket)
            inputs = self._inputs_for(bucket, rows)
            frame = self._frames[bucket] = _PaddedStep(self._network, self._attention, inputs, bucket, rows)
        return frame

    def _bytes_of_a_large_step(self) -> int:
        """Memory that the largest step takes beside weights and KV, found by running one over a pool that then goes."""
        size = self.suits.page_size
        tokens = min(self._limits.step_tokens, self.spec.context_length)
        pages = -(-tokens // size)
        self._attention.allocate(pages, size)
        self._inputs = None
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        span = Span(tuple(range(pages)), 0, tokens, range(tokens), own=True)
        rows = [tokens - 1] * self._limits.max_sequences
        try:
            largest(self._run(StepPlan([0] * tokens, range(tokens), range(tokens), [span], rows)))
            torch.cuda.synchronize(self._device)
        except torch.cuda.OutOfMemoryError as error:
            raise NoRoom(
                self.spec.name, f"a step of {tokens} tokens doesn't fit beside the weights: {error}"
            ) from error
        peak = torch.cuda.max_memory_allocated(self._device) - before
        partials = self._attention.partial_bytes(self._limits.step_tokens)
        self._attention.allocate(0, size)
        torch.cuda.empty_cache()
        return int(peak * 1.05 * self._limits.step_tokens / tokens) + partials


class _PaddedStep:
    """Steps of up to `tokens` tokens and `rows` draws, at fixed addresses; captured, they are replayed."""

    def __init__(
        self, network: GpuNetwork, attention: TritonAttention, inputs: _Inputs, tokens: int, rows: int
    ) -> None:
        self._network = network
        self._inputs = inputs
        self._tokens = tokens
        self._rows = rows
        self._views = inputs.views(tokens, rows)
        self._frame: Frame = attention.frame(tokens, rows, self._views.slots)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results: tuple[Tensor, Tensor, Tensor] | None = None
        inputs.load(StepPlan((), (), (), (), ()), tokens, rows)
        self._compute()  # compiles kernels, and shows which kinds of attention there are

    def capture(self, pool: Any) -> None:
        """Capture the step. Networks that can't be captured (their kernels depend on values) go on as they are."""
        torch.cuda.synchronize()
        try:
            graph = torch.cuda.CUDAGraph()
            # NCCL's own thread asks for its events' states, which a capture would take amiss if it were everybody's.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._results = self._compute()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:
            torch.cuda.synchronize()
            self._results = None
            return
        self._graph = graph

    def load(self, plan: StepPlan) -> bool:
        """Send a plan to the device. False if it doesn't fit."""
        if len(plan.logit_rows) > self._rows or not self._frame.load(plan):
            return False
        self._inputs.load(plan, self._tokens, self._rows)
        return True

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [rows, vocabulary], the largest of each row and its place; of rows that the plan hasn't, anything."""
        if self._graph is None:
            return self._compute()
        assert self._results is not None
        self._graph.replay()
        return self._results

    def _compute(self) -> tuple[Tensor, Tensor, Tensor]:
        views = self._views
        token_ids = self._inputs.token_ids(views)
        logits = self._network(token_ids, views.positions, views.logit_rows, self._frame.step())
        return logits, *largest(logits)


@dataclass(frozen=True, slots=True)
class _Views:
    """A step's inputs in device memory, int32: [T] four times, and [R]. `places`: 0 for a token of the host's, else k for
    the draw k - 1 of the step before."""

    ids: Tensor
    places: Tensor
    positions: Tensor
    slots: Tensor
    logit_rows: Tensor


class _Inputs:
    """Device memory for the inputs of steps, one after another, each sent in one copy."""

    def __init__(self, tokens: int, rows: int, drawn: Tensor, scratch: range) -> None:
        """Room for so many. `scratch`: slots that belong to nobody, for what padding writes."""
        device = drawn.device
        self.tokens = tokens
        self.rows = rows
        self._drawn = drawn
        self._scratch = scratch
        pinned = device.type == "cuda"
        size = 4 * _aligned(tokens) + rows
        # Two of them take turns: while one is being copied, the next step's inputs go into the other.
        self._hosts = cycle([torch.zeros(size, dtype=torch.int32, pin_memory=pinned) for _ in range(2)])
        self._device = torch.zeros(size, dtype=torch.int32, device=device)

    def views(self, tokens: int, rows: int) -> _Views:
        """Where a step of that size finds its inputs: always the same addresses for the same size."""
        pitch = _aligned(tokens)
        ids, places, positions, slots = self._device[: 4 * pitch].view(4, pitch)[:, :tokens].unbind()
        return _Views(ids, places, positions, slots, self._device[4 * pitch : 4 * pitch + rows])

    def load(self, plan: StepPlan, tokens: int, rows: int) -> None:
        """Copy a plan to the device, in stream order, padded to that size."""
        pinned = next(self._hosts)
        host = pinned.numpy()
        used, begin = len(plan.token_ids), 4 * _aligned(tokens)
        columns = host[:begin].reshape(4, -1)[:, :tokens]
        columns[:3, used:] = 0
        columns[3, used:] = self._scratch[0] + np.arange(tokens - used) % len(self._scratch)
        columns[0, :used] = plan.token_ids
        columns[1, :used] = 0
        columns[1, list(plan.fed)] = [place + 1 for place in plan.fed.values()]
        columns[2, :used] = plan.positions
        columns[3, :used] = plan.write_slots
        host[begin : begin + rows] = 0
        host[begin : begin + len(plan.logit_rows)] = plan.logit_rows
        self._device[: begin + rows].copy_(pinned[: begin + rows], non_blocking=True)

    def token_ids(self, views: _Views) -> Tensor:
        """The tokens' ids, int64: computed on the device, so that it may be captured."""
        drawn = self._drawn[(views.places - 1).clamp_(min=0)]
        return torch.where(views.places > 0, drawn, views.ids)


def _aligned(tokens: int) -> int:
    """Numbers of four bytes after which the next begin at a multiple of 16 bytes: by these Triton compiles a kernel anew."""
    return -(-tokens // 4) * 4


class _Silent:
    """A step that draws nothing. To read it is still to wait for it: pinned memory is reused on that understanding."""

    def __init__(self, device: torch.device) -> None:
        self._over = Moment(device)

    def read(self) -> list[sampler.Drawn]:
        """Nothing, once the step is over."""
        self._over.wait()
        return []
