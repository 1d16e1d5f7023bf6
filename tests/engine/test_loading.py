from pathlib import Path
from typing import Any

import pytest
import torch

from myna.engine import loading
from myna.engine.errors import ModelRefused
from myna.engine.loading import automatic_dtype, load
from tests.engine import tiny_models


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def save_tiny(folder: Path, tokenizer: Any) -> Any:
    network = tiny_models.build("llama", vocab_size=len(tokenizer))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return network


@pytest.fixture
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(code): code - 32 for code in range(32, 127)}
    bare = Tokenizer(models.WordLevel({**vocabulary, "<unk>": 95}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>")


def test_a_local_folder_is_loaded_in_the_dtype_asked(tmp_path: Path, tokenizer: Any) -> None:
    save_tiny(tmp_path, tokenizer)
    loaded = load(tmp_path, dtype="float32")
    assert loaded.model.spec.dtype == "float32"
    assert loaded.model.spec.name == tmp_path.name
    assert loaded.tokenizer("ab")["input_ids"] == [ord("a") - 32, ord("b") - 32]
    assert load(tmp_path, dtype="bfloat16").model.spec.dtype == "bfloat16"


def test_the_automatic_dtype_is_one_that_the_machine_multiplies_in_hardware() -> None:
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    assert automatic_dtype(torch.device("cpu")) is (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize(
    ("reference", "options", "reason"),
    [
        ("absent/folder/model.gguf", {}, "there is no such file"),
        ("./absent-folder", {}, "it can't be loaded"),
        ("./absent-folder", {"dtype": "int3"}, "unknown dtype 'int3'"),
        ("./absent-folder", {"device": "abacus"}, "unknown device 'abacus'"),
        ("./absent-folder", {"device": "meta"}, "no attention implementation for device 'meta'"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_what_cannot_be_loaded_is_refused_with_a_reason(reference: str, options: dict[str, str], reason: str) -> None:
    with pytest.raises(ModelRefused) as refusal:
        load(reference, **options)
    assert refusal.value.model == reference
    assert reason in refusal.value.reason


def test_a_broken_gguf_file_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, but not really")
    with pytest.raises(ModelRefused, match="can't be converted"):
        load(broken, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_two_processes_that_convert_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        (folder / "model.safetensors").write_text(folder.name)
    loading._publish(theirs, tmp_path / "final")
    loading._publish(ours, tmp_path / "final")
    assert (tmp_path / "final" / "model.safetensors").read_text() == "theirs"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(ModelRefused, match="'cuda' is asked for, and torch finds no CUDA device"):
        load(device="cuda")


def test_the_cache_is_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert loading._default_cache() == tmp_path / "xdg" / "myna"


@pytest.mark.model
def test_the_default_model_keeps_its_tokenizer_chat_template_and_weights() -> None:
    loaded = load()
    tokenizer = loaded.tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(1) == 3  # <|im_start|> is one token
    assert tokenizer.decode(tokenizer("naïve 12345 日本\n\n\tx")["input_ids"]) == "naïve 12345 日本\n\n\tx"
    spec = loaded.model.spec
    assert (spec.layers, spec.vocab_size, spec.context_length) == (30, 49152, 8192)
    assert spec.eos_token_ids == {2}
    folder = Path(loading._find(loading.DEFAULT_MODEL, loading._default_cache()))
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".partial-") and path != folder]
