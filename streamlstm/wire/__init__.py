"""Bytes <-> arrays: the formats in which ticks come and predictions go, one a module."""
