"""Interchangeable backends of the recurrent step, over plain arrays."""
