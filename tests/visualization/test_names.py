"""Names of classes and pictures are drawn as they are."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from captum_cav.visualization import Panel, show_map, show_rows
from tests.support.picture_files import NASTY


@pytest.mark.parametrize("name", NASTY)
def test_names_are_drawn_as_they_are(name: str) -> None:
    grey = np.full((16, 16, 3), 128, dtype=np.uint8)
    figure, axes = show_rows(grey, [(name, [Panel(name, torch.eye(2)), Panel(name, None)])], name)
    figure.savefig(io.BytesIO(), dpi=30)
    texts = [figure._suptitle, axes[0, 0].yaxis.label, axes[0, 0].title, axes[0, 1].title]
    assert [text.get_text().splitlines()[0].removesuffix(", 2 x 2") for text in texts] == [name] * 4
    assert not any(text.get_parse_math() for text in texts)
    alone, axis = show_map(grey, Panel(name, torch.eye(2), unit=name))
    alone.savefig(io.BytesIO(), dpi=30)
    assert not axis.title.get_parse_math()
