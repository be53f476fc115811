"""How far the choice of learning rates can be trusted, in words for documents and pages."""

from collections.abc import Mapping
from typing import Any

from apical.bench.report.names import display_name
from apical.bench.report.read import Study
from apical.measure import rate_choice


def stability(choice: Mapping[str, Any]) -> str:
    """ "unstable: 0.03 or 0.1" where another rate is chosen once one seed of the tries is left out;
    "one seed" where there was one; "" for a stable choice."""
    tries = [row for row in choice["tries"] if "errors" in row]
    if not tries or len(tries[0]["errors"]) < 2:
        return "one seed"
    tried = [rate_choice.Tried(r["lr"], tuple(r["errors"]), r["examples"]) for r in tries]
    rates = sorted([choice["lr"], *rate_choice.others(tried)])
    return f"unstable: {' or '.join(f'{rate:g}' for rate in rates)}" if len(rates) > 1 else ""


def sentences(study: Study) -> list[str]:
    """What must stand beside the numbers of a study that chose its rates: which choices are
    unstable, which were made by one seed, which lie at the edge of the grid."""
    several = len({choice["setting"] for choice in study.search}) > 1
    unstable, one_seed, edge = [], [], []
    for choice in study.search:
        name = f"{choice['setting']} " * several + display_name(choice["rule"])
        word = stability(choice)
        if word == "one seed":
            one_seed.append(name)
        elif word:
            unstable.append(f"{name} ({word.removeprefix('unstable: ')})")
        if choice.get("at_edge"):
            edge.append(f"{name} ({choice['lr']:g})")
    made = []
    if unstable:
        made.append(
            "The choice of the learning rate is unstable (with one seed of the search fewer "
            f"another rate is chosen) for {', '.join(unstable)}."
        )
    if one_seed:
        every = len(one_seed) == len(study.search)
        which = "All learning rates" if every else f"The rates of {', '.join(one_seed)}"
        made.append(f"{which} were chosen by one seed, so their stability is not known.")
    if edge:
        made.append(f"Chosen at the edge of the rates tried: {', '.join(edge)}.")
    if made:
        made.append("The report draws validation error over rate for every row.")
    return made
