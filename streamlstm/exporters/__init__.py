"""Fitted models, written for other software: a module for each kind of file."""
