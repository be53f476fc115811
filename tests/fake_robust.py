"""Robustness evaluations as they are left in run folders, made up but of realistic shape."""

import random
from pathlib import Path

import numpy as np

from apical.bench.storage import records

IMAGES = 200
EPS = (0.05, 0.1, 0.2)
OWN = {  # robust accuracy under the own gradient, by radius; beyond backprop's it is misled
    "bp": (0.80, 0.44, 0.02),
    "fa": (0.93, 0.92, 0.88),
    "dfa": (0.92, 0.91, 0.87),
    "usf": (0.84, 0.56, 0.10),
    "brsf": (0.88, 0.68, 0.24),
    "frsf": (0.87, 0.64, 0.21),
}
EXACT = (0.80, 0.44, 0.02)
CLEAN = {"bp": 0.975, "fa": 0.955, "dfa": 0.95}
SOURCE = "Sanfiz and Akrout 2021, notebooks"
PUBLISHED = {"bp": 0.45, "fa": 0.9, "dfa": 0.88, "usf": 0.5, "brsf": 0.7, "frsf": 0.66}
MISLED = ("fa", "dfa")


def add_robustness(folder: Path, *, rules_tried=(), eps=EPS, images=IMAGES, size=8, channels=1):
    """Evaluate every run of a fake study; returns its folder."""
    value = records.read_json(folder / "study.json")
    listed = []
    for run in value["runs"]:
        evaluation = "robustness/linf-0a1b2c"
        make_evaluation(
            folder / run["folder"] / evaluation,
            run["rule"],
            run["seed"],
            rules_tried=rules_tried,
            eps=eps,
            images=images,
        )
        make_examples(folder / run["folder"] / evaluation, size=size, channels=channels)
        names = {key: run[key] for key in ("folder", "setting", "rule", "seed")}
        listed.append({**names, "evaluation": evaluation})
    rows = [
        {"setting": run["setting"], "rule": run["rule"], "attack": "PGD-20 ce", "eps": 0.1}
        | {"metric": "robust_accuracy", "value": PUBLISHED[run["rule"]], "unit": "fraction"}
        | {"source": SOURCE, "n": 1}
        for run in value["runs"]
        if run["rule"] in PUBLISHED and run["seed"] == value["runs"][0]["seed"]
    ]
    value |= {"robustness": listed, "robust_published": rows}
    records.write_json(folder / "study.json", value)
    return folder


def make_evaluation(folder: Path, rule, seed, *, rules_tried=(), eps=EPS, images=IMAGES):
    folder.mkdir(parents=True)
    effort = {"steps": 20, "restarts": 1, "adaptive_steps": 50, "queries": 1000, "redraws": 10}
    setting = {"data": "digits", "images": images, "eps": list(eps), "norm": "linf"}
    setting |= {"effort": effort, "rules": list(rules_tried), "surrogates": ["bp"], "seed": 0}
    described = {"key": "0a1b2c", "versions": {}, "checkpoint": "abc", "setting": setting}
    records.write_json(folder / "setting.json", described)
    rows = evaluation_rows(rule, seed, rules_tried=rules_tried, eps=eps, images=images)
    records.append(folder / "records.jsonl", *rows)


