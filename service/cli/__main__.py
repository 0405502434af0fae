"""`python -m service.cli`: the command line where the `deviceon-backup` program is not installed."""

from service.cli import main

if __name__ == "__main__":
    main()
