"""Every metric of every family against the original's, and the mended protocol, merging and empty sets."""

import numpy as np
import pytest

from instancevg_jax.errors import InputError
from instancevg_jax.evaluation import metrics
from instancevg_jax.evaluation.metrics import Answer, Metrics, Truth
from instancevg_jax.types import Predictions, Targets
from tests import oracle

NO_POINTS = np.zeros((0, 2))


def samples():
    data = oracle.fixture("f7_metrics")
    height, width = data["hw"]
    for i in range(24):
        masks = [
            np.unpackbits(data[k][i])[: height * width].reshape(height, width) > 0 for k in ("pred_masks", "gt_masks")
        ]
        answer = Answer(data["pred_boxes"][i], data["pred_scores"][i], masks[0], NO_POINTS)
        yield answer, Truth(data[f"gt_boxes_{i}_f64"], masks[1], bool(data["empty"][i]))


def run(task, pairs, threshold=0.7, protocol="official", groups=None):
    measured = Metrics(task, threshold, protocol)
    for i, (answer, truth) in enumerate(pairs):
        measured.update(answer, truth, record=i, group=-1 if groups is None else int(groups[i]))
    return measured


def assert_close(result, names, expected):
    np.testing.assert_allclose([result[name] for name in names], expected, rtol=1e-6, err_msg=str(names))


GRES = ["gIoU", "cIoU", "gres_T_acc", "gres_N_acc", "Pr@0.7", "Pr@0.8", "Pr@0.9"]
GREC = ["F1", "N_acc", "T_acc"]
PRECISIONS = [f"Pr@{x}" for x in (0.5, 0.6, 0.7, 0.8, 0.9)]


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_gres_grec_refzom(threshold):
    data, pairs = oracle.fixture("f7_metrics"), list(samples())
    assert_close(run("gres", pairs, threshold).result(), GRES, data[f"gres_{threshold}"])
    assert_close(run("gres", pairs, threshold).result(), GREC, data[f"grec_{threshold}"])
    assert_close(
        run("refzom", pairs, threshold).result(), ["mIoU", "oIoU", "Acc", *PRECISIONS], data[f"refzom_{threshold}"]
    )


def test_grec_of_each_sample_and_of_filtered_boxes():
    data, pairs = oracle.fixture("f7_metrics"), list(samples())
    rows = run("gres", pairs).rows
    np.testing.assert_array_equal([100.0 * (rows[i].f1 >= 1) for i in range(24)], data["grec_per_sample_f1"])
    first_six = [(Answer(a.boxes_xyxy[:6], a.scores[:6], a.mask, NO_POINTS), t) for a, t in pairs]
    assert_close(run("gres", first_six).result(), GREC, data["grec_filtered_0.7"])


def test_a_set_without_empty_records():
    data = oracle.fixture("f7_metrics")
    targeted = [(answer, truth) for answer, truth in samples() if not truth.empty]
    assert_close(run("gres", targeted).result(), GRES, data["gres_noempty"])
    strict = run("gres", targeted, protocol="strict").result()
    assert np.isnan(strict["gres_N_acc"])
    assert strict["gres_T_acc"] > 0


def test_rrefcoco():
    data, pairs = oracle.fixture("f7_metrics"), list(samples())
    groups = np.full(len(data["rref_order"]), -1)
    for group, (start, end) in enumerate(data["rref_groups"]):
        groups[start:end] = group
    measured = run("rrefcoco", [pairs[i] for i in data["rref_order"]], groups=groups)
    assert_close(measured.result(), ["mIoU", "oIoU", "mRR", "rIoU"], data["rref"])


def test_rec_and_res():
    data, pairs = oracle.fixture("f7_metrics"), list(samples())
    single = [
        (
            Answer(data[f"acc_boxes_{i}"], data[f"acc_scores_{i}"], answer.mask, NO_POINTS),
            Truth(data["acc_gt_boxes_f64"][i], truth.mask, False),
        )
        for i, (answer, truth) in enumerate(pairs)
    ]
    measured = run("refcoco", single)
    thresholds = (0.5, 0.6, 0.7, 0.8, 0.9)
    names = ["DetACC@0.5", "mIoU", "oIoU", *(f"MaskACC@{x}" for x in thresholds), *(f"DetACC@{x}" for x in thresholds)]
    assert_close(measured.result(), names, data["acc"])
    columns = measured.columns()
    np.testing.assert_allclose(columns["iou"], data["mask_iou"], rtol=1e-6)
    np.testing.assert_array_equal(columns["intersection"], data["mask_I"])
    np.testing.assert_array_equal(columns["union"], data["mask_U"])


