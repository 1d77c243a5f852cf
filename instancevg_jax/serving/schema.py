"""The answers of the API, as the OpenAPI schema shows them."""

from typing import Annotated

from pydantic import BaseModel, Field


class Mask(BaseModel):
    """A mask in COCO's compressed run-length encoding."""

    size: Annotated[list[int], Field(description="height, width")]
    counts: str


class Heat(BaseModel):
    """The attention map that the query points are chosen from."""

    size: Annotated[list[int], Field(description="rows, columns")]
    values: Annotated[list[float], Field(description="row by row")]


class Object(BaseModel):
    """An object that the sentence refers to."""

    box_xyxy: Annotated[list[float], Field(description="x1, y1, x2, y2 in pixels of the picture")]
    score: Annotated[float, Field(description="0 to 1")]
    point_xy: Annotated[list[float], Field(description="centre of the patch that the object's query started from")]
    mask: Mask


class Result(BaseModel):
    """The answer to one sentence."""

    expression: str
    height: int
    width: int
    verdict: Annotated[str, Field(description="the answer in words")]
    exists: Annotated[bool, Field(description="whether there is any object")]
    no_target_probability: float
    objects: Annotated[list[Object], Field(description="best first")]
    mask: Annotated[Mask, Field(description="merged mask of all objects")]
    notes: Annotated[list[str], Field(description="warnings: words the model never saw, tokens that were cut off")]
    global_mask: Annotated[Mask | None, Field(description="only with all_queries")] = None
    heat: Annotated[Heat | None, Field(description="only with all_queries")] = None


class Answer(BaseModel):
    """The answers to all sentences of a request, in order."""

    height: int
    width: int
    results: list[Result]


class Example(BaseModel):
    """A picture that comes with the package, at /examples/{name}."""

    name: str
    sentence: str


class About(BaseModel):
    """What the model is."""

    description: str
    notes: Annotated[list[str], Field(description="warnings that every answer repeats")]
    score_threshold: float
    mask_merge: Annotated[str, Field(description="what a merged mask consists of: merge, global or instance")]
    max_tokens: Annotated[int, Field(description="longest sentence; the rest is cut off")]
    examples: list[Example]


class Failure(BaseModel):
    """Why a request was refused."""

    error: Annotated[str, Field(description="one sentence")]
