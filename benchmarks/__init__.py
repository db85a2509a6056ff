"""Questions of speed and accuracy, each with the peers beside us in the same run."""

from streamlstm import compiled

compiled.choose_folder()  # before Numba is imported
