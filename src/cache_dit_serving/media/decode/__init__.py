"""Child processes that decode and resize the files of requests. A hostile file can crash or exhaust only its decoder.

`process.py` is the child: it reads files with :mod:`media.inputs`, under limits of the operating system. `decoder.py`
is the server's handle on one child, `pool.py` the set of them. `wire.py` defines their messages: JSON and raw bytes.
"""
