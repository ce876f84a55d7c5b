"""
Damaged input for the parsers of `fwdrelay.wire`, for as long as one likes: `python -m fuzz`.

`corpora` has what is damaged (real hellos, headers of all kinds), `mutations` how, `targets` what has to
hold all the same.
"""
