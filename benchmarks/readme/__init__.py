"""Write the README's figures, a page of what experiments found, and the pictures beside it, from
`results/*.json` and the embedded configs: `python -m benchmarks.readme`.

No figure in the README's results is typed by hand; run this after the commands that the table names.
"""
