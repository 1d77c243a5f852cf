"""Finds what sentences refer to in pictures, with the preprocessing, tokenizer and postprocessing of evaluation."""

import dataclasses
import functools
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from instancevg_jax import checkpoint
from instancevg_jax.answers.grounding import Evidence, Grounding
from instancevg_jax.answers.postprocess import Decision, postprocess, score_queries, to_original_size
from instancevg_jax.config import EMBEDDED, Config, EvalConfig, check
from instancevg_jax.errors import InputError, first_line, is_device_memory
from instancevg_jax.inputs.pictures import Picture, load_picture, prepare_picture
from instancevg_jax.inputs.text import clean_expression, unknown_words
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.models.queries import rank_tokens
from instancevg_jax.types import Array, Predictions

DEMO_CHECKPOINT = Path(__file__).parent.parent / "assets" / "demo_checkpoint"
BUILT_IN = "built-in"  # the name of that model
BATCH_SIZE = 8  # questions per call of the network, at most
DECODERS = 4  # threads that read pictures; also the number of questions that are read ahead
SHAPES_ONLY = "this model knows drawn shapes only, not photographs"
FOR_PHOTOGRAPHS = "for photographs, load official weights by name: instancevg-grefcoco"


@dataclass(frozen=True, repr=False)
class Predictor:
    """Pictures and sentences -> `Grounding`s. Immutable, and safe to share between threads.

    The network is compiled for one question and for a batch of `batch_size`, once per process and architecture; never for
    another picture size, sentence, threshold or checkpoint.

        predictor = Predictor.from_pretrained("instancevg-grefcoco")
        grounding = predictor.predict("street.jpg", "the two people on the left")
    """

    config: Config
    tokenizer: Tokenizer
    batch_size: int
    _graph: Any
    _state: nnx.State

    @classmethod
    def from_pretrained(cls, source: str | Path | None = None, *, batch_size: int | None = None) -> "Predictor":
        """Load a model.

        Args:
            source: a checkpoint directory, a run folder, an official file (.pth, .zip, .safetensors) or the name of known
                weights such as "instancevg-grefcoco"; the latter two are downloaded and converted once. None or "built-in":
                the model in the package, which knows drawn shapes only.
            batch_size: questions per call of the network, at most. None: 8, or the config's eval.batch_size if smaller.

        Raises:
            InputError: there is no such source, or it is incomplete, damaged or inconsistent.
        """
        directory = checkpoint_directory(source)
        model, config = checkpoint.load_model(directory)
        predictor = cls.from_model(model, config, checkpoint.load_tokenizer(directory), batch_size=batch_size)
        for note in predictor.notes:
            print(f"note: {note}; {FOR_PHOTOGRAPHS}", file=sys.stderr)
        return predictor

    @classmethod
    def from_model(
        cls, model: InstanceVG, config: Config, tokenizer: Tokenizer, *, batch_size: int | None = None
    ) -> "Predictor":
        """Wrap a model in memory. Raises InputError if the tokenizer has ids that the model lacks."""
        if tokenizer.vocab_size > config.model.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} ids, model.vocab_size is {config.model.vocab_size}; "
                "they do not belong to one checkpoint"
            )
        size = min(BATCH_SIZE, config.eval.batch_size) if batch_size is None else batch_size
        if size < 1:
            raise InputError(f"batch_size is {size}; expected at least 1")
        return cls(config, tokenizer, size, *nnx.split(model))

    def with_model(self, model: InstanceVG) -> "Predictor":
        """The same predictor with other parameters of the same architecture. Nothing is compiled again."""
        return dataclasses.replace(self, _state=nnx.state(model))

    def __repr__(self) -> str:
        model = self.config.model
        millions = sum(leaf.size for leaf in jax.tree.leaves(self._state)) / 1e6
        return (
            f"Predictor({millions:.1f} M parameters, trained on {self.config.data.name}, {model.image_width} x "
            f"{model.image_height} pixels, {model.num_queries} queries, score threshold {self.config.eval.score_threshold:g})"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Limits of this model that a user should know."""
        return (SHAPES_ONLY,) if self.config.data.name == EMBEDDED else ()

    @overload
    def predict(
        self,
        picture: Picture,
        expression: str,
        *,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        top_k: int | None = None,
        mask: str | None = None,
    ) -> Grounding: ...

    @overload
    def predict(
        self,
        picture: Picture,
        expression: Sequence[str],
        *,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        top_k: int | None = None,
        mask: str | None = None,
    ) -> list[Grounding]: ...

    def predict(
        self,
        picture: Picture,
        expression: str | Sequence[str],
        *,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        top_k: int | None = None,
        mask: str | None = None,
    ) -> Grounding | list[Grounding]:
        """Find what a sentence, or each of several, refers to in a picture.

        Args:
            picture: a path, the bytes of an image file or an open one, a PIL image, or an RGB array (see
                `inputs.pictures.load_picture`).
            expression: a sentence, or a sequence of sentences about the picture, which is then decoded once. Tokens beyond
                `config.model.max_tokens` are cut off.
            score_threshold: a query counts above it, 0 to 1. None: `config.eval.score_threshold`.
            nms_threshold: suppress objects whose box overlaps a better one's by a greater IoU; 0: suppress nothing. None:
                `config.eval.nms_threshold`.
            top_k: the largest number of objects. None: no limit.
            mask: what the merged mask consists of: "merge", "global" or "instance". None: `config.eval.mask_merge`.

        Returns:
            A Grounding in the picture's own pixels, best object first, or a list of them in the order of the sentences. If no
            query passes the threshold, N is 0 and `exists` is False; this holds for RefCOCO models too.

        Raises:
            InputError: the picture cannot be read, a sentence has no words, an argument is out of range, or the device is
                out of memory.
        """
        settings = {"score_threshold": score_threshold, "nms_threshold": nms_threshold, "top_k": top_k, "mask": mask}
        decision = self._decision(**settings)
        if isinstance(expression, str):
            return self._all([(picture, expression)], decision)[0]
        if not isinstance(expression, Sequence) or isinstance(expression, bytes | bytearray):
            raise InputError(f"the expression is {expression!r}; expected a sentence or a sequence of sentences")
        return self._all([(picture, sentence) for sentence in expression], decision)

    def predict_batch(
        self,
        pairs: Sequence[tuple[Picture, str]],
        *,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        top_k: int | None = None,
        mask: str | None = None,
        always_answer: bool = False,
    ) -> list[Grounding]:
        """Answer several (picture, sentence) pairs, in order. Arguments and errors as for `predict`.

        With `always_answer`, the query of the best score is the answer where none passes the threshold: the rule of REC and
        RES, where every sentence refers to one object.
        """
        return self._all(pairs, self._decision(score_threshold, nms_threshold, top_k, mask), always_answer)

    def predict_many(
        self,
        pairs: Iterable[tuple[Picture, str]],
        *,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        top_k: int | None = None,
        mask: str | None = None,
        always_answer: bool = False,
    ) -> Iterator[Grounding | InputError]:
        """Answer a stream of (picture, sentence) pairs, in order and in constant memory.

        Pictures are decoded while the network runs; consecutive pairs with the same picture decode it once. A pair that
        cannot be answered yields its InputError, and the stream continues. Arguments as for `predict_batch`.
        """
        return self._stream(pairs, self._decision(score_threshold, nms_threshold, top_k, mask), always_answer)

    def _decision(
        self, score_threshold: float | None, nms_threshold: float | None, top_k: int | None, mask: str | None
    ) -> Decision:
        """The arguments of `predict` over the checkpoint's settings, checked."""
        changes: dict[str, Any] = {}
        for name, value in (("score_threshold", score_threshold), ("nms_threshold", nms_threshold)):
            if value is not None:
                if not isinstance(value, int | float | np.number):
                    raise InputError(f"{name} is {value!r}; expected a number from 0 to 1")
                changes[name] = float(value)
        if mask is not None:
            changes["mask_merge"] = mask
        if top_k is not None and not (isinstance(top_k, int | np.integer) and top_k >= 1):
            raise InputError(f"top_k is {top_k!r}; expected an integer of at least 1")
        settings = dataclasses.replace(self.config.eval, **changes)
        check(dataclasses.replace(self.config, eval=settings))
        return Decision.of(settings, top_k or 0)

    def _all(
        self, pairs: Iterable[tuple[Picture, str]], decision: Decision, always_answer: bool = False
    ) -> list[Grounding]:
        answers = []
        for answer in self._stream(pairs, decision, always_answer):
            if isinstance(answer, InputError):
                raise answer
            answers.append(answer)
        return answers

    def _stream(
        self, pairs: Iterable[tuple[Picture, str]], decision: Decision, always_answer: bool
    ) -> Iterator[Grounding | InputError]:
        """One batch is on the device while the next one is read and the previous one's masks are resized."""
        pool = ThreadPoolExecutor(DECODERS)
        try:
            running: _Running | None = None
            for items in self._batches(self._questions(pairs, pool)):
                started = self._start(items, decision)
                if running is not None:
                    yield from self._finish(running, decision, always_answer)
                running = started
            if running is not None:
                yield from self._finish(running, decision, always_answer)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _questions(
        self, pairs: Iterable[tuple[Picture, str]], pool: ThreadPoolExecutor
    ) -> Iterator["_ModelInput | InputError"]:
        """The pairs made ready in other threads, in order, at most DECODERS ahead."""
        waiting: deque[Future[_ModelInput | InputError]] = deque()
        last: tuple[Any, Future[_Loaded]] | None = None
        for pair in pairs:
            if not (isinstance(pair, tuple | list) and len(pair) == 2):
                shown = " ".join(repr(pair).split())
                waiting.append(pool.submit(InputError, f"{shown:.80}; expected (picture, sentence)"))
            else:
                picture, expression = pair
                if last is None or not _same(last[0], picture):
                    last = picture, pool.submit(self._load, picture)
                waiting.append(pool.submit(self._question, last[1], expression))
            if len(waiting) > DECODERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _load(self, picture: Picture) -> "_Loaded":
        rgb = load_picture(picture)
        return _Loaded(rgb, prepare_picture(rgb, self.config.model.image_height, self.config.model.image_width))

    def _question(self, loaded: "Future[_Loaded]", expression: str) -> "_ModelInput | InputError":
        try:
            cleaned = clean_expression(expression)
            token_ids, token_mask = self.tokenizer.encode(cleaned, self.config.model.max_tokens)
            return _ModelInput(*loaded.result(), str(expression), token_ids, token_mask, self._notes(cleaned))
        except InputError as error:
            return error

    def _notes(self, cleaned: str) -> tuple[str, ...]:
        """What to know about the answer to a cleaned sentence."""
        notes = list(self.notes)
        if unknown := unknown_words(self.tokenizer, cleaned):
            notes.append(f"the model never saw: {', '.join(unknown)}")
        pieces, most = self.tokenizer.num_pieces(cleaned), self.config.model.max_tokens - 2
        if pieces > most:
            notes.append(f"the expression has {pieces} tokens; the model reads the first {most}")
        return tuple(notes)

    def _batches(self, questions: Iterable["_ModelInput | InputError"]) -> Iterator[list["_ModelInput | InputError"]]:
        """Groups of `batch_size` questions and the failures between them."""
        items: list[_ModelInput | InputError] = []
        for item in questions:
            items.append(item)
            if (
                sum(isinstance(item, _ModelInput) for item in items) == self.batch_size
                or len(items) == 4 * self.batch_size
            ):
                yield items
                items = []
        if items:
            yield items

    def _start(self, items: list["_ModelInput | InputError"], decision: Decision) -> "_Running":
        """Start the network on the questions: as one padded batch, or one by one if they would fill less than half of it."""
        questions = [item for item in items if isinstance(item, _ModelInput)]
        size = self.batch_size if 2 * len(questions) > self.batch_size else 1
        groups = [questions[start : start + size] for start in range(0, len(questions), size)]
        return _Running(items, size, [self._run(group, size, decision) for group in groups])

    def _run(self, questions: list["_ModelInput"], size: int, decision: Decision) -> Any:
        model = self.config.model
        images = np.zeros((size, model.image_height, model.image_width, 3), np.float32)
        token_ids = np.zeros((size, model.max_tokens), np.int32)
        token_mask = np.ones(token_ids.shape, bool)
        for row, question in enumerate(questions):
            images[row], token_ids[row], token_mask[row] = question.image, question.token_ids, question.token_mask
        settings = self.config.eval
        rules = _StaticSettings(
            settings.mask_threshold, settings.score_weighted, settings.no_target_rule, model.text_selection == "token"
        )
        with _device_errors(size):
            return _answer(self._graph, rules, self._state, images, token_ids, token_mask, decision)

    def _finish(self, running: "_Running", decision: Decision, always_answer: bool) -> Iterator[Grounding | InputError]:
        answers = self._groundings(running, decision, always_answer)
        for item in running.items:
            yield item if isinstance(item, InputError) else next(answers)

    def _groundings(self, running: "_Running", decision: Decision, always_answer: bool) -> Iterator[Grounding]:
        questions = iter([item for item in running.items if isinstance(item, _ModelInput)])
        for result in running.results:
            with _device_errors(running.size):
                predictions, looked = jax.device_get(result)
            for row, question in zip(range(running.size), questions, strict=False):
                height, width = question.picture.shape[:2]
                yield dataclasses.replace(
                    to_original_size(predictions, row, height, width, always_answer),
                    score_threshold=float(decision.score_threshold),
                    expression=question.expression,
                    picture=question.picture,
                    notes=question.notes,
                    evidence=self._evidence(predictions, looked, row, question),
                )

    def _evidence(self, predictions: Predictions, looked: "_Looked", row: int, question: "_ModelInput") -> Evidence:
        masks, keep = predictions.masks[row], predictions.keep[row]
        scale = np.array(question.picture.shape[1::-1], np.float32) / masks.shape[:0:-1]
        return Evidence(
            point_map=looked.point_map[row],
            attention=looked.attention[row],
            tokens=tuple(self._token_name(question, position) for position in looked.positions[row]),
            points_xy=predictions.points_xy[row] * scale,
            boxes_xyxy=looked.boxes_xyxy[row] * np.tile(scale, 2),
            scores=looked.scores[row],
            masks=masks,
            counted=keep,
        )

    def _token_name(self, question: "_ModelInput", position: int) -> str:
        if position < 0 or not question.token_mask[position]:
            return ""
        text = self.tokenizer.decode([question.token_ids[position]])
        return text or ("<s>" if position == 0 else "</s>")


class _Loaded(NamedTuple):
    picture: np.ndarray  # [H, W, 3] uint8, as it was read
    image: np.ndarray  # float32, what the network takes


class _ModelInput(NamedTuple):
    """A picture and a sentence, ready for the network."""

    picture: np.ndarray
    image: np.ndarray
    expression: str
    token_ids: np.ndarray
    token_mask: np.ndarray
    notes: tuple[str, ...]


class _Running(NamedTuple):
    """Questions and failures in order, and what the device computes for the questions in batches of `size`."""

    items: list[_ModelInput | InputError]
    size: int
    results: list[Any]


class _StaticSettings(NamedTuple):
    """The settings that a program is compiled for."""

    mask_threshold: float
    score_weighted: bool
    no_target_rule: str
    by_token: bool  # every query starts from a token


@struct.dataclass
class _Looked:
    """The parts of `Evidence` that `Predictions` lacks, for a batch."""

    point_map: Array  # [B, h, w] float32
    attention: Array  # [B, Q, h, w] float32
    positions: Array  # [B, Q] int32, of each query's token; -1: it has none of its own
    boxes_xyxy: Array  # [B, Q, 4] float32, pixels of the network's picture
    scores: Array  # [B, Q] float32


@functools.partial(jax.jit, static_argnums=(0, 1))
def _answer(
    graph: Any,
    rules: _StaticSettings,
    state: nnx.State,
    images: Array,
    token_ids: Array,
    token_mask: Array,
    decision: Decision,
) -> tuple[Predictions, _Looked]:
    """Forward pass and postprocessing. Compiled once per architecture, batch size and `rules`, for all predictors of a process."""
    outputs, inner = nnx.merge(graph, state).forward(images, token_ids, token_mask)
    settings = EvalConfig(
        mask_threshold=rules.mask_threshold, score_weighted=rules.score_weighted, no_target_rule=rules.no_target_rule
    )
    scored = score_queries(outputs, settings)
    count = scored.scores.shape[1]
    positions = rank_tokens(inner["text"], token_mask, count) if rules.by_token else jnp.full(scored.scores.shape, -1)
    looked = _Looked(
        point_map=outputs.point_map,
        attention=inner["attention"],
        positions=positions,
        boxes_xyxy=scored.boxes_xyxy,
        scores=scored.scores,
    )
    return postprocess(outputs, settings, decision=decision), looked


def _same(one: Any, other: Any) -> bool:
    paths = isinstance(one, str | Path) and isinstance(other, str | Path)
    return str(one) == str(other) if paths else one is other


def checkpoint_directory(
    source: str | Path | None, *, tokenizer: Path | None = None, config: Config | None = None
) -> Path:
    """The checkpoint directory of a `source` of `Predictor.from_pretrained`, downloaded and converted first where needed.

    `tokenizer` and `config` are those of `convert.hub.local_checkpoint`. The converter is imported only for what is not a
    checkpoint already. Raises InputError where there is no such source.
    """
    if source is None or (source == BUILT_IN and not Path(source).exists()):
        if not DEMO_CHECKPOINT.is_dir():
            raise InputError("this installation lacks the built-in model; expected a checkpoint")
        return DEMO_CHECKPOINT
    if not isinstance(source, str | Path):
        raise InputError(f"the checkpoint is {source!r:.80}; expected a path or a name")
    if checkpoint.is_checkpoint(source):
        return checkpoint.find_checkpoint(source)
    from convert.hub import local_checkpoint

    return local_checkpoint(source, tokenizer=tokenizer, config=config)


@contextmanager
def _device_errors(size: int) -> Iterator[None]:
    """Turns an out-of-memory error of the device into an InputError that says what to change."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_device_memory(error):
            raise
        advice = f"use a batch size below {size}" if size > 1 else "use a smaller model or another device"
        raise InputError(
            f"the device is out of memory for {size} picture{'s' * (size > 1)} at a time; {advice} ({first_line(error)})"
        ) from error
