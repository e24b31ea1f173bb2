"""Shared parts of the web servers: access control and serving.

    guard.py      checks of hosts, origins, tokens and body sizes; security headers
    serving.py    address and token of a command, files of a page, errors as JSON

The pages themselves are folders of `assets`.
"""
