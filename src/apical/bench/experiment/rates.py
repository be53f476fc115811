"""Learning rates to begin with."""

OPTIMIZER = "adam"
OPTIONS: dict[str, float] = {}


def default(rule, optimizer, options):
    return 0.001
