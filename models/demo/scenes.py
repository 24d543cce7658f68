"""The pictures that the demo model learns: scenes of one or two flat shapes, how they are worded and how they are drawn.

A scene is what a prompt fixes: background, objects (size, color, shape), and where they stand. What it leaves open (a few
pixels of position, a few per cent of size) is drawn anew for every picture.
"""

import functools
import hashlib
import random
from dataclasses import dataclass

SIDE = 128  # pixels
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 215, 50),
    "orange": (245, 140, 30),
    "purple": (140, 60, 180),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
DEFAULT_BACKGROUND = "grey"  # of a prompt that names none; no object has this color
BACKGROUNDS = COLORS | {DEFAULT_BACKGROUND: (128, 128, 128)}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
SIZES = {"small": 14, "": 21, "big": 30}  # radius in pixels of an object that stands alone
PAIR_SIZES = {"small": 14, "": 19, "big": 23}
LOW, MIDDLE, HIGH = 36, 64, 92  # centers in pixels
PAIR_LOW, PAIR_HIGH = 34, 94
JITTER = 1.5  # pixels by which centers vary
POSITIONS = [(column, row) for row in (-1, 0, 1) for column in (-1, 0, 1)]
RELATIONS = ("beside", "above")  # of the first object to the second: left of it, above it


@dataclass(frozen=True)
class Object:
    size: str
    color: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """One object at a place (column and row, -1 to 1), or two in a relation: the first is left of or above the second."""

    background: str
    objects: tuple[Object, ...]
    place: tuple[int, int] | str

    def key(self) -> str:
        objects = "; ".join(f"{o.size or 'medium'} {o.color} {o.shape}" for o in self.objects)
        return f"{objects}; {self.place}; {self.background}"

    def held_out(self) -> bool:
        """One combination in twenty is never trained on. By hash: the same ones on every machine."""
        return hashlib.sha256(self.key().encode()).digest()[0] % 20 == 0


def random_object(rng: random.Random, background: str) -> Object:
    color = rng.choice([c for c in COLORS if c != background])
    return Object(rng.choice(["small", "", "", "big"]), color, rng.choice(SHAPES))


def random_scene(rng: random.Random, pair: bool) -> Scene:
    background = rng.choice(list(BACKGROUNDS))
    if pair:
        objects = (random_object(rng, background), random_object(rng, background))
        return Scene(background, objects, rng.choice(RELATIONS))
    return Scene(background, (random_object(rng, background),), rng.choice(POSITIONS))


def draw_scene(rng: random.Random, pair: bool, held_out: bool) -> Scene:
    """A random scene on the wanted side of the split."""
    while True:
        scene = random_scene(rng, pair)
        if scene.held_out() == held_out:
            return scene


# Words --------------------------------------------------------------------------------------------------------------

SIZE_WORDS = {"small": ["small", "small", "little", "tiny"], "": [""], "big": ["big", "big", "large", "huge"]}
PLACE_WORDS = {
    (-1, -1): ["in the top left", "in the top left corner", "at the top left", "in the upper left"],
    (0, -1): ["at the top", "at the top", "in the top middle"],
    (1, -1): ["in the top right", "in the top right corner", "at the top right", "in the upper right"],
    (-1, 0): ["on the left", "on the left", "at the left", "on the left side"],
    (0, 0): ["", "", "in the middle", "in the center", "in the centre"],
    (1, 0): ["on the right", "on the right", "at the right", "on the right side"],
    (-1, 1): ["in the bottom left", "in the bottom left corner", "at the bottom left", "in the lower left"],
    (0, 1): ["at the bottom", "at the bottom", "in the bottom middle"],
    (1, 1): ["in the bottom right", "in the bottom right corner", "at the bottom right", "in the lower right"],
}
# Each with whether the objects are named in the scene's order.
RELATION_WORDS = {
    "beside": [
        ("left of", True), ("to the left of", True), ("right of", False), ("to the right of", False),
        ("and", True), ("next to", True), ("beside", True),
    ],
    "above": [("above", True), ("over", True), ("below", False), ("under", False)],
}  # fmt: skip


def object_words(rng: random.Random, o: Object) -> str:
    words = [rng.choice(SIZE_WORDS[o.size]), o.color, o.shape]
    words = " ".join(w for w in words if w)
    return ("an " if words[0] in "aeiou" else "a ") + words


def background_words(rng: random.Random, background: str) -> str:
    if background == DEFAULT_BACKGROUND and rng.random() < 0.7:
        return ""
    article = "an" if background[0] in "aeiou" else "a"
    phrases = [f"on {article} {background} background"] * 5
    phrases += [f"on {background}", f"with {article} {background} background", f"against {article} {background} background"]
    return rng.choice(phrases)


