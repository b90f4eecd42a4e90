"""Reports: run folders in, one self-contained HTML page or one picture out."""

from luffy.report.page import write_report
from luffy.report.picture import write_picture

__all__ = ["write_picture", "write_report"]
