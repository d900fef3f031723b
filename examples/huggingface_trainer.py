"""Hugging Face Trainer on a tiny text task: a transformer that shrinks while it learns, and may be resumed.

python examples/huggingface_trainer.py
python examples/huggingface_trainer.py --resume   # from its checkpoint half-way: the same numbers again
"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import demp
from demp.integrations.huggingface import attach

WORDS, LENGTH = 64, 16


class Reviews(Dataset):
    """Sentences of random words, the first half of which are friendly; is most of a sentence friendly?"""

    def __init__(self, count: int, seed: int) -> None:
        self.words = torch.randint(WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
        self.friendly = ((self.words < WORDS // 2).sum(1) > LENGTH // 2).long()

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.words[index], "labels": self.friendly[index]}


def right(prediction) -> dict[str, float]:
    return {"right": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def main(steps: int, checkpoint: Path, resume: bool) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=LENGTH, hidden_act="relu",
    )  # fmt: skip
    arguments = TrainingArguments(
        str(checkpoint), max_steps=steps, per_device_train_batch_size=64, learning_rate=3e-3, save_steps=steps // 2,
        logging_steps=steps // 10, report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    train, test = Reviews(4096, seed=0), Reviews(512, seed=1)
    model = BertForSequenceClassification(config)
    trainer = Trainer(model, arguments, train_dataset=train, eval_dataset=test, compute_metrics=right)
    callback = attach(trainer, example_inputs={"input_ids": train.words[:64]}, budget=demp.Budget(flops=0.6))
    trainer.train(resume_from_checkpoint=str(checkpoint / f"checkpoint-{steps // 2}") if resume else None)
    print(callback.pruner.history[-1])
    print(f"right on {trainer.evaluate()['eval_right']:.1%} of the test sentences")
    print(demp.cost(model, {"input_ids": test.words[:1]}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/huggingface_trainer"))
    parser.add_argument("--resume", action="store_true")
    main(**vars(parser.parse_args()))
