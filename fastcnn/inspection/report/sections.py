"""The parts of a report that are text, tables and drawings; every string from the model or the data is escaped."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

import numba
import numpy as np
import sklearn

from fastcnn import __version__
from fastcnn.inspection.diagram import draw
from fastcnn.inspection.displays.curves import best_epoch, training_scores
from fastcnn.inspection.displays.maps import convolutions, kind_at
from fastcnn.inspection.report.charts import Line, line_chart
from fastcnn.inspection.report.evidence import Evidence
from fastcnn.inspection.report.png import colored, data_uri
from fastcnn.inspection.summary import Summary, bytes_text, shape_text

__all__ = ["classes", "confusion", "facts", "filters", "learning", "lede", "mistakes", "network", "picker", "run"]

_MOST_CLASSES = 20  # in a confusion matrix
_MOST_FILTERS, _MOST_CHANNELS = 64, 16


def cells(tag: str, values: Iterable[str], css: str = "") -> str:
    """Table cells of escaped text."""
    return "".join(f"<{tag}{css}>{escape(value)}</{tag}>" for value in values)


def scrolling(name: str, html: str) -> str:
    """What may be wider than the page, within a box that scrolls, by keys too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{html}</div>'


def lede(clf: Any, evidence: Evidence) -> str:
    """The model in one sentence."""
    height, width, channels = clf.image_shape_
    kind = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    n, right = len(evidence.y), int((evidence.predicted == evidence.y).sum())
    return (
        f"A convolutional network that tells {len(evidence.names)} kinds of {height} × {width} {kind} images apart. "
        f"Of {n:,} test images it named {right:,} right."
    )


def facts(clf: Any, evidence: Evidence, summary: Summary) -> str:
    """The numbers that matter, as a list of terms."""
    seconds = sum(clf._history.epoch_seconds)
    values = [
        ("test accuracy", _percent(evidence.accuracy)),
        ("classes", f"{len(evidence.names):,}"),
        ("parameters", f"{summary.n_params:,}"),
        ("multiply-adds", f"{summary.multiply_adds / 1e6:,.2f} M"),
        ("epochs", f"{clf.n_iter_:,}"),
        ("training time", _duration(seconds) if seconds else "not known"),
    ]
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u2009%"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def picker(evidence: Evidence, chosen: Sequence[int], pictures: Sequence[str]) -> str:
    """The images to choose from: a group of radio buttons, the first one chosen."""
    buttons = []
    for number, (place, source) in enumerate(zip(chosen, pictures, strict=True)):
        right = evidence.y[place] == evidence.predicted[place]
        name, taken = evidence.names[evidence.y[place]], evidence.names[evidence.predicted[place]]
        label = f"image {place}: {name}" + ("" if right else f", taken for {taken}")
        badge = "" if right else '<b class="wrong" aria-hidden="true">≠</b>'
        buttons.append(
            f'<button type="button" role="radio" aria-checked="{str(number == 0).lower()}" '
            f'tabindex="{-1 if number else 0}" aria-label="{escape(label)}" title="{escape(label)}">'
            f'<img src="{source}" alt="" width="56" height="56">{badge}</button>'
        )
    return "".join(buttons)


def network(summary: Summary) -> str:
    """The drawing of the layers and the table below it."""
    head = cells("th", ("", "layer", "output", "parameters", "multiply-adds", "memory", "kernel"), ' scope="col"')
    rows = []
    for layer in summary.layers:
        place = "" if layer.place is None else str(layer.place)
        counts = [f"{n:,}" if n else "" for n in (layer.n_params, layer.multiply_adds)]
        memory = bytes_text(layer.memory) if layer.memory else ""
        note = f" <small>{escape(layer.note)}</small>" if layer.note else ""
        rows.append(
            f'<tr><td>{place}</td><th scope="row"><code>{escape(layer.name)}</code>{note}</th>'
            + cells("td", (shape_text(layer.output_shape), *counts, memory), ' class="n"')
            + f"<td>{escape(layer.kernel)}</td></tr>"
        )
    sums = f"{summary.n_params:,}", f"{summary.multiply_adds:,}", bytes_text(summary.memory)
    total = cells("td", ("", *sums), ' class="n"')
    foot = f'<tr><td></td><th scope="row">all</th>{total}<td></td></tr>'
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody><tfoot>{foot}</tfoot>"
    drawing, table = draw(summary), f'<table class="layers">{body}</table>'
    return scrolling("drawing of the layers", drawing) + scrolling("table of the layers", table)


