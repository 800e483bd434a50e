"""The recorder: names, letters, dtypes, non-finite values, edits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numgemma.errors import NonFiniteError
from numgemma.trace import EVERYTHING_BUT_MAPS, Recorder, Tap, selects

F32 = np.dtype(np.float32)


@pytest.fixture
def kept():
    return {}


@pytest.fixture
def tap(kept):
    return Recorder(lambda name, x, axes: kept.update({name: (x, axes)}), F32, ["*"])


def zeros(*shape):
    return np.zeros(shape, F32)


def test_a_tap_returns_what_it_is_given():
    x = zeros(2)
    assert Tap()("x", x, "T") is x
    assert Tap().at("layers.3")("x", x, "T") is x


def test_a_name_is_the_path_of_its_scopes(tap, kept):
    tap.at("layers.3").at("self_attn")("q_proj", zeros(2, 3, 4), "T N H")
    assert list(kept) == ["layers.3.self_attn.q_proj"]


def test_a_letter_binds_in_its_scope_and_below(tap):
    tap("x", zeros(5, 8), "T D")
    with pytest.raises(ValueError, match=r"layers\.0\.y: D is 8 in this scope, here it is 9"):
        tap.at("layers.0")("y", zeros(5, 9), "T D")


def test_a_letter_ends_with_its_scope(tap):
    tap.at("layers.0")("h", zeros(5, 16), "T H")
    tap.at("layers.1")("h", zeros(5, 32), "T H")


def test_letters_must_name_every_axis(tap):
    with pytest.raises(ValueError, match="'T D' cannot name"):
        tap("x", zeros(5, 8, 2), "T D")


def test_another_dtype_is_rejected_where_it_is_born(tap):
    with pytest.raises(ValueError, match="x: is float64 in a float32 run"):
        tap("x", np.zeros(3), "T")
    tap("ids", np.zeros(3, np.int64), "T")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_value_that_is_not_finite_is_named(tap, bad):
    x = zeros(3, 4)
    x[1, 2] = bad
    with pytest.raises(NonFiniteError, match=r"x: .*'T': 1, 'D': 2"):
        tap("x", x, "T D")


def test_an_edit_must_keep_the_shape(kept):
    tap = Recorder(lambda *_: None, F32, ["*"], {"x": lambda x: x[:1]})
    with pytest.raises(ValueError, match="T is 3"):
        tap("x", zeros(3), "T")


def test_the_default_leaves_out_the_maps():
    towers = ("vision_tower@1.encoder.layers.0", "audio_tower.layers.0", "layers.0")
    maps = [f"{layer}.self_attn.{name}" for layer in towers for name in ("scores", "probs")]
    names = ["layers.0.self_attn.context", "layers.0.router.probs", "logits"]
    assert [n for n in maps + names if selects(EVERYTHING_BUT_MAPS, n)] == names


@given(st.text("ab.*?!", max_size=8), st.text("ab.", max_size=8))
def test_an_excluding_glob_always_wins(glob, name):
    glob = glob.lstrip("!")
    assert not (selects([glob], name) and selects([glob, "!" + glob], name))
