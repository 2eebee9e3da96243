"""`python -m bootstrap`."""

from bootstrap.command import main

if __name__ == "__main__":
    main()
