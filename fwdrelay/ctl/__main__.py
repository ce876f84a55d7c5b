"""`python -m fwdrelay.ctl` is `fwdrelayctl`."""

from . import main

main()