def learning(clf: Any) -> str:
    """The curves of the training."""
    epochs = clf.n_iter_
    if not epochs:
        return "<p>This model was not trained here: there are no curves.</p>"
    best = best_epoch(clf)
    loss = [Line("training", clf.loss_curve_, "training")]
    if clf.validation_loss_curve_:
        loss.append(Line("validation", clf.validation_loss_curve_, "validation"))
    charts = [line_chart("Loss", loss, epochs, best)]
    score = [Line("training", scores, "training")] if (scores := training_scores(clf)) else []
    if clf.validation_scores_:
        score.append(Line("validation", clf.validation_scores_, "validation"))
    if score:
        charts.append(line_chart("Score", score, epochs, best))
    if clf.learning_rates_:
        charts.append(
            line_chart("Learning rate", [Line("last step of the epoch", clf.learning_rates_, "training")], epochs)
        )
    return f'<div class="charts">{"".join(charts)}</div>'


def confusion(evidence: Evidence) -> str:
    """The confusion matrix as a table: rows are what an image is, columns what it was taken for."""
    names, matrix, note = evidence.names, evidence.confusion, ""
    totals = matrix.sum(axis=1)
    if len(names) > _MOST_CLASSES:
        wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
        kept = np.sort(np.argsort(-wrong, kind="stable")[:_MOST_CLASSES])
        note = f"<p>The {_MOST_CLASSES} classes, of {len(names)}, that are mixed up most.</p>"
        names, matrix, totals = [names[k] for k in kept], matrix[np.ix_(kept, kept)], totals[kept]
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    rows = []
    for i, name in enumerate(names):
        total = max(int(totals[i]), 1)
        row = []
        for j, count in enumerate(matrix[i].tolist()):
            share = count / total
            css = ("hit" if i == j else "miss") + (" strong" if share > (0.55 if i == j else 0.25) else "")
            title = f"{names[i]} taken for {names[j]}: {count:,}, {share:.1%}"
            zero = "" if count else " zero"
            row.append(f'<td class="{css}{zero}" style="--p:{share:.3f}" title="{escape(title)}">{count:,}</td>')
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(row)}</tr>')
    note += '<p class="hint">Rows: what the image is. Columns: what it was taken for.</p>'
    head = f"<thead><tr><td></td>{head}</tr></thead>"
    table = f'<table class="confusion">{head}<tbody>{"".join(rows)}</tbody></table>'
    return note + scrolling("confusion matrix", table)


def classes(evidence: Evidence) -> str:
    """How well each class is found."""
    head = cells("th", ("class", "images", "precision", "recall", "F1"), ' scope="col"')
    rows = []
    for score in evidence.scores:
        numbers = "".join(
            f'<td class="n"><span class="meter" style="--p:{value:.3f}" aria-hidden="true"></span>{value:.3f}</td>'
            for value in (score.precision, score.recall, score.f1)
        )
        rows.append(f'<tr><th scope="row">{escape(score.name)}</th><td class="n">{score.n_images:,}</td>{numbers}</tr>')
    table = f'<table class="classes"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return scrolling("scores of the classes", table)


def mistakes(evidence: Evidence, chosen: Sequence[int], pictures: Sequence[str]) -> str:
    """The most confident mistakes; each is a button that chooses the image."""
    where = {int(place): number for number, place in enumerate(chosen)}
    tiles = []
    for place in evidence.mistakes.tolist():
        if place not in where:
            continue
        number, predicted = where[place], evidence.predicted[place]
        name, taken = evidence.names[evidence.y[place]], evidence.names[predicted]
        tiles.append(
            f'<li><button type="button" class="mistake" data-image="{number}"><img src="{pictures[number]}" alt="" '
            f'width="88" height="88"><span>is <b>{escape(name)}</b></span><span>taken for <b>{escape(taken)}</b>, '
            f"{_percent(evidence.proba[place, predicted])}</span></button></li>"
        )
    if not tiles:
        return "<p>There are none.</p>"
    return f'<ul class="mistakes">{"".join(tiles)}</ul>'


