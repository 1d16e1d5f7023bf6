from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest

from myna.engine.errors import InvalidSampling
from myna.engine.sampling import SamplingParams, derive_seed

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("temperature", -0.1, "from 0 to 100"),
        ("temperature", NAN, "from 0 to 100"),
        ("temperature", INFINITY, "from 0 to 100"),
        ("temperature", "1", "a number"),
        ("temperature", True, "a number"),
        ("temperature", None, "a number"),
        ("top_k", 0, "at least 1 or None"),
        ("top_k", 2.0, "a whole number"),
        ("top_p", 0, "above 0"),
        ("top_p", 1.01, "from 0 to 1"),
        ("min_p", 2, "from 0 to 1"),
        ("seed", "x", "a whole number"),
        ("seed", 2**64, "a whole number"),
        ("presence_penalty", 2.5, "from -2 to 2"),
        ("frequency_penalty", -3, "from -2 to 2"),
        ("repetition_penalty", 0, "above 0"),
        ("logit_bias", {5: NAN}, "from -100 to 100"),
        ("logit_bias", {-1: 1.0}, "token ids"),
        ("logit_bias", [1], "a mapping"),
        ("stop", "text", "a sequence of strings"),
        ("stop", ("",), "none of them empty"),
        ("stop_token_ids", (-1,), "token ids"),
        ("stop_token_ids", (True,), "token ids"),
        ("max_tokens", 0, "at least 1 or None"),
        ("min_tokens", -1, "at least 0"),
        ("min_tokens", 513, "at most max_tokens"),
        ("ignore_eos", 1, "true or false"),
        ("logprobs", 21, "from 0 to 20 or None"),
        ("n", 0, "from 1 to 1024"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name_value_and_range(name: str, value: object, wanted: str) -> None:
    with pytest.raises(InvalidSampling) as refusal:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert name in str(refusal.value)
    assert wanted in str(refusal.value)


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    SamplingParams(logit_bias={9: 1.0}, stop_token_ids=(9,)).check_vocabulary(10)
    with pytest.raises(InvalidSampling, match="logit_bias is 10"):
        SamplingParams(logit_bias={10: 1.0}).check_vocabulary(10)
    with pytest.raises(InvalidSampling, match="stop_token_ids is 10"):
        SamplingParams(stop_token_ids=(10,)).check_vocabulary(10)


def test_parameters_cannot_change_and_survive_copying() -> None:
    params = SamplingParams(logit_bias={3: 1.5}, stop=["a"], top_k=4)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        params.logit_bias[3] = 2.0  # type: ignore[index]
    assert params.stop == ("a",)
    for twin in (copy.deepcopy(params), pickle.loads(pickle.dumps(params))):
        assert twin == params


def test_a_derived_seed_is_a_function_of_the_request_id() -> None:
    assert derive_seed("a") == derive_seed("a") != derive_seed("b")


def test_sampling_and_frames_import_without_torch() -> None:
    code = "import sys, myna.engine.sampling, myna.engine.frames, myna.engine.batch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
