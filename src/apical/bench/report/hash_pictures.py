"""Queries and what is found with them, clean and attacked, as small PNG pictures in the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apical.bench.report.hash_read import Evaluation
from apical.bench.report.hash_table import Section
from apical.bench.report.names import display_name
from apical.bench.report.robust_examples import Shown, arrays, picture

MOST_QUERIES, MOST_FOUND = 2, 6
"""Shown of each rule: enough to see what an attack does to an answer."""

SHAPES = {"x": 4, "labels": 1, "names": 1, "adv": 5, "precision": 2, "found": 6, "found_labels": 3}
"""Number of dimensions of each array in examples.npz."""


@dataclass(frozen=True)
class Answer:
    """A query, clean or attacked, and what it finds, nearest first.

    Attributes: name: "clean", or the attack and its gradient. precision: average, in %. found:
        `wrong` where the label is another; their texts are the labels.
    """

    name: str
    query: Shown
    precision: float
    found: tuple[Shown, ...]

    @property
    def right(self) -> int:
        return sum(not each.wrong for each in self.found)


@dataclass(frozen=True)
class Retrieved:
    """Some queries of one net, each with its answers."""

    rule: str
    seed: int
    eps: float
    queries: tuple[tuple[Answer, ...], ...]


def of_section(section: Section) -> tuple[list[Retrieved], list[str]]:
    """Queries of the first net of each rule that has some, and what could not be read.

    The same queries of every rule: those that lose most average precision over all of them.
    """
    found: list[tuple[Evaluation, dict[str, Any]]] = []
    problems = []
    for rule in section.rules:
        for net in section.of(rule).values():
            path = net.folder / "examples.npz"
            if not path.exists():
                continue
            try:
                found.append((net, _checked(path)))
                break
            except (ValueError, OSError, KeyError) as error:
                reason = str(error).replace(f"{net.folder}/", "")
                problems.append(f"{display_name(rule)}, seed {net.seed}: {reason}")
    chosen = _telling([values for _, values in found])
    return [_retrieved(net, values, chosen) for net, values in found], problems


def _telling(found: Sequence[dict[str, Any]]) -> list[int]:
    """Places of the queries that lose most, in their order."""
    count = min((len(values["x"]) for values in found), default=0)
    lost = [0.0] * count
    for values in found:
        clean, *attacked = values["precision"]
        for place in range(count):
            lost[place] += float(sum(clean[place] - each[place] for each in attacked))
    return sorted(sorted(range(count), key=lambda place: -lost[place])[:MOST_QUERIES])


def _checked(path: Path) -> dict[str, Any]:
    values = arrays(path, SHAPES)
    if values["x"].shape[1] not in (1, 3) or len(values["found"]) != len(values["names"]) + 1:
        raise ValueError(
            f"{path}: x {values['x'].shape}, found {values['found'].shape}: expected grey or "
            "colour images (q, C, H, W), and what each query and attack found"
        )
    return values


def _retrieved(net: Evaluation, values: dict[str, Any], chosen: Sequence[int]) -> Retrieved:
    queries = tuple(_answers(values, place) for place in chosen)
    return Retrieved(net.rule, net.seed, float(values["eps"]), queries)


def _answers(values: dict[str, Any], query: int) -> tuple[Answer, ...]:
    truth = int(values["labels"][query])
    inputs = [values["x"][query], *values["adv"][:, query]]
    names = ["clean", *(_named(str(name)) for name in values["names"])]
    made = []
    for place, (name, image) in enumerate(zip(names, inputs, strict=True)):
        pictures = values["found"][place, query][:MOST_FOUND]
        labels = values["found_labels"][place, query][:MOST_FOUND]
        found = tuple(
            Shown(picture(pixels / 255), str(label), bool(label != truth))
            for pixels, label in zip(pictures, labels, strict=True)
        )
        share = 100 * float(values["precision"][place][query])
        made.append(Answer(name, Shown(picture(image), str(truth)), share, found))
    return tuple(made)


def _named(name: str) -> str:
    """ "HAG, own gradient"."""
    attack, _, source = name.partition(" / ")
    return f"{attack}, {source} gradient"
