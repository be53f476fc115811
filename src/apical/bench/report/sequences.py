"""Tasks of sequences: learners and their baselines, steps until a task is solved, other lengths.

A difference is paired on the seeds. Every learner is compared with the control, the readout alone,
and one with a regulariser against the same learner without.
"""

from statistics import median

from apical.bench.report import gained
from apical.bench.report.names import learner_of
from apical.bench.report.read import Row, Run, Study, percent_of
from apical.bench.report.table import (
    Column,
    Shown,
    Table,
    each,
    estimate,
    mean,
    plain,
    share,
    signed,
)
from apical.measure import statistics

REGULARISER = ("alpha_weights", "alpha_targets", "omega_per")
TEST = percent_of("test_acc")


def concerns(study: Study) -> bool:
    """Whether the study holds learners other than backpropagation on tasks of sequences."""
    return any(
        run.experiment.get("task") and learner_of(run.experiment)["learner"] != "backprop"
        for run in study.runs
    )


def missing(study: Study) -> list[str]:
    """The baselines that a setting lacks, one sentence each."""
    baselines = {
        "readout": "readout alone (learner readout)",
        "backprop": "backpropagation through time",
    }
    learners: dict[str, set[str]] = {}
    for run in study.runs:
        learners.setdefault(run.setting, set()).add(learner_of(run.experiment)["learner"])
    return [
        f"{setting}: no {words} to compare with."
        for setting, here in learners.items()
        for name, words in baselines.items()
        if name not in here
    ]


def best(run: Run) -> float | None:
    """On validation sequences, at the epoch where it is highest."""
    shares = [100 * row["val_acc"] for row in run.of_kind("epoch") if "val_acc" in row]
    return max(shares, default=None)


def over_plain(study: Study, row: Row) -> statistics.Summary | None:
    """Test accuracy minus that of the same learner without a regulariser, where it has one and a
    single row is trained by that."""
    own = learner_of(row.runs[0].experiment) if row.runs else {}
    bare = {key: value for key, value in own.items() if key not in REGULARISER}
    others = [
        other
        for other in study.rows_of(row.setting)
        if other.runs and learner_of(other.runs[0].experiment) == bare != own
    ]
    return row.minus(others[0], TEST) if len(others) == 1 else None


def reached(row: Row) -> Shown:
    """Steps that a signal reached at the end, of all, median over seeds; nothing where the learner
    sends none."""
    signals = [[step["signal"] for step in run.measured("step", "signal")] for run in row.runs]
    silent = [of_run.count(0) for of_run in signals if of_run]
    if not silent:
        return Shown("")
    length = int(row.runs[0].experiment.get("length") or 0)
    steps = length - float(median(silent))
    return Shown(f"{steps:g} of {length}", steps)


def learners(study: Study) -> Table:
    """The table of the learners; pages show in a table of its own when tasks were solved."""
    asked = study.solved is not None

    def iterations(row: Row) -> str:
        return mean_steps(study, row).text or each_seed(study, row)

    columns = [
        Column.setting(study.several),
        Column.rule(head="learner"),
        Column.runs(),
        Column("test accuracy %", lambda row: mean(row.summary(TEST)), style="strong"),
        Column("95 % interval", lambda row: share(row.share()), style="soft"),
        Column("best validation %", lambda row: mean(row.summary(best))),
        *gained.columns(gained.gains(study)),
        Column("minus unregularised",
               lambda row: estimate(over_plain(study, row), signed, of=row.n)),
        Column("signal at", reached, page="Signal at steps"),
        Column("solved", lambda row: solved(study, row) if asked else "", page="", left=True),
        Column("iterations", lambda row: iterations(row) if asked else "", page=""),
    ]  # fmt: skip
    return Table(columns, study.rows, "Table of learners")


# Steps until a task is solved


def steps(study: Study, row: Row) -> dict[int, int | None]:
    """By seed the step after which a larger share of the validation answers than the study asks for
    was first right; None where it never was."""
    by_seed = {}
    for run in sorted(row.runs, key=lambda run: run.seed):
        right = (r for r in run.of_kind("epoch") if r.get("val_acc", 0) > (study.solved or 0))
        by_seed[run.seed] = next((r["step"] for r in right), None)
    return by_seed


def solved(study: Study, row: Row) -> Shown:
    """ "2 of 3"."""
    ends = steps(study, row).values()
    done = sum(step is not None for step in ends)
    return Shown(f"{done} of {len(ends)}" if ends else "", done)


def each_seed(study: Study, row: Row) -> str:
    """ "300, 600, never", in the order of the seeds."""
    return ", ".join("never" if n is None else str(n) for n in steps(study, row).values())


def _summary(study: Study, row: Row) -> statistics.Summary | None:
    """Of the steps, where every run solved the task: else a mean would leave out the worst."""
    ends = steps(study, row).values()
    known = [step for step in ends if step is not None]
    return statistics.summarize(known) if known and len(known) == len(ends) else None


def mean_steps(study: Study, row: Row) -> Shown:
    """ "433", or "above 1500" where no run solved the task, or nothing."""
    if summary := _summary(study, row):
        return Shown(f"{summary.mean:.0f}", summary.mean, style="strong")
    limit = max((epoch["step"] for run in row.runs for epoch in run.of_kind("epoch")), default=0)
    never = row.runs and not any(steps(study, row).values())
    return Shown(f"above {limit}" if never else "", limit + 1, style="strong")


def solved_table(study: Study, *, several: bool = True) -> Table | None:
    """The table; None where nothing is asked. several: whether it names the setting."""
    rows = [row for row in study.rows if row.runs]
    if study.solved is None or not rows:
        return None

    def interval(row: Row) -> Shown:
        """In whole steps; none of equal numbers, whose spread is not known."""
        summary = _summary(study, row)
        if summary is None or summary.low is None or summary.low == summary.high:
            return Shown("")
        return Shown(f"{max(summary.low, 0):.0f} to {summary.high:.0f}", summary.low, style="soft")

    columns = [
        Column.setting(several),
        Column.rule(),
        *gained.columns(gained.gains(study)),
        Column("solved", lambda row: solved(study, row)),
        Column("steps", lambda row: mean_steps(study, row)),
        Column("95 % interval", interval),
        Column("each seed", lambda row: each_seed(study, row)),
        *each(other_lengths(study), _at_length, "% at {} steps"),
    ]
    return Table(columns, rows, "Table of steps until the task is solved")


def other_lengths(study: Study) -> list[int]:
    """Lengths at which all nets of a row were tested, but not trained."""
    lengths = {n for run in study.runs for n in run.experiment.get("test_lengths", ())}
    return sorted(n for n in lengths if any(_at_length(n, row).text for row in study.rows))


def _at_length(length: int, row: Row) -> Shown:
    """ "79.3 (51.2 to 100.0)", accuracy in %; nothing unless all runs were tested."""
    ours = row.summary(percent_of(f"test_{length}_acc"))
    if ours is None or ours.n < row.n:
        return Shown("")
    between = share(ours) and f" ({share(ours)})"
    return plain(ours.mean, lambda value: f"{value:.1f}{between}")
