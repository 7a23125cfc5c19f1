"""One page to read: what a folder of artefacts says, for someone who has not read the paper."""

from truthheads.reports.page import Report as Report
from truthheads.reports.page import report as report
from truthheads.reports.page import write_report as write_report
