"""Tables of Markdown files, generated between markers from the records of a study."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from apical.bench.report import (
    angles,
    curves,
    flow_table,
    hash_markdown,
    order,
    overview,
    robust_markdown,
    solved,
    spike_table,
    tuning,
)
from apical.bench.report.escape import for_markdown
from apical.bench.report.names import display_name
from apical.bench.report.read import Study, is_study, read_study
from apical.bench.report.table import Cell, cells, count, interval, number, share, signed
from apical.bench.storage.records import write_bytes

Pathlike = str | os.PathLike[str]


def table_markdown(folder: Pathlike) -> str:
    """The table of the study in `folder`: test error in %, one line per setting and rule.

    A study of robustness has its table of robust accuracies instead, one of hash nets that of mAP.
    """
    study = read_study(Path(folder))
    if study.overview is not None:
        return overview.to_markdown(study, Path(folder))
    if flow_table.concerns(study):
        return flow_table.to_markdown(study)
    if study.retrieval:
        return hash_markdown.to_markdown(study)
    if tuned := tuning.lines(study):
        return tuning.to_markdown(study, tuned)
    if spike_table.concerns(study):
        return spike_table.to_markdown(study)
    return robust_markdown.to_markdown(study) if study.robustness else _to_markdown(study)


def angles_markdown(folder: Pathlike) -> str:
    """The delta angles of the study in `folder` at the end of training, by setting and rule.

    Raises: ValueError where none were measured.
    """
    return angles.to_markdown(read_study(Path(folder)))


KINDS = {"table": table_markdown, "angles": angles_markdown}
MARKER = re.compile(
    rf"<!-- (?P<kind>{'|'.join(KINDS)}):(?P<name>[\w.-]+) -->\n.*?<!-- end -->", flags=re.S
)
OPENING = re.compile(rf"<!-- (?:{'|'.join(KINDS)}):")


def refresh(markdown_file: Pathlike, results_folder: Pathlike) -> bool:
    """Rewrite what stands between `<!-- table:NAME -->` and `<!-- end -->` from a study's records.

    NAME is a study in `results_folder`, of which there may be a shorter tier only (the folder
    NAME-short, or else NAME-smoke). `<!-- angles:NAME -->` opens its table of delta angles at the
    end of training instead. The rest of the file is left as it is.
    Returns: whether the file changed.
    Raises: ValueError for a marker that is not closed, a NAME without a study, a study without
        delta angles.
    """
    path, results = Path(markdown_file), Path(results_folder)
    text = path.read_text(encoding="utf-8")
    blocks = list(MARKER.finditer(text))
    nested = [block for block in blocks if len(OPENING.findall(block[0])) > 1]
    if nested or len(blocks) != len(OPENING.findall(text)):
        where = f" after {nested[0]['kind']}:{nested[0]['name']}" if nested else ""
        raise ValueError(f"{path}: a table marker is not closed by <!-- end -->{where}")

    def block(match: re.Match[str]) -> str:
        kind, name = match["kind"], match["name"]
        made = KINDS[kind](_folder(path, results, f"{kind}:{name}"))
        return f"<!-- {kind}:{name} -->\n{made}<!-- end -->"

    fresh = MARKER.sub(block, text)
    if fresh == text:
        return False
    write_bytes(path, fresh.encode())
    return True


def _folder(path: Path, results: Path, marker: str) -> Path:
    name = marker.partition(":")[2]
    for tier in ("", "-short", "-smoke"):
        if is_study(results / f"{name}{tier}"):
            return results / f"{name}{tier}"
    there = sorted(entry.name for entry in results.iterdir() if is_study(entry))
    near = difflib.get_close_matches(name, there, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"{path}: {marker}: no such study in {results} (there: {', '.join(there) or 'none'}){hint}"
    )


def _to_markdown(study: Study) -> str:
    """The table for a README: one line per rule and setting, then what the columns mean."""
    rows = cells(study)
    columns = _Columns(
        setting=len(study.settings) > 1,
        baseline=any(cell.difference for cell in rows),
        published=bool(study.published),
    )
    head = columns.head
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(_rulers(head)) + "|"]
    lines += ["| " + " | ".join(_row(cell, columns)) + " |" for cell in rows]
    return (
        "\n".join(lines)
        + "\n\n"
        + solved.to_markdown(study)
        + _curves(study)
        + _legend(study, rows, columns)
        + "\n"
    )


@dataclass(frozen=True)
class _Columns:
    """Which of the columns have something to say."""

    setting: bool
    baseline: bool
    published: bool

    @property
    def head(self) -> list[str]:
        return [
            *["setting"] * self.setting,
            *["rule", "n", "test error %", "95 % interval"],
            *["minus BP"] * self.baseline,
            "ties",
            *["published %", "verdict"] * self.published,
        ]


def _curves(study: Study) -> str:
    """Published courses of training beside ours, one line each; "" where there are none."""
    points = curves.points(study)
    if not points:
        return ""
    epochs = sorted({point.epoch for point in points})
    head = ["rule", "quantity", *(f"epoch {epoch}" for epoch in epochs)]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(epochs)]
    for curve in dict.fromkeys((p.curve.setting, p.curve.rule, p.quantity) for p in points):
        mine = {p.epoch: p for p in points if curve == (p.curve.setting, p.curve.rule, p.quantity)}
        texts = [_beside(mine[epoch]) if epoch in mine else "" for epoch in epochs]
        words = [for_markdown(display_name(curve[1])), for_markdown(curve[2]), *texts]
        lines.append("| " + " | ".join(words) + " |")
    sources = "; ".join(dict.fromkeys(for_markdown(point.curve.source) for point in points))
    told = (
        f"Mean over seeds, in brackets the published value ({sources}). † differs by more than "
        "the allowance of the study and than our 95 % interval."
    )
    return "\n".join(lines) + f"\n\n{told}\n\n"


def _beside(point: curves.Point) -> str:
    mark = " †" if point.word == "differs" else ""
    return f"{number(point.ours.mean)} ({number(point.published)}){mark}"


def _rulers(head: list[str]) -> list[str]:
    return ["---" if name in ("setting", "rule", "ties", "verdict") else "---:" for name in head]


def _row(cell: Cell, columns: _Columns) -> list[str]:
    ours, gap = cell.summary, cell.difference
    row = [cell.setting] * columns.setting
    row += [display_name(cell.rule), count(cell)]
    row += [number(ours.mean if ours else None), share(ours)]
    if columns.baseline:
        row.append(f"{signed(gap.mean)} [{interval(gap, sign=True)}]" if gap else "")
    row.append(cell.ties)
    if columns.published:
        row.append(number(cell.published.error if cell.published else None))
        row.append(cell.verdict.word if cell.verdict else "")
    return [for_markdown(text) for text in row]


def _legend(study: Study, rows: list[Cell], columns: _Columns) -> str:
    sources = dict.fromkeys(cell.published.source for cell in rows if cell.published)
    parts = [
        f"Tier {study.tier}: mean over n seeds with a 95 % t interval, cut off at "
        "0 and 100; "
        + "`minus BP` is paired on the seeds, in points; " * columns.baseline
        + "rules that share a letter are not told apart (Holm-corrected)."
    ]
    if sources:
        parts.append(f"Published: {for_markdown('; '.join(sources))}.")
    parts += [for_markdown(sentence) for sentence in order.told(rows)]
    parts += [for_markdown(note) for note in study.notes]
    parts.append(f"Regenerate: `{study.command.replace('`', '')}`.")
    return " ".join(parts)
