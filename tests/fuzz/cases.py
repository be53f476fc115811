"""Random input of every kind that users give, and what came of it.

A case is judged "accepted" (the value means what was written), "refused" (ValueError or OSError, as
the command line prints in one line), or one of three defects: "traceback" (any other exception),
"hang" (over 20 s) and "coercion" (accepted as something other than what was written).
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

from apical import rules
from apical.bench.cli import parsing
from apical.bench.experiment.experiment import GROUPS, Experiment, from_dict, to_dict
from apical.bench.report.read import read_run, read_study
from apical.bench.storage import checkpoint, claims, records, run_folder
from apical.bench.training import build, loop
from apical.data import parquet
from apical.data.cifar import read_binary, read_python
from apical.data.events import read_events
from apical.data.folder import decode
from apical.data.mnist import read_idx

HANG = 20
"""Seconds."""

DEFECTS = ("traceback", "hang", "coercion")

KINDS = ("options", "yaml", "json", "data", "checkpoint")

NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, -1, 2**63, 1e308, 5e-324]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
RULE = st.sampled_from([*rules.RULES, "sparse(kp)", "no_rule", "no_mod:X", "fa(", ""])
OPTIONS = st.sampled_from("init scale decay rate density inner gain rank seed".split())
NEAR: dict[str, st.SearchStrategy[Any]] = {
    "rule": st.one_of(
        RULE,
        st.builds(
            lambda r, o: {"rule": r, **o}, RULE, st.dictionaries(OPTIONS, VALUES, max_size=2)
        ),
        st.dictionaries(st.sampled_from(["fc*", "*", "conv1"]), RULE, max_size=2),
    ),
    "switch": st.dictionaries(
        st.one_of(st.integers(-1, 12), st.text(max_size=3)), RULE, max_size=2
    ),
    "net_options": st.builds(
        lambda a, h: {"activation": a, "hidden": h},
        st.sampled_from(["tanh", "relu", "x", None]),
        st.one_of(VALUES, st.lists(st.integers(-2, 10**12), max_size=2)),
    ),
    "optimizer": st.sampled_from(
        ["adam", "sgd", "torch.optim:LBFGS", "torch.optim:SparseAdam", "x"]
    ),
    "optimizer_options": st.dictionaries(
        st.sampled_from(["momentum", "nesterov", "betas", "weight_decay"]), VALUES, max_size=2
    ),
    "schedule": st.dictionaries(
        st.sampled_from(["kind", "milestones", "gamma", "warmup"]), VALUES, max_size=3
    ),
    "net": st.sampled_from(["mlp", "lenet", "resnet20", "vit", "json:dumps", "lstm", "timm:", ":"]),
    "data": st.sampled_from(["digits", "digit", "folder:", "folder:/nowhere", "a:b"]),
}
FIELDS = [field.name for field in dataclasses.fields(Experiment)]
NOT_DRAWN = ("start", "hashing")  # a start may name the weights of a library, which it downloads


@st.composite
def settings_of(draw: Any) -> dict[str, Any]:
    """Values for a few fields of an experiment, often nearly valid."""
    names = draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3, unique=True))
    found = {}
    for name in names:
        if name in NOT_DRAWN:
            continue
        near = NEAR.get(name, st.one_of(st.integers(-1, 40), st.just(0.5), st.booleans()))
        found[name] = draw(st.one_of(near, VALUES))
    return found


CHANGES = st.lists(st.tuples(st.integers(0, 2**31), st.integers(1, 255)), min_size=1, max_size=30)
CUT = st.one_of(st.none(), st.floats(0, 1))


def judged(call: Callable[[], str | None], log: list[str]) -> str:
    """What became of a case. Args: call: returns None, or what was coerced. log: of defects."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"no answer in {HANG} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            coerced = call()
    except TimeoutError as error:
        log.append(str(error))
        return "hang"
    except (ValueError, OSError):
        return "refused"
    except Exception:
        log.append(traceback.format_exc())
        return "traceback"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if coerced:
        log.append(coerced)
        return "coercion"
    return "accepted"


def same(given: Any, found: Any) -> bool:
    """Whether a value means what was written: whole numbers may become fractions, keys texts."""
    if isinstance(given, Mapping) and isinstance(found, Mapping):
        names = {str(key): value for key, value in given.items()}
        others = {str(key): value for key, value in found.items()}
        return (
            len(names) == len(given)
            and names.keys() <= others.keys()
            and all(same(value, others[key]) for key, value in names.items())
        )
    if isinstance(given, list | tuple) and isinstance(found, list | tuple):
        return len(given) == len(found) and all(map(same, given, found))
    if isinstance(given, int) and isinstance(found, float) and not isinstance(given, bool):
        return float(given) == found
    return type(given) is type(found) and given == found


