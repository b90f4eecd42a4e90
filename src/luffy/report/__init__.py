"""Reports: run folders in, one self-contained HTML page or one picture out."""

from luffy.report.evaluation_page import write_evaluation
from luffy.report.live import live_server
from luffy.report.page import write_report
from luffy.report.picture import write_picture

__all__ = ["live_server", "write_evaluation", "write_picture", "write_report"]
