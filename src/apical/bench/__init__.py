"""The runner: experiments as values, runs that resume, studies and reports.

Needs ``pip install apical[bench]``.

    Experiment, Execution   what is trained, and where it runs
    Schedule, Start, Hashing   values that some fields of an experiment take
    export    write the weights of a trained net for plain PyTorch
    fit       train a model of one's own on data of one's own
    run       train an experiment in a folder, or continue a run that was killed
    load_run  experiment, records and trained net of a finished run
    Study, Entry   the experiments behind one table, and one of them with its place there
    Search    how a study chooses the learning rate of each row
    tune      choose a learning rate for each rule
    sweep     do many runs, each once, by however many processes
    report    write the page of a study or a run, or of any folder of them
    to_pandas   their records as one table

>>> from apical.bench import Experiment
>>> Experiment(data="digits", net="mlp", rule="fa", epochs=2).name
'digits-mlp-fa-s0-339fba4d4d'
"""

from typing import TYPE_CHECKING

from apical.names import import_on_use

if TYPE_CHECKING:
    from apical.bench.evaluate.fit import fit
    from apical.bench.evaluate.trained_net import export, load_run
    from apical.bench.experiment.execution import Execution
    from apical.bench.experiment.experiment import Experiment
    from apical.bench.experiment.loss_settings import Hashing
    from apical.bench.experiment.training_settings import Schedule
    from apical.bench.report import write as report
    from apical.bench.report.plain_runs import to_pandas
    from apical.bench.studies import Entry, Search, Study
    from apical.bench.studies.tuning import tune
    from apical.bench.sweep.sweep import sweep
    from apical.bench.training.loop import run
    from apical.nets.pretrained import Start

__all__ = [
    "Entry",
    "Execution",
    "Experiment",
    "Hashing",
    "Schedule",
    "Search",
    "Start",
    "Study",
    "export",
    "fit",
    "load_run",
    "report",
    "run",
    "sweep",
    "to_pandas",
    "tune",
]

import_on_use(
    __name__,
    {
        "Entry": "apical.bench.studies:Entry",
        "Execution": "apical.bench.experiment.execution:Execution",
        "Experiment": "apical.bench.experiment.experiment:Experiment",
        "Hashing": "apical.bench.experiment.loss_settings:Hashing",
        "Schedule": "apical.bench.experiment.training_settings:Schedule",
        "Search": "apical.bench.studies:Search",
        "Start": "apical.nets.pretrained:Start",
        "Study": "apical.bench.studies:Study",
        "export": "apical.bench.evaluate.trained_net:export",
        "fit": "apical.bench.evaluate.fit:fit",
        "load_run": "apical.bench.evaluate.trained_net:load_run",
        "report": "apical.bench.report:write",
        "run": "apical.bench.training.loop:run",
        "sweep": "apical.bench.sweep.sweep:sweep",
        "to_pandas": "apical.bench.report.plain_runs:to_pandas",
        "tune": "apical.bench.studies.tuning:tune",
    },
)
