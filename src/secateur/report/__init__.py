"""The report of a pruned model: ``report.json``, and the page and the Markdown that draw it.

>>> import torch
>>> from tempfile import TemporaryDirectory
>>> from secateur import prune
>>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
>>> report = report_of(prune(net, torch.zeros(1, 8), sparsity=0.5), net)
>>> report.before.params, report.after.params
(212, 108)
>>> with TemporaryDirectory() as folder:
...     page = write(folder, report)
...     page.name, read(folder) == report
('report.html', True)
"""

from __future__ import annotations

from .facts import Report as Report
from .facts import report_of as report_of
from .facts import structure_facts as structure_facts
from .files import open_page as open_page
from .files import read as read
from .files import write as write
from .files import write_page as write_page
from .markdown import to_markdown as to_markdown

__all__ = [
    "Report",
    "open_page",
    "read",
    "report_of",
    "structure_facts",
    "to_markdown",
    "write",
    "write_page",
]
