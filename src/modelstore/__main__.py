"""``python -m modelstore``."""

from modelstore.cli import main

if __name__ == "__main__":
    main()
