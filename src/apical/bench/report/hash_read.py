"""Evaluations of hash nets under attack: folders RUN/retrieval/<key>.

The setting is {data, eps, norm, queries, known, steps, seed, surrogates}. Rows are of kinds clean,
attack, map, gap, targeted and, last, end; average precisions are means over queries in [0, 1], with
95 % intervals over them. examples.npz holds a few queries and what is found with them.
"""

from apical.bench.report.evaluations import Evaluated


class Evaluation(Evaluated):
    """One hash net under attack."""

    home = "retrieval"
    last = "end"
    needed = ("clean", "map", "gap")
    compared = ("data", "queries", "known", "norm", "eps", "steps")

    @property
    def radii(self) -> list[float]:
        return [row["eps"] for row in self.of_kind("map") if row["source"] == "worst"]
