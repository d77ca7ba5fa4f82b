"""Counts of what a file claims to hold, made before a decoder sees it.

A decoder does work for each chunk, segment, scan, tag and sample that a file names, and a file of a few kilobytes can
name millions. Each module walks one format in time linear in the file's size. It raises :class:`Excessive` where a
count is out of proportion, and says nothing of a file that is merely broken: the decoder does.
"""
