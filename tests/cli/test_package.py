"""``import hbo``: what it offers, and that it costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hbo


@pytest.mark.parametrize("name", hbo.__all__)
def test_every_name_is_there(name: str):
    assert getattr(hbo, name) is not None
    assert name in dir(hbo)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'HOB'"):
        _ = hbo.HOB


def test_importing_loads_no_heavy_library():
    heavy = {"torch", "transformers", "pydantic", "typer", "rich", "yaml"}
    code = f"import sys, hbo; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
