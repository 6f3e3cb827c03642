"""Import paths of earlier versions still lead to what they named."""

from __future__ import annotations

import importlib
import sys

import pytest

from muscle_hf.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=MOVED[old]):
        assert importlib.import_module(old) is importlib.import_module(MOVED[old])


def test_what_is_under_a_package_moved_with_it():
    from muscle_hf.losses.masks import Mask

    from muscle_hf.objective.masks import Mask as SameMask

    assert Mask is SameMask


def test_names_that_never_were_are_still_missing():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("muscle_hf.nothing")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("muscle_hf.losses.nothing")
