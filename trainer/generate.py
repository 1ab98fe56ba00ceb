"""Text from a model: seeded sampling, or the likeliest token each time; at the end of a run and at every checkpoint.

No key/value cache: it recomputes the whole sequence per token, which some tens of tokens do not feel. Sequences are
padded on the right to a few fixed lengths, which a causal model does not see and a compiler likes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import torch

from gristmill.core.errors import UsageError
from gristmill.trainer.model import Decoder
from gristmill.trainer.parallel.mesh import World
from gristmill.trainer.schema import Generate
from gristmill.trainer.watch_schema import Gallery

if TYPE_CHECKING:
    from tokenizers import Tokenizer


COLDEST = 1e-4  # below it logits / temperature overflow; the likeliest token is what such a temperature means
BUCKET = 32  # sequences are padded to a multiple of this: a compiled model meets few shapes
SAMPLES = "samples"


@torch.no_grad()
def generate(
    model: Decoder,
    ids: list[int],
    tokens: int,
    temperature: float,
    seed: int,
    eos: int | None,
    world: World | None = None,
) -> list[int]:
    """Up to `tokens` new ids after `ids` (at least one id), ended by `eos`, which is left out.

    Sampling draws from a CPU generator seeded with `seed`, so the same model gives the same ids and the global random
    state stays. The context is the last `max_seq_len` ids. Collective over `world`: the first rank chooses each token.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    out = list(ids)
    for _ in range(tokens):
        context = out[-model.max_seq_len :]
        width = min(-(-len(context) // BUCKET) * BUCKET, model.max_seq_len)
        context_1T = torch.tensor([context + [0] * (width - len(context))], device=device)
        logits_V = model(context_1T)[0, len(context) - 1].float().cpu()
        token = _agreed(_choose(logits_V, temperature, generator), device, world)
        if token == eos:
            break
        out.append(token)
    _settle(model, world)
    return out[len(ids) :]


def _choose(logits_V: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature < COLDEST:
        return int(logits_V.argmax())
    return int(torch.multinomial(torch.softmax(logits_V / temperature, 0), 1, generator=generator))


def _agreed(token: int, device: torch.device, world: World | None) -> int:
    """The first rank's token: ranks that end at different tokens would wait for each other for ever."""
    if world is None or world.size == 1:
        return token
    return int(world.sum(torch.tensor([token if world.leads else 0], device=device)).item())


def _settle(model: Decoder, world: World | None) -> None:
    if world is not None and world.size > 1:
        from gristmill.trainer.parallel.shard import settle

        settle(model)


def write_text(
    model: Decoder,
    tokenizer: Tokenizer,
    settings: Generate,
    special_ids: dict[str, int],
    world: World | None = None,
) -> str:
    """The prompt and its continuation. An empty prompt starts a document: at bos, or at eos where there is no bos."""
    ids = tokenizer.encode(settings.prompt, add_special_tokens=False).ids
    eos = special_ids.get("eos")
    if not ids:
        first = special_ids.get("bos", eos)
        if first is None:
            raise UsageError("nothing to start from: the prompt is empty and there is no bos or eos id")
        ids = [first]
    new = generate(model, ids, settings.tokens, settings.temperature, settings.seed, eos, world)
    return settings.prompt + str(tokenizer.decode(new))


def write_samples(
    model: Decoder,
    tokenizer: Tokenizer,
    gallery: Gallery,
    special_ids: dict[str, int],
    out: Path,
    *,
    step: int,
    phase: str,
    world: World | None = None,
) -> dict[str, Any] | None:
    """Continue every prompt and write OUT/samples/STEP.json: {"step", "phase", "samples": [{"prompt", "text"}]}.

    Collective; the first rank writes. None without prompts. A function of the weights and the settings: same bytes
    each time.
    """
    if not gallery.prompts:
        return None
    texts = []
    for prompt in gallery.prompts:
        one = Generate(prompt=prompt, tokens=gallery.tokens, temperature=gallery.temperature, seed=gallery.seed)
        text = write_text(model, tokenizer, one, special_ids, world)
        texts.append({"prompt": prompt, "text": text.encode("utf-8", "replace").decode()})
    record = {"step": step, "phase": phase, "samples": texts}
    if world is None or world.leads:
        path = sample_path(out, step)
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".part").write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2))
        path.with_suffix(".part").replace(path)
    return record


def sample_path(out: Path, step: int) -> Path:
    return out / SAMPLES / f"{step:08d}.json"


def drop_samples(out: Path, step: int) -> None:
    """Remove the samples after `step`: those of steps that a resumed run trains again."""
    for path in sorted((out / SAMPLES).glob("*.json")):
        if path.stem.isdecimal() and int(path.stem) > step:
            path.unlink()
