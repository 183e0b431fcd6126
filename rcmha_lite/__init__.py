"""Relative convolutional multi-head attention, built step by step and tested: the package behind the book.

Public is what the book's page "The package" documents, the flags of the command line, and the files of a run's folder.
Before anything public changes its meaning or goes, one minor version warns of it, and CHANGELOG.md says what to use
instead; runs of an earlier version can be read. Names that begin with an underscore may change at any time.
"""

__version__ = "0.2.0"
