"""`python -m luffy` is `luffy`."""

from luffy.cli import main

if __name__ == "__main__":
    main()
