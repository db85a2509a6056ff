"""Reading data for training: tables of the user's own, and the bundled demonstration sets."""
