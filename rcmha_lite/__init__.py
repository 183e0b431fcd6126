"""Relative convolutional multi-head attention, built step by step and tested: the package behind the book."""