def filters(clf: Any) -> str:
    """The weights of every convolution, in colours."""
    parts = []
    for place, weight in convolutions(clf).items():
        r, s, channels, n = weight.shape
        limit = float(np.abs(weight).max()) or 1.0
        title = f"{escape(kind_at(clf.network_, place))} {escape(place)}"
        if channels in (1, 3):
            shown = weight[..., :_MOST_FILTERS]
            images = (0.5 + shown / (2 * limit)) * 255 if channels == 3 else colored(shown[:, :, 0], limit)
            pictures = [images[:, :, :, k].round() if channels == 3 else images[:, :, k] for k in range(shown.shape[3])]
            body = "".join(
                f'<img src="{data_uri(picture)}" alt="filter {k}" title="filter {k}">'
                for k, picture in enumerate(pictures)
            )
            body = f'<div class="filters">{body}</div>'
            note = f"{len(pictures)} of {n} filters of {r} × {s}"
        else:
            shown = weight[:, :, :_MOST_CHANNELS, :_MOST_CHANNELS]
            pixels = _matrix(shown, limit)
            size = f'style="width:{12 * pixels.shape[1]}px" alt="filters against channels"'
            body = f'<img class="matrix" src="{data_uri(pixels)}" {size}>'
            rows, columns = f"{shown.shape[3]} of {n}", f"{shown.shape[2]} of {channels}"
            note = f"a row for each filter ({rows}), a column for each channel ({columns})"
        parts.append(f'<figure class="layer-filters"><figcaption><b>{title}</b> {note}</figcaption>{body}</figure>')
    return "".join(parts) or "<p>This network has no convolutions.</p>"


def _matrix(weight: np.ndarray, limit: float) -> np.ndarray:
    """Windows (R, S, C, K) side by side, K rows and C columns, with a transparent line between them; RGBA."""
    r, s, channels, n = weight.shape
    pixels = np.zeros((n * (r + 1) - 1, channels * (s + 1) - 1, 4), np.uint8)
    for k in range(n):
        for c in range(channels):
            window = pixels[k * (r + 1) : k * (r + 1) + r, c * (s + 1) : c * (s + 1) + s]
            window[..., :3], window[..., 3] = colored(weight[:, :, c, k], limit), 255
    return pixels


def run(clf: Any, evidence: Evidence, data: str, model: str) -> str:
    """What the model and the data are, with which parameters and versions, and when."""
    given = clf.get_params(deep=False)
    defaults = type(clf)().get_params(deep=False)
    changed = {name: value for name, value in given.items() if repr(value) != repr(defaults.get(name))}
    history = clf._history
    ended = {
        "max_iter": "after the epochs that were asked for",
        "tol": "as it no longer improved",
        "callback": "as a callback asked for",
        "interrupted": "as it was interrupted",
        "diverged": "as it diverged",
    }
    rows = [
        ("model", model),
        ("test data", f"{data + ': ' if data else ''}{len(evidence.y):,} images, {len(evidence.names)} classes"),
        ("trained", f"{clf.n_iter_:,} epochs, {clf.t_:,} images; ended {ended.get(history.reason, history.reason)}"),
        ("numbers", clf.network_.dtype.name),
        (
            "versions",
            f"fastcnn {__version__}, Python {platform.python_version()}, NumPy {np.__version__}, "
            f"Numba {numba.__version__}, scikit-learn {sklearn.__version__}",
        ),
        ("machine", f"{platform.system()} {platform.machine()}"),
        ("written", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
    ]
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in rows if value)

    def table(values: dict[str, Any]) -> str:
        lines = (
            f'<tr><th scope="row"><code>{escape(name)}</code></th><td><code>{escape(_shown(value))}</code></td></tr>'
            for name, value in values.items()
        )
        return scrolling("parameters", f"<table>{''.join(lines)}</table>")

    rest = {name: value for name, value in given.items() if name not in changed}
    own = f"<h3>Parameters that are not the default</h3>{table(changed)}" if changed else ""
    return (
        f'<dl class="run">{listed}</dl>{own}<details><summary>Parameters at their defaults ({len(rest)})</summary>'
        f"{table(rest)}</details>"
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 1000 else text[:997] + "..."
