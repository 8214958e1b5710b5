"""What a run did and why: the report page, the closing table, and recipes for other tools.

Reports know only what stands in a run directory: the run log, the summary, the configuration.
"""

from hbo.reports.export import FORMATS, export_recipe
from hbo.reports.page import write_report
from hbo.reports.reading import read_run
from hbo.reports.record import RunRecord
from hbo.reports.terminal import closing_table

__all__ = ["FORMATS", "RunRecord", "closing_table", "export_recipe", "read_run", "write_report"]
