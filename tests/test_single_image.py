"""What the commands ask about one picture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_cav import single_image, zoo
from captum_cav.errors import ModelError

PICTURE = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def network(*last: nn.Module) -> zoo.Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), *last)
    return zoo.Network("tiny", model, None, None, tuple("abcde"))  # type: ignore[arg-type]


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)], ids=["softmax", "log_softmax"])
def test_the_best_classes_have_logits_and_probabilities(last: nn.Module) -> None:
    plain, squashed = network(), single_image.with_logits(network(last), PICTURE)
    scores = single_image.class_scores(squashed.model, PICTURE)
    torch.testing.assert_close(scores, single_image.class_scores(plain.model, PICTURE))
    about, *lines = single_image.ranking_table(squashed, single_image.ranking(squashed, PICTURE)).splitlines()
    assert about == single_image.about_scores(squashed)
    assert about.startswith("tiny ends in ")
    assert lines == single_image.ranking_table(plain, single_image.ranking(plain, PICTURE)).splitlines()
    assert lines[0] == "best classes of tiny (scores before softmax, probabilities)"
    shown = [line.split()[1:3] for line in lines[1:]]
    best = scores.sort(descending=True).values
    expected = zip(best.tolist(), (100 * best.softmax(0)).tolist(), strict=True)
    assert shown == [[f"{score:.2f}", f"{share:.1f}%"] for score, share in expected]


def test_a_network_that_squashes_nothing_is_unchanged() -> None:
    plain = network()
    assert single_image.with_logits(plain, PICTURE).model is plain.model
    assert single_image.about_scores(plain) == ""


def test_logits_that_cannot_be_found_are_refused() -> None:
    class Halves(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z.softmax(1) / 2

    with pytest.raises(ModelError, match="needs what the last squashing function takes"):
        single_image.with_logits(network(Halves()), PICTURE)
