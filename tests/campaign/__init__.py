"""A campaign that breaks everything on purpose: commands are killed, disks fill, and files are damaged by the thousand.

`make campaign` runs all of it, in hours; docs/campaign.md has the totals. Both parts are programs of their own, too, by
which one failure is repeated: `PYTHONPATH=tests:. python -m campaign.fuzz --help`, `... campaign.faults --help`.
"""
