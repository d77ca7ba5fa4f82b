"""Processes that decode and resize the files of requests, so that a file can stop or exhaust only its own process.

`process.py` is the child: it reads files with :mod:`media.inputs`, under limits of the operating system. `decoder.py`
is one child as the server sees it, `pool.py` all of them. Their messages are JSON and raw bytes, in `wire.py`.
"""
