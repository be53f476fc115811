"""Evaluating the retrieval of a hash net: what attacks leave of it, and by which gradient."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from apical import retrieval
from apical.attacks.ball import Norm
from apical.attacks.steps import Noise
from apical.bench.evaluate import evaluation
from apical.bench.evaluate.evaluation import Nets, OnTrial, Outcome, Row
from apical.bench.evaluate.trained_net import HashNet, Trained
from apical.measure import statistics
from apical.retrieval.attacks.attack import SHARPNESS

TANHS: dict[str, tuple[float, ...]] = {"rising": SHARPNESS, "plain": (1.0,)}
"""How steep the tanh is that gradients are taken through, in the course of an attack: as published,
or always 1. Either may be the stronger one, so both are tried."""

ATTACKS = ("HAG", "SDHA", "Anchor")
"""Attacks that are to make retrieval worse."""
TARGETED = ("SDHA targeted", "Anchor targeted")
"""Attacks that choose what is found: another goal, so they are reported separately."""
NOISE = "noise"
ANY = "any"
"""In the place of an attack: whichever of them is the strongest, query by query."""

DIGITS = 5
"""Decimals of an average precision in a record."""
SHOWN, NEAREST = 4, 8
"""Queries in pictures, the first of each class in their order, and items found by each."""

Values = Sequence[float]


class Step(NamedTuple):
    """One attack by one source at one radius; `source` is "none" for noise."""

    attack: str
    tanh: str
    source: str
    eps: float


@dataclass(frozen=True)
class Trial:
    """What came of one step.

    Attributes: precision: average precision of each query, in [0, 1]; with the target labels in
        the place of the true ones where the attack is targeted. flipped: share of the bits that
        turned, mean over queries. linf, l2, mse: perceptibility.
    """

    attack: str
    tanh: str
    source: str
    eps: float
    precision: tuple[float, ...]
    flipped: float
    linf: float
    l2: float
    mse: float

    @property
    def key(self) -> Step:
        return Step(self.attack, self.tanh, self.source, self.eps)

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"precision": list(self.precision)}

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> "Trial":
        """A trial from its record."""
        values = {name: row[name] for name in cls.__dataclass_fields__}
        return cls(**values | {"precision": tuple(row["precision"])})


@dataclass(frozen=True)
class Evaluation(evaluation.Evaluation):
    """What influences the outcome of an evaluation, except the nets themselves.

    Args:
        eps: radii above 0, in units of pixels in [0, 1].
        norm: "linf" (largest change of one value), "l2" (length of the change) or "l1" (sum of the
            changes).
        queries: images of the test split, the same for every net; all, where it has fewer (>= 1).
        known: codes of the database that SDHA and Anchor are given, some of every
            class, the same for every net; all, where it has fewer (>= 1).
        steps: of each attack (>= 1).
        seed: of the noise and of the target labels.
    Raises: ValueError for a value out of range.
    """

    eps: tuple[float, ...] = (4 / 255, 8 / 255)
    norm: Norm = "linf"
    queries: int = 500
    known: int = 1000
    steps: int = 100
    seed: int = 0

    home = "retrieval"
    version = 3
    last = "end"
    trial = Trial
    counted = "queries"
    least: ClassVar = {"queries": 1, "known": 1, "steps": 1, "seed": 0}

    def __post_init__(self) -> None:
        self.check()

    def check_net(self, net: Trained) -> None:
        if not isinstance(net, HashNet):
            raise ValueError(
                f"{net.name} learned classes, no codes: there is no retrieval to attack"
            )

    def steps_of(self, *, feedback: bool, surrogates: Sequence[str]) -> Iterator[Step]:
        """Everything that is tried.

        Args: feedback: whether the net has a gradient of its own, other than the exact one.
            surrogates: names of the nets that attacks are transferred from.
        """
        sources = ["own"] * feedback + ["exact", *(f"transfer:{name}" for name in surrogates)]
        for eps in sorted(self.eps):
            yield Step(NOISE, "", "none", eps)
            for attack in (*ATTACKS, *TARGETED):
                for source in sources:
                    for tanh in TANHS:
                        yield Step(attack, tanh, source, eps)

    def attack(
        self,
        net: Trained,
        others: Nets,
        examples: tuple[Tensor, Tensor],
        finished: Sequence[Trial],
        on_trial: OnTrial,
    ) -> Outcome:
        net, others = cast(HashNet, net), cast("Mapping[str, HashNet]", others)
        asked = queries(net, self, *examples)
        steps = list(self.steps_of(feedback=net.feedback, surrogates=list(others)))
        known = {trial.key: trial for trial in finished}
        trials = []
        for number, step in enumerate(steps, 1):
            trial = known.get(step) or run(net, step, asked, self, others)
            trials.append(trial)
            on_trial(trial, number, len(steps))
        return Outcome(report(net, asked, self, trials), pictures(net, asked, self, trials))

    def left(self, rows: Sequence[Row]) -> tuple[str, dict[float, float]]:
        worst = {row["eps"]: row["map"] for row in rows if row.get("source") == "worst"}
        return f"mAP {rows[0]['map']:.1%}", worst


@dataclass(frozen=True, eq=False)
class Queries:
    """What is searched for. Attributes: targets: labels that targeted attacks choose."""

    x: Tensor
    y: Tensor
    targets: Tensor
    codes: retrieval.Codes


def queries(net: HashNet, evaluation: Evaluation, x: Tensor, y: Tensor) -> Queries:
    """The queries of an evaluation. The target of each is a random class of the database but its
    own."""
    classes = net.database.labels.unique()
    if len(classes) < 2:
        raise ValueError(
            "the database holds one class only: a ranking cannot distinguish anything in it"
        )
    generator = torch.Generator().manual_seed(evaluation.seed)
    shift = torch.randint(1, len(classes), (len(y),), generator=generator)
    own = torch.searchsorted(classes, y.cpu()).clamp(max=len(classes) - 1)
    targets = classes[(own + shift) % len(classes)].to(y)
    return Queries(x, y, targets, retrieval.encode(net.model, x))


def run(
    net: HashNet,
    step: Step,
    asked: Queries,
    evaluation: Evaluation,
    others: Mapping[str, HashNet],
) -> Trial:
    """Attack all queries, and search with what came of them."""
    x = points(net, step, asked, evaluation, others)
    codes = retrieval.encode(net.model, x)
    labels = asked.targets if step.attack in TARGETED else asked.y
    seen = retrieval.perceptibility(asked.x, x)
    turned = retrieval.pairwise_distances(codes, asked.codes).double().mean().item()
    return Trial(
        *step,
        precision=precision(net, codes, labels),
        flipped=turned / codes.bits,
        linf=seen.linf,
        l2=seen.l2,
        mse=seen.mse,
    )


def precision(net: HashNet, codes: retrieval.Codes, labels: Tensor) -> tuple[float, ...]:
    """Average precision of each query, ties at their mean."""
    found = retrieval.average_precision(codes, labels, net.database, k=net.k, ties="expected")
    return tuple(round(value, DIGITS) for value in found.tolist())


def points(
    net: HashNet,
    step: Step,
    asked: Queries,
    evaluation: Evaluation,
    others: Mapping[str, HashNet],
) -> Tensor:
    """The attacked queries."""
    common: dict[str, Any] = {"eps": step.eps, "norm": evaluation.norm}
    if step.attack == NOISE:
        noise = Noise(**common, seed=evaluation.seed)
        return noise(net.model, asked.x, torch.zeros_like(asked.y))  # it asks for no labels
    common |= {"steps": evaluation.steps, "sharpness": TANHS[step.tanh]}
    kind, _, name = step.source.partition(":")
    attacked = others[name] if kind == "transfer" else net
    targeted = step.attack in TARGETED
    attack: retrieval.RetrievalAttack
    if step.attack == "HAG":
        attack = retrieval.HAG(**common)
    else:
        made = retrieval.Anchor if step.attack.startswith("Anchor") else retrieval.SDHA
        attack = made(**common, database=attacked.known(evaluation.known), targeted=targeted)
    labels = asked.targets if targeted else asked.y
    gradient = "exact" if kind == "transfer" else kind
    # bits of two nets mean different things: a transferred attack is made on the other net alone
    return attack(attacked.model, asked.x, labels, gradient=gradient)


# From trials to the rows of a report


def report(
    net: HashNet, asked: Queries, evaluation: Evaluation, trials: Sequence[Trial]
) -> list[Row]:
    """The rows, closed by one of kind ``end``. Means of average precision in [0, 1], with 95 % t
    intervals over queries.

    Kinds: ``clean``; ``attack``, each trial; ``map``, what is left by attack and source (``own``,
    ``exact``, ``transfer``; ``worst`` over everything tried at this radius and smaller ones);
    ``gap``, own minus exact on the same queries; ``targeted``, t-MAP by source.
    """
    clean = precision(net, asked.codes, asked.y)
    rows = [_clean(net, asked, evaluation, clean)]
    for trial in trials:
        row = _mean("attack", trial.precision)
        rows.append(row | {k: v for k, v in trial.record().items() if k != "precision"})
    reached: Values = clean
    for eps in sorted(evaluation.eps):
        here = [trial for trial in trials if trial.eps == eps]
        sources = _sources(here)
        for attack in (*ATTACKS, ANY):
            left = {s: _strongest(here, attack, s) for s in sources}
            if not net.feedback:
                left = {"own": left["exact"], **left}
            rows += [_mean("map", v, eps=eps, attack=attack, source=s) for s, v in left.items()]
            rows.append(_gap(eps, attack, left["own"], left["exact"]))
        harmful = [trial.precision for trial in here if trial.attack not in TARGETED]
        reached = _least([reached, *harmful])
        rows.append(_mean("map", reached, eps=eps, attack=ANY, source="worst"))
        rows += _targeted(net, here, eps)
    return [*rows, {"kind": "end"}]


def _clean(net: HashNet, asked: Queries, evaluation: Evaluation, found: Values) -> Row:
    database, codes = net.database, asked.codes
    radius = min(2, codes.bits)
    return _mean("clean", found) | {
        "queries": len(found),
        "norm": evaluation.norm,
        "bits": codes.bits,
        "k": net.k,
        "database": len(database),
        "classes": len(database.labels.unique()),
        "constant_bits": len(database.codes.constant_bits()),
        "inverted_map": _average(precision(net, codes.inverted(), asked.y)),
        "target_map": _average(precision(net, codes, asked.targets)),
        "precision2": retrieval.precision_within(codes, asked.y, database, radius),
    }


def _targeted(net: HashNet, trials: Sequence[Trial], eps: float) -> list[Row]:
    aimed = [trial for trial in trials if trial.attack in TARGETED]
    found = {
        source: tuple(map(max, *(t.precision for t in aimed if _source(t) == source)))
        for source in _sources(aimed)
    }
    if not net.feedback:
        found = {"own": found["exact"], **found}
    return [_mean("targeted", values, eps=eps, source=source) for source, values in found.items()]


def _gap(eps: float, attack: str, own: Values, exact: Values) -> Row:
    differences = [a - b for a, b in zip(own, exact, strict=True)]
    return _interval("gap", differences) | {
        "eps": eps,
        "attack": attack,
        "own": _average(own),
        "exact": _average(exact),
    }


def _strongest(trials: Sequence[Trial], attack: str, source: str) -> Values:
    """Of several ways to make an attack, and of several nets to transfer from, the one that leaves
    least of a query."""
    names = ATTACKS if attack == ANY else (attack,)
    return _least([t.precision for t in trials if t.attack in names and _source(t) == source])


def _least(found: Sequence[Values]) -> Values:
    return tuple(map(min, zip(*found, strict=True)))


def _sources(trials: Iterable[Trial]) -> list[str]:
    return list(dict.fromkeys(_source(t) for t in trials if t.attack != NOISE))


def _source(trial: Trial) -> str:
    return trial.source.partition(":")[0]


def _mean(kind: str, values: Values, **fields: Any) -> Row:
    row = _interval(kind, values)
    bounds = {"low": max(row["low"], 0.0), "high": min(row["high"], 1.0)}
    return {"kind": kind, **fields, "map": row["mean"], **bounds}


def _interval(kind: str, values: Values) -> Row:
    """A single query has no interval: its bounds are the value."""
    found = statistics.summarize(values)
    low, high = (found.mean if b is None else b for b in (found.low, found.high))
    return {"kind": kind, "mean": found.mean, "low": low, "high": high}


def _average(values: Values) -> float:
    return sum(values) / len(values)


def pictures(
    net: HashNet, asked: Queries, evaluation: Evaluation, trials: Sequence[Trial]
) -> dict[str, Any]:
    """Arrays: x (q, C, H, W), labels (q,), names (s,) as "attack / source", eps, adv
    (s, q, C, H, W), and of the clean queries and each attack: precision (1 + s, q), found
    (1 + s, q, n, C, H, W) in uint8, found_labels (1 + s, q, n).

    Shown is, by each gradient, the attack that leaves least over all queries at the largest radius;
    a net without feedback has the exact gradient alone.
    """
    first: dict[int, int] = {}
    for place, label in enumerate(asked.y.tolist()):
        first.setdefault(label, place)
    chosen = torch.tensor(sorted(first.values())[:SHOWN])
    few = Queries(asked.x[chosen], asked.y[chosen], asked.targets[chosen], asked.codes[chosen])
    largest = [t for t in trials if t.eps == max(evaluation.eps) and t.attack in ATTACKS]
    steps = [
        min(tried, key=lambda trial: sum(trial.precision)).key
        for source in ("own", "exact")
        if (tried := [trial for trial in largest if trial.source == source])
    ]
    adv = [points(net, step, few, evaluation, {}) for step in steps]
    codes = [few.codes, *(retrieval.encode(net.model, x) for x in adv)]
    nearest = min(NEAREST, len(net.database))
    orders = torch.stack([retrieval.rank(c, net.database.codes, k=nearest) for c in codes])
    split, rows = net.searched.split, orders.flatten().to(net.searched.device)
    found = torch.cat([images for images, _ in split.batches([rows])])
    return {
        "x": few.x.cpu().numpy(),
        "labels": few.y.cpu().numpy(),
        "names": [f"{step.attack} / {step.source}" for step in steps],
        "eps": max(evaluation.eps),
        "adv": torch.stack(adv).cpu().numpy(),
        "precision": [precision(net, each, few.y) for each in codes],
        "found": found.unflatten(0, orders.shape).cpu().numpy(),
        "found_labels": net.database.labels[orders].numpy(),
    }