def square(x, y, size=4):
    return np.array([x, y, x + size, y + size], np.float32)


def answer_of(boxes, scores, mask=False, points=NO_POINTS):
    return Answer(np.reshape(boxes, (-1, 4)), np.asarray(scores, np.float32), np.full((8, 8), mask), points)


def truth_of(*boxes, mask=True):
    return Truth(np.reshape(boxes, (-1, 4)), np.full((8, 8), mask and bool(boxes)), not boxes)


def test_strict_uses_iou_and_one_comparison():
    truth = truth_of(square(0, 0))
    shifted = answer_of([square(0.7, 0.7)], [0.9])  # IoU 10.89 / 21.11 = 0.516, hull 22.09: GIoU 0.471
    assert metrics.measure(shifted, truth, 0.7, "official").true_positives == 0
    assert metrics.measure(shifted, truth, 0.7, "strict").true_positives == 1
    equal = answer_of([square(0, 0)], [0.5])  # a score equal to the threshold
    assert metrics.measure(equal, truth, 0.5, "official").num_predictions == 1
    assert metrics.measure(equal, truth, 0.5, "strict").num_predictions == 0


def test_strict_precision_of_rrefcoco_is_per_sentence():
    half = Answer(np.zeros((0, 4)), np.zeros(0), np.arange(64).reshape(8, 8) < 32, NO_POINTS)
    pairs = [(half, truth_of(square(0, 0)))] * 2 + [(half, truth_of())]
    assert run("rrefcoco", pairs, groups=[0, 0, 0]).result()["Pr@0.9"] == 50
    assert run("rrefcoco", pairs, groups=[0, 0, 0], protocol="strict").result()["Pr@0.9"] == 0


def test_rrefcoco_without_groups_is_refused():
    pairs = [(answer_of([], []), truth_of())] * 2
    with pytest.raises(InputError, match=r"record 1 is in no group; the metrics of eval\.task 'rrefcoco' expect one"):
        run("rrefcoco", pairs, groups=[0, -1]).result()


def test_rrefcoco_groups_that_lack_a_kind():
    pairs = [(answer_of([], [], True), truth_of(square(0, 0))), (answer_of([], []), truth_of())]
    result = run("rrefcoco", pairs, groups=[0, 1]).result()
    assert result["mIoU"] == result["rIoU"] == result["mRR"] == 100


def test_greedy_matching_is_one_to_one():
    overlaps = np.array([[0.9, 0.8], [0.85, 0.1]])
    assert metrics.count_matches(overlaps, 0.5) == 1  # greedy, as the protocol says: 0.9 is taken first
    assert metrics.count_matches(np.eye(3), 0.5) == 3
    assert metrics.count_matches(np.zeros((0, 3)), 0.5) == 0


def test_best_box():
    truth = np.array([[0.0, 0, 4, 4]])
    tied = np.array([[0.0, 0, 4, 4], [1, 0, 4, 4]])
    assert metrics.best_box_iou(tied, np.array([0.5, 0.5]), truth) == 0.75
    assert metrics.best_box_iou(tied, np.array([0.6, 0.5]), truth) == 1
    assert metrics.best_box_iou(tied[:0], np.zeros(0), truth) == 0


def test_coverage_counts_boxes_with_a_point():
    boxes = np.array([[0.0, 0, 4, 2], [5, 5, 6, 6]])
    assert metrics.coverage(np.array([[4.0, 1], [1, 4]]), boxes) == 0.5
    assert np.isnan(metrics.coverage(np.zeros((1, 2)), np.zeros((0, 4))))


@pytest.mark.parametrize("task", metrics.TASKS)
def test_merging_parts_gives_the_whole(task):
    pairs = list(samples())
    groups = np.arange(24) // 5
    whole = run(task, pairs, groups=groups)
    parts = [Metrics(task), Metrics(task)]
    for i, (answer, truth) in enumerate(pairs):
        parts[i % 2].update(answer, truth, record=i, group=int(groups[i]))
    parts[0].update(*pairs[1], record=1, group=int(groups[1]))  # a record that two processes saw counts once
    merged = Metrics(task, 0.7, "official", parts[1].rows | parts[0].rows)
    assert merged.result() == pytest.approx(whole.result(), nan_ok=True)


@pytest.mark.parametrize("task", metrics.TASKS)
@pytest.mark.parametrize("protocol", ["official", "strict"])
def test_nothing_measured(task, protocol):
    assert all(np.isnan(v) or v == 0 for v in Metrics(task, protocol=protocol).result().values())


