"""`python -m zmpsl` is the same as `zmpsl`."""

from zmpsl.cli import main

if __name__ == "__main__":
    main()
