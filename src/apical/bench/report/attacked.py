"""What the parts of a page on nets under attack show; their CSV and PNG files are written here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apical.bench.report import (
    lines,
    pictures,
    render,
    retrieval,
    robustness,
    robustness_figures,
    robustness_tables,
    robustness_words,
    sections,
    spikes,
)
from apical.bench.report.read import Study
from apical.bench.report.sections import Section
from apical.bench.storage.records import write_bytes
from apical.measure.robustness_verdict import radius

MOST_RADII = 4
"""Radii that have a table of their own on the page, evenly spaced; all are in the CSV."""


def of_classifiers(study: Study, out: Path) -> dict[str, Any] | None:
    """Values for robust.html.j2, None for a study without evaluations."""
    if not study.robustness:
        return None
    found = sections.sections(study.robustness, study.robust_published)
    if found:
        write_bytes(out / "robust.csv", robustness_tables.numbers_csv(found).encode())
        write_bytes(out / "robust-checks.csv", robustness_tables.checks_csv(found).encode())
        write_bytes(out / "robust-audit.csv", robustness_tables.audits_csv(found).encode())
    names = slugs([section.heading for section in found])
    several = len(found) > 1
    made = [
        _classifiers(section, study, out, f"robust-{f'{names[section.heading]}-' * several}")
        for section in found
    ]
    settings = {section.setting for section in found}
    published = sum(row.setting in settings for row in study.robust_published)
    return {
        "missing": sections.missing(study.robustness),
        "missing_count": sum(each.status != "finished" for each in study.robustness),
        "superseded": sections.superseded(study.robustness),
        "count": len(study.robustness),
        "sections": made,
        "finding": _finding(made),
        "unused": published - sum(len(part["compared"]) for part in made),
        "check_meaning": robustness_words.CHECKS,
    }


def _classifiers(section: Section, study: Study, out: Path, slug: str) -> dict[str, Any]:
    eps = robustness.headline_radius(section)
    rows = robustness.headlines(section, eps)
    title = f"{study.title} · {section.heading}"
    heats = robustness.heats(section, eps)
    names = [f"gradients{f'-{n + 1}' if n else ''}" for n in range(len(heats))]
    for heat, name in zip(heats, names, strict=True):
        group = robustness_figures.crossed(heat, name)
        render.write_png(out / f"{slug}{name}.png", group, title=f"{title} · {group.heading}")
    compared = robustness.compared(section, study.tier)
    found, problems = pictures.of_section(section, pictures.examples)
    examples = [each for _, each in found]
    if examples:
        pictures.write_png(out / f"{slug}examples.png", examples, title)
    changed = robustness.pixels(section)
    others = [each for each in lines.spread(section.radii, MOST_RADII) if each != eps]
    return {
        "heading": section.heading,
        "radius": radius(eps),
        "rows": rows,
        "table": robustness_tables.headline(rows, eps),
        "others": [
            (radius(e), robustness_tables.headline(robustness.headlines(section, e), e))
            for e in others
        ],
        "measured": robustness_words.measured(section),
        "why": robustness_words.why_this_radius(section),
        "conclusion": [
            *robustness_words.conclusion(section, rows),
            *(heat.conclusion for heat in heats if heat.conclusion),
        ],
        "compared": compared,
        "published": robustness_tables.published(compared),
        "pixels": robustness_tables.pixels(changed) if changed else None,
        "curves": _curves(section, title, out, slug),
        "heats": [
            (heat, f"{slug}{name}.png", robustness_tables.heat(heat), radius(heat.eps))
            for heat, name in zip(heats, names, strict=True)
        ],
        "checks": robustness_tables.checks(section),
        "flags": robustness_tables.flags(section),
        "audits": robustness_tables.audits(section),
        "verdicts": {rule: robustness.verdict(section, rule) for rule in section.rules},
        "examples": [each.table() for each in examples],
        "shown_radius": radius(examples[0].eps) if examples else "",
        "problems": problems,
        "png": f"{slug}examples.png",
        "settings": section.settings(),
    }


def _curves(section: Section, title: str, out: Path, slug: str) -> dict[str, Any] | None:
    found = robustness_figures.over_radius(section)
    if found is None:
        return None
    group, kinds = found
    (figure,) = render.draw([group], out, title=title, slug=slug)
    behind = [
        robustness_words.behind(section, kind)
        for kind in ("black box", "transfer")
        if kind in kinds
    ]
    return {"figure": figure, "legend": render.legend([group]), "behind": behind,
            "chance": bool(section.clean.get("classes"))}  # fmt: skip


def of_hash_nets(study: Study, out: Path) -> dict[str, Any] | None:
    """Values for hash.html.j2, None for a study without evaluations of hash nets."""
    if not study.retrieval:
        return None
    found = sections.sections(study.retrieval)
    if found:
        write_bytes(out / "retrieval.csv", retrieval.numbers_csv(found).encode())
        write_bytes(out / "retrieval-attacks.csv", retrieval.attacks_csv(found).encode())
    made = list(map(_hash_nets, found))
    return {
        "missing": sections.missing(study.retrieval),
        "missing_count": sum(each.status != "finished" for each in study.retrieval),
        "count": len(study.retrieval),
        "sections": made,
        "finding": _finding(made),
    }


def _hash_nets(section: Section) -> dict[str, Any]:
    radii = {eps: rows for eps in section.radii if (rows := retrieval.lines(section, eps))}
    answers, problems = pictures.answers(section)
    rows = [row for of_radius in radii.values() for row in of_radius]
    return {
        "heading": section.heading,
        "radii": [(radius(eps), retrieval.table(found)) for eps, found in radii.items()],
        "conclusion": [retrieval.conclusion(found) for found in radii.values()],
        "measured": retrieval.measured(section),
        "single": any(row.n == 1 for row in rows),
        "targeted": retrieval.targeted(rows),
        "plain": retrieval.without_attack(section, radii[max(radii)]) if radii else None,
        "largest": radius(max(radii)) if radii else "",
        "attacks": retrieval.attack_table(retrieval.attacks(section)),
        "pictures": [
            pictures.answers_table(of_query, pictures.caption(net.rule, net.seed))
            for net, _, queries in answers
            for of_query in queries
        ],
        "shown_radius": radius(answers[0][1]) if answers else "",
        "problems": problems,
        "settings": section.settings(),
    }


def of_spiking_nets(study: Study, out: Path) -> dict[str, Any] | None:
    """Values for spikes.html.j2, None for a study without spiking nets; rasters as PNG."""
    found = [(section, spikes.lines(section)) for section in spikes.sections_of(study)]
    rows = [row for _, of_section in found for row in of_section]
    parts = [
        {
            "heading": section.heading,
            "table": spikes.table(of_section),
            "rasters": spikes.rasters(section, out / f"spikes-{number}.png"),
        }
        for number, (section, of_section) in enumerate(found, 1)
    ]
    if not found:
        return None
    return {"parts": parts, "seen": spikes.seen(rows), "stronger": spikes.weakest(rows)}


def _finding(parts: Sequence[dict[str, Any]]) -> str:
    """What each part concludes first, for the opening of the page."""
    several = len(parts) > 1
    return " ".join(
        f"{part['heading']}: {part['conclusion'][0]}" if several else part["conclusion"][0]
        for part in parts
        if part["conclusion"]
    )


def slugs(names: list[str]) -> dict[str, str]:
    """Names as parts of file names: short, plain ASCII, all different."""
    import re

    made: dict[str, str] = {}
    for name in names:
        base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "setting"
        slug, count = base, 2
        while slug in made.values():
            slug, count = f"{base}-{count}", count + 1
        made[name] = slug
    return made
