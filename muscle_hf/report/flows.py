"""Where the items go from the old to the new to the compatibility model, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from muscle_hf.compare.document import Flow
from muscle_hf.report import charts
from muscle_hf.report.charts import WIDTH
from muscle_hf.report.markup import Markup
from muscle_hf.report.text import one_line

# From top to bottom of a column.
_ORDER = {"right": 0, "start": 0, "improved": 0, "unchanged": 1, "wrong": 2, "regressed": 2}
_SHOWN = {"start": "items", "improved": "better", "unchanged": "same", "regressed": "worse"}
_HEIGHT, _TOP, _BAR, _GAP = 190.0, 34.0, 9.0, 14.0
# Characters of a name that fit above its column.
_NAME = 14
_COLUMNS = (52.0, WIDTH / 2 - _BAR / 2, WIDTH - 52.0 - _BAR)


class Story(NamedTuple):
    """What a way through the three models means, for the colour of its ribbon and the legend."""

    css: str
    words: str


_STORIES: dict[tuple[str, str, str], Story] = {
    ("right", "wrong", "right"): Story("repaired", "broken by {new}, repaired by {compat}"),
    ("right", "wrong", "wrong"): Story("broken", "broken by {new} and still wrong"),
    ("right", "right", "wrong"): Story("fresh", "kept by {new}, broken by {compat}"),
    ("wrong", "right", "right"): Story("gained", "gained by {new} and kept"),
    ("wrong", "right", "wrong"): Story("lost", "gained by {new}, lost again by {compat}"),
    ("wrong", "wrong", "right"): Story("gained", "gained by {compat} alone"),
    ("start", "regressed", "improved"): Story("repaired", "worse with {new}, better with {compat}"),
    ("start", "regressed", "unchanged"): Story("repaired", "worse with {new}, back to old's score with {compat}"),
    ("start", "regressed", "regressed"): Story("broken", "worse with both"),
    ("start", "unchanged", "regressed"): Story("fresh", "unchanged with {new}, worse with {compat}"),
    ("start", "improved", "regressed"): Story("fresh", "better with {new}, worse with {compat}"),
}
_QUIET = Story("still", "")


def told(flows: Sequence[Flow]) -> list[tuple[Flow, Story]]:
    """The ways that mean something, the most trodden first."""
    found = [(flow, story(flow)) for flow in flows if flow.items and story(flow).words]
    return sorted(found, key=lambda pair: -pair[0].items)


def story(flow: Flow) -> Story:
    """Colour and words of a flow; flows that nothing happens to are quiet."""
    return _STORIES.get(flow.states, _QUIET)


def picture(labels: Sequence[str], flows: Sequence[Flow]) -> Markup:
    """Ribbons from old over new to the compatibility model, as wide as they have items, under the labels of the
    three."""
    flows = [flow for flow in flows if flow.items]
    total = sum(flow.items for flow in flows)
    offsets = [_stack(flows, column, total) for column in range(3)]
    ribbons, nodes = [], []
    # Ribbons with a meaning are drawn last, over the grey mass.
    for flow in sorted(flows, key=lambda flow: story(flow) is not _QUIET):
        thickness = max(flow.items / total * _HEIGHT, 1.0)
        for column in (0, 1):
            start, end = offsets[column][flow.states], offsets[column + 1][flow.states]
            across = _COLUMNS[column] + _BAR, _COLUMNS[column + 1]
            ribbons.append((*across, start, end, thickness, story(flow).css, flow.items))
    for column, places in enumerate(offsets):
        for state in dict.fromkeys(flow.states[column] for flow in flows):
            inside = [flow for flow in flows if flow.states[column] == state]
            items, top = sum(flow.items for flow in inside), min(places[flow.states] for flow in inside)
            height = max(items / total * _HEIGHT, 1.0)
            nodes.append((column, _COLUMNS[column], top, height, _SHOWN.get(state, state), items))
    # The title has the names; cut ones can look alike.
    whole = all(len(one_line(label)) <= _NAME for label in labels)
    told = "; ".join(f"{flow.items} {' to '.join(flow.states)}" for flow in flows)
    gaps = max(len({flow.states[column] for flow in flows}) for column in range(3)) - 1 if flows else 0
    return charts.elements().flows(
        f"Flow of items over {', '.join(labels)}: {told}",
        ribbons,
        nodes,
        labels if whole else ("old", "new", "compat"),
        _TOP + _HEIGHT + gaps * _GAP + 8,
    )


def _stack(flows: Sequence[Flow], column: int, total: int) -> dict[tuple[str, str, str], float]:
    """Top edge of each flow in a column: by its state there, then by the neighbours', so that few ribbons cross."""
    neighbours = {0: (0, 1, 2), 1: (1, 0, 2), 2: (2, 1, 0)}[column]
    offsets, y, previous = {}, _TOP, None
    for flow in sorted(flows, key=lambda flow: [_ORDER[flow.states[at]] for at in neighbours]):
        if previous is not None and flow.states[column] != previous:
            y += _GAP
        previous = flow.states[column]
        offsets[flow.states] = y
        y += flow.items / total * _HEIGHT
    return offsets
