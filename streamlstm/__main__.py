"""Where ``streamlstm``, which is ``python -m streamlstm``, begins."""

import sys

from streamlstm import allocation


def main() -> int:
    """Run one command and return its exit code."""
    if sys.argv[1:2] == ["run"]:
        allocation.begin_anew()  # before anything is imported, which would then be so twice
    from streamlstm import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
