"""The part of a page on attacked retrieval: what its template needs, and CSV files."""

from collections import Counter
from pathlib import Path
from typing import Any

from apical.bench.report import hash_csv, hash_pictures, hash_table, hash_words
from apical.bench.report import robust_words as words
from apical.bench.report.hash_table import Line, Section
from apical.bench.report.protocol import flatten, text
from apical.bench.report.read import Study
from apical.bench.storage.records import write_bytes


def write(study: Study, out: Path) -> Any:
    """Values for hash.html.j2, None for a study without evaluations of hash nets."""
    if not study.retrieval:
        return None
    found = hash_table.sections(study.retrieval)
    if found:
        write_bytes(out / "retrieval.csv", hash_csv.numbers(found).encode())
        write_bytes(out / "retrieval-attacks.csv", hash_csv.attacks(found).encode())
    missing = [each for each in study.retrieval if each.status != "finished"]
    return {
        "missing": missing,
        "count": len(study.retrieval),
        "sections": [_section(section) for section in found],
        "words": words,
    }


def _section(section: Section) -> dict[str, Any]:
    radii = [(eps, hash_table.lines(section, eps)) for eps in section.radii]
    shown, problems = hash_pictures.of_section(section)
    return {
        "section": section,
        "radii": radii,
        "conclusions": [hash_words.conclusion(lines) for _, lines in radii if lines],
        "measured": hash_words.measured(section),
        "nets": [_net(section, line) for line in radii[-1][1]],
        "attacks": [
            row
            for rule in section.rules
            for eps in section.radii
            for row in hash_table.measures(section, rule, eps)
        ],
        "pictures": shown,
        "problems": problems,
        "settings": _settings(section),
    }


def _net(section: Section, line: Line) -> dict[str, Any]:
    """What is measured of a rule without any attack, means over nets."""
    rows = [net.clean for net in section.of(line.rule).values()]
    keys = ("precision2", "inverted_map", "target_map", "constant_bits")
    return {"line": line} | {key: sum(row[key] for row in rows) / len(rows) for key in keys}


def _settings(section: Section) -> dict[str, str]:
    """The fields of all nets, with every value there is; their names stand in the list of runs."""
    every = [flatten(net.described) for net in section.evaluations]
    keys = dict.fromkeys(key for fields in every for key in fields if key != "net")
    return {key: ", ".join(Counter(text(fields.get(key)) for fields in every)) for key in keys}
