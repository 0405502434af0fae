"""`python -m service`: the same as `deviceon-backup`."""

from service.cli import main

if __name__ == "__main__":
    main()
