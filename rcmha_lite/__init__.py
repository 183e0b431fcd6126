"""Relative convolutional multi-head attention, built step by step and tested: the package behind the book."""

__version__ = "0.1.0"
