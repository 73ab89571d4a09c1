"""The site: what one organisation does with an order. All that ever leaves it is what `train` and
the other functions here yield; over a network it has one client, in process all of them.

    site.py      what stands there: base, records, private folder
    prepare.py   rewrites and token rows          train.py    an update
    score.py     scores of mixes, adapters        answers.py  answers that stay
    profile.py   how many rows, of what kind      rewrites.py what rewriting did
    branches.py  names and stacks
"""
