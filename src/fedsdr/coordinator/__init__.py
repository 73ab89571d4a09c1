"""The coordinator: the server of a run. It holds the state and the rule, asks clients through
`cohort.ask(orders)`, and never sees a record: nothing here imports `site`, or holds a `ClientData`.

    run.py      a run from its directory on       loop.py     the round loop
    gather.py   ask, admit, spool                 admit.py    the gate of updates
    claims.py   what a client may say of itself   reports.py  the gate of all else
    combining.py  the rule, and its state checked results.py  final scores, results.json
"""
