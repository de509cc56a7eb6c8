"""``device_ids``, which Captum's layer methods take: an attribution runs on one device, and no other is ignored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import LayerCAV, NeuronCAV
from captum_cav.errors import OptionError
from tests.support.small_networks import Attribution, every_layer_maker, samples, small_net


@every_layer_maker
@pytest.mark.parametrize("device_ids", [None, ["cpu"], (torch.device("cpu"),)], ids=str)
def test_none_and_the_device_of_the_model_are_accepted(device_ids: Any, make: Attribution) -> None:
    net = small_net()
    expected = make(net, "1").attribute(samples(), 1)
    for model in (net, nn.DataParallel(net)):
        cav = make(model, "1", device_ids)
        assert cav.device_ids is device_ids
        assert torch.equal(cav.attribute(samples(), 1), expected)


@every_layer_maker
@pytest.mark.parametrize(
    "device_ids", [[0], [0, 1], ["cpu", "cpu"], ["meta"], [], ["nonsense"], [None], 0, "cpu"], ids=repr
)
def test_anything_else_is_refused_with_what_to_do(device_ids: Any, make: Attribution) -> None:
    net = small_net()
    for model in (net, nn.DataParallel(net)):
        with pytest.raises(OptionError) as error:
            make(model, "1", device_ids)
        assert str(error.value) == (
            f"device_ids is {device_ids!r}; expected None or a list of the one device of the model (cpu). "
            "An attribution runs on one device. To use several devices, copy the model to each of them and explain a "
            "part of the batch there."
        )


@every_layer_maker
def test_the_layer_tells_the_device_of_a_function(make: Attribution) -> None:
    net = small_net()
    assert make(lambda x: net(x), net[0], ["cpu"]).device_ids == ["cpu"]
    with pytest.raises(OptionError, match=r"\(cpu\)"):
        make(lambda x: net(x), net[0], [0])
    with pytest.raises(OptionError, match=r"\(unknown, because it has no parameters\)"):
        make(lambda x: net(x), net[1], ["cpu"])


def test_a_model_on_another_device() -> None:
    net = small_net().to("meta")
    assert LayerCAV(net, ["0", "1"], ["meta"]).device_ids == ["meta"]
    with pytest.raises(OptionError, match=r"\(meta\)"):
        NeuronCAV(net, "1", ["cpu"])


def test_a_model_on_two_devices_has_no_one_device() -> None:
    net = small_net()
    net[2].to("meta")
    with pytest.raises(OptionError, match=r"\(cpu, meta\)"):
        LayerCAV(net, "1", ["cpu"])


def test_a_part_of_the_batch_on_each_device_gives_what_the_whole_batch_gives() -> None:
    net, x = small_net(), samples(4)
    parts = [LayerCAV(net, "1", ["cpu"]).attribute(part, 1) for part in x.split(2)]
    torch.testing.assert_close(torch.cat(parts), LayerCAV(net, "1").attribute(x, 1))
