"""Run an exported program with ONNX Runtime: `python run.py PICTURE "SENTENCE"`. Needs onnxruntime and what inputs.py needs."""

import sys
from pathlib import Path

import onnxruntime
from inputs import load_settings, prepare, show

folder = Path(__file__).parent
session = onnxruntime.InferenceSession(folder / "program.onnx")
inputs = dict(zip(("images", "token_ids", "token_mask"), prepare(folder, sys.argv[1], sys.argv[2]), strict=True))
names = [output.name for output in session.get_outputs()]
show(dict(zip(names, session.run(names, inputs), strict=True)), load_settings(folder))
