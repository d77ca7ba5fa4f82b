"""Structure checks: counts of the parts that a file claims to hold, made before a decoder opens it.

A decoder does work for each chunk, segment, scan, tag and sample that a file names, and a file of a few kilobytes can
name millions. Each module walks one format in time linear in the file's size and raises :class:`Excessive` if a count
is out of proportion. A file that is merely broken passes: the decoder refuses it.
"""
