"""Pictures of the report: learning curves, drawn from what the run itself logged."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from mc2.benchmarks.result_files import RESULTS
from mc2.benchmarks.results import MEAN, read_results

Curve = list[tuple[int, float]]
LOSS, LOGIT_SCALE, LANGUAGES = "train/loss", "train/logit_scale", "languages/"
TASK_TITLES = {"emoji_held_out": "held-out emoji", "emoji_plain": "plain emoji (trained)", "flags": "flags"}


def logged_curves(run: Path) -> dict[str, Curve]:
    """tag -> (step, value) of the TensorBoard events of a run. Where a resumed run logged a step again, its later value counts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: sorted({event.step: event.value for event in events.Scalars(tag)}.items()) for tag in events.Tags()["scalars"]}


def accuracy_curves(run: Path) -> dict[str, Curve]:
    """task -> (step, mean top-1 over its languages) from the results files of a run."""
    curves: dict[str, Curve] = {}
    for path in run.glob(f"results/step=*/{RESULTS}"):
        step = int(path.parent.name.removeprefix("step="))
        for row in read_results(path):
            if row.language == MEAN and row.metric == "top1":
                curves.setdefault(row.task, []).append((step, row.value))
    return {task: sorted(curve) for task, curve in curves.items()}


def draw_learning_curves(run: Path) -> bytes:
    """A PNG: loss and logit scale, top-1 of each task, and the mix of languages that the loader drew."""
    logged, accuracy = logged_curves(run), accuracy_curves(run)
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    loss_axes, accuracy_axes, mix_axes = figure.subplots(1, 3)
    loss_axes.plot(*zip(*logged.get(LOSS, [(0, 0.0)]), strict=True), color="tab:blue")
    loss_axes.set(title="training loss", xlabel="step", ylabel="nats per pair")
    scale_axes = loss_axes.twinx()
    scale_axes.plot(*zip(*logged.get(LOGIT_SCALE, [(0, 0.0)]), strict=True), color="tab:gray", linestyle=":")
    scale_axes.set_ylabel("logit scale (dotted)", color="tab:gray")
    for task, curve in accuracy.items():
        steps, values = zip(*curve, strict=True)
        accuracy_axes.plot(steps, [100 * value for value in values], marker="o", label=TASK_TITLES.get(task, task))
    accuracy_axes.set(title="zero-shot top-1, mean over languages", xlabel="step", ylabel="%", ylim=(0, None))
    accuracy_axes.legend(frameon=False)
    draw_mix(mix_axes, {tag.removeprefix(LANGUAGES): curve for tag, curve in logged.items() if tag.startswith(LANGUAGES)})
    for axes in (loss_axes, accuracy_axes, mix_axes):
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_mix(axes: object, curves: Mapping[str, Curve], shown: int = 20) -> None:
    """Bars: the share of each language in the batches of the whole run."""
    shares = {code: sum(value for _, value in curve) / len(curve) for code, curve in curves.items() if curve}
    codes = sorted(shares, key=lambda code: -shares[code])[:shown]
    axes.bar(codes, [100 * shares[code] for code in codes], color="tab:orange")  # type: ignore[attr-defined]
    axes.set(title=f"languages in the batches ({len(shares)} in all)", ylabel="% of captions")  # type: ignore[attr-defined]
    axes.tick_params(axis="x", labelrotation=90)  # type: ignore[attr-defined]
