"""A study in few files: packing what its folders hold, and one reader for both forms.

A loose study is what runs leave: STUDY/study.json, and folders of runs and of their evaluations
(RUN/robustness/KEY) with experiment.json or setting.json, environment.json, records.jsonl and
trials.jsonl. A packed study holds the same in three files:

    study.json        as the study wrote it, and `packed`: {format, sha256 by file, environments}
    runs.jsonl        a line per folder with records: `folder`, the content of its experiment.json
                      or setting.json, `environment` (which of `environments`), `last` (the row
                      that ends its records)
    records.parquet   every row of every records.jsonl and trials.jsonl, a column per key; `_folder`
                      and `_file` say where a row comes from, `_keys` which keys it has, in order.
                      A column whose values differ in type holds them as JSON text, which the
                      metadata of its field say (encoding: json)

Checkpoints and pictures (examples.npz) are not packed, nor by default the tries of a search, whose
results study.json has. Packed files are read only if their SHA-256 is the one in study.json.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from apical.bench.storage import evaluation_folder, records, schema

FORMAT = 1
"""Raised when files packed before can no longer be read."""

STUDY, RUNS, ROWS = "study.json", "runs.jsonl", "records.parquet"
DESCRIPTIONS = ("experiment.json", "setting.json")
ROW_FILES = ("records", "trials")
SEARCH = "search"
"""The folder of a study that holds the tries of its search."""
ORIGIN = ("_folder", "_file", "_keys")
"""Columns that hold no values of rows."""

Row = dict[str, Any]


class LooseFolder:
    """A folder as runs leave it. Names are paths within it, as RUN/records.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_json(self, name: str) -> Any:
        """The content of a JSON file, {} where there is none."""
        return records.read_json(self.path / name) if (self.path / name).exists() else {}

    def rows(self, name: str) -> list[Row]:
        """The rows of a JSON lines file, none where there is none."""
        path = self.path / name
        evaluation_folder.verify(path)
        found = records.read(path)
        if path.name == "records.jsonl":
            schema.check_rows(found, str(path))
        return found

    def folders(self, name: str) -> list[str]:
        """Names of the folders in a folder, sorted."""
        return sorted(folder.name for folder in (self.path / name).glob("*/"))

    def has(self, name: str) -> bool:
        """Whether there is such a folder, or such a file of a run."""
        return (self.path / name).exists()


