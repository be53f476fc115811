"""Attacks on the retrieval of trained hash nets: what is tried, kept, gone on with, and refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apical import attacks
from apical import retrieval as hashing
from apical.bench.cli import main as cli
from apical.bench.evaluate import retrieval
from apical.bench.evaluate.evaluation import evaluate
from apical.bench.evaluate.retrieval import Evaluation, Step, Trial, report
from apical.bench.evaluate.trained_net import HashNet, from_run
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.loss_settings import Hashing
from apical.bench.storage import records
from apical.bench.training import loop
from apical.retrieval.attacks.attack import SHARPNESS

pytestmark = pytest.mark.filterwarnings("ignore::apical.retrieval.ConstantBitWarning")
QUIET = Execution(quiet=True)
TRIED = 62
SMALL = Evaluation(eps=(0.3, 0.1), queries=24, known=50, steps=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, found = tmp_path_factory.mktemp("runs"), {}
    base = Experiment(
        net_options={"hidden": [16]},
        hashing=Hashing(8, "csq", k=200),
        epochs=4,
        batch_size=100,
        optimizer_options={"momentum": 0.9},
        probe_every=0,
    )
    for rule in ("bp", "fa"):
        found[rule] = root / rule
        loop.run(dataclasses.replace(base, rule=rule), found[rule], QUIET)
    return found


@pytest.fixture(scope="module")
def nets(runs: dict[str, Path]) -> dict[str, Any]:
    return {rule: from_run(run) for rule, run in runs.items()}


@pytest.fixture(scope="module")
def evaluated(nets: dict[str, Any], tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("evaluated") / "fa"
    evaluate(nets["fa"], SMALL, folder, QUIET, surrogates={"bp": nets["bp"]})
    return folder


def test_rows_are_made_of_the_trials(nets: dict[str, Any], evaluated: Path) -> None:
    found = Evaluation.rows(evaluated)
    tried = [Trial.read(row) for row in records.read(evaluated / "trials.jsonl")]
    # 2 radii: noise, and 5 attacks by own, exact and a transfer, through two tanhs
    assert len(tried) == TRIED == 2 * (1 + 5 * 3 * 2)

    def row(kind: str, **told: Any) -> dict[str, Any]:
        (only,) = [r for r in found if r["kind"] == kind and told.items() <= r.items()]
        return only

    def least(eps: float, names: tuple[str, ...], source: str) -> float:
        left = [
            t.precision
            for t in tried
            if t.eps == eps and t.attack in names and t.source.startswith(source)
        ]
        return float(np.min(left, axis=0).mean())

    for eps in SMALL.eps:
        for source in ("own", "exact", "transfer"):
            hag = row("map", eps=eps, attack="HAG", source=source)
            assert hag["map"] == pytest.approx(least(eps, ("HAG",), source), abs=1e-12)
            strongest = row("map", eps=eps, attack="any", source=source)
            left = least(eps, ("HAG", "SDHA", "Anchor"), source)
            assert strongest["map"] == pytest.approx(left, abs=1e-12)
            assert strongest["low"] <= strongest["map"] <= strongest["high"]
        gap = row("gap", eps=eps, attack="any")
        assert gap["mean"] == pytest.approx(gap["own"] - gap["exact"], abs=1e-12)
        aimed = [
            t.precision
            for t in tried
            if t.attack.endswith(" targeted") and (t.source, t.eps) == ("exact", eps)
        ]
        best = float(np.max(aimed, axis=0).mean())
        assert row("targeted", eps=eps, source="exact")["map"] == pytest.approx(best, abs=1e-12)
    clean = row("clean")
    everything = [t.precision for t in tried if not t.attack.endswith(" targeted")]
    net = nets["fa"]
    asked = retrieval.queries(net, SMALL, *net.examples(SMALL.queries))
    own = retrieval.precision(net, asked.codes, asked.y)
    worst = float(np.min([own, *everything], axis=0).mean())
    assert row("map", eps=0.3, source="worst")["map"] == pytest.approx(worst, abs=1e-12)
    by_hand = hashing.mean_average_precision(
        asked.codes, asked.y, net.database, k=200, ties="expected"
    )
    assert clean["map"] == pytest.approx(by_hand, abs=1e-5)
    assert (clean["k"], clean["bits"], clean["queries"]) == (200, 8, 24)
    assert found[-1] == {"kind": "end"}


def test_a_trial_is_the_attack_of_the_library(nets: dict[str, Any]) -> None:
    net, other = nets["fa"], nets["bp"]
    asked = retrieval.queries(net, SMALL, *net.examples(SMALL.queries))
    assert bool((asked.targets != asked.y).all())
    for step, attack, gradient in [
        (("HAG", "plain", "own", 0.1), hashing.HAG(0.1, 3, sharpness=(1.0,)), "own"),
        (("HAG", "rising", "exact", 0.1), hashing.HAG(0.1, 3, sharpness=SHARPNESS), "exact"),
        (
            ("SDHA", "rising", "own", 0.1),
            hashing.SDHA(0.1, 3, database=net.known(50), sharpness=SHARPNESS),
            "own",
        ),
        (
            ("Anchor", "plain", "exact", 0.1),
            hashing.Anchor(0.1, 3, database=net.known(50)),
            "exact",
        ),
    ]:
        x = attack(net.model, asked.x, asked.y, gradient=gradient)
        found = retrieval.points(net, Step(*step), asked, SMALL, {})
        assert torch.equal(found, x)
        seen = retrieval.run(net, Step(*step), asked, SMALL, {})
        assert 0.05 < seen.linf <= 0.1 + 1e-6
        assert seen.flipped > 0
    step = Step("SDHA targeted", "plain", "transfer:bp", 0.1)
    made = hashing.SDHA(0.1, 3, sharpness=(1.0,), database=other.known(50), targeted=True)
    wanted = attacks.Transfer(made, other.model)(net.model, asked.x, asked.targets)
    assert torch.equal(retrieval.points(net, step, asked, SMALL, {"bp": other}), wanted)


def test_a_net_of_backprop_has_one_gradient(nets: dict[str, Any], tmp_path: Path) -> None:
    found = evaluate(nets["bp"], SMALL, tmp_path / "bp", QUIET)
    gaps = [row for row in found if row["kind"] == "gap"]
    assert {row["mean"] for row in gaps} == {0.0}
    assert not any(r["source"] == "own" for r in records.read(tmp_path / "bp" / "trials.jsonl"))


def test_a_killed_evaluation_goes_on_and_a_finished_one_is_read(
    nets: dict[str, Any],
    evaluated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, count = retrieval.run, 0

    def run(*args: Any) -> Trial:
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(retrieval, "run", run)
    options: dict[str, Any] = {"surrogates": {"bp": nets["bp"]}}
    with pytest.raises(KeyboardInterrupt):
        evaluate(nets["fa"], SMALL, tmp_path / "fa", QUIET, **options)
    assert Evaluation.rows(tmp_path / "fa") == []
    with (tmp_path / "fa" / "trials.jsonl").open("a") as file:
        file.write('{"attack": "HAG", "tan')  # torn by the kill
    found = evaluate(nets["fa"], SMALL, tmp_path / "fa", QUIET, **options)
    assert count == 7 + TRIED - 6
    assert found == Evaluation.rows(evaluated)
    evaluate(nets["fa"], SMALL, tmp_path / "fa", QUIET, **options)
    assert count == 7 + TRIED - 6
    other = dataclasses.replace(SMALL, seed=1)
    with pytest.raises(ValueError, match="holds the evaluation .* left untouched"):
        evaluate(nets["fa"], other, tmp_path / "fa", QUIET, **options)


def test_examples_hold_what_is_found(nets: dict[str, Any], evaluated: Path) -> None:
    with np.load(evaluated / "examples.npz") as file:
        values = {name: file[name] for name in file.files}
    net = nets["fa"]
    assert [str(name).partition(" / ")[2] for name in values["names"]] == ["own", "exact"]
    assert values["found"].shape == (3, 4, 8, 1, 8, 8)
    assert len(set(values["labels"].tolist())) == 4
    codes = hashing.encode(net.model, torch.from_numpy(values["adv"][1]))
    order = hashing.rank(codes, net.database.codes, k=8)
    assert np.array_equal(values["found_labels"][2], net.database.labels[order])
    kept = net.searched.split.take(order[3])
    assert np.array_equal(values["found"][2, 3], next(kept.batches([torch.arange(8)]))[0])


def test_the_key_is_of_all_that_matters() -> None:
    base = SMALL.key("net", {})
    changes: dict[str, Any] = {"eps": (0.1,), "norm": "l2", "queries": 9, "known": 3, "steps": 4}
    changes["seed"] = 5
    assert changes.keys() == {f.name for f in dataclasses.fields(Evaluation)}
    keys = [dataclasses.replace(SMALL, **{n: v}).key("net", {}) for n, v in changes.items()]
    keys += [SMALL.key("other", {}), SMALL.key("net", {"bp": "x"})]
    assert len({base, *keys}) == len(keys) + 1


def test_evaluations_that_cannot_be_meant() -> None:
    for options, told in (
        ({"eps": ()}, "give at least one radius above 0"),
        ({"eps": (0.1, 0.1)}, "each once"),
        ({"eps": (8.0,)}, "outside"),
        ({"norm": "l3"}, "norm='l3' is not one of 'linf', 'l2', 'l1'"),
        ({"queries": 0, "steps": 0}, "queries=0 must be at least 1; steps=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=told):
            Evaluation(**options)


def test_what_the_attacker_knows_holds_every_class(nets: dict[str, Any]) -> None:
    known = nets["fa"].known(12)
    assert (len(known), len(known.labels.unique())) == (12, 10)
    assert torch.equal(known.labels, nets["bp"].known(12).labels)
    with pytest.raises(ValueError, match="known=9 codes: there are 10 classes"):
        nets["fa"].known(9)


def test_a_run_that_learned_classes_is_refused(tmp_path: Path) -> None:
    loop.run(Experiment(net_options={"hidden": [4]}, epochs=1, probe_every=0), tmp_path, QUIET)
    net = from_run(tmp_path)
    assert not isinstance(net, HashNet)
    with pytest.raises(ValueError, match="learned classes, no codes"):
        evaluate(net, SMALL, tmp_path / "evaluation")


def test_a_single_query_has_no_interval(nets: dict[str, Any]) -> None:
    net, one = nets["bp"], Evaluation(eps=(0.1,), queries=1, known=10, steps=1)
    asked = retrieval.queries(net, one, *net.examples(1))
    steps = one.steps_of(feedback=False, surrogates=())
    found = report(net, asked, one, [retrieval.run(net, s, asked, one, {}) for s in steps])
    assert found[0]["low"] == found[0]["map"] == found[0]["high"]


def test_the_command_line_attacks_the_retrieval(
    runs: dict[str, Path], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    words = ["robustness", str(runs["fa"]), "--eps", "0.2", "--images", "12", "--quiet", "true"]
    words += ["--effort.steps", "2", "--transfer", str(runs["bp"])]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for text in ("mAP in %, 12 queries", "HAG / own", "SDHA / exact", "made on the other nets",
                 "worst case per query", "t-MAP", "own minus exact at eps 0.2"):  # fmt: skip
        assert text in " ".join(out.split()), text
    assert Path(out.splitlines()[-1]).parent == runs["fa"] / "retrieval"
    for option, value in (("--rules", "fa"), ("--effort.queries", "7"), ("--protocol", "biotorch")):
        assert cli.main(["robustness", str(runs["fa"]), option, value]) == 2
        assert f"{option} has no meaning for a hash net" in capsys.readouterr().err
