"""Text to train small language models on: the project's own documentation and sources, as tokens.

Files of the checkout in the order of their paths, cut at line ends into blocks; every sixteenth block is held out.
A byte-level BPE is learnt from the other blocks. The same checkout gives the same tokens.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
FILES = ("README.md", "CHANGELOG.md", "docs/*.md", "src/**/*.py")
BLOCK_BYTES = 4096
"""A block ends at the first line end after so many bytes."""
HELD_OUT_EVERY = 16


@dataclass(frozen=True)
class Text:
    """Tokens to train on and tokens held out."""

    train: Tensor
    held_out: Tensor
    token_bytes: Tensor
    """Per token of the vocabulary, its length in bytes."""
    digest: str
    """Hash of all tokens: results of another text are not comparable."""

    def batches(self, *, context: int, size: int, seed: int) -> Iterator[Tensor]:
        """Windows of the training text from random places, (size, context), without end."""
        draw = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(self.train) - context + 1, (size, 1), generator=draw)
            yield self.train[starts + torch.arange(context)]

    def prompt(self, length: int, count: int) -> Tensor:
        """The first tokens of ``count`` parts of the held-out text, (count, length)."""
        return self.held_out[: len(self.held_out) // count * count].view(count, -1)[:, :length].clone()


def read_text(words: int, root: Path = ROOT) -> Text:
    """The text of the checkout at ``root``, in tokens of a vocabulary of ``words``."""
    parts: tuple[list[str], list[str]] = ([], [])
    for index, block in enumerate(blocks(root)):
        parts[index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1].append(block)
    tokenizer = learnt_tokenizer(parts[0], words)
    train, held_out = (torch.tensor(tokenizer.encode("".join(part)).ids) for part in parts)
    digest = hashlib.sha256(train.numpy().tobytes() + held_out.numpy().tobytes()).hexdigest()[:16]
    # in a byte-level vocabulary each character stands for one byte
    lengths = [len(tokenizer.id_to_token(token) or "") for token in range(tokenizer.get_vocab_size())]
    return Text(train, held_out, torch.tensor(lengths), digest)


def blocks(root: Path) -> Iterator[str]:
    """Whole lines of all files, about ``BLOCK_BYTES`` at a time."""
    block, size = [], 0
    for path in sorted({path for pattern in FILES for path in root.glob(pattern)}):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            block.append(line)
            size += len(line.encode())
            if size >= BLOCK_BYTES:
                yield "".join(block)
                block, size = [], 0
    yield "".join(block)


def learnt_tokenizer(texts: list[str], words: int) -> Tokenizer:
    """A byte-level BPE with a vocabulary of ``words``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=words, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@torch.no_grad()
def held_out_loss(model: nn.Module, text: Text, context: int, size: int = 32) -> dict[str, float]:
    """Mean loss of every held-out token but the first, in nats per token and in bits per byte of what it stands for.

    Windows overlap by one token, so that each token is predicted once; the rest that fills no window is left out.
    """
    model.eval()
    windows = text.held_out.unfold(0, context, context - 1)
    nats = 0.0
    for tokens in windows.split(size):
        logits = model(tokens).logits[:, :-1]
        nats += float(F.cross_entropy(logits.flatten(0, 1).double(), tokens[:, 1:].flatten(), reduction="sum"))
    predicted = windows[:, 1:]
    total = int(text.token_bytes[predicted].sum())
    return {"loss": nats / predicted.numel(), "bits_per_byte": nats / math.log(2) / total, "held_out_bytes": total}
