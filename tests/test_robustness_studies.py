"""Robustness studies: nets are taken over or trained, then attacked, then judged together."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from apical.attacks import Effort, protocol
from apical.bench import studies
from apical.bench.evaluate import retrieval
from apical.bench.evaluate.robustness import Evaluation
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.loss_settings import Hashing
from apical.bench.report.read import read_study
from apical.bench.storage import records
from apical.bench.studies import Entry, Study, assess, attack_cost, conduct
from apical.bench.studies import robustness as protocols
from apical.bench.studies.base import CONTROLS, RULES
from apical.bench.studies.published import PublishedRobustness

EXECUTION = Execution(quiet=True)
TINY = Experiment(net_options={"hidden": [16]}, epochs=3, batch_size=64, probe_every=0)
QUICK = Evaluation(
    eps=(0.1, 0.25), images=60, effort=Effort(steps=3, adaptive_steps=0, queries=0, redraws=2)
)


def tiny(name: str = "tiny", seeds: int = 2, **changes: Any) -> Study:
    entries = tuple(
        Entry("digits", rule, dataclasses.replace(TINY, rule=rule, seed=seed))
        for seed in range(seeds)
        for rule in ("bp", "fa")
    )
    known: dict[str, Any] = {"evaluations": {"digits": QUICK}, "surrogate": "bp"}
    return Study(name, "Tiny", "full", entries, **known | changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    root, told = tmp_path_factory.mktemp("runs"), []
    conduct.conduct(tiny(), root, EXECUTION, command="apical study tiny", say=told.append)
    return root, told


def test_every_trained_net_is_attacked_and_described(done: tuple[Path, list[str]]) -> None:
    root, told = done
    described = json.loads((root / "tiny" / "study.json").read_text())
    listed = described["robustness"]
    assert [(e["setting"], e["rule"], e["seed"]) for e in listed] == [
        ("digits", rule, seed) for seed in (0, 1) for rule in ("bp", "fa")
    ]
    for entry in listed:
        folder = root / "tiny" / entry["folder"] / entry["evaluation"]
        rows = Evaluation.rows(folder)
        assert [row["eps"] for row in rows if row["kind"] == "worst"] == [0.1, 0.25]
        transferred = {row["source"] for row in rows if row.get("group") == "transfer"}
        assert transferred == (set() if entry["rule"] == "bp" else {"bp"})
    assert "attacking 4 trained nets" in told
    assert any("worst case" in text and "at eps 0.1" in text for text in told)
    assert any(text.startswith("digits, bp: undecided") for text in told)  # a small effort
    assert any(text.startswith("digits, fa: masked") for text in told)
    assert len(read_study(root / "tiny").runs) == 4


def test_transfer_is_from_the_net_of_the_same_seed(done: tuple[Path, list[str]]) -> None:
    root, _ = done
    for entry, job in assess.assessments(tiny(), root / "tiny"):
        names = [path.name for path in job.surrogates.values()]
        wanted = dataclasses.replace(entry.experiment, rule="bp").name
        assert names == ([] if entry.rule == "bp" else [wanted])


def test_doing_it_again_does_nothing(done: tuple[Path, list[str]]) -> None:
    root, _ = done
    before = {p: p.stat().st_mtime_ns for p in (root / "tiny").rglob("*") if p.is_file()}
    content = (root / "tiny" / "study.json").read_bytes()
    told: list[str] = []
    outcome = conduct.conduct(tiny(), root, EXECUTION, command="apical study tiny", say=told.append)
    assert (len(outcome.finished), len(outcome.failed)) == (8, 0)
    assert told[:2] == ["4 of 4 runs are finished already", "attacking 4 trained nets"]
    after = {p: p.stat().st_mtime_ns for p in (root / "tiny").rglob("*") if p.is_file()}
    assert {p for p in after if after[p] != before.get(p)} == {root / "tiny" / "study.json"}
    assert (root / "tiny" / "study.json").read_bytes() == content


def test_finished_nets_of_other_studies_are_taken_over(
    done: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = done
    for path in (root / "tiny").glob("digits*"):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (tmp_path / "elsewhere" / path.name).symlink_to(path)
    study = tiny("other", seeds=1)
    copytree = shutil.copytree

    def slower(source: Path, part: Path, **options: Any) -> None:
        copytree(source, part, **options)
        copytree(source, part.with_name(source.name), **options)  # by another process

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copytree", slower)
        assert assess.reuse(study, tmp_path) == 0
    assert sorted(p.name for p in (tmp_path / "other").iterdir()) == sorted(
        entry.experiment.name for entry in study.entries
    )
    shutil.rmtree(tmp_path / "other")
    assert assess.reuse(study, tmp_path) == 2
    for entry in study.entries:
        copied = tmp_path / "other" / entry.experiment.name
        assert sorted(p.name for p in copied.iterdir()) == [
            "checkpoint.pt", "environment.json", "experiment.json", "records.jsonl",
        ]  # fmt: skip
    assert assess.reuse(study, tmp_path) == 0
    told: list[str] = []
    conduct.conduct(study, tmp_path, EXECUTION, command="", say=told.append)
    assert told[0] == "2 of 2 runs are finished already"


def test_what_is_unfinished_or_unreadable_elsewhere_is_trained(
    done: tuple[Path, list[str]], tmp_path: Path
) -> None:
    root, _ = done
    study = tiny("other", seeds=1)
    for number, entry in enumerate(study.entries):
        source = root / "tiny" / entry.experiment.name
        target = tmp_path / "elsewhere" / entry.experiment.name
        target.mkdir(parents=True)
        for name in ("experiment.json", "environment.json", "records.jsonl", "checkpoint.pt"):
            (target / name).write_bytes((source / name).read_bytes())
        if number:
            (target / "checkpoint.pt").write_bytes(b"torn")
        else:
            (target / "records.jsonl").write_text("")
    assert assess.reuse(study, tmp_path) == 0
    records.append(target / "records.jsonl", {"kind": "final"})  # after the last row
    assert assess.reuse(study, tmp_path) == 0
    assert not (tmp_path / "other").exists()


def test_an_evaluation_of_another_net_is_refused_and_in_no_table(
    done: tuple[Path, list[str]], tmp_path: Path
) -> None:
    root, _ = done
    shutil.copytree(root / "tiny", tmp_path / "tiny")
    one, other = (job.folder for _, job in assess.assessments(tiny(), tmp_path / "tiny")[:2])
    shutil.rmtree(one)
    shutil.copytree(other, one)
    found = read_study(tmp_path / "tiny").robustness
    reason = f"unreadable: setting.json is that of another evaluation, {other.name}"
    assert [net.reason for net in found if net.status != "finished"] == [reason]
    outcome = conduct.conduct(tiny(), tmp_path, EXECUTION, command="")
    assert [*outcome.failed] == [one]
    assert f"holds the evaluation {other.name}, not {one.name}" in outcome.failed[one]


def test_nets_that_failed_are_not_attacked(tmp_path: Path) -> None:
    study = tiny(seeds=1)
    broken = dataclasses.replace(study.entries[1].experiment, lr=1e30)
    entries = (study.entries[0], Entry("digits", "fa", broken))
    outcome = conduct.conduct(
        dataclasses.replace(study, entries=entries), tmp_path, EXECUTION, command=""
    )
    assert (len(outcome.finished), len(outcome.failed)) == (2, 1)
    described = records.read_json(tmp_path / "tiny" / "study.json")
    assert [entry["rule"] for entry in described["robustness"]] == ["bp"]


def test_a_study_without_attacks_says_nothing_of_them(tmp_path: Path) -> None:
    conduct.conduct(tiny(seeds=1, evaluations={}), tmp_path, EXECUTION, command="")
    described = records.read_json(tmp_path / "tiny" / "study.json")
    assert "robustness" not in described and "robust_published" not in described


def test_published_values_and_what_is_special_about_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct, "data_notes", lambda *a: ["digits: re-compressed"])
    row = PublishedRobustness("digits", "fa", "PGD-40 ce", 0.1, 0.6, "nobody")
    conduct.conduct(tiny(seeds=1, robust_published=(row,)), tmp_path, EXECUTION, command="")
    described = records.read_json(tmp_path / "tiny" / "study.json")
    (told,) = described["robust_published"]
    assert told == dataclasses.asdict(row) | {"other_scale": "digits: re-compressed"}


def test_other_processes_can_do_it(done: tuple[Path, list[str]], tmp_path: Path) -> None:
    """A job travels to a worker as a value, and finds there what it found here."""
    root, _ = done
    _, job = assess.assessments(tiny(), root / "tiny")[1]
    sent = dataclasses.replace(job, folder=tmp_path / job.folder.name)
    sent = pickle.loads(pickle.dumps(sent))
    assert sent.ended() is None
    row = sent.do(EXECUTION)
    assert {**row, "seconds": 0} == {**job.ended(), "seconds": 0}
    assert Evaluation.rows(sent.folder) == Evaluation.rows(job.folder)


# the studies there are


def test_every_setting_has_its_evaluation() -> None:
    for tier in ("smoke", "short", "full"):
        for name in ("biotorch-robustness", "attack-gradient"):
            study = studies.build(name, tier=tier, seeds=1)
            settings = {entry.setting for entry in study.entries}
            assert set(study.evaluations) == settings and study.surrogate == "bp"
            expected = {"smoke": {"digits MLP"}, "short": {"digits MLP", "MNIST LeNet"}}
            assert settings >= expected.get(tier, {"CIFAR-10 ResNet-20 SGD"})
            only = study.restricted("digits *")
            assert set(only.evaluations) == {"digits MLP"} and not only.robust_published


def test_nets_and_searches_are_those_of_the_other_studies() -> None:
    """So that finished ones are taken over, and that the controls have rates of their own."""
    rows = {*RULES, *CONTROLS}
    for tier, others in {
        "short": ("credit/digits MLP", "rules-overview/MNIST *"),
        "full": ("credit/digits MLP", "biotorch-mnist", "biotorch-cifar10/* SGD"),
    }.items():
        study = studies.build("biotorch-robustness", tier=tier, seeds=1)
        expected = {}
        for name in others:
            name, _, pattern = name.partition("/")
            other = studies.build(name, tier=tier if name != "credit" else None, seeds=1)
            for entry in other.restricted(pattern or None).entries:
                if entry.rule in rows and (tier == "full" or entry.rule not in ("fa", "dfa")):
                    expected[entry.experiment.name] = other.search_of(entry.cell)
        found = {entry.experiment.name: study.search_of(entry.cell) for entry in study.entries}
        assert expected.items() <= found.items()
        for setting in study.evaluations:
            assert {entry.rule for entry in study.entries if entry.setting == setting} == rows
    assert None not in found.values()


def test_published_values_are_of_attacks_that_run() -> None:
    study = studies.build("biotorch-robustness", tier="full", seeds=1)
    evaluation = study.evaluations[protocols.RESNET]
    found = protocol("biotorch")
    common = {"seed": 0, "bounds": (0.0, 1.0)}
    steps = [s for eps in evaluation.eps for s in found.steps(eps, has_feedback=True, **common)]
    steps += found.pixel_steps(**common)
    ran = {(step.group, step.attack.label, step.eps) for step in steps}
    assert {(p.group, p.attack, p.eps) for p in study.robust_published} <= ran
    values = {(p.rule, p.attack, round(p.eps, 4)): p.value for p in study.robust_published}
    assert values["fa", "PGD-40 ce", 0.1] == 0.61
    assert values["usf", "Square-50", 0.069] == 0.116
    assert values["bp", "FewPixel(5)", 5] == 0.282
    assert all(step.role == "published" for step in steps)


def test_the_protocol_is_that_of_the_source() -> None:
    fgsm, pgd, apgd, tpgd, square = protocol("biotorch").attacks
    assert (pgd.steps, pgd.step_size, pgd.random_start) == (40, 2 / 255, True)
    assert (apgd.steps, apgd.restarts, apgd.rho, apgd.loss) == (50, 1, 0.75, "ce")
    assert (tpgd.steps, tpgd.step_size, tpgd.start) == (7, 2 / 255, "unclamped")
    assert (square.queries, square.share) == (50, 0.8)
    pixels = protocol("biotorch").pixel_attack
    assert (pixels.steps, pixels.population) == (30, 150)
    assert protocol("biotorch").pixels == (1, 2, 3, 4, 5)
    assert not pgd.stop_when_broken and not apgd.stop_when_broken and fgsm.loss == "ce"


def test_what_the_attacks_cost_at_most(
    done: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = done
    study = tiny()
    cost = attack_cost.most(study, tmp_path, EXECUTION)
    assert [(what, runs) for what, runs, _ in cost.parts] == [("digits attacked", 4)]
    assert 0 < cost.seconds < 60 and "of one worker" in cost.summary(2)
    assert attack_cost.most(study, root / "tiny", EXECUTION).seconds == 0
    with monkeypatch.context() as patched:  # every score is the mean of three forward passes
        patched.setattr(attack_cost, "_pass_seconds", lambda *_: (1.0, 2.0))
        once = attack_cost.most(study, tmp_path, EXECUTION).seconds
        more = {name: dataclasses.replace(e, samples=3) for name, e in study.evaluations.items()}
        study = dataclasses.replace(study, evaluations=more)
        assert attack_cost.most(study, tmp_path, EXECUTION).seconds >= 3 * once


@pytest.mark.parametrize("attacks", [{"bp": 5}, {"bp": 5, "fa": 15}])
def test_what_attacks_on_retrieval_cost(
    attacks: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HAG, SDHA, Anchor and the targeted forms by each source (BP: exact; FA: own, exact,
    transfer), twice at each radius, and noise at each; a code takes 2 s here, a step 3 s."""
    monkeypatch.setattr(attack_cost, "_of_one_query", lambda *_: (2.0, 3.0))
    base = Experiment(hashing=Hashing(8, "csq"), net_options={"hidden": [16]}, validation=100)
    evaluation = retrieval.Evaluation(eps=(0.05, 0.1), queries=10, steps=5)
    entries = tuple(Entry("digits", rule, dataclasses.replace(base, rule=rule)) for rule in attacks)
    study = Study("s", "S", "full", entries, evaluations={"digits": evaluation}, surrogate="bp")
    cost = attack_cost.most(study, tmp_path, EXECUTION)
    seconds = 0.0
    for count in attacks.values():
        tried = 2 * count * 2
        passes = 1437 - 100 + 10 * (tried + 2)
        seconds += 2.0 * passes + 3.0 * 10 * 5 * tried
    assert cost.parts == (("digits attacked", len(attacks), seconds),)


def test_a_step_of_an_attack_on_retrieval_is_timed(tmp_path: Path) -> None:
    base = Experiment(hashing=Hashing(8, "csq"), net_options={"hidden": [16]}, rule="fa")
    evaluation = retrieval.Evaluation(eps=(0.05,), queries=10, known=20, steps=5)
    entries = (Entry("digits", "fa", base),)
    study = Study("s", "S", "full", entries, evaluations={"digits": evaluation})
    assert 0 < attack_cost.most(study, tmp_path, EXECUTION).seconds < 60
