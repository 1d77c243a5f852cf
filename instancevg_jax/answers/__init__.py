"""From the model's outputs to what a person gets: scores, boxes, masks, a `Grounding`, a picture.

May import everything above evaluation: the ground floor, `runtime`, `inputs`, `models`, `objective` and `checkpoint`."""
