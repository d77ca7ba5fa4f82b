"""The licence that an installed package declares in its metadata."""

from __future__ import annotations

import re
from importlib.metadata import Distribution

UNDECLARED = "undeclared"
_COPYLEFT = re.compile(r"GPL|MPL|Mozilla|EUPL|CDDL|EPL|OSL|SSPL|CC-BY-SA")
_LONGEST_NAME = 80
"""Characters. A longer field `License` is the licence's text."""
_WORDS = {
    "GNU GENERAL PUBLIC LICENSE": "GPL",
    "GNU LESSER GENERAL PUBLIC LICENSE": "LGPL",
    "Apache License Version 2.0": "Apache-2.0",
    "Neither the name of": "BSD-3-Clause",
    "Redistribution and use in source and binary forms": "BSD-2-Clause",
    "Permission is hereby granted, free of charge": "MIT",
}


def declared_licence(package: Distribution) -> str:
    """Return a package's licence: its SPDX expression, or else its name, its classifiers, or by its file."""
    metadata = package.metadata
    [expression] = metadata.get_all("License-Expression") or [""]
    name = (metadata.get_all("License") or [""])[0].strip()
    classified = [
        classifier.rsplit(" :: ", 1)[-1]
        for classifier in metadata.get_all("Classifier") or ()
        if classifier.startswith("License :: ") and not classifier.endswith("OSI Approved")
    ]
    if expression:
        return expression
    if name and "\n" not in name and len(name) <= _LONGEST_NAME:
        return name
    return ", ".join(classified) or _by_file(package) or UNDECLARED


def is_copyleft(licence: str) -> bool:
    """Whether a licence is copyleft in each of its alternatives."""
    return all(_COPYLEFT.search(alternative) for alternative in licence.split(" OR "))


def _by_file(package: Distribution) -> str | None:
    """Return the licence whose words stand in the licence's file."""
    for name in package.metadata.get_all("License-File") or ():
        text = " ".join((package.read_text(name) or package.read_text(f"licenses/{name}") or "").split())
        for words, licence in _WORDS.items():
            if words in text:
                return f"{licence}, by its file {name}"
    return None
