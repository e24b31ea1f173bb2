"""What the pages that we serve have in common.

    guard.py      hosts, origins, token, sizes of bodies, headers
    serving.py    address, token and socket of a command; files of a page; errors as JSON

The pages themselves are folders of `assets`.
"""
