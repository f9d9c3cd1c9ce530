"""``python -m tesgate.cli``: the same as ``tesgate``."""

from tesgate.cli.main import main

if __name__ == "__main__":
    main()
