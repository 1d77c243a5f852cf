"""From the model's outputs to what a person gets: scores, boxes, masks, a `Grounding`, a drawing, an explanation, files.

May import the rooms above evaluation: the ground floor, `runtime`, `inputs`, `models`, `objective` and `checkpoint`."""
