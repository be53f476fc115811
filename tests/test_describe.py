"""Describe and cite: what a converted model says of itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.rules import DFA, FA

HIDDEN = ("brsf", "dfa", "fa", "frsf", "kp", "usf")
ALL = ("bp", *HIDDEN)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2))


def test_describe_says_rule_feedback_and_bytes() -> None:
    model = apical.convert(mlp(), {"0": "bp", "2": FA(init="kaiming"), "4": "dfa"})
    rows = {row.layer: row for row in apical.describe(model).rows}
    assert rows["0"].rule == "exact" and rows["0"].feedback_bytes == 0
    assert (rows["2"].rule, rows["2"].feedback) == ("fa(init='kaiming')", "matrix (3, 5)")
    assert rows["2"].feedback_bytes == 4 * 15
    assert rows["4"].feedback == "pending"
    model(torch.ones(1, 4))
    description = apical.describe(model)
    assert description.feedback_bytes == 4 * (15 + 2 * 3)
    table = str(description).splitlines()
    assert table[0].split() == "layer | type | rule | why | feedback | bytes".split()
    assert table[-1] == "feedback in all: 84 bytes"


def test_describe_reports_layers_that_are_bypassed() -> None:
    class Bypass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.direct, self.called = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.called(F.linear(x, self.direct.weight))

    for name in HIDDEN:
        model = apical.convert(Bypass(), name)
        rows = {r.layer: r for r in apical.describe(model, example=torch.ones(2, 3)).rows}
        assert rows["direct"].bypassed and rows["direct"].calls == 0
        assert not rows["called"].bypassed and rows["called"].calls == 1
        assert "YES" in str(apical.describe(model, example=torch.ones(2, 3)))


def test_describe_runs_rules_that_learn_from_labels() -> None:
    x, outputs = torch.ones(2, 4), {"output": ["a", "b"]}

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.a, self.b = mlp(), nn.Linear(2, 3), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = self.trunk(x)
            return {"a": self.a(h), "b": self.b(h)}

    for name in ("drtp", "le"):
        for model, options in ((mlp(), {}), (Two(), outputs)):
            for sized in (None, x):
                if sized is not None:
                    apical.revert(model)
                apical.convert(model, name, example=sized, **options)
                rows = apical.describe(model, example=x).rows
                assert [row.taps for row in rows] == [0, *(1 for _ in rows[1:])]


def test_memory_that_layers_share_counts_once() -> None:
    model = apical.convert(mlp(), DFA(shared=True), example=torch.ones(1, 4))
    own = 4  # the scale of each layer
    described = apical.describe(model)
    assert [row.feedback_bytes for row in described.rows] == [4 * 5 * 2 + own, own, own]
    assert described.feedback_bytes == 4 * 5 * 2 + 3 * own
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    described = apical.describe(apical.convert(tied, "fa"))
    assert [row.why for row in described.rows] == ["", "shares weight and feedback with 0"]
    rows = apical.describe(apical.switch(tied, "usf")).rows
    assert [row.why for row in rows] == ["", "shares weight with 0"]
    assert [row.feedback_bytes for row in described.rows] == [36, 0]
    assert described.feedback_bytes == 36


def test_uniform_signs_store_nothing() -> None:
    model = apical.convert(mlp(), "usf")
    assert apical.describe(model).feedback_bytes == 0
    assert not [key for key in model.state_dict() if "feedback" in key]


def test_cite_gives_each_source_once() -> None:
    model = apical.convert(mlp(), {"0": "fa", "2": "usf", "4": "brsf"})
    text = apical.cite(model)
    assert text.count("@") == 2 and "lillicrap2016" in text and "liao2016" in text
    assert apical.cite(mlp()) == ""
