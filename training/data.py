"""The source pictures: two npm packages, fetched by name and version, and the objects picked from them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image


class Package(NamedTuple):
    """An npm package pinned by version and by the SHA-256 of its tarball."""

    name: str
    version: str
    sha256: str

    @property
    def tarball(self) -> str:
        """File name that `npm pack` gives the tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PICTURES = Package(
    "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
)
NAMES = Package("unicode-emoji-json", "0.9.0", "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401")

# Caption noun -> Unicode name. Only where they differ is the right side written out.
OBJECTS: dict[str, str] = {
    "red apple": "", "green apple": "", "banana": "", "strawberry": "", "watermelon": "",
    "bunch of grapes": "grapes", "pineapple": "", "cherries": "", "carrot": "", "hamburger": "",
    "doughnut": "", "birthday cake": "", "mushroom": "", "cat": "cat face", "dog": "dog face",
    "fox": "", "panda": "", "frog": "", "penguin": "", "owl": "",
    "elephant": "", "turtle": "", "octopus": "", "bee": "honeybee", "ladybug": "lady beetle",
    "whale": "spouting whale", "pig": "pig face", "sunflower": "", "rose": "", "cactus": "",
    "pine tree": "evergreen tree", "sun": "", "star": "", "rainbow": "", "fire": "",
    "snowman": "snowman without snow", "red car": "automobile", "rocket": "", "airplane": "", "sailboat": "",
    "house": "", "balloon": "", "alarm clock": "", "crown": "", "diamond": "gem stone",
    "soccer ball": "", "robot": "", "ghost": "", "red heart": "", "blue heart": "",
}  # fmt: skip

# Left for a longer run (`--objects all`): the tokenizers of the embedded model know most of these words already.
MORE_OBJECTS: dict[str, str] = {
    "alien": "", "avocado": "", "basketball": "", "teddy bear": "", "red book": "closed book",
    "bus": "", "butterfly": "", "camera": "", "castle": "", "chick": "baby chick",
    "cloud": "", "ice cream": "soft ice cream", "fish": "tropical fish", "gift box": "wrapped gift", "guitar": "",
    "top hat": "", "key": "", "koala": "", "lemon": "", "light bulb": "",
    "lion": "", "monkey": "monkey face", "moon": "crescent moon", "palm tree": "", "slice of pizza": "pizza",
    "rabbit": "rabbit face", "smiley with sunglasses": "smiling face with sunglasses", "sunglasses": "",
    "tiger": "tiger face", "trophy": "", "tulip": "", "umbrella": "", "green heart": "", "orange": "tangerine",
}  # fmt: skip


def object_names(selection: str) -> list[str]:
    """Caption nouns of a selection.

    Args:
        selection: "embedded" (the 50 of the shipped model), "all" (84), or names separated by commas.

    Raises:
        ValueError: a name is not known.
    """
    known = OBJECTS | MORE_OBJECTS
    if selection in ("embedded", "all"):
        return list(OBJECTS if selection == "embedded" else known)
    names = [name.strip() for name in selection.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown objects: {', '.join(unknown)}")
    return names


def fetch(package: Package, folder: Path) -> Path:
    """Path of the package's verified tarball in `folder`, downloaded with `npm pack` when missing.

    Raises:
        ValueError: the tarball's SHA-256 is not the pinned one.
        subprocess.CalledProcessError: npm failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / package.tarball
    if not path.exists():
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ValueError(f"{package.tarball}: SHA-256 is {found}, expected {package.sha256}")
    return path


def asset_name(emoji: str) -> str:
    """File name of an emoji in the picture package, e.g. "1f34e.webp" for a red apple."""
    return "-".join(f"{ord(character):x}" for character in emoji) + ".webp"


def load_pictures(names: list[str], folder: Path) -> list[Image.Image]:
    """RGBA pictures of 256 x 256 pixels, one per name, from the verified packages in `folder`."""
    with tarfile.open(fetch(NAMES, folder)) as archive:
        member = archive.extractfile("package/data-by-emoji.json")
        assert member is not None
        emoji_of = {entry["name"]: emoji for emoji, entry in json.load(member).items()}
    pictures = []
    with tarfile.open(fetch(PICTURES, folder)) as archive:
        for name in names:
            unicode_name = (OBJECTS | MORE_OBJECTS)[name] or name
            member = archive.extractfile(f"package/assets/{asset_name(emoji_of[unicode_name])}")
            assert member is not None
            with Image.open(member) as picture:
                pictures.append(picture.convert("RGBA"))
    return pictures
