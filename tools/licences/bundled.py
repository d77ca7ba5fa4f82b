"""Libraries in C and Fortran that wheels carry with them, which the metadata of their packages do not name."""

from __future__ import annotations

import re
from pathlib import Path

_GCC = "GPL-3.0-or-later WITH GCC-exception-3.1"
_GNU = "LGPL-3.0-or-later OR GPL-2.0-or-later"
_FFMPEG = "LGPL-3.0-or-later"  # as `avcodec_license` says of PyAV's build
LICENCES = {
    "SvtAv1Enc": "BSD-3-Clause-Clear",
    "Xau": "MIT",
    "asound": "LGPL-2.1-or-later",
    "avcodec": _FFMPEG,
    "avdevice": _FFMPEG,
    "avfilter": _FFMPEG,
    "avformat": _FFMPEG,
    "avif": "BSD-2-Clause",
    "avutil": _FFMPEG,
    "brotlicommon": "MIT",
    "brotlidec": "MIT",
    "com_err": "MIT",
    "crypt": "LGPL-2.1-or-later",
    "crypto": "Apache-2.0",
    "dav1d": "BSD-2-Clause",
    "drm": "MIT",
    "freetype": "FTL OR GPL-2.0-or-later",
    "gfortran": _GCC,
    "gmp": _GNU,
    "gnutls": "LGPL-2.1-or-later",
    "gomp": _GCC,
    "gssapi_krb5": "MIT",
    "harfbuzz": "MIT",
    "hogweed": _GNU,
    "jpeg": "IJG AND BSD-3-Clause",
    "k5crypto": "MIT",
    "keyutils": "LGPL-2.0-or-later",
    "krb5": "MIT",
    "krb5support": "MIT",
    "lber": "OLDAP-2.8",
    "lcms2": "MIT",
    "ldap": "OLDAP-2.8",
    "lzma": "0BSD",
    "mp3lame": "LGPL-2.0-or-later",
    "nettle": _GNU,
    "opencore-amrnb": "Apache-2.0",
    "opencore-amrwb": "Apache-2.0",
    "openjp2": "BSD-2-Clause",
    "opus": "BSD-3-Clause",
    "png16": "libpng-2.0",
    "pq": "PostgreSQL",
    "quadmath": "LGPL-2.1-or-later",
    "sasl2": "BSD-3-Clause-Attribution",
    "scipy_openblas64_": "BSD-3-Clause",
    "sharpyuv": "BSD-3-Clause",
    "sodium": "ISC",
    "ssl": "Apache-2.0",
    "swresample": _FFMPEG,
    "swscale": _FFMPEG,
    "tiff": "libtiff",
    "unistring": _GNU,
    "vpl": "MIT",
    "vpx": "BSD-3-Clause",
    "webp": "BSD-3-Clause",
    "webpdemux": "BSD-3-Clause",
    "webpmux": "BSD-3-Clause",
    "x264": "GPL-2.0-or-later",
    "x265": "GPL-2.0-or-later",
    "xcb": "MIT",
    "xcb-shape": "MIT",
    "xcb-shm": "MIT",
    "xcb-xfixes": "MIT",
    "zmq": "MPL-2.0",
    "zstd": "BSD-3-Clause OR GPL-2.0-only",
}
"""Licence by the name of a library, as its project states it."""
_FILE = re.compile(r"lib(?P<name>.+?)(-[0-9a-f]{8}){0,2}\.so(\.\d+)*")


def bundled_libraries(site: Path) -> dict[str, set[str]]:
    """Return the libraries in the wheels' folders `*.libs`, by the folder's package.

    Args:
        site: A folder site-packages.
    """
    found: dict[str, set[str]] = {}
    for file in site.glob("*.libs/*.so*"):
        match = _FILE.fullmatch(file.name)
        found.setdefault(file.parent.stem, set()).add(match["name"] if match else file.name)
    if (site / "torch" / "lib").is_dir():
        found["torch"] = {"gomp" for _ in (site / "torch" / "lib").glob("libgomp*")}
    return found
