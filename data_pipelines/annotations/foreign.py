"""Recognizes what is not read, so that an error can name it and say what to do."""

import json
from typing import Any

_STARTS = {  # how files of other kinds begin
    b"PAR1": "a Parquet file; export it as JSON lines",
    b"ARROW1": "an Arrow file; export it as JSON lines",
    b"PK\x03\x04": "a zip archive; unpack it and name the annotation file",
    b"BZh": "a file compressed by bzip2; decompress it",
    b"\xfd7zXZ": "a file compressed by xz; decompress it",
    b"\x28\xb5\x2f\xfd": "a file compressed by zstd; decompress it",
    b"7z\xbc\xaf": "a 7-Zip archive; unpack it and name the annotation file",
    b"Rar!": "a RAR archive; unpack it and name the annotation file",
    b"\x89HDF": "an HDF5 or MATLAB file; export it as JSON lines",
    b"\x93NUMPY": "an array of NumPy; export it as JSON lines",
    b"SQLite format": "an SQLite database; export it as JSON lines",
    b"\x89PNG": "a picture; the folder of pictures is --images",
    b"\xff\xd8\xff": "a picture; the folder of pictures is --images",
    b"\x80": "a pickle; give it a name that ends in .p",
    b"<": "XML or HTML; export it as COCO or JSON lines",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with git lfs pull",
}
_KEYS = (  # keys by which entries of other layouts are recognized
    ({"conversations"}, "conversations for instruction tuning (LLaVA)"),
    ({"messages"}, "conversations for instruction tuning"),
    ({"prefix", "suffix"}, "prompts for a language model (PaliGemma)"),
    ({"shapes"}, "labelme's layout"),
    ({"_via_img_metadata"}, "VGG Image Annotator's layout"),
    ({"regions", "file_attributes"}, "VGG Image Annotator's layout"),
    ({"project", "attribute", "metadata"}, "VGG Image Annotator's layout"),
    ({"result"}, "Label Studio's results"),
    ({"data", "annotations"}, "Label Studio's export"),
    ({"data", "completions"}, "Label Studio's export"),
    ({"items", "categories"}, "Datumaro's layout"),
    ({"image", "annotations"}, "CreateML's layout"),
    ({"size", "objects"}, "Supervisely's layout"),
    ({"regions"}, "Visual Genome's regions"),
    ({"instance_boxes"}, "PhraseCut's layout"),
    ({"gtboxes"}, "ODGT, the layout of CrowdHuman"),
    ({"segments_info"}, "COCO's panoptic layout"),
    ({"bbox", "score"}, "results of a detector (COCO results)"),
    ({"model_type"}, "the config of a Hugging Face model"),
)


def looks_like(start: bytes, name: str) -> str:
    """What a file that begins with `start` looks like, and what to do; "" if it may be JSON. `name` is in lower case."""
    if name.endswith((".csv", ".tsv")):
        return "a table; export it as JSON lines"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it and name the annotation file"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    known = next((what for magic, what in _STARTS.items() if text.startswith(magic)), "")
    words = text.partition(b"\n")[0].split()
    if not known and len(words) >= 5 and all(word.replace(b".", b"", 1).isdigit() for word in words):
        return "labels of YOLO; export them as COCO, and use --captions categories"
    return known


def layout_of(content: Any) -> str:
    """The name of the layout that JSON content, a record or a list of records, is of; "" if it is unknown."""
    entries = content if isinstance(content, list) else [content]
    entry = next((e for e in entries if isinstance(e, dict)), {})
    inner = next((e for e in entry.values() if isinstance(e, dict)), {})  # VIA's records by their file names
    return next((what for keys, what in _KEYS if keys <= entry.keys() or keys <= inner.keys()), "")


def json_fault(error: json.JSONDecodeError) -> str:
    """What is wrong with a JSON document, with the likely cause if it is a common one."""
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    cause = ""
    if not rest or error.msg.startswith("Unterminated string"):
        cause = "the end is missing, as in an incomplete download"
    elif rest[0] in "}]" and before.endswith(","):
        cause = "a comma before a closing bracket"
    elif rest.startswith(("//", "/*", "#")):
        cause = "JSON has no comments"
    elif rest[0] == "'":
        cause = "single quotes, as Python prints them; json.dumps writes JSON"
    elif error.msg == "Extra data":
        cause = "more than one value; JSON lines have one per line"
    elif error.pos == 0 or not before:
        cause = f"it begins with {rest[:20]!r}"
    return f"{error}{f'; {cause}' if cause else ''}"
