"""Snapshots: the values of carriers, without writes that autograd does not record."""

from __future__ import annotations

import torch

from captum_cav.propagation.snapshots import Snapshots


def carrier(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, requires_grad=True) * 3


def test_a_carrier_without_a_snapshot_has_no_values() -> None:
    x = carrier(2)
    assert Snapshots(object()).values_of(x) is None
    Snapshots(object()).take(x)
    assert Snapshots(object()).values_of(x) is None, "another pass took it"


def test_a_write_beside_autograd_changes_no_snapshot() -> None:
    snapshots, x = Snapshots(object()), carrier(2, 3)
    snapshots.take(x)
    x.detach().mul_(2)
    assert torch.equal(snapshots.values_of(x), torch.full((2, 3), 3.0, dtype=torch.float64))
    assert snapshots.values_of(x.detach()) is None, "it is another tensor for autograd"


def test_views_share_the_snapshot_of_their_base() -> None:
    snapshots, x = Snapshots(object()), carrier(2, 3)
    x[0, 1] = 5
    snapshots.take(x.T)
    x.detach().zero_()
    for view in (x, x.T, x[0], x[:, 1:], x.view(6), x.unsqueeze(1).expand(2, 4, 3)):
        values = snapshots.values_of(view)
        assert values.shape == view.shape
        assert values.max() in (3, 5)
    assert snapshots.values_of(x.T).tolist() == [[3, 3], [5, 3], [3, 3]]


def test_an_update_of_a_view_leaves_the_rest_of_its_base() -> None:
    snapshots, x = Snapshots(object()), carrier(2, 2)
    snapshots.take(x)
    before = snapshots.values_of(x)
    x.detach()[:, 1] = 7  # Not recorded.
    x[:, 0].mul_(2)
    snapshots.update(x[:, 0])
    assert snapshots.values_of(x).tolist() == [[6, 3], [6, 3]]
    assert before.tolist() == [[3, 3], [3, 3]], "an operation may still hold the old values"


def test_complex_numbers_and_views_of_other_types() -> None:
    snapshots, x = Snapshots(object()), carrier(2, dtype=torch.complex128) * 1j
    snapshots.take(x)
    x.detach().zero_()
    assert snapshots.values_of(torch.view_as_real(x)).tolist() == [[0, 3], [0, 3]]
    assert snapshots.values_of(x.conj()).tolist() == [-3j, -3j]
    assert snapshots.values_of(x.conj().imag).tolist() == [-3, -3]


def test_an_alias_shares_a_snapshot() -> None:
    snapshots, x, alias = Snapshots(object()), carrier(2), carrier(2)
    snapshots.take(x)
    snapshots.share(x, alias)
    assert torch.equal(snapshots.values_of(alias), x.detach())


def test_larger_memory_has_no_values() -> None:
    snapshots, x = Snapshots(object()), carrier(2)
    snapshots.take(x)
    x.data = torch.ones(5, dtype=torch.float64)
    assert snapshots.values_of(x) is None
