"""A picture and a sentence as the inputs of an exported program. Needs numpy, opencv-python-headless and sentencepiece."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import sentencepiece

BOS, PAD, EOS, UNK = 0, 1, 2, 3


def load_settings(folder: Path) -> dict:
    """The settings that were exported with the program."""
    return json.loads((folder / "settings.json").read_text())


def prepare(folder: Path, picture: str, sentence: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """images [1, H, W, 3] float32, token_ids [1, L] int32 and token_mask [1, L] bool."""
    settings = load_settings(folder)
    rgb = cv2.cvtColor(cv2.imread(picture, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    rgb = cv2.resize(rgb, (settings["image_width"], settings["image_height"]))
    image = (rgb.astype(np.float32) - np.float32(settings["pixel_mean"])) / np.float32(settings["pixel_std"])
    words = re.sub(r"[.,'!?\"()*#:;]", "", sentence.lower()).replace("-", " ").replace("/", " ")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.spm")).EncodeAsIds(words)
    length = settings["max_tokens"]
    ids = [BOS, *(piece + 1 if piece else UNK for piece in pieces[: length - 2]), EOS]
    token_ids = np.array([ids + [PAD] * (length - len(ids))], np.int32)
    return image[None], token_ids, np.arange(length)[None] < len(ids)


def show(found: dict[str, np.ndarray], settings: dict) -> None:
    """Print the objects above the score threshold, and the share of the picture that the merged mask covers."""
    keep = found["scores"][0] > settings["score_threshold"]
    merged = found["global_mask"][0] if settings["mask_merge"] != "instance" else np.zeros_like(found["global_mask"][0])
    if settings["mask_merge"] != "global":
        merged = merged | found["masks"][0][keep].any(axis=0)
    for box, score in zip(found["boxes_xyxy"][0][keep], found["scores"][0][keep], strict=True):
        print("box", np.round(box, 1).tolist(), "score", round(float(score), 3))
    print(
        f"{keep.sum()} objects, {merged.mean():.1%} of the picture; no target: {found['no_target_probability'][0]:.3f}"
    )
