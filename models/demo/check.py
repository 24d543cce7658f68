"""Looks at a picture's pixels and says what is on it: background, and each object's color, shape, place and size.

Plain Python, so that it runs wherever the tests do. `look` never sees the prompt; `compare` holds what it saw against the
scene that the prompt means.
"""

import functools

from scenes import BACKGROUNDS, SHAPES, inside

# A pixel this far (in RGB) from the background belongs to an object. The nearest two colors are 86 apart.
OBJECT_DISTANCE = 45
SMALLEST_OBJECT = 60  # pixels
GRID = 24  # shapes are compared on a grid this wide, stretched to the object's bounding box
LEAST_OVERLAP = 0.6


@functools.lru_cache(maxsize=None)
def nearest_color(r: int, g: int, b: int) -> str:
    return min(BACKGROUNDS, key=lambda c: sum((p - q) ** 2 for p, q in zip((r, g, b), BACKGROUNDS[c])))


@functools.lru_cache(maxsize=None)
def template(shape: str) -> tuple[bool, ...]:
    """The shape, stretched to its bounding box, on the grid."""
    at = [i / 100 - 1.2 for i in range(241)]
    points = [(x, y) for x in at for y in at if inside(shape, x, y)]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    top, bottom = min(y for _, y in points), max(y for _, y in points)
    steps = [(i + 0.5) / GRID for i in range(GRID)]
    return tuple(bool(inside(shape, left + (right - left) * u, top + (bottom - top) * v)) for v in steps for u in steps)


def smooth(plane: list[int], width: int, height: int) -> list[int]:
    """Mean of 3x3 pixels, against noise; the edge repeats."""

    def pass_(values: list[int], step: int, place) -> list[int]:
        out = values[:]
        for i, value in enumerate(values):
            at, last = place(i)
            out[i] = value + (values[i - step] if at > 0 else value) + (values[i + step] if at < last else value)
        return out

    rows = pass_(plane, 1, lambda i: (i % width, width - 1))
    both = pass_(rows, width, lambda i: (i // width, height - 1))
    return [(value + 4) // 9 for value in both]


def middle(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]


def components(mask: list[bool], width: int, height: int) -> list[list[int]]:
    """The 4-connected groups of set pixels, as lists of pixel numbers."""
    groups, left = [], bytearray(mask)
    for start in range(width * height):
        if not left[start]:
            continue
        left[start] = 0
        group = [start]
        for pixel in group:  # grows while it is walked
            x = pixel % width
            for other, there in (
                (pixel - 1, x > 0),
                (pixel + 1, x < width - 1),
                (pixel - width, pixel >= width),
                (pixel + width, pixel < width * (height - 1)),
            ):
                if there and left[other]:
                    left[other] = 0
                    group.append(other)
        groups.append(group)
    return groups


def shape_of(group: set[int], width: int, box: tuple[int, int, int, int]) -> tuple[str, float]:
    """The shape whose template overlaps best (intersection over union), if any does well."""
    left, top, right, bottom = box
    columns = [left + int((i + 0.5) / GRID * (right - left)) for i in range(GRID)]
    rows = [top + int((i + 0.5) / GRID * (bottom - top)) for i in range(GRID)]
    mask = [(row * width + column) in group for row in rows for column in columns]

    def overlap(shape: str) -> float:
        pairs = list(zip(mask, template(shape)))
        return sum(a and b for a, b in pairs) / max(1, sum(a or b for a, b in pairs))

    best = max(SHAPES, key=overlap)
    stretched = max(right - left, bottom - top) > 1.5 * min(right - left, bottom - top)
    return (best if overlap(best) >= LEAST_OVERLAP and not stretched else "?"), overlap(best)


def look(pixels: bytes, width: int, height: int) -> dict:
    """What is on the picture. Pixels are RGB, 8 bits each, row by row."""
    planes = [smooth(list(pixels[channel::3]), width, height) for channel in range(3)]
    border = [y * width + x for y in range(height) for x in range(width) if min(x, y, width - 1 - x, height - 1 - y) < 4]
    ground = [middle([plane[i] for i in border]) for plane in planes]
    far = OBJECT_DISTANCE**2
    mask = [
        (r - ground[0]) ** 2 + (g - ground[1]) ** 2 + (b - ground[2]) ** 2 > far for r, g, b in zip(*planes)
    ]  # fmt: skip
    objects = []
    for group in components(mask, width, height):
        if len(group) < SMALLEST_OBJECT:
            continue
        inner = set(group)
        # Away from the edge, where the two colors mix.
        core = [p for p in group if all(p + d in inner for d in (-1, 1, -width, width, -2, 2, -2 * width, 2 * width))]
        core = core or group
        color = [middle([plane[p] for p in core]) for plane in planes]
        # The edge is where a pixel is half object, half background.
        half = sum((a - b) ** 2 for a, b in zip(color, ground)) / 4
        solid = {p for p in group if sum((plane[p] - b) ** 2 for plane, b in zip(planes, ground)) >= half} or inner
        columns, rows = [p % width for p in solid], [p // width for p in solid]
        box = min(columns), min(rows), max(columns) + 1, max(rows) + 1
        shape, overlap = shape_of(solid, width, box)
        objects.append(
            {
                "color": nearest_color(*color),
                "shape": shape,
                "overlap": round(overlap, 3),
                "x": (box[0] + box[2]) / 2 / width,
                "y": (box[1] + box[3]) / 2 / height,
                "radius": max(box[2] - box[0], box[3] - box[1]) / 2,
                "pixels": len(solid),
            }
        )
    objects.sort(key=lambda o: -o["pixels"])
    return {"background": nearest_color(*ground), "objects": objects}


def compare(seen: dict, scene) -> dict[str, bool]:
    """What of the scene the picture got right.

    Of one object, color and shape are those of the largest thing found, and its position counts only if nothing else was
    found. Two objects count only as exactly two; `both` is there for them alone.
    """
    right = {"background": seen["background"] == scene.background}
    found = seen["objects"]
    if len(scene.objects) == 1:
        wanted = scene.objects[0]
        alone = len(found) == 1
        first = found[0] if found else {"color": "", "shape": "", "x": -1, "y": -1}
        right["color"] = first["color"] == wanted.color
        right["shape"] = first["shape"] == wanted.shape
        thirds = tuple(int(first[axis] * 3) - 1 for axis in "xy")
        right["position"] = alone and thirds == tuple(scene.place)
        return right
    axis, across = "xy" if scene.place == "beside" else "yx"
    found = sorted(found[:2], key=lambda o: o[axis]) if len(found) == 2 else found[:2]
    pairs = list(zip(found, scene.objects))
    two = len(seen["objects"]) == 2
    right["color"] = two and all(f["color"] == o.color for f, o in pairs)
    right["shape"] = two and all(f["shape"] == o.shape for f, o in pairs)
    right["position"] = two and found[1][axis] - found[0][axis] > abs(found[1][across] - found[0][across])
    right["both"] = right["color"] and right["shape"] and right["position"]
    return right
