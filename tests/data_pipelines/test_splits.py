"""From a config to training batches: the curriculum of the embedded data."""

import numpy as np

from configs import shapes as shapes_config
from data_pipelines import splits
from data_pipelines.shapes import ShapesDataset


def test_curriculum_goes_from_basic_to_both_levels_by_turns():
    config = shapes_config.get_config()
    config.train.batch_size = 8
    config.data.shapes_level, config.data.shapes_curriculum = "full", 4
    tokenizer = splits.load_tokenizer(config)
    batch = next(splits.train_batches(config, tokenizer))
    levels = ["basic", "basic", "basic", "basic", "basic", "full", "basic", "full"]
    expected = [ShapesDataset("train", level).describe(i).expression for i, level in enumerate(levels)]
    tokens = [tokenizer.encode(expression, config.model.max_tokens)[0] for expression in expected]
    np.testing.assert_array_equal(np.asarray(batch.token_ids), np.stack(tokens))
