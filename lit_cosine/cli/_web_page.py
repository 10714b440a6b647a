"""The web page that ``lit-cosine board`` serves: TensorBoard's own, with a few of its fixed settings changed.

TensorBoard has no option for the width of the charts of the Schedule dashboard, their markers and dashes, or the width
of the columns under HParams: no flag, file or address sets them. It serves its page from an archive, and lets a program
give another one; this module makes that. Where another version of TensorBoard lacks one of these texts, its page
stays as it is.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from pathlib import Path

import tensorboard

__all__ = ["CHANGES", "web_page"]

_PLANNED = '.metadata().name.startsWith("planned/")'

CHANGES = (
    # the charts: two beside each other in a window of 1280 pixels, three in one of 1920, instead of 330 pixels each
    (r"(display: inline-block;\s+)width: 330px;", r"\1width: clamp(330px, 50% - 28px, 485px);"),
    # no markers
    (r'symbol-function="\[\[_createSymbolFunction\(\)\]\]"', ""),
    (r"(_determineSymbol\(\w+,(\w+)\)){return [^}]*}", r'\1{return \2.startsWith("planned/")?"┅":"-"}'),
    # a planned curve: wide, pale and dashed, so that it can be seen where the used one lies on it
    (
        r'\.attr\("stroke",(\(\w+,\w+,(\w+)\))=>this\.colorScale\.scale\(\2\.metadata\(\)\.name\)\)',
        rf'\g<0>.attr("stroke-width",\1=>\2{_PLANNED}?"6px":"2px")'
        rf'.attr("stroke-opacity",\1=>\2{_PLANNED}?.4:1)'
        rf'.attr("stroke-dasharray",\1=>\2{_PLANNED}?"9 3":"none")',
    ),
    # HParams: five hyperparameters and five metrics in a window of 1280 pixels
    (r'(<vaadin-grid-column flex-grow="[02]" )width="10em"', r'\1width="5em"'),
    (r"\.table-cell {\s+white-space: nowrap;", r"\g<0> font-size: 13px;"),
    (r"\.session-group-table {\s+height: 100%;", r"\g<0> --lumo-space-m: 5px;"),
)
"""(Regular expression, what takes its place), in TensorBoard's script."""


def web_page() -> io.BytesIO:
    """Return the archive of the files of TensorBoard's page, with the changes above."""
    made = io.BytesIO()
    with zipfile.ZipFile(Path(tensorboard.__file__).with_name("webfiles.zip")) as own:
        files = {name: own.read(name) for name in own.namelist()}
    script = files["index.js"].decode()
    for pattern, replacement in CHANGES:
        script = re.sub(pattern, replacement, script)
    files["index.js"] = script.encode()
    # a browser keeps a script by this number, and must not show it in TensorBoard itself
    number = b"_file_hash=%08x" % zlib.crc32(files["index.js"])
    files["index.html"] = re.sub(rb"_file_hash=\w+", number, files["index.html"])
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    made.seek(0)
    return made
