"""InstanceVG in plain torch modules, as a peer for `benchmarks.vs_torch` and `benchmarks.accelerator`. Imports torch, not JAX.

The computation is the original's with all drop rates at 0: attention by two batched products and a softmax as in torchscale 0.3,
deformable attention by `grid_sample` as in mmcv's CPU path, matching by scipy on the host. Modules are named as in
`instancevg_jax.models`, so that `load` can copy parameters by name.
"""

import importlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

torch: Any = importlib.import_module("torch")
nn: Any = torch.nn
F: Any = torch.nn.functional

EPS = 1e-6  # of GIoU


def heads_first(x: Any, heads: int) -> Any:
    """[B, L, C] -> [B, N, L, c]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


class Expert(nn.Module):
    """One kind of token's weights in a block of BEiT-3."""

    def __init__(self, width: int, mlp_dim: int):
        super().__init__()
        for name in ("attention_norm", "attention_inner_norm", "mlp_norm"):
            setattr(self, name, nn.LayerNorm(width))
        for name in ("query", "key", "value", "out"):
            setattr(self, name, nn.Linear(width, width))
        self.fc1, self.mlp_inner_norm, self.fc2 = (
            nn.Linear(width, mlp_dim),
            nn.LayerNorm(mlp_dim),
            nn.Linear(mlp_dim, width),
        )

    def qkv(self, x: Any) -> list[Any]:
        """Queries, keys and values of the normalized tokens."""
        x = self.attention_norm(x)
        return [self.query(x), self.key(x), self.value(x)]

    def mlp(self, x: Any) -> Any:
        """The second residual branch."""
        return self.fc2(self.mlp_inner_norm(F.gelu(self.fc1(self.mlp_norm(x)))))


class Block(nn.Module):
    """Joint attention of image and text tokens with separate weights."""

    def __init__(self, width: int, mlp_dim: int, heads: int):
        super().__init__()
        self.vision, self.text, self.heads = Expert(width, mlp_dim), Expert(width, mlp_dim), heads

    def forward(self, vision: Any, text: Any, padding: Any) -> tuple[Any, Any]:
        """`padding` [B, S]: True where a key is ignored."""
        pairs = zip(self.vision.qkv(vision), self.text.qkv(text), strict=True)
        query, key, value = (heads_first(torch.cat(pair, 1), self.heads) for pair in pairs)
        logits = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
        weights = logits.masked_fill(padding[:, None, None], -math.inf).softmax(-1)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        split = vision.shape[1]
        vision = vision + self.vision.out(self.vision.attention_inner_norm(attended[:, :split]))
        text = text + self.text.out(self.text.attention_inner_norm(attended[:, split:]))
        return vision + self.vision.mlp(vision), text + self.text.mlp(text)


class BEiT3(nn.Module):
    """The backbone."""

    def __init__(self, config: Any):
        super().__init__()
        width, patch = config.width, config.patch_size
        patches = (config.image_height // patch) * (config.image_width // patch)
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.text_embed = nn.Embedding(config.vocab_size, width)
        self.vision_positions = nn.Parameter(torch.zeros(3 + patches, width))
        self.text_positions = nn.Parameter(torch.zeros(config.max_text_positions, width))
        self.blocks = nn.ModuleList([Block(width, config.mlp_dim, config.num_heads) for _ in range(config.depth)])
        self.vision_norm, self.text_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, images: Any, ids: Any, token_mask: Any) -> tuple[Any, Any]:
        """Patches and words."""
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        vision = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1) + self.vision_positions[2:]
        text = (self.text_embed(ids) + self.text_positions[2 : 2 + ids.shape[1]]) * token_mask[..., None]
        padding = torch.cat([torch.zeros_like(vision[..., 0], dtype=torch.bool), ~token_mask], 1)
        for block in self.blocks:
            vision, text = block(vision, text, padding)
        return self.vision_norm(vision)[:, 1:], self.text_norm(text)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, h, w]."""

    def forward(self, x: Any) -> Any:
        """The same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Level(nn.Module):
    """One level of the pyramid."""

    def __init__(self, inward: int, width: int):
        super().__init__()
        self.lateral, self.lateral_norm = nn.Conv2d(inward, width, 1, bias=False), ChannelNorm(width, eps=1e-5)
        self.conv, self.conv_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), ChannelNorm(width, eps=1e-5)

    def forward(self, x: Any) -> Any:
        """[B, C, h, w]."""
        return self.conv_norm(self.conv(self.lateral_norm(self.lateral(x))))


