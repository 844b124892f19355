"""`python -m ckptd.cli`."""

from ckptd.cli import main

main()
