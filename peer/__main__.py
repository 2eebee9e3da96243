"""`python -m peer`."""

from peer.command import main

if __name__ == "__main__":
    main()