class Pyramid(nn.Module):
    """Four levels from a single map."""

    def __init__(self, width: int):
        super().__init__()
        self.up4_first, self.up4_norm = nn.ConvTranspose2d(width, width // 2, 2, 2), ChannelNorm(width // 2, eps=1e-5)
        self.up4_second = nn.ConvTranspose2d(width // 2, width // 4, 2, 2)
        self.up2 = nn.ConvTranspose2d(width, width // 2, 2, 2)
        self.levels = nn.ModuleList([Level(inward, width) for inward in (width // 4, width // 2, width, width)])

    def forward(self, x: Any) -> list[Any]:
        """From fine to coarse."""
        inputs = (self.up4_second(F.gelu(self.up4_norm(self.up4_first(x)))), self.up2(x), x, F.max_pool2d(x, 2, 2))
        return [level(y) for level, y in zip(self.levels, inputs, strict=True)]


class Stage(nn.Module):
    """One stage of the U-Net."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, coarse: Any, fine: Any) -> Any:
        """At the finer map's size."""
        x = torch.cat([F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=True), fine], 1)
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class UNet(nn.Module):
    """From the coarsest level to the finest."""

    def __init__(self, width: int):
        super().__init__()
        self.stages = nn.ModuleList([Stage(width) for _ in range(3)])

    def forward(self, pyramid: Sequence[Any]) -> Any:
        """Pixel features [B, C, H, W]."""
        *finer, x = pyramid
        for stage, level in zip(self.stages, reversed(finer), strict=True):
            x = stage(x, level)
        return x


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])

    def forward(self, x: Any) -> Any:
        """[..., widths[0]] -> [..., widths[-1]]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Attention(nn.Module):
    """Multi-head attention that also returns its mean weights."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.in_proj, self.out_proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, *inputs: Any) -> tuple[Any, Any]:
        """Query, key and value [B, L, C] -> output, weights [B, Q, S]."""
        weights, biases = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        projected = (F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        query, key, value = (heads_first(x, self.heads) for x in projected)
        weights = ((query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)).softmax(-1)
        return self.out_proj((weights @ value).transpose(1, 2).flatten(2)), weights.mean(1)


class FeedForward(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Any) -> Any:
        """The same shape."""
        return self.fc2(F.relu(self.fc1(x)))


class TextToImage(nn.Module):
    """Words look at patches."""

    def __init__(self, config: Any):
        super().__init__()
        width = config.head_width
        self.self_attention, self.cross_attention = (Attention(width, config.decoder_heads) for _ in range(2))
        self.mlp = FeedForward(width, config.query_mlp_dim)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.final_norm = nn.LayerNorm(width)

    def forward(self, words: Any, image: Any, positions: Any) -> tuple[Any, Any]:
        """The words after looking, and where each looked."""
        content = self.norms[0](self.self_attention(words, words, torch.zeros_like(words))[0])
        looked, attention = self.cross_attention(content + words, image + positions, image)
        content = self.norms[1](content + looked)
        return self.final_norm(self.norms[2](content + self.mlp(content))), attention


def sine_positions(height: int, width: int, channels: int) -> Any:
    """DETR's normalized sine positions [h * w, C]."""
    halves = []
    for axis, size in enumerate((height, width)):
        count = torch.arange(1, size + 1) / (size + 1e-6) * 2 * math.pi
        frequency = 10000 ** (2 * (torch.arange(channels // 2) // 2) / (channels // 2))
        phase = count[:, None] / frequency
        encoded = torch.stack([phase[:, 0::2].sin(), phase[:, 1::2].cos()], -1).flatten(1)
        shape = (height, 1, -1) if axis == 0 else (1, width, -1)
        halves.append(encoded.reshape(shape).expand(height, width, -1))
    return torch.cat(halves, -1).reshape(height * width, channels)


class Queries(nn.Module):
    """From words and patches to instance queries."""

    def __init__(self, config: Any):
        super().__init__()
        width, patch = config.head_width, config.patch_size
        self.config, self.grid = config, (config.image_height // patch, config.image_width // patch)
        self.text_to_image = TextToImage(config)
        self.mlp = MLP(2 * width, width, width, width)
        self.register_buffer("positions", sine_positions(*self.grid, width), persistent=False)
        ys, xs = np.divmod(np.arange(math.prod(self.grid)), self.grid[1])
        distances = np.hypot(ys[:, None] - ys, xs[:, None] - xs).astype(np.float32)
        self.register_buffer("distances", torch.from_numpy(distances), persistent=False)

    def forward(self, text: Any, token_mask: Any, image: Any) -> tuple[Any, Any, Any]:
        """Queries [B, Q, C], points [B, Q, 2], point map [B, h, w]."""
        count, (height, width) = self.config.num_queries, self.grid
        scores = (text * token_mask[..., None]).mean(-1).masked_fill(~token_mask, -math.inf)
        enough = token_mask.sum(-1, keepdim=True) >= count
        index = torch.where(enough, scores.topk(count, 1).indices, torch.arange(count, device=text.device))
        words = (text * token_mask[..., None]).gather(1, index[..., None].expand(-1, -1, text.shape[-1]))
        looked, attention = self.text_to_image(words, image, self.positions.to(image.dtype))
        pooled = attention.masked_fill(~token_mask.gather(1, index)[..., None], -math.inf).amax(1)
        chosen = self.select(pooled.detach().float().sigmoid(), count, math.hypot(height, width))
        at_points = image.gather(1, chosen[..., None].expand(-1, -1, image.shape[-1]))
        points = torch.stack([(chosen % width + 0.5) / width, (chosen // width + 0.5) / height], -1)
        return self.mlp(torch.cat([looked, at_points], -1)), points, pooled.reshape(-1, height, width)

    def select(self, scores: Any, count: int, diagonal: float) -> Any:
        """Greedy choice by score and distance to the points chosen before."""
        chosen = [scores.argmax(-1)]
        free = torch.ones_like(scores, dtype=torch.bool).scatter(1, chosen[0][:, None], False)
        nearest = self.distances[chosen[0]]
        for _ in range(count - 1):
            bonus = self.config.point_distance_weight * nearest / diagonal
            chosen.append((scores + bonus).masked_fill(~free, -math.inf).argmax(-1))
            free = free.scatter(1, chosen[-1][:, None], False)
            nearest = torch.minimum(nearest, self.distances[chosen[-1]])
        return torch.stack(chosen, 1)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention by `grid_sample`."""

    def __init__(self, config: Any):
        super().__init__()
        width, self.heads, self.points = config.head_width, config.decoder_heads, config.decoder_points
        samples = self.heads * 4 * self.points
        self.sampling_offsets, self.attention_weights = nn.Linear(width, 2 * samples), nn.Linear(width, samples)
        self.value_proj, self.output_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, query: Any, memory: Any, shapes: Sequence[tuple[int, int]], references: Any) -> Any:
        """`references` [B, Q, 2]."""
        batch, queries, width = query.shape
        values = self.value_proj(memory).reshape(batch, -1, self.heads, width // self.heads)
        offsets = self.sampling_offsets(query).reshape(batch, queries, self.heads, 4, self.points, 2)
        weights = self.attention_weights(query).reshape(batch, queries, self.heads, -1).softmax(-1)
        sizes = torch.tensor([(w, h) for h, w in shapes], dtype=query.dtype, device=query.device)
        grids = 2 * (references[:, :, None, None, None] + offsets / sizes[:, None]) - 1
        sampled = []
        for level, value in enumerate(values.split([h * w for h, w in shapes], 1)):
            maps = value.permute(0, 2, 3, 1).reshape(batch * self.heads, -1, *shapes[level])
            grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1).to(maps.dtype)
            sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
        weights = weights.transpose(1, 2).reshape(batch * self.heads, 1, queries, -1)
        out = (torch.cat(sampled, -1) * weights).sum(-1).reshape(batch, width, queries)
        return self.output_proj(out.transpose(1, 2))


class DecoderLayer(nn.Module):
    """Queries among themselves, then the pyramid, then an MLP."""

    def __init__(self, config: Any):
        super().__init__()
        self.self_attention = Attention(config.head_width, config.decoder_heads)
        self.cross_attention = DeformableAttention(config)
        self.mlp = FeedForward(config.head_width, config.decoder_mlp_dim)
        self.norms = nn.ModuleList([nn.LayerNorm(config.head_width) for _ in range(3)])

    def forward(self, x: Any, positions: Any, *memory: Any) -> Any:
        """[B, Q, C]."""
        at = x + positions
        x = self.norms[0](x + self.self_attention(at, at, x)[0])
        x = self.norms[1](x + self.cross_attention(x + positions, *memory))
        return self.norms[2](x + self.mlp(x))


class Decoder(nn.Module):
    """K layers over the pyramid."""

    def __init__(self, config: Any):
        super().__init__()
        self.reference_points = nn.Linear(config.head_width, 2)
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.decoder_layers)])

    def forward(self, x: Any, positions: Any, points: Any, pyramid: Sequence[Any]) -> tuple[Any, Any]:
        """States [K, B, Q, C] and references [B, Q, 2]."""
        references = self.reference_points(positions).sigmoid() + points
        shapes = [tuple(level.shape[2:]) for level in pyramid]
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], 1)
        states = []
        for layer in self.layers:
            x = layer(x, positions, memory, shapes, references)
            states.append(x)
        return torch.stack(states), references


class Peer(nn.Module):
    """The whole network. `config`: anything with the fields of ModelConfig."""

    def __init__(self, config: Any):
        super().__init__()
        width = config.head_width
        self.backbone = BEiT3(config)
        self.image_proj, self.text_proj = (nn.Linear(config.width, width, bias=False) for _ in range(2))
        self.pyramid, self.mask_decoder, self.queries = Pyramid(width), UNet(width), Queries(config)
        self.query_positions, self.decoder = nn.Linear(2, width), Decoder(config)
        self.class_head, self.box_head = nn.Linear(width, 2), MLP(width, width, width, 4)
        self.global_mask_head, self.existence_head = nn.Conv2d(width, 1, 1), MLP(width, width, width, 2)

    def forward(self, images: Any, ids: Any, token_mask: Any) -> dict[str, Any]:
        """`images` [B, 3, H, W]. The fields of `Outputs`, in float32."""
        patches, words = self.backbone(images, ids, token_mask)
        image, text = self.image_proj(patches), self.text_proj(words)
        queries, points, point_map = self.queries(text, token_mask, image)
        pyramid = self.pyramid(image.transpose(1, 2).reshape(len(images), -1, *self.queries.grid))
        states, references = self.decoder(queries, self.query_positions(points), points, pyramid)
        pixels = self.mask_decoder(pyramid)
        size = images.shape[2:]
        masks = torch.einsum("bqc,bchw->bqhw", states[-1], pixels).float()
        mask = self.global_mask_head(pixels).float()
        offsets = self.box_head(states).float()
        clipped = references.float().clamp(0, 1)
        inverse = (clipped.clamp(min=1e-3) / (1 - clipped).clamp(min=1e-3)).log()
        return {
            "class_logits": self.class_head(states).float(),
            "boxes": torch.cat([offsets[..., :2] + inverse, offsets[..., 2:]], -1).sigmoid(),
            "mask_logits": F.interpolate(masks, size, mode="bilinear", align_corners=True),
            "global_mask_logits": F.interpolate(mask, size, mode="bilinear", align_corners=True)[:, 0],
            "existence_logits": self.existence_head(pixels.flatten(2).transpose(1, 2)).float().mean(1),
            "points": points,
            "point_map": point_map.float(),
        }


def load(peer: Any, params: Mapping[str, np.ndarray]) -> None:
    """Copy parameters and BatchNorm statistics, named by their paths in our tree ("class_head/kernel")."""
    names = {
        "kernel": "weight",
        "scale": "weight",
        "embedding": "weight",
        "mean": "running_mean",
        "variance": "running_var",
    }
    state = peer.state_dict()
    given = {}
    for path, value in params.items():
        *module, last = path.split("/")
        key = ".".join([*module, names.get(last, last)])
        given[key] = torch.from_numpy(_layout(value, tuple(state[key].shape), last))
    left = {key for key in state if key not in given and not key.endswith("num_batches_tracked")}
    if left:
        raise ValueError(f"no values for {sorted(left)}")
    peer.load_state_dict(given, strict=False)


def _layout(value: np.ndarray, shape: tuple[int, ...], last: str) -> np.ndarray:
    """From our layout to torch's."""
    if last != "kernel":
        return np.array(value)
    if value.ndim == 4:
        return np.array(value.transpose(3, 2, 0, 1) if value.shape[0] == 3 else value.transpose(0, 3, 1, 2))
    if len(shape) == 4 and shape[2] > 1:  # the patch embedding, rows in the order y, x, channel
        return np.array(value.reshape(shape[2], shape[3], 3, -1).transpose(3, 2, 0, 1))
    return np.array(value.T.reshape(shape))


def decide(outputs: Mapping[str, Any], config: Any) -> tuple[Any, Any, Any]:
    """Post-processing: scores, which queries count, and the merged mask. `config`: an EvalConfig at its defaults."""
    scores = outputs["class_logits"][-1].softmax(-1)[..., 0] * outputs["existence_logits"][:, :1].sigmoid()
    keep = scores > config.score_threshold
    own = (outputs["mask_logits"].sigmoid() >= config.mask_threshold) & keep[..., None, None]
    return scores, keep, own.any(1) | (outputs["global_mask_logits"].sigmoid() >= config.mask_threshold)


def corners(boxes: Any) -> Any:
    """cxcywh -> xyxy."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def giou(a: Any, b: Any) -> Any:
    """Generalized IoU of boxes xyxy that broadcast against each other."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return overlap / (union + EPS) - (hull - union) / (hull + EPS)


def dice(logits: Any, target: Any) -> Any:
    """Dice loss of each mask."""
    p, t = logits.sigmoid().flatten(-2), target.flatten(-2)
    return 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)


def bce(logits: Any, target: Any) -> Any:
    """Binary cross entropy of each mask."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(-2).mean(-1)


def match(outputs: Mapping[str, Any], layer: int, example: int, wanted: Any, config: Any) -> tuple[Any, Any]:
    """Queries and targets of the cheapest assignment, by scipy on the host."""
    boxes, points = outputs["boxes"][layer, example].detach(), outputs["points"][example]
    probability = outputs["class_logits"][layer, example].detach().softmax(-1)[:, :1]
    cost = config.cost_boxes * torch.cdist(boxes, wanted, p=1) - config.cost_class * probability
    cost = cost - config.cost_giou * giou(corners(boxes)[:, None], corners(wanted)[None])
    cost = cost + config.cost_point * torch.cdist(points, wanted[:, :2], p=1)
    return tuple(torch.as_tensor(x, device=boxes.device) for x in linear_sum_assignment(cost.cpu().numpy()))


def loss(outputs: Mapping[str, Any], targets: Mapping[str, Any], config: Any) -> Any:
    """The training loss. `targets`: boxes [B, T, 4], valid [B, T], masks [B, T, H, W] and mask [B, H, W] in float32."""
    layers, batch, queries, _ = outputs["boxes"].shape
    wanted = [targets["boxes"][b][targets["valid"][b]] for b in range(batch)]
    number = max(sum(map(len, wanted)), 1)
    detection = 0.0
    matched = torch.zeros(batch, queries, dtype=torch.bool, device=outputs["boxes"].device)
    own = torch.zeros_like(outputs["mask_logits"])
    for layer in range(layers):
        last = layer == layers - 1
        classes = torch.ones(batch, queries, dtype=torch.long, device=matched.device)
        l1 = overlap = 0.0
        for b in range(batch):
            query, target = match(outputs, layer, b, wanted[b], config)
            classes[b, query] = 0
            boxes = outputs["boxes"][layer, b, query]
            l1 = l1 + (boxes - wanted[b][target]).abs().sum()
            overlap = overlap + (1 - giou(corners(boxes), corners(wanted[b][target]))).sum()
            if last:
                matched[b, query] = True
                own[b, query] = targets["masks"][b][targets["valid"][b]][target]
        weight = torch.tensor([1.0, config.no_object_weight], device=matched.device)
        entropy = F.cross_entropy(outputs["class_logits"][layer].flatten(0, 1), classes.flatten(), weight)
        factors = (config.class_weight, config.boxes_weight, config.giou_weight) if last else (1.0, 1.0, 1.0)
        detection = detection + factors[0] * entropy + (factors[1] * l1 + factors[2] * overlap) / number
    return (
        config.detection * detection
        + _mask_losses(outputs, targets, own, matched, config)
        + _existence(outputs, targets, config)
    )


def _mask_losses(outputs: Mapping[str, Any], targets: Mapping[str, Any], own: Any, matched: Any, config: Any) -> Any:
    def both(logits: Any, target: Any) -> Any:
        return config.dice * dice(logits, target) + config.bce * bce(logits, target)

    each = both(outputs["mask_logits"], own)
    total = both(outputs["global_mask_logits"], targets["mask"]).mean()
    coarse = F.interpolate(targets["mask"][:, None], outputs["point_map"].shape[1:], mode="nearest")[:, 0]
    total = total + config.point_map * both(outputs["point_map"], coarse).mean()
    for chosen, weight in ((matched, 1.0), (~matched, config.negative_masks)):
        if chosen.any():
            total = total + weight * each[chosen].mean()
    return total


def _existence(outputs: Mapping[str, Any], targets: Mapping[str, Any], config: Any) -> Any:
    empty = (~targets["valid"].any(-1)).long()
    weight = torch.tensor(config.no_target_class_weights, device=empty.device)
    return config.no_target * F.cross_entropy(outputs["existence_logits"], empty, weight)


def optimizer(peer: Any, config: Any) -> Any:
    """Adam with AMSGrad; the backbone learns at a fraction of the rate."""
    inside = [p for name, p in peer.named_parameters() if name.startswith("backbone.")]
    outside = [p for name, p in peer.named_parameters() if not name.startswith("backbone.")]
    groups = [{"params": inside, "lr": config.learning_rate * config.backbone_scale}, {"params": outside}]
    return torch.optim.Adam(
        groups, lr=config.learning_rate, betas=(config.b1, config.b2), eps=config.eps, amsgrad=config.amsgrad
    )
