"""z-loss and Goldfish loss against their definitions, and through the loop; initial values by depth."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trainer_variants import fp64_model, packed_rows, settings  # noqa: E402

from gristmill.core.hashing import mix64  # noqa: E402
from gristmill.trainer import goldfish, loop  # noqa: E402
from gristmill.trainer.data import IGNORE, Batch, batch_of_step  # noqa: E402
from gristmill.trainer.journal import read_journal  # noqa: E402
from gristmill.trainer.model import Decoder  # noqa: E402
from gristmill.trainer.parallel.mesh import World  # noqa: E402
from gristmill.trainer.schema import Goldfish  # noqa: E402
from gristmill.trainer.startup import build_model  # noqa: E402


@pytest.mark.parametrize("name", ["llama", "softcap"])
def test_losses_equal_their_definitions(name):
    model = fp64_model(settings(name))
    tokens, labels, position = packed_rows()
    entropy, partition = summed(model, tokens, labels, position)
    want_entropy = want_partition = 0.0
    for row, label in zip(model(tokens, position).flatten(0, 1).tolist(), labels.flatten().tolist(), strict=True):
        if label != IGNORE:
            log_sum = math.log(sum(math.exp(x) for x in row))
            want_entropy += log_sum - row[label]
            want_partition += log_sum**2
    assert entropy.item() == pytest.approx(want_entropy, rel=1e-12)
    assert partition.item() == pytest.approx(want_partition, rel=1e-12)
    assert torch.equal(model.loss(tokens, labels, position), entropy)
    assert torch.equal(model.token_loss(tokens, labels, position) == 0, labels == IGNORE)


def test_z_loss_is_trained_on_but_not_in_the_reported_loss(toy, run_maker, tmp_path):
    records, partitions = {}, {}
    arrays = (torch.from_numpy(a) for a in vars(batch_of_step(toy, 1)).values())
    tokens, labels, position = arrays
    for weight in (0.0, 0.1):
        outcome = loop.train(run_maker(loss={"z_loss": weight}, max_steps=30), toy, tmp_path / str(weight))
        records[weight] = read_journal(tmp_path / str(weight) / "metrics.jsonl")
        partitions[weight] = summed(outcome.model, tokens, labels, position)[1].item()
    plain, regular = records[0.0], records[0.1]
    assert "z_loss" not in plain[0]
    assert regular[0]["loss"] == plain[0]["loss"]  # the same weights: the cross-entropy alone
    assert regular[0]["z_loss"] == pytest.approx(0.1 * math.log(97) ** 2, rel=0.05)
    assert regular[0]["grad_norm"] != plain[0]["grad_norm"]
    assert partitions[0.1] < partitions[0.0] / 2  # it draws log-partitions to 0
    assert regular[-1]["loss"] < regular[0]["loss"] - 0.3


def summed(model, tokens, labels, position):
    """Cross-entropy and squared log-partitions, each summed."""
    nll, lse = model.token_losses(tokens, labels, position)
    return nll.sum(), lse.square().sum()


def read_outcome(run, dataset, folder):
    loop.train(run, dataset, folder)
    return read_journal(folder / "metrics.jsonl")


def random_batch(seed: int, rows: int = 8, length: int = 512, vocab: int = 5000) -> Batch:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (rows, length))
    position = np.tile(np.arange(length) % 128, (rows, 1))  # four documents a row
    return Batch(tokens, np.roll(tokens, -1, 1), position)


@pytest.mark.parametrize(("k", "h"), [(4, 13), (50, 50), (3, 1)])
def test_goldfish_drops_one_label_in_k(k, h):
    batch, rule = random_batch(k, rows=64), Goldfish(k=k, h=h)
    gone = goldfish.dropped(batch.tokens_BT, batch.position_BT, rule)
    whole = batch.position_BT >= h - 1
    assert not gone[~whole].any()
    n = int(whole.sum())
    assert abs(gone.sum() / n - 1 / k) < 5 * math.sqrt((1 / k) * (1 - 1 / k) / n)  # 5 standard errors
    again = goldfish.dropped(batch.tokens_BT.copy(), batch.position_BT, rule)
    assert np.array_equal(gone, again)
    other = goldfish.dropped(batch.tokens_BT, batch.position_BT, rule.model_copy(update={"seed": 1}))
    assert not np.array_equal(gone, other)
    masked = goldfish.mask_labels(batch, rule).labels_BT
    assert np.array_equal(masked == IGNORE, gone)
    assert np.array_equal(masked[~gone], batch.labels_BT[~gone])


def test_goldfish_equals_its_definition():
    batch, rule = random_batch(2, rows=1, length=256, vocab=40), Goldfish(k=3, h=5, seed=9)
    gone = goldfish.dropped(batch.tokens_BT, batch.position_BT, rule)[0]
    for t in range(256):
        want = False
        if batch.position_BT[0, t] >= 4:
            value = sum(
                int(mix64(batch.tokens_BT[0, t - back], 9)) * pow(0x9E3779B97F4A7C15, back, 1 << 64)
                for back in range(5)
            )
            want = int(mix64(np.array([value % (1 << 64)], np.uint64), 9)[0]) < (1 << 64) // 3
        assert gone[t] == want


def test_goldfish_drops_the_same_labels_of_a_repeated_passage():
    batch, rule = random_batch(3), Goldfish(k=4, h=13)
    tokens = batch.tokens_BT.copy()
    tokens[5, 200:250] = tokens[1, 20:70]  # 200 is index 72 of its document, 20 index 20
    gone = goldfish.dropped(tokens, batch.position_BT, rule)
    assert np.array_equal(gone[5, 212:250], gone[1, 32:70])  # from the 13th token of the passage on
    assert gone[1, 32:70].any()
    changed = tokens.copy()
    changed[:, 128:256] += 1  # another document changes nothing in its neighbours
    after = goldfish.dropped(changed, batch.position_BT, rule)
    assert np.array_equal(after[:, :128], gone[:, :128])
    assert np.array_equal(after[:, 256:], gone[:, 256:])
    assert not np.array_equal(after, gone)


def test_goldfish_in_the_loop_lowers_the_valid_tokens(toy, run_maker, tmp_path):
    rule = Goldfish(k=2, h=2)
    record = read_outcome(run_maker(loss={"goldfish": {"k": 2, "h": 2}}, max_steps=1), toy, tmp_path)[0]
    batch = batch_of_step(toy, 1)
    kept = goldfish.mask_labels(batch, rule)
    assert record["valid_tokens"] == kept.valid_tokens < 0.8 * batch.valid_tokens
    model = build_model(run_maker(), toy.manifest, World(torch.device("cpu")))
    arrays = (torch.from_numpy(a) for a in (kept.tokens_BT, kept.labels_BT, kept.position_BT))
    assert record["loss"] == pytest.approx(model.loss(*arrays).item() / kept.valid_tokens, rel=1e-6)


@pytest.mark.parametrize(("rule", "scales"), [("all", [6, 6, 6]), ("layer", [2, 4, 6]), ("none", [1, 1, 1])])
def test_depth_scales_what_writes_into_the_stream(rule, scales):
    c = settings(layers=3, hidden=64, ffn=128, init_depth=rule)
    model = Decoder(c, 61, 8)
    model.init_weights(3)
    for layer, scale in enumerate(scales):
        block = model.blocks[layer]
        for matrix in (block.attention.o.weight, block.ffn.down.weight):
            want = (matrix.shape[1] * scale) ** -0.5
            assert matrix.std().item() == pytest.approx(want, rel=0.08)  # 2,048 or more draws: 5 standard errors
        assert block.ffn.up.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)


def test_a_fixed_deviation_is_used_everywhere():
    model = Decoder(settings(layers=1, hidden=64, ffn=128, init_std=0.05, init_depth="none"), 61, 8)
    model.init_weights(3)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.08), name


def test_all_features_together_train_in_bf16(toy, run_maker, tmp_path):
    model = settings("all").model_dump(mode="json")
    run = run_maker(model=model, precision="bf16", loss={"z_loss": 1e-4, "goldfish": {"k": 4}})
    records = read_outcome(run, toy, tmp_path)
    assert records[-1]["loss"] < records[0]["loss"] - 1
