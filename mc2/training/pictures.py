"""Images of a batch with their own captions and the captions that the model finds nearest, for TensorBoard. Shapes: N pairs that are compared, D embedding.

trainer:
  callbacks+:
    - class_path: mc2.training.pictures.Pictures
      init_args: {every_n_steps: 1000}
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import pad

from mc2.benchmarks.callbacks import evaluation_mode
from mc2.data.batch import PairBatch
from mc2.data.datamodule import ShardDataModule
from mc2.training.board import writers
from mc2.training.module import ContrastiveModule

GAP = 4  # pixels between pictures


class Pictures(Callback):
    """Every n steps the first images of rank 0's batch side by side (tab Images, pictures/images) and a table of their captions (tab Text, pictures/captions).

    num_images: pictures that are shown. num_captions: captions, their own among them, that each is compared with; at most the batch.
    """

    def __init__(self, every_n_steps: int = 1000, num_images: int = 8, num_captions: int = 256) -> None:
        if min(every_n_steps, num_images) < 1 or num_captions < num_images:
            raise ValueError(
                f"pictures: found every_n_steps {every_n_steps}, num_images {num_images}, num_captions {num_captions}; need all above 0, and at least as many captions as images"
            )
        self.every_n_steps, self.num_images, self.num_captions = every_n_steps, num_images, num_captions

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: PairBatch, batch_idx: int) -> None:  # noqa: ARG002
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by the Trainer, declared nowhere
        if (
            trainer.global_step % self.every_n_steps
            or not isinstance(pl_module, ContrastiveModule)
            or not isinstance(data, ShardDataModule)
        ):
            return
        image_BD, text_BD = self._features(trainer, pl_module, batch)  # on all ranks: under FSDP2 it is collective
        if not trainer.is_global_zero:
            return
        captions = [data.tokenizer.decode(row) for row in batch.tokens[: self.num_captions].tolist()]
        cosine = (image_BD @ text_BD.T).float().cpu()
        for writer in writers(trainer.loggers):
            writer.add_image("pictures/images", side_by_side(batch.image[: self.num_images].cpu()), trainer.global_step)
            writer.add_text("pictures/captions", caption_table(captions, batch.languages, cosine), trainer.global_step)

    def _features(self, trainer: Trainer, module: ContrastiveModule, batch: PairBatch) -> tuple[Tensor, Tensor]:
        with evaluation_mode(module), torch.no_grad(), trainer.precision_plugin.forward_context():
            return module.encode_image(batch.image[: self.num_images]), module.encode_text(batch.tokens[: self.num_captions])


def side_by_side(image_N3HW: Tensor) -> Tensor:
    """uint8 (3, H, N (W + gap))."""
    return torch.cat(list(pad(image_N3HW, (0, GAP), value=255)), dim=2)


def caption_table(captions: Sequence[str], languages: Sequence[str], cosine_NM: Tensor, nearest: int = 3) -> str:
    """A table in Markdown: for each picture, from the left, its own caption with its rank, and the nearest ones; its own is bold."""
    lines = ["| picture | its caption | rank | nearest captions |", "|---|---|---|---|"]
    order_NM = cosine_NM.argsort(dim=1, descending=True)
    for row, order in enumerate(order_NM.tolist()):
        near = ", ".join(f"**{cell(captions[i])}**" if i == row else cell(captions[i]) for i in order[:nearest])
        lines.append(f"| {row + 1} | {languages[row]} {cell(captions[row])} | {order.index(row) + 1} of {len(order)} | {near} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """A caption as part of a row: one line, nothing that Markdown would read, at most 80 characters."""
    plain = " ".join(text.split()).replace("\\", "\\\\")
    for mark in "|*_`[]<>":
        plain = plain.replace(mark, f"\\{mark}")
    return plain if len(plain) <= 80 else plain[:79] + "…"
