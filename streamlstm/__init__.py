"""A forecast, with an interval, for every tick of every series. Importing this does nothing."""
