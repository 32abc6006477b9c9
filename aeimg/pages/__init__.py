"""Pages to look at: one HTML file each, which opens from a disk or a mail and asks for nothing elsewhere.

album    small pictures of large ones, within a size that is set beforehand
report   records and an album -> the page of a run over files, or of settings that are compared
"""

from __future__ import annotations

from .album import Album, Gallery
from .report import check_page, means_by_setting, rank, render, report_page, write_report

__all__ = ["Album", "Gallery", "check_page", "means_by_setting", "rank", "render", "report_page", "write_report"]
