"""Draws docs/architecture.svg: the rooms of hpo/ and their imports.

An import that follows from others is left out.

python scripts/draw_architecture.py
"""

import ast
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hpo"
# From the top of the picture to its bottom; a row has rooms that do not import each other.
ROWS = [
    ["commands"],
    ["dashboard"],
    ["terminal"],
    ["report"],
    ["past", "analysis"],
    ["launch"],
    ["worker"],
    ["study"],
    ["space", "store"],
    ["decoder", "script"],
    ["data"],
    ["trainer"],
    ["settings"],
]
WIDTH, ROW_HEIGHT, BOX_WIDTH, BOX_HEIGHT = 760, 62, 150, 34


def imported_rooms(room: str) -> set[str]:
    """The rooms that a room imports, itself left out."""
    folder = PACKAGE / room
    files = [*folder.rglob("*.py")] if folder.is_dir() else [PACKAGE / f"{room}.py"]
    names: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hpo."):
                names.add(node.module.split(".")[1])
    return names - {room}


def direct(order: list[str]) -> dict[str, set[str]]:
    """The imports between rooms, without those that follow from others."""
    imports = {room: imported_rooms(room) & set(order) for room in order}
    below: dict[str, set[str]] = {}
    for room in reversed(order):
        below[room] = imports[room].union(*(below.get(other, set()) for other in imports[room]))
    return {
        room: imports[room] - set().union(*(below[other] for other in imports[room]))
        for room in order
    }


def places() -> dict[str, tuple[float, float]]:
    """The centre of each room's box."""
    found = {}
    for row, rooms in enumerate(ROWS):
        for index, room in enumerate(rooms):
            x = WIDTH * (index + 1) / (len(rooms) + 1)
            found[room] = (x, ROW_HEIGHT * (row + 0.5))
    return found


def picture() -> str:
    centres = places()
    height = ROW_HEIGHT * len(ROWS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="15">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    order = [room for rooms in ROWS for room in rooms]
    for room, others in direct(order).items():
        for other in sorted(others):
            parts.append(arrow(centres[room], centres[other], order.index(room)))
    for room, (x, y) in centres.items():
        left, top = x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2
        parts.append(
            f'<rect x="{left:.0f}" y="{top:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
            f'fill="#eef3fb" stroke="#34557f"/>'
        )
        parts.append(
            f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{escape(room)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def arrow(start: tuple[float, float], end: tuple[float, float], index: int) -> str:
    """A curve to the side, so that those that skip rows can be told apart."""
    (x1, y1), (x2, y2) = start, end
    rows = abs(y2 - y1) / ROW_HEIGHT
    side = 1 if index % 2 else -1
    bend = side * (BOX_WIDTH / 2 + 16 * rows) if rows > 1 else 0
    middle = (x1 + x2) / 2 + bend
    path = f"M {x1:.0f} {y1:.0f} Q {middle:.0f} {(y1 + y2) / 2:.0f} {x2:.0f} {y2:.0f}"
    return f'<path d="{path}" fill="none" stroke="#6f8fb8" stroke-width="1.5"/>'


if __name__ == "__main__":
    (ROOT / "docs" / "architecture.svg").write_text(picture(), encoding="utf-8")
