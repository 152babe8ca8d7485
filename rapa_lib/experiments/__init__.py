"""Experiments: each in a folder of its own, with its settings, tables, figures and page."""
