"""Answers from the model's outputs: scores, boxes, masks, a `Grounding`, its drawing and explanation, and files.

May import the rooms above evaluation: the ground floor, `runtime`, `inputs`, `models`, `objective` and `checkpoint`."""
