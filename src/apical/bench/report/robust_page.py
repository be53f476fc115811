"""The robustness part of a page: what its template needs, with CSV and PNG written on the way."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apical.bench.report import (
    figures,
    protocol,
    robust_csv,
    robust_examples,
    robust_figures,
    robust_published,
    robust_section,
    robust_table,
)
from apical.bench.report import robust_words as words
from apical.bench.report.evaluations import Row
from apical.bench.report.names import display_name
from apical.bench.report.read import Study
from apical.bench.report.render import Group, legend_svg, to_svg, write_png
from apical.bench.report.robust_section import Section
from apical.bench.storage.records import write_bytes

PNG_COLUMNS = 3

AUDIT = ("rising", "cosine", "agreement", "slope_ratio", "zero", "saturated", "repeat")
"""Measures of the audit that the page shows."""

MOST_RADII = 4
"""Radii that have a table of their own on the page, evenly spaced; all are in the CSV."""


def write(study: Study, out: Path, slugs: Callable[[Sequence[str]], Mapping[str, str]]) -> Any:
    """Values for robust.html.j2, None for a study without evaluations.

    Args: slugs: headings as parts of file names.
    """
    if not study.robustness:
        return None
    found = robust_section.sections(study.robustness, study.robust_published)
    if found:
        write_bytes(out / "robust.csv", robust_csv.numbers(found).encode())
        write_bytes(out / "robust-checks.csv", robust_csv.checks(found).encode())
        write_bytes(out / "robust-audit.csv", robust_csv.audits(found).encode())
    names = slugs([section.heading for section in found])
    several = len(found) > 1
    return {
        "missing": _missing(study),
        "superseded": robust_section.superseded(study.robustness),
        "count": len(study.robustness),
        "sections": [
            _section(
                section, study, out, f"robust-{names[section.heading]}-" if several else "robust-"
            )
            for section in found
        ],
        "unused": _unused(study, found),
        "words": words,
        "check_meaning": words.CHECKS,
    }


def _section(section: Section, study: Study, out: Path, slug: str) -> dict[str, Any]:
    eps = robust_table.headline_radius(section)
    rows = robust_table.headlines(section, eps)
    title = f"{study.title} · {section.heading}"
    return {
        "section": section,
        "eps": eps,
        "rows": rows,
        "others": [
            (other, robust_table.headlines(section, other))
            for other in figures.spread(section.radii, MOST_RADII)
            if other != eps
        ],
        "measured": words.measured(section),
        "why": words.why_this_radius(section),
        "conclusion": words.conclusion(section, rows),
        "published": robust_published.beside(section, study.tier),
        "pixels": robust_table.pixels(section),
        "curves": _curves(section, title, out, f"{slug}radius"),
        "heats": _heats(section, eps, title, out, f"{slug}gradients"),
        "checks": _checks(section),
        "audits": [_audit(section, rule) for rule in section.rules],
        "examples": _examples(section, title, out, f"{slug}examples.png"),
        "settings": _settings(section),
    }


def _curves(section: Section, title: str, out: Path, name: str) -> dict[str, Any] | None:
    found = robust_figures.radius_group(section, name)
    if found is None:
        return None
    group, kinds = found
    legend = [(words.KINDS[kind], robust_figures.LOOK[kind]) for kind in kinds]
    heading = f"{title} · {group.heading}"
    write_png(out / f"{name}.png", group, title=heading, legend=legend, columns=PNG_COLUMNS)
    behind = [words.behind(section, kind) for kind in ("black box", "transfer") if kind in kinds]
    return _figure(group, f"{name}.png") | {
        "legend": [(label, legend_svg(look, label)) for label, look in legend],
        "behind": behind,
    }


def _heats(
    section: Section, eps: float, title: str, out: Path, name: str
) -> list[tuple[robust_figures.Heat, str]]:
    found = []
    for number, heat in enumerate(robust_figures.heats(section, eps)):
        png = f"{name}{f'-{number + 1}' if number else ''}.png"
        group = robust_figures.heat_group(heat, name)
        heading = f"{title} · radius {words.radius(eps)}"
        write_png(out / png, group, title=heading, legend=(), columns=1)
        found.append((heat, png))
    return found


def _figure(group: Group, png: str) -> dict[str, Any]:
    panels = [(panel.title, to_svg(group, panel)) for panel in group.panels]
    return {"group": group, "png": png, "panels": panels}


def _checks(section: Section) -> dict[str, Any]:
    """Per check what came of it for each rule, and every flag with its reason."""
    nets = section.evaluations
    names = dict.fromkeys(row["name"] for net in nets for row in net.of_kind("check"))
    table = []
    for name in names:
        by_rule = []
        for rule in section.rules:
            rows = [r for net in section.of(rule).values() for r in net.of_kind("check")]
            by_rule.append(words.checked([row for row in rows if row["name"] == name]))
        table.append((name, by_rule))
    flags: dict[str, list[str]] = {}
    for net in nets:
        for row in net.of_kind("check"):
            if row.get("passed") is False:
                told = f"{display_name(net.rule)}, seed {net.seed}: {row['detail']}"
                flags.setdefault(row["name"], []).append(told)
    return {"table": table, "flags": flags}


def _audit(section: Section, rule: str) -> dict[str, Any]:
    """Means over the nets of a rule; a measure counts when every net has it."""
    rows: list[Row] = [row for net in section.of(rule).values() for row in net.of_kind("audit")]
    means = {
        key: sum(row[key] for row in rows) / len(rows) if all(key in row for row in rows) else None
        for key in AUDIT
    }
    verdict = robust_table.verdict(section, rule)
    said = dict.fromkeys(row["verdict"] for row in rows)
    return {"rule": rule, "n": len(rows), "verdict": verdict, "said": ", ".join(said)} | means


def _examples(section: Section, title: str, out: Path, png: str) -> dict[str, Any]:
    found, problems = robust_examples.of_section(section)
    if found:
        robust_examples.write_png(out / png, found, title)
    return {"found": found, "problems": problems, "png": png}


def _settings(section: Section) -> dict[str, Any]:
    """The fields of all nets, with every value there is; their names stand in the list of runs."""
    every = [protocol.flatten(net.described) for net in section.evaluations]
    keys = dict.fromkeys(key for fields in every for key in fields if key != "net")
    values = {key: [protocol.text(fields.get(key)) for fields in every] for key in keys}
    return {key: ", ".join(dict.fromkeys(texts)) for key, texts in values.items()}


def _missing(study: Study) -> list[tuple[str, str, list[int], str, str]]:
    """What has not finished: setting, rule, seeds, status and reason; like ones together."""
    found: dict[tuple[str, str, str, str], list[int]] = {}
    for net in study.robustness:
        if net.status != "finished":
            key = (net.setting, net.rule, net.status, net.reason)
            found.setdefault(key, []).append(net.seed)
    return [(key[0], key[1], seeds, key[2], key[3]) for key, seeds in found.items()]


def _unused(study: Study, found: Sequence[Section]) -> int:
    """Published values at radii, or under attacks, that were not run."""
    shown = sum(len(robust_published.beside(section, study.tier)) for section in found)
    settings = {section.setting for section in found}
    return sum(row.setting in settings for row in study.robust_published) - shown
