"""The command line: ``apical robustness``."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apical.bench.cli.parsing import (
    UsageError,
    add_keep_memory,
    add_trust,
    execution_of,
    make_parser,
    parse,
)
from apical.bench.cli.robustness_tables import print_audits, print_rows

if TYPE_CHECKING:
    from apical.bench.evaluate import retrieval
    from apical.bench.evaluate.robustness import Evaluation
    from apical.bench.evaluate.trained_net import Trained

_OF_THE_ATTACK: tuple[tuple[str, Any, Any, str], ...] = (
    ("eps", "4/255,8/255,16/255", str, "radii, in units of pixels in [0, 1], as 8/255,0.1"),
    ("norm", "linf", str, "linf: largest change of one value; l2: length of the change"),
    ("images", 1000, int, "images of the test split that are attacked"),
    ("rules", "", str, "further rules whose backward pass is tried on the weights, as usf,brsf"),
    ("transfer", "", str, "folders of runs to transfer attacks from; one trained by bp is best"),
    ("protocol", "", str, "attacks of an earlier study beside ours: biotorch"),
    ("pixels", "1,2,3,4,5", str, "numbers of pixels the protocol's few-pixel attack may change"),
    ("pixel_images", 100, int, "images that attack is tried on"),
    ("samples", 1, int, "forward passes whose mean scores count, for nets with random scores"),
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
    from apical.bench.evaluate import robustness as library
    from apical.bench.storage import claims

    values = parse(_options(), words)
    execution = execution_of(values)
    evaluation = _evaluation(values)
    if _learned_codes(values["run"], trust=values["trust"]):
        from apical.bench.cli.retrieval import search

        asked = _of_codes(values, evaluation)
        surrogates = _named(values["transfer"])
        return search(values["run"], asked, surrogates, execution, trust=values["trust"])
    net, run = _target(values, execution)
    if values["audit_only"]:
        print_audits([found.row() for found in library.audits(net, evaluation, execution)])
        return 0
    trust = values["trust"]
    others = {
        name: _run(path, execution, trust) for name, path in _named(values["transfer"]).items()
    }
    digests = {name: other.digest for name, other in others.items()}
    folder = library.place(run, evaluation, net.digest, digests)
    try:
        rows = library.evaluate(net, evaluation, folder, execution, surrogates=others)
    except claims.Held as held:
        raise ValueError(str(held)) from held
    print_rows(net.name, rows)
    print(folder)
    return 0


def _options() -> Any:
    from apical import attacks
    from apical.bench.experiment.execution import Execution

    parser = make_parser(
        "robustness",
        "Attack a trained net by every source of gradients, and say what to believe. The headline "
        "is the worst case per example. Of a hash net the retrieval is attacked. If it is killed, "
        "the same command resumes it.",
        "[RUN]",
    )
    about = "folder of a finished run, or its checkpoint; or give --model"
    parser.add_argument("run", nargs="?", default=None, type=str, help=about)
    for name, default, kind, about in _OF_THE_ATTACK:
        parser.add_argument(f"--{name}", default=default, type=kind, help=about)
    parser.add_class_arguments(attacks.Effort, "effort")
    about = "only ask what the gradient is worth, in seconds; nothing is written"
    parser.add_argument("--audit_only", default=False, action="store_true", help=about)
    for name, default, kind, about in _OF_A_MODEL:
        parser.add_argument(f"--{name}", default=default, type=kind, help=about)
    parser.add_class_arguments(Execution, None, skip={"checkpoint_steps"})
    add_keep_memory(parser)
    add_trust(parser)
    return parser


def radii(text: str) -> tuple[float, ...]:
    """Radii of a list as "8/255,0.1".

    Raises: UsageError for what is no number or fraction.
    """
    found = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([\d.eE+-]+)(?:/([\d.eE+-]+))?", word)
        try:
            assert match is not None
            found.append(float(match[1]) / float(match[2] or 1))
        except (AssertionError, ValueError, ZeroDivisionError):
            raise UsageError(
                f"--eps {word}: expected a number or a fraction, as 0.1 or 8/255"
            ) from None
    return tuple(found)


def _evaluation(values: dict[str, Any]) -> "Evaluation":
    from apical.attacks import Effort
    from apical.bench.evaluate.robustness import Evaluation

    pixels = values["pixels"]
    if not re.fullmatch(r"[\d, ]*", pixels):
        raise UsageError(f"--pixels {pixels}: expected whole numbers, as 1,2,5")
    return Evaluation(
        eps=radii(values["eps"]),
        norm=values["norm"],
        images=values["images"],
        effort=Effort(**values["effort"]),
        rules=tuple(_words(values["rules"])),
        protocol=values["protocol"],
        pixels=tuple(map(int, _words(pixels))),
        pixel_images=values["pixel_images"],
        samples=values["samples"],
        seed=values["seed"],
    )


def _learned_codes(run: str | None, *, trust: bool) -> bool:
    """Whether a run trained a hash net, which has no classes to attack but a retrieval."""
    from apical.bench.evaluate.trained_net import experiment_of

    path = Path(run or "")
    folder = path.parent if path.is_file() else path
    described = run is not None and (folder / "experiment.json").exists()
    return described and experiment_of(folder, trust=trust).hashing is not None


def _of_codes(values: dict[str, Any], evaluation: "Evaluation") -> "retrieval.Evaluation":
    """The same attacker on the retrieval of a hash net.

    Raises: UsageError for options that have no meaning there.
    """
    from apical.attacks import Effort
    from apical.bench.evaluate import retrieval

    plain = {name: default for name, default, _, _ in (*_OF_THE_ATTACK, *_OF_A_MODEL)}
    plain |= {"audit_only": False}
    of_classes = (
        *("rules", "protocol", "pixels", "pixel_images", "samples", "audit_only"),
        *_names(_OF_A_MODEL),
    )
    stray = [name for name in of_classes if values[name] != plain[name]]
    usual, effort = vars(Effort()), vars(evaluation.effort)
    stray += [f"effort.{n}" for n in usual if n != "steps" and effort[n] != usual[n]]
    if stray:
        raise UsageError(f"--{stray[0]} has no meaning for a hash net, whose retrieval is attacked")
    if evaluation.norm == "flips":
        raise UsageError("--norm flips is for inputs of 0 and 1; a hash net is given images")
    given = effort["steps"] != usual["steps"]
    return retrieval.Evaluation(
        eps=evaluation.eps,
        norm=evaluation.norm,
        queries=evaluation.images,
        steps=effort["steps"] if given else retrieval.Evaluation.steps,
        seed=evaluation.seed,
    )


def _names(options: Sequence[tuple[str, Any, Any, str]]) -> list[str]:
    return [name for name, *_ in options]


def _target(values: dict[str, Any], execution: Any) -> tuple["Trained", Path]:
    """The net, and the folder its evaluations belong to."""
    from apical.bench.evaluate import trained_net

    if (values["run"] is None) == (values["model"] is None):
        raise UsageError("give a run folder, or a model of your own with --model; one of the two")
    if values["run"] is not None:
        stray = [n for n in ("weights", "data", "size", "rule") if values[n] is not None]
        if stray:
            raise UsageError(f"--{stray[0]} belongs to --model; a run knows its own")
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


def _named(paths: str) -> dict[str, str]:
    """Surrogates by the names of their folders."""
    return {Path(path).resolve().name: path for path in _words(paths)}


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
