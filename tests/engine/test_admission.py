import copy
import sys
from typing import Any

import pytest
import torch

from myna.engine import admission
from myna.engine.admission import admit
from myna.engine.errors import ModelRefused
from myna.engine.fuse import FusedNetwork
from myna.engine.interface import ModelSpec
from myna.engine.model import HuggingFaceNetwork
from myna.engine.plan import StepPlan
from tests.engine import tiny_models

REASONS = {
    "lfm2": "layer 0 is of type 'conv'",
    "falcon_h1": "layer 0 is of type 'hybrid'",
    "mamba": "layer 0 is of type 'linear_attention'",
    "bloom": "layer 0 doesn't call the attention interface",
    "llama4_text": "layer 0 is of type 'chunked_attention'",
    "deepseek_v3": "layer 0 has heads of size",
    "qwen3_next": "layer 0 is of type 'linear_attention'",
    "stablelm": "doesn't pass keyword arguments on",
    "llama": "'dynamic' rope depends on the longest sequence",
}
FUSED = {"llama", "qwen2", "qwen3", "mistral"}


@pytest.mark.parametrize("architecture", tiny_models.ADMITTED)
def test_a_decoder_that_can_be_packed_is_admitted(architecture: str) -> None:
    model = admit(tiny_models.build(architecture), architecture)
    assert model.spec.name == architecture
    expected = FusedNetwork if architecture in FUSED else HuggingFaceNetwork
    assert type(model._network) is expected


@pytest.mark.parametrize("architecture", tiny_models.REFUSED)
def test_a_model_that_cannot_be_packed_is_refused_with_its_reason(architecture: str) -> None:
    with pytest.raises(ModelRefused) as refusal:
        admit(tiny_models.build_refused(architecture), architecture)
    assert refusal.value.model == architecture
    assert REASONS[architecture] in refusal.value.reason


class MixesNeighbours(torch.nn.Module):
    """A layer that lets a token see the one before it in the row, whosever it is: a convolution in disguise."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden + hidden.roll(1, dims=1))


def test_a_hidden_mix_of_neighbours_is_found_by_trying() -> None:
    network: Any = tiny_models.build("llama")
    network.model.layers[1].mlp = MixesNeighbours(network.model.layers[1].mlp)
    with pytest.raises(ModelRefused, match="changes its logits"):
        admit(network, "convolution in disguise")


def test_a_model_that_looks_like_a_llama_but_computes_otherwise_stays_unfused() -> None:
    network: Any = tiny_models.build("granite")  # the same modules, with other factors between them
    assert type(admit(network, "granite")._network) is HuggingFaceNetwork


def test_a_difference_at_the_far_end_of_the_context_alone_keeps_a_model_unfused() -> None:
    network: Any = tiny_models.build("llama")
    attention = network.model.layers[0].self_attn
    original = copy.copy(attention.forward)

    def scaled(hidden_states: torch.Tensor, *, position_ids: torch.Tensor, **more: Any) -> Any:
        far = (position_ids > 100)[..., None]
        return original(hidden_states=torch.where(far, hidden_states * 2, hidden_states), **more)

    attention.forward = scaled
    assert type(admit(network, "position-scaled")._network) is HuggingFaceNetwork


def test_a_device_without_attention_is_refused_by_name() -> None:
    with pytest.raises(ModelRefused, match="no attention implementation for device 'meta'"):
        admit(tiny_models.build("llama").to("meta"), "nowhere")


def test_a_gpu_without_triton_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = tiny_models.build("llama")
    spec = admit(tiny_models.build("llama"), "llama").spec
    monkeypatch.setitem(sys.modules, "myna.engine.triton_attention", None)  # importing it fails, as without Triton
    with pytest.raises(ModelRefused, match=r"a GPU needs Triton.*use device 'cpu'"):
        admission._on_gpu(network, [], spec, None)


@pytest.mark.parametrize(("size", "group"), [(20, 4), (8, 4), (264, 4), (128, 64)])
def test_a_gpu_refuses_heads_that_no_kernel_takes_in_words(size: int, group: int) -> None:
    spec = admit(tiny_models.build("llama"), "llama").spec
    shape = f"head size {size}" if group <= 32 else f"{group} query heads for a KV head"
    with pytest.raises(ModelRefused, match=f"{shape}.*device 'cpu' takes it"):
        admission._verify(RefusingModel(spec, size, group), [[1] * 13, [1] * 7], [], torch.bfloat16, 64)


class RefusingModel:
    """As much of a GPU's model as the probe sees: its kernels are chosen when a layer first runs."""

    def __init__(self, spec: ModelSpec, size: int, group: int) -> None:
        self.spec = spec
        self._sizes = 2, group, size, 64, torch.bfloat16

    def allocate(self, pages: int, page_size: int) -> None:
        pass

    def forward(self, plan: StepPlan) -> torch.Tensor:
        from myna.kernels.tree_launch import choose_shape

        choose_shape(*self._sizes)
        raise AssertionError("a kernel was found")