def built(experiment: Experiment) -> None:
    """As `apical train` does before its first step; nothing is trained."""
    with loop.settings(loop.Execution()):
        build.build(experiment, download=False)


@functools.cache
def parser() -> Any:
    """That of `apical train`, which takes half a second to make."""
    made = parsing.make_parser("train", "")
    made.add_argument("--config", action="config")
    for group in GROUPS:
        made.add_class_arguments(group, None)
    parsing.add_trust(made)
    return made


def options(values: Mapping[str, Any], place: Path) -> str | None:
    """Settings as flags."""
    written = {n: v if isinstance(v, str) else json.dumps(v) for n, v in values.items()}
    words = [f"--{name}={text}" for name, text in written.items()]
    return _parsed(words, values, written)  # a setting that is a text takes what was written


def yaml_file(values: Mapping[str, Any], as_json: bool, place: Path) -> str | None:
    """Settings as a file."""
    text = json.dumps(values) if as_json else yaml.safe_dump(dict(values))
    # escaped: a raw U+0085 is a line break of YAML, which PyYAML would write
    (place / "config.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    return _parsed([f"--config={place / 'config.yaml'}"], values)


def _parsed(
    words: list[str], values: Mapping[str, Any], written: Mapping[str, str] | None = None
) -> str | None:
    found = parsing.parse_settings(parser(), words)
    experiment = from_dict({name: found[name] for name in FIELDS}, trust=True)
    form = to_dict(experiment)
    for name, value in values.items():
        meant = same(value, form[name]) or value in (form[name], str(form[name]))
        if not meant and form[name] != (written or {}).get(name, value):
            return f"{name}: {value!r} became {form[name]!r}"
    if experiment.key != from_dict(form, trust=True).key:
        return f"the key of {form} changed on the way to JSON and back"
    built(experiment)
    return None


def bytes_of(data: bytes, changes: list[tuple[int, int]], cut: float | None) -> bytes:
    """A file with some bytes changed, and cut."""
    found = bytearray(data)
    for place, change in changes:
        if found:
            found[place % len(found)] ^= change
    return bytes(found[: int(cut * len(found))] if cut is not None else found)


def replaced(value: Any, path: list[int], by: Any) -> Any:
    """A JSON value with a part replaced, found by numbers."""
    if not path or not isinstance(value, dict | list) or not value:
        return by
    if isinstance(value, dict):
        key = list(value)[path[0] % len(value)]
        return {**value, key: replaced(value[key], path[1:], by)}
    place = path[0] % len(value)
    return [*value[:place], replaced(value[place], path[1:], by), *value[place + 1 :]]


def json_file(name: str, content: bytes, place: Path) -> str | None:
    """A damaged file of a run or study, read by all that read it. Each refusal must be one."""
    path = place / name
    whole = path.read_bytes()
    path.write_bytes(content)
    refusals = []
    readers: list[Callable[[], Any]] = [
        lambda: run_folder.read(place / "run"),
        lambda: run_folder.check(place / "run", SMALL),
        lambda: run_folder.end(place / "run"),
        lambda: read_run(place / "run"),
        lambda: read_study(place),
        lambda: claims.owner(place / "run"),
        lambda: records.read(place / "run" / "records.jsonl"),
    ]
    try:
        for read in readers:
            try:
                read()
            except (ValueError, OSError) as error:
                refusals.append(error)
    finally:
        path.write_bytes(whole)
    if refusals:
        raise ValueError(str(refusals[0]))
    return None


def data_file(name: str, content: bytes, place: Path) -> str | None:
    """A damaged file of a data set."""
    path = place / f"fuzzed-{name}"
    path.write_bytes(content)
    if name.endswith(".idx"):
        read_idx(path, md5=None, again="copy it")
    elif name.endswith(".bin"):
        read_events(path)
    elif name.endswith(".batch"):
        read_binary(content, 1)
    elif name.endswith(".pickle"):
        read_python(content, "labels")
    elif name.endswith(".parquet"):
        about = {"count": 2, "classes": 10, "size": (8, 8), "label": "label", "mode": "RGB"}
        images, labels, _ = parquet.read_parquet([path], again="copy it", **about)  # type: ignore[arg-type]
        if labels.min() < 0 or labels.max() > 9 or images.shape != (2, 3, 8, 8):
            return f"labels {labels}, images {images.shape}"
    else:
        try:
            decode(str(path), 8, None)
        except Exception as error:  # as the reader of folders: any error of a decoder
            raise ValueError(str(error)) from error
    return None


def checkpoint_file(content: bytes, place: Path) -> str | None:
    """A damaged checkpoint: whatever is read must be what was written."""
    path = place / "fuzzed.pt"
    path.write_bytes(content)
    checkpoint.read(path)
    whole = (place / "run" / "checkpoint.pt").read_bytes()
    return None if content == whole else "a damaged checkpoint was read"


SMALL = Experiment(net_options={"hidden": [4]}, epochs=1, train_images=64, test_images=20)


def prepare(place: Path) -> dict[str, bytes]:
    """A run in place/run, a study around it, and a whole data file of each format by name."""
    import pickle

    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    os.environ["APICAL_CACHE"] = str(place / "cache")
    loop.run(SMALL, place / "run", loop.Execution(quiet=True))
    (place / "run" / "claim-0.json").write_text(json.dumps(claims._identity()))
    about = {"folder": "run", "setting": "mlp", "rule": "bp", "seed": 0}
    study = {"name": "s", "title": "t", "tier": "short", "command": "c", "notes": ["n"]}
    published = {"setting": "mlp", "rule": "bp", "metric": "test_error", "value": 3.0, "unit": "%"}
    lists = {"runs": [about], "published": [{**published, "source": "x"}]}
    records.write_json(place / "study.json", study | lists)
    picture = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(picture, "PNG")
    table = pyarrow.table({"img": [{"bytes": picture.getvalue()}] * 2, "label": [1, 2]})
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    pixels = np.zeros((2, 3072), np.uint8)
    return {
        "a.idx": b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 4, 4)) + bytes(32),
        "a.bin": bytes([3, 4, 128, 0, 1, 5, 6, 0, 0, 9]),
        "a.batch": bytes(2 * 3073),
        "a.pickle": pickle.dumps({b"data": pixels, b"labels": [1, 2]}),
        "a.parquet": sink.getvalue(),
        "a.png": picture.getvalue(),
    }


