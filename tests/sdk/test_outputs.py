from __future__ import annotations

import copy

import pytest

from myna.sdk.outputs import Outputs, mapped


def test_outputs_come_by_position_by_name_and_in_order() -> None:
    outputs = Outputs(["count", "index", "b"], [1, 2, 3])
    assert (outputs.count, outputs.index, outputs["b"], outputs[0], outputs[-1]) == (1, 2, 3, 1, 3)
    first, *rest = outputs
    assert (first, rest, len(outputs)) == (1, [2, 3], 3)
    assert repr(mapped(outputs, str)) == "Outputs(count='1', index='2', b='3')"


def test_an_unknown_output_is_refused_by_name() -> None:
    outputs = Outputs(["a"], [1])
    with pytest.raises(AttributeError, match="no output 'z'; the outputs are a"):
        _ = outputs.z
    with pytest.raises(KeyError, match="no output 'z'"):
        _ = outputs["z"]
    assert not hasattr(outputs, "__deepcopy__")
    assert copy.copy([outputs])[0] is outputs