class PackedFolder:
    """A packed study, with the methods of a `LooseFolder`.

    Raises: ValueError naming a file that is missing or damaged, or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._study = records.read_json(path / STUDY)
            packed = self._study.pop("packed")
            schema.check(packed, {"sha256": {str: str}, "environments": {str: dict}}, "packed")
            digests = dict(packed["sha256"])
            environments = packed["environments"]
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{path / STUDY} does not describe a packed study ({error}); {_remedy(path)}"
            ) from error
        if type(packed.get("format")) is not int or packed["format"] != FORMAT:
            raise ValueError(
                f"{path / STUDY}: packed in format {packed.get('format')}, this version of apical "
                f"reads format {FORMAT}; read it with the version that packed it"
            )
        self._check(STUDY, digests.pop(STUDY, ""), _study_digest(self._study, packed))
        self._files = {name: self._verified(name, digests.get(name, "")) for name in (RUNS, ROWS)}
        self._lines: dict[str, Row] = {}
        for number, text in enumerate(self._files[RUNS].splitlines(), 1):
            where = f"{path / RUNS}, line {number}"
            try:
                line = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: not JSON ({error}); {_remedy(path)}") from error
            schema.check(line, {"folder": str, "environment?": str, "last?": dict}, where)
            for name in DESCRIPTIONS:
                if name.removesuffix(".json") in line:
                    schema.check(line, schema.FILES[name], where)
            self._lines[line.pop("folder")] = line
        self._environments: Mapping[str, Row] = environments

    def read_json(self, name: str) -> Any:
        if name == STUDY:
            return self._study
        folder, _, file = name.rpartition("/")
        line = self._lines.get(folder, {})
        if file == "environment.json":
            return self._environments.get(line.get("environment", ""), {})
        if file not in DESCRIPTIONS or file.removesuffix(".json") not in line:
            return {}
        return {key: value for key, value in line.items() if key not in ("environment", "last")}

    def rows(self, name: str) -> list[Row]:
        found = self._rows.get(name, [])
        if name.endswith("records.jsonl"):
            schema.check_rows(found, f"{self.path / ROWS}, rows of {name}")
        return found

    def folders(self, name: str) -> list[str]:
        within = [each for each in self._folders if each.parent == PurePosixPath(name)]
        return sorted(folder.name for folder in within if folder.name)

    def has(self, name: str) -> bool:
        is_folder = PurePosixPath(name) in self._folders
        return is_folder or bool(self.read_json(name)) or name in self._rows

    @cached_property
    def _folders(self) -> set[PurePosixPath]:
        found = {PurePosixPath(folder) for folder in self._lines}
        return found.union(*(folder.parents for folder in found))

    @cached_property
    def _rows(self) -> dict[str, list[Row]]:
        try:
            return _unpacked_rows(self._files[ROWS])
        except Exception as error:  # of another table, pyarrow and the rest raise anything
            raise ValueError(
                f"{self.path / ROWS} is not a table of records ({type(error).__name__}: {error}); "
                f"{_remedy(self.path)}"
            ) from error

    def _verified(self, name: str, digest: str) -> bytes:
        path = self.path / name
        if not path.exists():
            raise ValueError(f"{path} is missing; {_remedy(self.path)}")
        if not path.is_file():  # a folder, or a pipe, which would never end
            raise ValueError(f"{path} is not a file; {_remedy(self.path)}")
        data = path.read_bytes()
        self._check(name, digest, hashlib.sha256(data).hexdigest())
        return data

    def _check(self, name: str, stored: str, computed: str) -> None:
        if stored != computed:
            path = self.path / name
            raise ValueError(
                f"{path} is damaged, or was changed after it was packed: its SHA-256 is "
                f"{computed[:12]}..., {STUDY} has {stored[:12] or 'none'}...; {_remedy(self.path)}"
            )


Folder = LooseFolder | PackedFolder


def open_folder(path: Path) -> Folder:
    """The reader of a folder with runs, whichever form it has."""
    return PackedFolder(path) if is_packed(path) else LooseFolder(path)


def is_packed(path: Path) -> bool:
    """Whether a folder holds a packed study, be it a damaged one."""
    if (path / RUNS).is_file() or (path / ROWS).is_file():
        return True
    return (path / STUDY).is_file() and "packed" in records.read_json(path / STUDY)


def pack(study: str | Path, out: str | Path, *, search: bool = False) -> None:
    """Pack a loose study.

    Args: study: its folder, with study.json. out: the folder of the packed files, which replace
        those of an earlier packing. search: whether to pack the runs that tried learning rates.
    Raises: ValueError if there is no such study, or naming a file that cannot be read or packed;
        StorageError where `out` cannot be written. Nothing is written in the first two cases.
    """
    study, out = Path(study), Path(out)
    if not (study / STUDY).is_file() or is_packed(study):
        raise ValueError(
            f"{study} is not a study as `apical study` leaves it: it has no {STUDY}, or is packed"
        )
    source = LooseFolder(study)
    lines: list[Row] = []
    rows: list[tuple[str, str, Row]] = []
    environments: dict[str, Row] = {}
    for folder in _record_folders(study):
        name = folder.relative_to(study).as_posix()
        if name.startswith(f"{SEARCH}/") and not search:
            continue
        line = {"folder": name, **_description(folder)}
        if (folder / "environment.json").exists():
            environment = records.read_json(folder / "environment.json")
            line["environment"] = _digest(environment)[:12]
            environments[line["environment"]] = environment
        found = {file: source.rows(f"{name}/{file}.jsonl") for file in ROW_FILES}
        if found["records"]:
            line["last"] = found["records"][-1]
        lines.append(line)
        rows += [(name, file, row) for file in ROW_FILES for row in found[file]]
    data = {
        RUNS: "".join(_compact(line) + "\n" for line in lines).encode(),
        ROWS: _packed_rows(rows),
    }
    described = records.read_json(study / STUDY)
    packed: Row = {
        "format": FORMAT,
        "sha256": {name: hashlib.sha256(each).hexdigest() for name, each in data.items()},
        "environments": environments,
    }
    packed["sha256"][STUDY] = _study_digest(described, packed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise records.StorageError(f"cannot make the folder {out}: {error.strerror}") from error
    for name, each in data.items():
        records.write_bytes(out / name, each)
    # Last: until it is there, a reader finds other digests and says so.
    records.write_json(out / STUDY, {**described, "packed": packed}, indent=0)


def unpack(packed: str | Path, study: str | Path) -> list[str]:
    """Write the finished runs of a packed study as loose ones: the study then trains only what it
    has beside them.

    Weights were not packed. Runs whose nets were evaluated are left out, for they need theirs.

    Args: packed: its folder. study: that of the loose study; runs that it holds are kept.
    Returns: the names of the runs written.
    Raises: ValueError if `packed` holds no packed study, or a damaged one.
    """
    source, written = PackedFolder(Path(packed)), []
    for name in source.folders("."):
        run, rows = Path(study) / name, source.rows(f"{name}/records.jsonl")
        ended = bool(rows) and rows[-1].get("kind") in schema.ENDS
        if not ended or source.folders(name) or run.exists():
            continue
        part = run.with_name(f".{name}.part")
        part.mkdir(parents=True, exist_ok=True)
        for file in ("experiment.json", "environment.json"):
            records.write_json(part / file, source.read_json(f"{name}/{file}"))
        (part / "records.jsonl").unlink(missing_ok=True)  # of a kill
        records.close(part / "records.jsonl", *rows)
        part.rename(run)
        written.append(name)
    return written


def _record_folders(study: Path) -> list[Path]:
    """Folders that hold what is packed; hidden ones are copies that a kill left half made."""
    names = [*DESCRIPTIONS, *(f"{file}.jsonl" for file in ROW_FILES)]
    found = {path.parent for name in names for path in study.rglob(name)} - {study}
    return sorted(
        folder
        for folder in found
        if not any(part.startswith(".") for part in folder.relative_to(study).parts)
    )


def _description(folder: Path) -> Row:
    """The content of experiment.json or setting.json, {} where there is neither."""
    for name in DESCRIPTIONS:
        if (folder / name).exists():
            content = records.read_json(folder / name)
            if clash := {"folder", "environment", "last"} & content.keys():
                raise ValueError(f"{folder / name} cannot be packed: entries {sorted(clash)}")
            return dict(content)
    return {}


def _packed_rows(rows: list[tuple[str, str, Row]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    values: dict[str, list[Any]] = {}
    for place, (folder, _, row) in enumerate(rows):
        if clash := set(ORIGIN) & row.keys():
            raise ValueError(f"rows of {folder} cannot be packed: keys {sorted(clash)}")
        for key, value in row.items():
            values.setdefault(key, [None] * len(rows))[place] = value
    text = pyarrow.string()
    origin = [
        [folder for folder, _, _ in rows],
        [file for _, file, _ in rows],
        [json.dumps(list(row)) for _, _, row in rows],
    ]
    fields = [pyarrow.field(name, text) for name in ORIGIN]
    columns = [pyarrow.array(each, text) for each in origin]
    for key, column in values.items():
        kind = _column_type(column)
        if kind is None:
            column = [None if value is None else json.dumps(value) for value in column]
            fields.append(pyarrow.field(key, text, metadata={"encoding": "json"}))
        else:
            fields.append(pyarrow.field(key, kind))
        columns.append(pyarrow.array(column, fields[-1].type))
    buffer = io.BytesIO()
    table = pyarrow.Table.from_arrays(columns, schema=pyarrow.schema(fields))
    pyarrow.parquet.write_table(  # measured values hardly repeat: dictionaries make them larger
        table, buffer, compression="zstd", compression_level=19, use_dictionary=list(ORIGIN)
    )
    return buffer.getvalue()


def _column_type(values: Iterable[Any]) -> Any:
    """The type that holds these values exactly, None where only JSON does."""
    import pyarrow

    given = [value for value in values if value is not None]
    kind = type(given[0]) if len({type(value) for value in given}) == 1 else None
    if kind is int and all(-(2**63) <= value < 2**63 for value in given):
        return pyarrow.int64()
    if kind is list and all(type(item) is float for value in given for item in value):
        return pyarrow.list_(pyarrow.float64())
    types: dict[Any, Any] = {
        bool: pyarrow.bool_(), float: pyarrow.float64(), str: pyarrow.string()
    }  # fmt: skip
    return types.get(kind)


def _unpacked_rows(data: bytes) -> dict[str, list[Row]]:
    """Rows by the name of the file they come from."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(data))
    columns: dict[str, list[Any]] = {}
    for field in table.schema:
        column = table[field.name].to_pylist()
        if (field.metadata or {}).get(b"encoding") == b"json":
            column = [None if value is None else json.loads(value) for value in column]
        columns[field.name] = column
    keys = {spelled: json.loads(spelled) for spelled in set(columns["_keys"])}
    found: dict[str, list[Row]] = {}
    origins = zip(*(columns[name] for name in ORIGIN), strict=True)
    for place, (folder, file, spelled) in enumerate(origins):
        row = {key: columns[key][place] for key in keys[spelled]}
        found.setdefault(f"{folder}/{file}.jsonl", []).append(row)
    return found


def _study_digest(study: Row, packed: Row) -> str:
    """Of study.json, spaces apart, the digests of the other files included."""
    others = {name: digest for name, digest in packed["sha256"].items() if name != STUDY}
    return _digest({**study, "packed": {**packed, "sha256": others}})


def _compact(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _remedy(folder: Path) -> str:
    return (
        f"restore the files of {folder} from version control, or pack the study again "
        f"(make keep STUDY={folder.name})"
    )
