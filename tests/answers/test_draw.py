"""Drawings: what is drawn where. How they look is for people; see `make demo`."""

import dataclasses

import numpy as np
import pytest

from instancevg_jax.answers.draw import (
    ALERT,
    BAR,
    MIN_SIDE,
    MIN_WIDTH,
    NOTE,
    PALETTE,
    UNSURE,
    TrueObjects,
    draw_grounding,
    write,
)  # fmt: skip
from instancevg_jax.answers.grounding import Grounding


def picture(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def grounding(height: int, width: int, boxes: list[list[float]]) -> Grounding:
    """Objects that fill their boxes; the merged mask is their union."""
    rows = np.array(boxes, np.float32).reshape(-1, 4)
    masks = np.zeros((len(rows), height, width), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, rows.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    return Grounding(
        boxes_xyxy=rows,
        scores=np.linspace(0.9, 0.8, len(rows), dtype=np.float32),
        masks=masks,
        points_xy=(rows[:, :2] + rows[:, 2:]) / 2,
        mask=masks.any(0),
        exists=len(rows) > 0,
        no_target_probability=0.1 if len(rows) else 0.9,
    )


def nearness(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(pixels.astype(int) - colour).max(-1)


def test_objects_are_drawn_in_their_places():
    source = picture(500, 600)
    drawn = draw_grounding(source, grounding(500, 600, [[100, 100, 250, 300], [350, 200, 500, 400]]), "two things")
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] == 600
    assert drawn.shape[0] > 500
    assert (source == 128).all()  # the picture itself is left alone
    assert (nearness(drawn[200, 98:103], PALETTE[0]) < 20).any()
    assert (nearness(drawn[300, 348:353], PALETTE[1]) < 20).any()
    for inside, colour in (((150, 130), PALETTE[0]), ((250, 380), PALETTE[1])):
        assert nearness(drawn[inside], colour) < nearness(source[inside], colour)
        assert nearness(drawn[inside], source[inside]) < 32  # an object keeps its own colour
    np.testing.assert_array_equal(drawn[450:490, 20:60], source[450:490, 20:60])


def test_what_only_the_merged_mask_covers_is_tinted():
    answer = grounding(500, 600, [[100, 100, 250, 300]])
    answer.mask[400:, :100] = True
    drawn = draw_grounding(picture(500, 600), answer, "a thing")
    assert (drawn[420:480, 20:80] > 136).all()
    assert drawn.shape == draw_grounding(picture(500, 600), answer, "a thing").shape
    plain = draw_grounding(picture(500, 600), grounding(500, 600, [[100, 100, 250, 300]]), "a thing")
    legend = drawn[500:] != plain[500:]
    assert legend.any()  # the bar says what white means


def test_no_target_is_said_on_the_picture():
    drawn = draw_grounding(picture(500, 600), grounding(500, 600, []), "the unicorn")
    centre = drawn[230:270, 250:350]
    assert (nearness(centre, ALERT) == 0).mean() > 0.2
    assert (nearness(centre, (255, 255, 255)) == 0).any()


def test_no_target_and_nothing_above_the_threshold_are_two_verdicts():
    absent = grounding(500, 600, [])
    unsure = dataclasses.replace(absent, no_target_probability=0.4, best_score=0.41, score_threshold=0.5)
    assert absent.verdict == "no target (p = 0.90)"
    assert unsure.verdict == "nothing above the score threshold 0.5 (best 0.41)"
    assert grounding(500, 600, [[0, 0, 9, 9]]).verdict == "1 object"
    banner = draw_grounding(picture(500, 600), unsure, "the unicorn")[:500]
    assert not (nearness(banner, ALERT) == 0).any()
    assert (nearness(banner, UNSURE) == 0).any()


def test_notes_are_written_below():
    answer = grounding(500, 600, [])
    noted = draw_grounding(picture(500, 600), answer, "a dog", notes=["unknown words: dog"])
    assert noted.shape[0] > draw_grounding(picture(500, 600), answer, "a dog").shape[0]
    assert (nearness(noted[500:], NOTE) == 0).any()


def test_truth_stands_beside_the_prediction():
    answer = grounding(500, 600, [[100, 100, 250, 300]])
    truth = TrueObjects(answer.boxes_xyxy, answer.masks)
    drawn = draw_grounding(picture(500, 600), answer, "a thing", truth)
    assert drawn.shape[1] == 2 * 600 + 6
    left, right = drawn[:, :600], drawn[:, 606:]
    assert (nearness(left, PALETTE[0]) == 0).sum() > 100
    assert (nearness(right, PALETTE[0]) == 0).sum() > 100
    swapped = TrueObjects(
        np.array([[400, 300, 450, 350], [102, 99, 250, 300]]), np.zeros((2, 500, 600), bool)
    )  # the second true object is the one found
    left = draw_grounding(picture(500, 600), answer, "a thing", swapped)[:, :600]
    assert (nearness(left, PALETTE[1]) == 0).sum() > 100
    assert not (nearness(left, PALETTE[0]) == 0).any()
    nothing = draw_grounding(
        picture(500, 600), answer, "a thing", TrueObjects(np.zeros((0, 4)), np.zeros((0, 500, 600), bool))
    )
    assert (nearness(nothing[:, 606:], ALERT) == 0).sum() > 100


def test_small_pictures_are_enlarged():
    drawn = draw_grounding(picture(32, 64), grounding(32, 64, [[8, 8, 24, 24]]), "a thing")
    assert drawn.shape[1] == MIN_SIDE
    assert (nearness(drawn[100:140, 58:63], PALETTE[0]) < 20).any()  # the box at x = 8 is now at x = 60


@pytest.mark.parametrize("size", [(1, 1), (500, 3), (20, 480), (40, 900), (1500, 1000)])
@pytest.mark.parametrize("found", [True, False])
def test_odd_sizes_are_drawn(size: tuple[int, int], found: bool):
    height, width = size
    answer = grounding(height, width, [[0, 0, width, height]] if found else [])
    drawn = draw_grounding(picture(height, width), answer, "a thing")
    assert drawn.shape[1] >= MIN_WIDTH
    assert (nearness(drawn[-3:], BAR) == 0).all()


def test_letters_of_any_script_are_drawn():
    drawn = set()
    for letter in "?eéßЖβ犬ハ하שج":
        canvas = np.zeros((40, 40, 3), np.uint8)
        write(canvas, letter, 8, 20, (255, 255, 255), 24)
        drawn.add(canvas.tobytes())
    assert len(drawn) == 11


def test_a_label_does_not_hide_a_small_object_at_the_top():
    drawn = draw_grounding(picture(500, 600), grounding(500, 600, [[300, 4, 312, 12]]), "a bird")
    assert (nearness(drawn[8, 304:309], PALETTE[0]) > 20).any()
    assert (nearness(drawn[16:36, 320], PALETTE[0]) == 0).any()


def test_any_sentence_fits_the_bar():
    answer = grounding(300, 300, [])
    heights = [
        draw_grounding(picture(300, 300), answer, text).shape[0]
        for text in ("short", "word " * 20, "x" * 500, "many words " * 500, "左边的人 🐶\n\t\x00")
    ]
    assert heights[0] < heights[1] <= heights[2] == heights[3]  # four lines at most
    assert heights[4] == heights[0]
