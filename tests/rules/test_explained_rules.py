"""``explain_rules`` shows the rule of every operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, rules
from captum_cav.propagation.records import RuleTable
from tests.support.networks import fixed
from tests.support.rules import LINEAR, Block, Composite, Times, factor, filled, nested
from tests.support.traces import left_as_it_was


class Everything(nn.Module):
    """An operation for each kind of key, a gate, and one by default."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.block = Block()
        self.gate = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.act = Composite()
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(F.gelu(self.first(x)))
        x = x * torch.sigmoid(self.gate(x))
        return self.head(self.act(self.norm(x)))


def everything() -> tuple[nn.Module, dict[Any, Any]]:
    net = filled(Everything())
    net.gate.rule = rules.FlatRule()
    return net, {
        net.first: [rules.AtInput(rules.ZBoxRule(-9, 9)), rules.GammaRule()],
        "block.*": rules.EpsilonRule(0.5),
        nn.LayerNorm: rules.NormRule("identity"),
        F.gelu: rules.GradientRule(),
        Composite: rules.pass_through,
        F.linear: rules.ZPlusRule(),
        "block": Times(3, "tanh"),
    }


def test_every_choice_of_a_rule_is_explained() -> None:
    net, chosen = everything()
    expected = [
        ("first", "linear", "AtInput(rule=ZBoxRule(low=-9, high=9))", "this module", ""),
        ("Everything", "gelu", "GradientRule()", "function gelu", ""),
        ("block.inner", "linear", "EpsilonRule(epsilon=0.5)", "'block.*'", ""),
        ("block", "tanh", "Times()", "'block'", ""),
        ("gate", "linear", "FlatRule()", "module.rule", ""),
        ("Everything", "sigmoid", "pass_through", "default", ""),
        ("Everything", "mul", "product", "default", "2 of 2"),
        ("norm", "layer_norm", "NormRule(statistic='identity')", "type LayerNorm", ""),
        ("act", "Composite as one", "pass_through", "type Composite", ""),
        ("head", "linear", "AlphaBetaRule(alpha=1.0, beta=0.0)", "function linear", ""),
    ]
    x = fixed(2, 4)
    with left_as_it_was(net, x):
        table = InputCAV(net, rules=chosen).explain_rules(x)
    assert isinstance(table, RuleTable)
    assert list(table) == expected
    assert table[0]._fields == ("module", "operation", "rule", "why", "constant")
    # Only what lies behind the requested layer.
    for layer, start in (("first", 1), ("block", 4), ("norm", 8), (["head", "act"], 9), ("head", 10)):
        assert list(LayerCAV(net, layer, rules=chosen).explain_rules(x)) == expected[start:]


def test_the_explanation_is_of_the_rules_that_attribute_uses() -> None:
    """With a factor of its own for each operation, the map says which were at work."""
    net = nested()
    chosen = {net.block.inner: Times(2), "block": Times(3), nn.Linear: Times(5), F.linear: Times(7)}
    rows = InputCAV(net, rules=chosen).explain_rules(fixed(2, 4))
    by_key = {"this module": 2, "'block'": 3, "type Linear": 5, "function linear": 7, "default": 1}
    product = 1
    for row in rows:
        product *= by_key[row.why]
    assert product == factor(net, chosen) == 2 * 3 * 5


def test_the_explanation_prints_as_a_table_with_aligned_columns() -> None:
    net, chosen = everything()
    table = InputCAV(net, rules=chosen).explain_rules(fixed(2, 4))
    assert str(table) == repr(table)
    head, *lines = str(table).splitlines()
    names = ["module", "operation", "rule", "because of", "constant"]
    starts = [head.index(name) for name in names]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert head.split("  ")[0] == "module"
    assert len(lines) == len(table) == 10
    ends = [*starts[1:], None]
    for line, row in zip(lines, table, strict=True):
        assert line == line.rstrip()
        line = line.ljust(starts[-1])
        cells = [line[start:end] for start, end in zip(starts, ends, strict=True)]
        assert [cell.strip() for cell in cells] == list(row)
        # Columns are apart, and no wider than they must be.
        assert all(cell.endswith("  ") for cell in cells[:-1])
    for column, (start, end) in enumerate(zip(starts, ends[:-1], strict=False)):
        assert end - start - 2 == max(len(cell) for cell in [names[column], *(row[column] for row in table)])


def test_an_explanation_without_operations_is_only_the_header() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    table = LayerCAV(net, "0").explain_rules(torch.ones(1, 2))
    assert list(table) == []
    assert str(table).split() == ["module", "operation", "rule", "because", "of", "constant"]


def test_the_explanation_of_attention_names_its_constants() -> None:
    attend = lambda q, k, v: F.scaled_dot_product_attention(q, k, v).flatten(1)  # noqa: E731
    inputs = (fixed(1, 2, 3), fixed(1, 2, 3, seed=2), fixed(1, 2, 3, seed=3))
    rows = {row.operation: row for row in InputCAV(attend).explain_rules(inputs)}
    assert rows["scaled_dot_product_attention"].constant == "1 and 2 of 3"
    assert rows["scaled_dot_product_attention"].rule == "scaled_dot_product_attention"
    every = {F.scaled_dot_product_attention: rules.AttentionRule("all")}
    rows = {row.operation: row for row in InputCAV(attend, rules=every).explain_rules(inputs)}
    assert rows["scaled_dot_product_attention"] == (
        "",
        "scaled_dot_product_attention",
        "AttentionRule(carry='all')",
        "function scaled_dot_product_attention",
        "",
    )


def test_the_operations_of_a_plain_function_have_no_module_and_those_of_its_modules_have_their_type() -> None:
    net = nested()
    rows = InputCAV(lambda x: torch.relu(net(x)), rules={nn.Linear: LINEAR[2]}).explain_rules(fixed(2, 4))
    assert [(row.module, row.operation, row.why) for row in rows] == [
        ("Special", "linear", "type Linear"),
        ("Block", "tanh", "default"),
        ("Linear", "linear", "type Linear"),
        ("", "relu", "default"),
    ]
