import math

import pytest

from gpualloc.advice.learning_rate import learning_rate_rule


def test_linear_for_sgd_with_its_limit() -> None:
    rule = learning_rate_rule("sgd", from_batch_size=256, to_batch_size=2048)
    assert rule is not None
    assert rule.factor == 8
    assert rule.text == "global batch 256 -> 2,048: learning rate x 8, warmed up over the first 5 epochs (linear scaling rule)"
    far = learning_rate_rule("sgd", from_batch_size=256, to_batch_size=16384)
    assert far is not None
    assert "shown up to 8,192 samples a step" in far.text


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adamw_fused"])
def test_square_root_for_adam(optimizer: str) -> None:
    rule = learning_rate_rule(optimizer, from_batch_size=8, to_batch_size=32)
    assert rule is not None
    assert rule.factor == math.sqrt(4)
    assert "betas 0.9, 0.999 -> 0.6, 0.996" in rule.text
    assert "2205.10287" in rule.source
    far = learning_rate_rule(optimizer, from_batch_size=8, to_batch_size=128)
    assert far is not None
    assert "betas" not in far.text  # 1 - 16 x 0.1 is below 0


def test_no_rule_is_made_up() -> None:
    rule = learning_rate_rule("adafactor", from_batch_size=8, to_batch_size=16)
    assert rule is not None
    assert (rule.factor, rule.source) == (None, "")
    assert learning_rate_rule("sgd", from_batch_size=8, to_batch_size=8) is None