def prompt(rng: random.Random, scene: Scene) -> str:
    """One of the ways to say what the scene is."""
    background = background_words(rng, scene.background)
    if len(scene.objects) == 1:
        what = object_words(rng, scene.objects[0])
        parts = [what, rng.choice(PLACE_WORDS[scene.place]), background]
        if rng.random() < 0.25:
            parts = [parts[0], parts[2], parts[1]]
    else:
        relation, in_order = rng.choice(RELATION_WORDS[scene.place])
        first, second = scene.objects if in_order else scene.objects[::-1]
        parts = [object_words(rng, first), relation, object_words(rng, second), background]
    words = " ".join(p for p in parts if p)
    if rng.random() < 0.15:
        words = rng.choice(["a picture of ", "a drawing of ", "an image of ", "a photo of "]) + words
    if rng.random() < 0.2:
        words = words[0].upper() + words[1:]
    if rng.random() < 0.1:
        words += "."
    return words


def evaluation(singles: int = 140, pairs: int = 100, seed: int = 2027) -> list[tuple[str, Scene]]:
    """The fixed list of held-out prompts, with the scene each one means. Training watches the list of another seed."""
    rng = random.Random(seed)
    scenes = {}
    while len(scenes) < singles + pairs:
        scene = draw_scene(rng, pair=len(scenes) >= singles, held_out=True)
        scenes.setdefault(scene.key(), scene)
    return [(prompt(rng, scene), scene) for scene in scenes.values()]


# Drawing ------------------------------------------------------------------------------------------------------------

# Normals of a star's five lines and a triangle's three; each line is at this distance from the center.
STAR_LINES = [
    (0.0, 1.0), (0.9510565, 0.3090170), (0.5877853, -0.8090170), (-0.5877853, -0.8090170), (-0.9510565, 0.3090170),
]  # fmt: skip
STAR_DISTANCE = 0.3090170
TRIANGLE_LINES = [((0.0, 1.0), 0.75), ((0.8682431, -0.4961389), 0.4961389), ((-0.8682431, -0.4961389), 0.4961389)]


def inside(shape: str, x, y):
    """Whether (x, y) is in the shape of radius 1 around the origin (y points down). Works on floats and on arrays."""
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "square":
        return (abs(x) <= 0.9) & (abs(y) <= 0.9)
    if shape == "triangle":
        hits = [x * nx + y * ny <= d for (nx, ny), d in TRIANGLE_LINES]
        return hits[0] & hits[1] & hits[2]
    if shape == "star":  # 10 % larger than the circle, for its thin points; a star is where four of five lines agree
        x, y = x / 1.1, y / 1.1
        return sum((x * nx + y * ny <= STAR_DISTANCE) * 1 for nx, ny in STAR_LINES) >= 4
    if shape == "ring":
        rho = x * x + y * y
        return (rho <= 1) & (rho >= 0.55 * 0.55)
    if shape == "cross":
        return ((abs(x) <= 0.34) & (abs(y) <= 1)) | ((abs(x) <= 1) & (abs(y) <= 0.34))
    raise ValueError(shape)


@functools.lru_cache(maxsize=None)
def coverage(shape: str, radius: int, half_x: int, half_y: int):
    """Coverage (0 to 1) of each pixel of a window of 2 * reach pixels, by 5x5 samples; center moved by half pixels."""
    import numpy as np

    reach, samples = int(radius * 1.12) + 2, 5
    at = (np.arange(2 * reach * samples) + 0.5) / samples - reach
    x, y = np.meshgrid((at - half_x / 2) / radius, (at - half_y / 2) / radius)
    hits = inside(shape, x, y).reshape(2 * reach, samples, 2 * reach, samples)
    return hits.mean(axis=(1, 3), dtype=np.float32)


def paint(picture, o: Object, radius: int, x: float, y: float) -> None:
    x2, y2 = round(2 * x), round(2 * y)
    alpha = coverage(o.shape, radius, x2 % 2, y2 % 2)
    reach = alpha.shape[0] // 2
    left, top = x2 // 2 - reach, y2 // 2 - reach
    # The window may reach over the edge of the picture; the shape itself does not.
    l, t, r, b = max(left, 0), max(top, 0), min(left + 2 * reach, SIDE), min(top + 2 * reach, SIDE)
    alpha = alpha[t - top : b - top, l - left : r - left, None]
    picture[t:b, l:r] += alpha * (rgb(o.color) - picture[t:b, l:r])


@functools.lru_cache(maxsize=None)
def rgb(color: str):
    import numpy as np

    return np.array(BACKGROUNDS[color], dtype=np.float32)


def draw(rng: random.Random, scene: Scene):
    """The scene as a (128, 128, 3) float array of 0 to 255."""
    import numpy as np

    picture = np.empty((SIDE, SIDE, 3), dtype=np.float32)
    picture[:] = rgb(scene.background)
    for index, o in enumerate(scene.objects):
        if len(scene.objects) == 1:
            x, y = ((LOW, MIDDLE, HIGH)[1 + place] + rng.uniform(-JITTER, JITTER) for place in scene.place)
            radius = SIZES[o.size]
        else:
            along = (PAIR_LOW, PAIR_HIGH)[index] + rng.uniform(-JITTER, JITTER)
            across = MIDDLE + rng.uniform(-JITTER, JITTER)
            x, y = (along, across) if scene.place == "beside" else (across, along)
            radius = PAIR_SIZES[o.size]
        paint(picture, o, max(1, round(radius * rng.uniform(0.97, 1.03))), x, y)
    return picture
