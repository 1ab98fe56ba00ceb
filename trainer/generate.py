"""Text from a trained model: seeded sampling, or the likeliest token each time.

No key/value cache: it recomputes the whole sequence per token, which a demo line of some tens of tokens does not feel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gristmill.core.errors import UsageError
from gristmill.trainer.model import Decoder
from gristmill.trainer.schema import Generate

if TYPE_CHECKING:
    from tokenizers import Tokenizer


COLDEST = 1e-4  # below it logits / temperature overflow; the likeliest token is what such a temperature means


@torch.no_grad()
def generate(model: Decoder, ids: list[int], tokens: int, temperature: float, seed: int, eos: int | None) -> list[int]:
    """Up to `tokens` new ids after `ids` (at least one id), ended by `eos`, which is left out.

    Sampling draws from a CPU generator seeded with `seed`, so the same model gives the same ids. The context is the
    last `max_seq_len` ids.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    out = list(ids)
    for _ in range(tokens):
        context_1T = torch.tensor([out[-model.max_seq_len :]], device=device)
        logits_V = model(context_1T)[0, -1].float().cpu()
        if temperature < COLDEST:
            token = int(logits_V.argmax())
        else:
            token = int(torch.multinomial(torch.softmax(logits_V / temperature, 0), 1, generator=generator))
        if token == eos:
            break
        out.append(token)
    return out[len(ids) :]


def write_text(model: Decoder, tokenizer: Tokenizer, settings: Generate, special_ids: dict[str, int]) -> str:
    """The prompt and its continuation. An empty prompt starts a document: at bos, or at eos where there is no bos."""
    ids = tokenizer.encode(settings.prompt, add_special_tokens=False).ids
    eos = special_ids.get("eos")
    if not ids:
        first = special_ids.get("bos", eos)
        if first is None:
            raise UsageError("nothing to start from: the prompt is empty and there is no bos or eos id")
        ids = [first]
    new = generate(model, ids, settings.tokens, settings.temperature, settings.seed, eos)
    return settings.prompt + str(tokenizer.decode(new))