FILES = ("run/experiment.json", "run/records.jsonl", "run/environment.json", "run/claim-0.json",
         "study.json")  # fmt: skip


def strategies(place: Path, data: Mapping[str, bytes]) -> dict[str, st.SearchStrategy[Any]]:
    """A strategy for each kind, of calls to be judged."""
    whole = {name: (place / name).read_bytes() for name in FILES}
    saved = (place / "run" / "checkpoint.pt").read_bytes()

    def of_json(name: str, path: list[int], by: Any, as_bytes: bool, changes: Any, cut: Any) -> Any:
        content = whole[name]
        if as_bytes:
            content = bytes_of(content, changes, cut)
        elif name.endswith(".jsonl"):
            lines = content.decode().splitlines()
            at = (path or [0])[0] % len(lines)
            lines[at] = json.dumps(replaced(json.loads(lines[at]), path[1:], by))
            content = ("\n".join(lines) + "\n").encode()
        else:
            content = json.dumps(replaced(json.loads(content), path, by)).encode()
        return lambda: json_file(name, content, place)

    numbers = st.lists(st.integers(0, 50), max_size=4)
    return {
        "options": st.builds(lambda v: lambda: options(v, place), settings_of()),
        "yaml": st.builds(
            lambda v, j: lambda: yaml_file(v, j, place), settings_of(), st.booleans()
        ),
        "json": st.builds(
            of_json, st.sampled_from(FILES), numbers, VALUES, st.booleans(), CHANGES, CUT
        ),
        "data": st.builds(
            lambda name, c, cut: lambda: data_file(name, bytes_of(data[name], c, cut), place),
            st.sampled_from(sorted(data)),
            CHANGES,
            CUT,
        ),
        "checkpoint": st.builds(
            lambda c, cut: lambda: checkpoint_file(bytes_of(saved, c, cut), place), CHANGES, CUT
        ),
    }


@contextlib.contextmanager
def limited_memory(more: int = 4 << 30) -> Iterator[None]:
    """Let an allocation fail that needs more than so many bytes beside what is in use."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
