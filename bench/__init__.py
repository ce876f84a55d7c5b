"""
A benchmark of relays: `python -m bench --help`.

`lines` says what is measured, `relays` with whom, `load` makes the load (in processes of its own),
`cost` reads what a relay's processes used, `sample` takes one measurement, `report` and `plot` show
what came out. `docs/performance.md` tells how and why.
"""
