"""Does a picture show what its prompt says? Scores for the 240 held-out prompts, or for every n-th of them.

    python evaluate.py prompts > prompts.txt
    schnell generate --prompts prompts.txt --grid 16x15 --output sheet.png
    python evaluate.py scores sheet.png

    python evaluate.py checker          # how often the checker is right about drawn scenes (needs numpy)

`prompts`, and `scores` of raw pixels (--raw WIDTHxHEIGHT < RGB), are plain Python: a test of the suite uses them.
"""

import argparse
import json
import random
import sys

import scenes
from check import compare, look

GAP = 4  # pixels between the pictures of a contact sheet (SHEET_GAP of src/image.rs)


def cut(sheet: bytes, width: int, count: int) -> list[bytes]:
    """The pictures of a contact sheet, in reading order."""
    side, columns = scenes.SIDE, (width + GAP) // (scenes.SIDE + GAP)
    out = []
    for n in range(count):
        left, top = n % columns * (side + GAP), n // columns * (side + GAP)
        rows = (3 * ((top + y) * width + left) for y in range(side))
        out.append(b"".join(sheet[at : at + 3 * side] for at in rows))
    return out


def scores(pictures: list[bytes], wanted: list[scenes.Scene]) -> tuple[dict[str, float], list[dict[str, bool]]]:
    """Share of right answers by question, for scenes of one and of two objects and for all; and every answer."""
    answers, by_question = [], {}
    for picture, scene in zip(pictures, wanted, strict=True):
        right = compare(look(picture, scenes.SIDE, scenes.SIDE), scene)
        answers.append(right)
        for kind in ("all", "one" if len(scene.objects) == 1 else "two"):
            for question, value in right.items():
                if not (kind == "all" and question == "both"):
                    by_question.setdefault(f"{kind}: {question}", []).append(value)
    return {name: sum(values) / len(values) for name, values in sorted(by_question.items())}, answers


def table(shares: dict[str, float]) -> str:
    return "\n".join(f"{name:16} {100 * share:6.1f} %" for name, share in shares.items())


def test_checker(count: int = 2000) -> None:
    """Draws scenes, spoils them, and counts on how many the checker is right about everything."""
    import numpy as np

    def blur(picture):
        padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
        return sum(padded[y : y + scenes.SIDE, x : x + scenes.SIDE] for y in range(3) for x in range(3)) / 9

    rng, noise = random.Random("checker"), np.random.RandomState(0)
    spoilt = {
        "as drawn": lambda p: p,
        "noise of 10 levels": lambda p: p + noise.randn(*p.shape) * 10,
        "blur of 3x3 pixels": blur,
        "colors off by up to 15 levels": lambda p: p + noise.uniform(-15, 15, 3),
    }
    for name, spoil in spoilt.items():
        right = 0
        for n in range(count // len(spoilt)):
            scene = scenes.random_scene(rng, pair=n % 2 == 1)
            picture = spoil(scenes.draw(rng, scene)).round().clip(0, 255).astype(np.uint8)
            right += all(compare(look(picture.tobytes(), scenes.SIDE, scenes.SIDE), scene).values())
        print(f"{name:32} {right} of {count // len(spoilt)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prompts", "scores", "checker"])
    parser.add_argument("sheet", nargs="?", help="a contact sheet, PNG (needs pillow)")
    parser.add_argument("--raw", metavar="WxH", help="the sheet's RGB bytes come on the standard input")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every n-th prompt")
    parser.add_argument("--json", action="store_true", help="scores as JSON")
    parser.add_argument("--wrong", action="store_true", help="name the prompts that went wrong")
    arguments = parser.parse_args()
    listed = scenes.evaluation()[:: arguments.every]
    if arguments.what == "prompts":
        print("\n".join(words for words, _ in listed))
        return
    if arguments.what == "checker":
        test_checker()
        return
    if arguments.raw:
        width, height = map(int, arguments.raw.split("x"))
        sheet = sys.stdin.buffer.read()
    elif arguments.sheet:
        from PIL import Image

        image = Image.open(arguments.sheet).convert("RGB")
        (width, height), sheet = image.size, image.tobytes()
    else:
        parser.error("which sheet?")
    columns = (width + GAP) // (scenes.SIDE + GAP)
    if len(sheet) != 3 * width * height or columns * ((height + GAP) // (scenes.SIDE + GAP)) < len(listed):
        sys.exit(f"a sheet of {width} x {height} with {len(sheet)} bytes does not hold {len(listed)} pictures")
    shares, answers = scores(cut(sheet, width, len(listed)), [scene for _, scene in listed])
    print(json.dumps(shares) if arguments.json else table(shares))
    if arguments.wrong:
        for n, ((words, _), right) in enumerate(zip(listed, answers)):
            if not all(right.values()):
                print(n, words, "| wrong:", ", ".join(name for name, value in right.items() if not value))


if __name__ == "__main__":
    main()
