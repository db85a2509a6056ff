"""Models made for other frameworks: a module for each."""
