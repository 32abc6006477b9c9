"""`python -m aeimg` is `aeimg`."""

from .cli import main

main()
