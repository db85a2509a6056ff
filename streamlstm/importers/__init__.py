"""Models fitted elsewhere, made into model files: a module for each kind of file."""
