"""Exit statuses of every command."""

DONE, FAILED, USAGE = 0, 1, 2
