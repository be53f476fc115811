"""Reports: run folders in; one static page per study or run, CSV and PNG out.

A report is a pure function of files: it never loads a model, a checkpoint or a data set.
"""

from apical.bench.report.documents import refresh, table_markdown
from apical.bench.report.page import write

__all__ = ["refresh", "table_markdown", "write"]
