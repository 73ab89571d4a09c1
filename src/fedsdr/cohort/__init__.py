"""The seam: who brings orders to sites, and their answers back. A transport is a `Cohort`
(coordinator/gather.py): anything with `ask(orders, answered)`."""
