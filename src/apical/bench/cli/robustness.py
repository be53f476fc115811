"""The command line: ``apical robustness``."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apical.bench.cli import parsing
from apical.bench.cli.parsing import UsageError
from apical.bench.cli.robustness_tables import print_audits, print_retrieval, print_rows

if TYPE_CHECKING:
    from apical.bench.evaluate import robustness as robustness_of
    from apical.bench.evaluate.evaluation import Evaluation
    from apical.bench.evaluate.trained_net import Trained

_OF_THE_ATTACK: tuple[tuple[str, Any, Any, str], ...] = (
    ("eps", "4/255,8/255,16/255", str, "radii, in units of pixels in [0, 1], as 8/255,0.1"),
    (
        "norm",
        "linf",
        str,
        "linf: largest change of one value; l2: length of the change; l1: sum of "
        "the changes; flips: number of binary values",
    ),
    ("images", 1000, int, "images of the test split that are attacked"),
    ("rules", "", str, "further rules whose backward pass is tried on the weights, as usf,brsf"),
    ("transfer", "", str, "folders of runs to transfer attacks from; one trained by bp is best"),
    ("protocol", "", str, "attacks of an earlier study in addition: biotorch"),
    ("pixels", "1,2,3,4,5", str, "numbers of pixels the protocol's few-pixel attack may change"),
    ("pixel_images", 100, int, "images that attack is tried on"),
    ("samples", 1, int, "forward passes whose mean scores count, for nets with random scores"),
    ("substitute", False, bool, "transfer from a net too that learns the attacked one's answers"),
    ("seed", 0, int, "of the attacks"),
)
_OF_A_MODEL: tuple[tuple[str, Any, Any, str], ...] = (
    ("model", None, str, "instead of a run: package.module:name, timm:NAME, torchvision:NAME"),
    ("model_options", {}, dict[str, Any], "keyword arguments of --model"),
    ("weights", None, str, "file of the state dict of --model"),
    ("data", None, str, "data set of --model; apical list shows them"),
    ("size", None, int, "side of its images in pixels; absent: as stored"),
    ("normalise", True, bool, "give --model standardised images; false where it takes [0, 1]"),
    ("rule", None, str, "rule that --model was converted by; absent: none"),
    ("runs", "runs", str, "folder that holds all runs, where --model leaves its records"),
)


def robustness(words: list[str]) -> int:
    """Attack a trained net, print what survives, and leave the records in its folder."""
    from apical.bench.evaluate import robustbench
    from apical.bench.evaluate.evaluation import evaluate
    from apical.bench.evaluate.robustness import audits
    from apical.bench.evaluate.trained_net import HashNet
    from apical.bench.storage import claims, records

    values = parsing.parse(_options(), words)
    execution = parsing.execution_of(values)
    evaluation: Evaluation = _of_scores(values)
    if values["claimed"] and not values["robustbench"]:
        raise UsageError("--claimed has no effect without --robustbench FILE")
    claims_given = claimed(values["claimed"])
    if stray := [eps for eps in claims_given if eps not in evaluation.eps]:
        raise UsageError(f"--claimed: radius {stray[0]:.4g} is not in --eps {values['eps']}")
    given = _words(values["transfer"])
    paths = {Path(path).resolve().name: path for path in given}
    if len(paths) < len(given):
        raise UsageError(
            f"--transfer {values['transfer']}: the last parts of the paths must differ"
        )
    net, run = _target(values, execution)
    if isinstance(net, HashNet):
        evaluation = _of_codes(values)
    if values["audit_only"]:
        print_audits([audit.row() for audit in audits(net, _of_scores(values), execution)])
        return 0
    others = {name: _run(path, execution, values["trust"]) for name, path in paths.items()}
    digests = {name: other.digest for name, other in others.items()}
    folder = evaluation.place(run, net.digest, digests)
    try:
        rows = evaluate(net, evaluation, folder, execution, surrogates=others)
    except claims.Held as held:
        raise ValueError(str(held)) from held
    if values["robustbench"]:
        setting = records.read_json(folder / "setting.json")["setting"]
        made = robustbench.entries(net.name, setting, rows, claims_given)
        records.write_json(values["robustbench"], made)
    (print_retrieval if isinstance(net, HashNet) else print_rows)(net.name, rows)
    print(folder)
    return 0


def _options() -> Any:
    from apical import attacks

    parser = parsing.make_parser(
        "robustness",
        "Attack a trained net by every source of gradients, and print a verdict. The headline "
        "is the worst case per example. Of a hash net the retrieval is attacked. If it is killed, "
        "the same command resumes it.",
        "[RUN]",
        essential=("run", "eps", "norm", "images", "rules", "transfer", "audit_only", "robustbench",
                   "model", "model_options", "weights", "data", "rule", "device"),
    )  # fmt: skip
    about = "folder of a finished run, or its checkpoint; or give --model"
    parser.add_argument("run", nargs="?", default=None, type=str, help=about)
    for name, default, kind, about in _OF_THE_ATTACK:
        parser.add_argument(f"--{name}", default=default, type=kind, help=about)
    parser.add_class_arguments(attacks.Effort, "effort")
    about = "also write claimed and re-measured values in the form of RobustBench to this file"
    parser.add_argument("--robustbench", default=None, type=str, help=about)
    about = "robust accuracies in % that were claimed, by radius, as 8/255:56.3,0.1:40"
    parser.add_argument("--claimed", default="", type=str, help=about)
    about = "only audit the gradient, which takes seconds; nothing is written"
    parser.add_argument("--audit_only", default=False, action="store_true", help=about)
    for name, default, kind, about in _OF_A_MODEL:
        parser.add_argument(f"--{name}", default=default, type=kind, help=about)
    of_training = ("checkpoint_steps", "parallel", "regroup", "track")
    parsing.add_execution(parser, skip=of_training)
    parsing.add_trust(parser)
    return parser


def radii(text: str) -> tuple[float, ...]:
    """Radii of a list as "8/255,0.1".

    Raises: UsageError for a word that is not a number or a fraction.
    """
    return tuple(_radius("--eps", word) for word in _words(text))


def _radius(option: str, word: str) -> float:
    number = r"[\d.eE+-]+"
    try:
        if re.fullmatch(rf"{number}(/{number})?", word):  # neither nan nor inf
            above, _, below = word.partition("/")
            return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        pass
    raise UsageError(f"{option} {word}: expected a number or a fraction, as 0.1 or 8/255")


def claimed(text: str) -> dict[float, float]:
    """Accuracies in % by radius, of a list as "8/255:56.3".

    Raises: UsageError for a word that is not a radius with a number in [0, 100].
    """
    accuracies = {}
    for word in _words(text):
        eps, _, value = word.partition(":")
        if not re.fullmatch(r"\d+(\.\d*)?", value) or float(value) > 100:
            raise UsageError(
                f"--claimed {word}: expected a radius and an accuracy in %, as 8/255:56.3"
            )
        accuracies[_radius("--claimed", eps)] = float(value)
    return accuracies


def _of_scores(values: dict[str, Any]) -> "robustness_of.Evaluation":
    from apical.attacks import Effort
    from apical.bench.evaluate.robustness import Evaluation

    pixels = values["pixels"]
    if not re.fullmatch(r"[\d, ]*", pixels):
        raise UsageError(f"--pixels {pixels}: expected whole numbers, as 1,2,5")
    alike = ("norm", "images", "protocol", "pixel_images", "samples", "substitute", "seed")
    return Evaluation(
        eps=radii(values["eps"]),
        effort=Effort(**values["effort"]),
        rules=tuple(_words(values["rules"])),
        pixels=tuple(map(int, _words(pixels))),
        **{name: values[name] for name in alike},
    )


def _of_codes(values: dict[str, Any]) -> "Evaluation":
    """The same attacker on the retrieval of a hash net.

    Raises: UsageError for options that have no meaning there.
    """
    from apical.attacks import Effort
    from apical.bench.evaluate.retrieval import Evaluation

    plain = {name: default for name, default, *_ in _OF_THE_ATTACK} | {"audit_only": False}
    plain |= {"robustbench": None, "claimed": ""}
    kept = ("eps", "norm", "images", "transfer", "seed")
    stray = [name for name in plain if name not in kept and values[name] != plain[name]]
    usual, effort = vars(Effort()), values["effort"]
    stray += [f"effort.{n}" for n in usual if n != "steps" and effort[n] != usual[n]]
    if stray:
        raise UsageError(f"--{stray[0]} has no meaning for a hash net, whose retrieval is attacked")
    if values["norm"] == "flips":
        raise UsageError("--norm flips is for inputs of 0 and 1; a hash net is given images")
    given = effort["steps"] != usual["steps"]
    return Evaluation(
        eps=radii(values["eps"]),
        norm=values["norm"],
        queries=values["images"],
        steps=effort["steps"] if given else Evaluation.steps,
        seed=values["seed"],
    )


def _target(values: dict[str, Any], execution: Any) -> tuple["Trained", Path]:
    """The net, and the folder its evaluations belong to."""
    from apical.bench.evaluate import trained_net

    if (values["run"] is None) == (values["model"] is None):
        raise UsageError("give a run folder, or a model of your own with --model; one of the two")
    if values["run"] is not None:
        stray = [name for name, default, *_ in _OF_A_MODEL
                 if name != "runs" and values[name] != default]  # fmt: skip
        if stray:
            raise UsageError(f"--{stray[0]} belongs to --model; a run has its own")
        net = _run(values["run"], execution, values["trust"])
        path = Path(values["run"])
        return net, path.parent if path.is_file() else path
    if values["data"] is None:
        raise UsageError("--model needs --data, the data set its images come from")
    net = trained_net.from_model(
        values["model"],
        weights=values["weights"],
        data_name=values["data"],
        size=values["size"],
        pixels="standard" if values["normalise"] else "unit",
        rule=values["rule"],
        options=values["model_options"],
        **_where(execution),
    )
    return net, Path(values["runs"]) / "models" / net.name


def _run(path: str, execution: Any, trust: bool) -> "Trained":
    from apical.bench.evaluate import trained_net

    return trained_net.from_run(path, **_where(execution), trust=trust)


def _where(execution: Any) -> dict[str, Any]:
    return {
        "device": execution.device,
        "data_root": execution.data_root,
        "download": execution.download,
    }


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