def test_unknown_names():
    with pytest.raises(InputError, match=r"eval\.task is 'rec'; expected one of gres, refcoco, refzom, rrefcoco"):
        Metrics("rec")
    with pytest.raises(InputError, match="protocol is 'lenient'"):
        Metrics("gres", protocol="lenient")


def test_from_a_batch():
    """Removed queries are not answers, and true boxes come back in pixels."""
    predictions = Predictions(
        boxes_xyxy=np.array([[[1, 1, 3, 3], [0, 0, 0, 0]]], np.float32),
        scores=np.array([[0.9, 0.0]], np.float32),
        masks=np.zeros((1, 2, 4, 8), bool),
        keep=np.array([[True, False]]),
        mask=np.ones((1, 4, 8), bool),
        no_target_probability=np.zeros(1),
        points_xy=np.zeros((1, 2, 2), np.float32),
    )
    targets = Targets(
        boxes=np.array([[[0.5, 0.5, 1.0, 1.0], [0, 0, 0, 0]]], np.float32),
        valid=np.array([[True, False]]),
        masks=np.zeros((1, 2, 4, 8), bool),
        mask=np.ones((1, 4, 8), bool),
    )
    (answer,), (truth,) = metrics.answers(predictions), metrics.truths(targets)
    np.testing.assert_array_equal(answer.boxes_xyxy, [[1, 1, 3, 3]])
    np.testing.assert_array_equal(truth.boxes_xyxy, [[0, 0, 8, 4]])
    assert not truth.empty
    row = metrics.measure(answer, truth, 0.7, "official")
    assert row.iou == 1
    assert row.num_predictions == 1


@pytest.mark.parametrize(
    "mask",
    [np.eye(4, dtype=np.uint8), 255 * np.eye(4, dtype=np.uint8), np.eye(4), np.eye(4).tolist(), np.eye(4) > 0],
)
def test_masks_of_other_types_are_converted(mask):
    answer = Answer([[0, 0, 4, 4]], [0.9], mask)
    row = metrics.measure(answer, Truth([0, 0, 4, 4], mask, False), 0.7, "official")
    assert (row.iou, row.best_box_iou, row.f1) == (1, 1, 1)


WHOLE = np.ones((4, 4), bool)


class OnAnotherDevice:
    """A tensor that NumPy cannot read, as torch's on a GPU or with a gradient."""

    def __array__(self, *arguments, **options):
        raise RuntimeError("use .detach().cpu()")


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Answer([], [], np.full((4, 4), 0.5)), "the predicted mask has values such as 0.5; expected bool"),
        (lambda: Answer([], [], np.arange(16).reshape(4, 4)), "the predicted mask has values such as 15"),
        (
            lambda: Answer([], [], np.ones((1, 4, 4), bool)),
            r"the predicted mask has shape \(1, 4, 4\); expected \[H, W\]",
        ),
        (lambda: Truth([[1, 2, 3]], WHOLE, False), r"the true boxes have shape \(1, 3\); expected \[N, 4\]"),
        (
            lambda: Truth([[1, 2, 3, 4], [1, 2]], WHOLE, False),
            "the true boxes cannot be made an array, rows of equal length",
        ),
        (lambda: Answer([["a", 2, 3, 4]], [1], WHOLE), "the predicted boxes are not numbers"),
        (lambda: Answer([[30, 20, 10, 10]], [1], WHOLE), "expected x1, y1, x2, y2 with x1 <= x2 and y1 <= y2"),
        (lambda: Answer([[0, 0, np.nan, 1]], [1], WHOLE), "finite"),
        (lambda: Answer([[0, 0, 1, 1]], [1, 2], WHOLE), r"the scores have shape \(2,\); expected \[1\]"),
        (lambda: Answer([[0, 0, 1, 1]], None, WHOLE), r"the scores have shape \(\); expected \[1\]"),
        (lambda: Answer([[0, 0, 1, 1]], [90], WHOLE), "the scores include 90; expected 0 to 1"),
        (lambda: Answer([[0, 0, 1, 1]], [np.nan], WHOLE), "the scores include nan; expected 0 to 1"),
        (lambda: Answer([[0, 0, 1, 1]], [1], WHOLE, [[1, 2, 3]]), r"the points have shape \(1, 3\); expected \[P, 2\]"),
        (lambda: Answer([[0, 0, 10**400, 1]], [1], WHOLE), "the predicted boxes are not numbers"),
        (lambda: Answer(np.ones((1, 4), bool), [1], WHOLE), "the predicted boxes are not numbers"),
        (lambda: Answer([], [], [[1, 0], [1]]), "the predicted mask cannot be made an array, rows of equal length"),
        (
            lambda: Answer([], [], np.zeros((0, 0))),
            r"the predicted mask has shape \(0, 0\); expected \[H, W\], not empty",
        ),
        (
            lambda: Answer([], [], OnAnotherDevice()),
            r"the predicted mask cannot be made an array, .* \(use \.detach\(\)\.cpu\(\)\)",
        ),
        (lambda: Truth([], WHOLE, "no"), "empty is 'no'; expected True or False"),
        (lambda: Truth([[0, 0, 1, 1]], WHOLE, True), "empty is True, but there are true boxes"),
        (lambda: Metrics("gres", np.nan), "the score threshold is nan; expected a number from 0 to 1"),
        (lambda: Metrics("gres", "0.7"), "the score threshold is '0.7'; expected a number from 0 to 1"),
        (lambda: Metrics("gres", 70), "the score threshold is 70; expected a number from 0 to 1"),
        (lambda: Metrics(["gres"]), "eval.task is .'gres'.; expected one of"),
        (
            lambda: Metrics("gres").update(([], [], WHOLE), Truth([], WHOLE, True), 0),
            "found tuple and Truth; expected an Ans",
        ),
        (
            lambda: Metrics("gres").update(Answer([], [], WHOLE), Truth([], WHOLE, True), "a"),
            "record is 'a'; expected a whole",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused(build, says):
    with pytest.raises(InputError, match=says):
        build()


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (2, 8), (8, 8)])
def test_masks_of_other_shapes_are_refused(shape):
    with pytest.raises(
        InputError, match=r"the predicted mask is \d x \d pixels .* the true one 4 x 4; expected the same"
    ):
        Metrics("gres").update(Answer([], [], np.ones(shape, bool)), Truth([], WHOLE, True), 0)


