"""The coordinator: the server of a run. It holds the state and the rule, asks clients through
`cohort.ask(orders)`, and never sees a record: nothing here imports `site`, or holds a `ClientData`.

    run.py      a run from its directory to its results
    loop.py     the round loop            gather.py     ask, admit, spool
    admit.py    the gate of updates       reports.py    the gate of all else
    job.py      what it knows of a run    combining.py  the rule, and its state checked
"""
