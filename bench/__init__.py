"""
A benchmark of relays: `python -m bench --help`.

`lines` says what is measured, `relays` with whom, `load` makes the load in processes of its own (`plain`
and `secure` are the loads, without TLS and with it; `window` is what they have in common; `credentials`
are the certificates), `cost` reads what a relay's processes used, `sample` takes one measurement, `report`
and `plot` show what came out. `docs/performance.md` tells how and why.
"""