def test_ties_are_compared_in_float64_by_grec():
    """A float32 score of 0.7 is a little less than 0.7, one of 0.6 a little more."""
    truth = truth_of(square(0, 0))
    for threshold, counted in ((0.7, 0), (0.6, 1), (0.5, 1)):
        tie = answer_of([square(0, 0)], [threshold], True)
        row = metrics.measure(tie, truth, threshold, "official")
        assert (row.num_predictions, row.says_none) == (counted, 1)
        assert metrics.measure(tie, truth, threshold, "strict").num_predictions == 0


def test_undefined_numbers_are_shown_as_such():
    targeted = [(answer, truth) for answer, truth in samples() if not truth.empty]
    official, shown = run("gres", targeted).result(), run("gres", targeted).shown()
    undefined = {"N_acc", "gres_N_acc", "gres_T_acc"}
    assert {name for name in shown if np.isnan(shown[name])} == undefined
    assert {official[name] for name in undefined} == {0}
    assert {name: shown[name] for name in shown.keys() - undefined} == {
        name: official[name] for name in official.keys() - undefined
    }


def test_what_an_answer_does_not_contain_is_undefined():
    nan = float("nan")
    rows = run("gres", list(samples())).rows.values()
    for task in metrics.TASKS:
        boxes_only, masks_only = Metrics(task), Metrics(task)
        for i, row in enumerate(rows):
            grouped = row._replace(group=0, record=i)
            boxes_only.rows[i] = grouped._replace(intersection=nan, union=nan, predicted_area=nan, iou=nan)
            masks_only.rows[i] = grouped._replace(num_predictions=nan, true_positives=nan, f1=nan, best_box_iou=nan)
        of_masks = {"gIoU", "cIoU", "mIoU", "oIoU", "rIoU"}
        for name, value in boxes_only.shown().items():
            assert np.isnan(value) == (name in of_masks or name.startswith(("Pr@", "MaskACC")))
        for name, value in masks_only.shown().items():
            assert np.isnan(value) == (name in ("F1", "N_acc", "T_acc", "REC") or name.startswith("DetACC"))


def test_each_task_judges_an_answer_by_its_own_rules():
    """REC and RES expect one answer whatever its score: a right one of score 0.6 is no failure."""
    low = metrics.measure(answer_of([square(0, 0)], [0.6], True), truth_of(square(0, 0)), 0.7, "official")
    scores = {name: task.score(low) for name, task in metrics.TASKS.items()}
    assert scores == {"gres": 0, "refcoco": 1, "refzom": 1, "rrefcoco": 1}
    wrong_box = low._replace(best_box_iou=0.2)
    assert metrics.TASKS["refcoco"].score(wrong_box) == 0.2
    false = metrics.measure(answer_of([square(0, 0)], [0.9], True), truth_of(), 0.7, "official")
    assert {task.score(false) for name, task in metrics.TASKS.items() if name != "refcoco"} == {0}