def evaluation_rows(rule, seed, *, rules_tried=(), eps=EPS, images=IMAGES):
    """Rows as a finished evaluation writes them; accuracies are whole numbers of images."""
    chance = random.Random(f"{rule}{seed}")
    shift = 0.03 * chance.uniform(-1, 1)

    def share(value):
        return round(min(max(value + shift, 0), 1) * images) / images

    clean = round(CLEAN.get(rule, 0.97) * images) / images
    rows = [{"kind": "clean", "accuracy": clean, "examples": images, "norm": "linf", "classes": 10}]
    apart = []
    for place, radius in enumerate(eps):
        place = min(place, len(EPS) - 1)
        own, exact = share(OWN.get(rule, EXACT)[place]), share(EXACT[place])
        own = exact if rule == "bp" else round((own + 0.02 * chance.random()) * images) / images
        worst = max(0.0, exact - 2 / images)

        def attack(name, source, group, accuracy, role="usual", on="all", radius=radius):
            row = {"kind": "attack", "attack": name, "source": source, "group": group}
            row |= {"eps": radius, "on": on, "role": role, "strays": 0}
            broken = round((clean - accuracy) * images) if on == "all" else 2
            row |= {"attacked": round(clean * images), "broken": broken}
            return row | ({"accuracy": accuracy} if on == "all" else {})

        rows.append(attack("Noise uniform", "none", "noise", clean - 1 / images))
        for group, value in (("own", own), ("exact", exact)):
            rows.append(attack("FGSM ce", group, group, min(clean, value + 0.05), "single step"))
            rows.append(attack("PGD-20 ce", group, group, value))
            rows.append(attack("PGD-20 margin", group, group, min(clean, value + 0.01)))
        if rule == "brsf":
            rows.append(attack("PGD-20 ce", "own-averaged:10", "averaged", own - 0.05))
        for other in rules_tried:
            tried = OWN[other][place] - (0.04 if rule != "bp" else 0)
            rows.append(attack("PGD-20 ce", f"rule:{other}", "rule", share(tried)))
        rows.append(attack("PGD-20 ce", "bp", "transfer", min(clean, exact + 0.2)))
        rows.append(attack("APGD-50 ce", "exact", "exact", 0, on="survivors"))
        rows.append(attack("Square-1000", "none", "black box", min(clean, exact + 0.1)))
        apart.append((radius, own, exact, worst))
    for radius, _, _, worst in apart:
        rows.append({"kind": "worst", "eps": radius, "accuracy": worst, "low": 0.0, "high": 1.0})
    for radius, own, exact, _ in apart:
        gap = {"kind": "gap", "eps": radius, "own": own, "exact": exact, "mean": own - exact}
        gap |= {"low": own - exact - 0.02, "high": own - exact + 0.02}
        rows.append(gap | {"masked": own - exact > 0.07})
    rows += checks(rule)
    rows.append(audit(rule, chance))
    word = "faithful" if rule == "bp" else "masked"
    rows.append({"kind": "verdict", "verdict": word, "reasons": ["made up"]})
    return rows


def checks(rule):
    flagged = rule == "dfa"
    detail = "PGD-40 ce broke 5 of 88 survivors at eps 0.1"
    name = "twice as many steps change little"
    yield {"kind": "check", "name": name, "passed": not flagged, "detail": detail}
    name = "a black box is not stronger than the exact gradient"
    yield {"kind": "check", "name": name, "passed": True, "detail": "Square-1000 broke 0 of 80"}
    name = "transferred attacks are not stronger than the exact gradient"
    yield {"kind": "check", "name": name, "detail": "not run"}


def audit(rule, chance):
    misled = rule in MISLED
    row = {"kind": "audit", "source": "own", "loss": "dlr", "examples": 128, "zero": 0.0}
    row |= {"verdict": "faithful" if rule == "bp" else "masked", "zero_loss": "ce"}
    row |= {"rising": 0.45 if misled else 1.0, "rising_low": 0.4, "rising_high": 0.5}
    cosine = 1.0 if rule == "bp" else 0.02 * chance.random() if misled else 0.85
    row |= {"cosine": cosine, "agreement": cosine, "slope_ratio": cosine, "saturated": 0.1}
    row |= {"largest_score": 20.0, "repeat": 1.0, "misleading": misled}
    return row | {"reasons": ["a small step along the gradient raises the loss for 45% only"]}


def make_examples(folder: Path, *, size=8, channels=1, k=4, eps=0.1):
    """A few images, the attacks by their own and by the exact gradient."""
    draw = np.random.default_rng(0)
    x = np.clip(np.linspace(0, 1, size)[None, None, :, None] * draw.random((k, channels, 1, size)),
                0, 1).astype(np.float32)  # fmt: skip
    x = np.broadcast_to(x, (k, channels, size, size)).copy()
    names = np.array(["PGD-20 ce / own", "PGD-20 ce / exact", "Square-1000 / none"])
    noise = eps * np.sign(draw.standard_normal((len(names), *x.shape)))
    labels = np.arange(k)
    np.savez(
        folder / "examples.npz",
        x=x,
        adv=np.clip(x[None] + noise, 0, 1).astype(np.float32),
        names=names,
        labels=labels,
        predictions_clean=labels,
        predictions_adv=np.stack([labels, (labels + 3) % 10, (labels + 1) % 10]),
        eps=np.float32(eps),
    )
