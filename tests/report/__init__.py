"""Tests of the report, and the browser that looks at it."""
