"""Tokenizers of the two real kinds, trained on a small generated corpus, and the strings that test them."""

import io
import itertools
import json
import random
from collections import Counter
from pathlib import Path

import regex
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTokenizer, T5Tokenizer

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
T5_EXTRA_IDS = 100
# CLIP's split, as in the published tokenizer: contractions, letter runs, single digits, the rest.
CLIP_SPLIT = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)


def corpus(seed: int) -> list[str]:
    """Prompt-like sentences, mostly English, with enough of other scripts that both vocabularies learn some."""
    rng = random.Random(seed)
    adjectives = "red blue golden tiny old quiet bright wooden broken snowy misty ancient electric soft grey".split()
    nouns = (
        "cat dog house mountain river castle robot forest ship street astronaut horse lighthouse garden bridge "
        "window portrait city dragon teapot violin market desert ocean"
    ).split()
    places = "on a hill|under the moon|in the rain|by the sea|at night|near a lake|on mars|in winter".split("|")
    styles = (
        "a photo of|an oil painting of|a watercolour of|a pencil sketch of|a close-up of|ultra-detailed render of|"
        "35mm film, |isometric view of"
    ).split("|")
    foreign = (
        "un café près de la forêt|une maison à côté du château|ein schöner Straßenläufer über dem Fluß|"
        "el niño pequeño en la montaña|солнце над рекой и лесом|красный кот на окне|το βουνό και η θάλασσα|"
        "山の上の古い城|赤い猫と青い家|雪中的红色房子|月亮下的河流|비 오는 거리의 고양이|قطة على الجبل|בית ליד הים|"
        "ภูเขาและแม่น้ำ|हरा जंगल और नदी|🐱🚀 ✨ cat 🏔️|naïve façade, jalapeño & crème brûlée"
    ).split("|")
    # Invented words give the trainers more to split than whole-word pieces.
    onsets = "b c d f g h l m n p r s t v w br ch cl cr dr fl gr pl pr sh sl st str th tr wh".split()
    vowels = "a e i o u ea oo ai ou".split()
    endings = ["", "n", "r", "s", "t", "ll", "nd", "ck", "er", "ing", "ed", "ly", "tion", "ness", "ful"]
    invented = [
        "".join(rng.choice(onsets) + rng.choice(vowels) for _ in range(rng.randint(1, 2))) + rng.choice(endings)
        for _ in range(900)
    ]
    lines = []
    for _ in range(1200):
        line = f"{rng.choice(styles)} a {rng.choice(adjectives)} {rng.choice(nouns)}"
        if rng.random() < 0.6:
            line += f" and {rng.choice(['a', 'the', 'two', '3', '12'])} {rng.choice(adjectives)} {rng.choice(nouns)}s"
        line += f" {rng.choice(places)} with {rng.choice(invented)} {rng.choice(invented)}"
        if rng.random() < 0.2:
            line += rng.choice(
                [", 8k, highly detailed", "; it's what they've seen", " (don't stop!)", ' with a sign "hello world"']
            )
        lines.append(line)
        if rng.random() < 0.3:
            lines.append(rng.choice(foreign))
    return lines


# CLIP: byte-level BPE ------------------------------------------------------------------------------------------


def byte_symbols() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, in the order the published vocabulary lists them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def train_clip(lines: list[str], merges_wanted: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary laid out as CLIP's: 256 bytes, 256 word-final bytes, merges, start, end (the largest id)."""
    symbol_of = byte_symbols()
    symbols = list(symbol_of.values())
    counts = Counter(piece for line in lines for piece in CLIP_SPLIT.findall(line.lower()))
    words = {piece: [symbol_of[byte] for byte in piece.encode()] for piece in counts}
    for pieces in words.values():
        pieces[-1] += "</w>"
    merges = []
    while len(merges) < merges_wanted:
        pairs = Counter()
        for word, pieces in words.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))  # ties by text: the result has one answer
        merges.append(best)
        for pieces in words.values():
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == best:
                    pieces[i : i + 2] = ["".join(best)]
                i += 1
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges] + [CLIP_START, CLIP_END]
    # Two merge paths may spell one token; the published vocabulary has none such, and neither may this.
    assert len(tokens) == len(set(tokens))
    return {token: i for i, token in enumerate(tokens)}, merges


def clip_tokenizer(lines: list[str], merges_wanted: int) -> CLIPTokenizer:
    vocab, merges = train_clip(lines, merges_wanted)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def use_published_clip_layout(folder: Path) -> None:
    """vocab.json + merges.txt instead of tokenizer.json: what the FLUX.1-schnell repository ships."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    (folder / "tokenizer.json").unlink()


# T5: Unigram ---------------------------------------------------------------------------------------------------


def train_t5(lines: list[str], pieces: int) -> bytes:
    """A spiece.model with T5's normalization (NMT-NFKC) and special ids; the extra ids are not part of it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def t5_vocab(proto) -> list[tuple[str, float]]:
    """The pieces, then the extra ids, the first of them last."""
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    return pieces + [(f"<extra_id_{i}>", 0.0) for i in reversed(range(T5_EXTRA_IDS))]


def t5_published_json(spiece: bytes, legacy: bool) -> Tokenizer:
    """The tokenizer.json a T5 repository ships (as converted by transformers 4, whose T5Tokenizer is `legacy` unless
    told otherwise): whether the piece after a special token inside the prompt gets a leading space, too."""
    scheme = "always" if legacy else "first"
    proto = sentencepiece_model_pb2.ModelProto.FromString(spiece)
    tokenizer = Tokenizer(models.Unigram(t5_vocab(proto), unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme, split=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    special = ["<pad>", "</s>", "<unk>"] + [f"<extra_id_{i}>" for i in reversed(range(T5_EXTRA_IDS))]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    # Once through its own JSON, which prints fewer digits of the scores than it holds: what is saved is what runs.
    return Tokenizer.from_str(tokenizer.to_str())


def t5_tokenizer(spiece: bytes) -> T5Tokenizer:
    proto = sentencepiece_model_pb2.ModelProto.FromString(spiece)
    return T5Tokenizer(
        vocab=t5_vocab(proto),
        _spm_precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap,
        extra_ids=T5_EXTRA_IDS,
        model_max_length=512,
    )


def use_published_t5_layout(folder: Path, spiece: bytes) -> None:
    """The tokenizer.json of older transformers in place of the one that transformers 5 writes; not `legacy`, so that
    the tests see both ways: a folder with spiece.model only is."""
    t5_published_json(spiece, legacy=False).save(str(folder / "tokenizer.json"), pretty=False)


def use_sentencepiece_layout(folder: Path, spiece: bytes) -> None:
    """spiece.model only, as in repositories that predate tokenizer.json."""
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(spiece)


# Strings -------------------------------------------------------------------------------------------------------


def strings() -> list[str]:
    """Everything a tokenizer may trip over, then random mixtures of it."""
    fixed = [
        "", " ", "  ", "\t", "\n", "\r\n", " \t\n ", "a", " a", "a ", "  a  b  ", "a\tb\nc", "a\u00a0b", "a\u3000b",
        "\u200b", "a\u200bb", "a\u00adb", "\ufeffstart", "\u2028line\u2029para", "a\u0085b", "\x00", "a\x00b", "\x07bell",
        "A cat holding a sign that says hello world",
        "a photo of an astronaut riding a horse on mars",
        "FLUX.1 [schnell], 8k, ultra-detailed",
        "Don't stop! 3.14 (test) <b>x</b>",
        "it's they've I'm we'll he'd you're can't", "IT'S THEY'VE I'M WE'LL", "'s 't 're", "rock 'n' roll", "'", "''", "’s",
        "123", "1 2 3", "3.14159", "1,000,000", "٣٤٥", "¼ ½ ²³", "Ⅷ", "①②", "2024-01-01T00:00:00Z", "0x1F", "1e-5",
        "UPPER lower MiXeD", "İstanbul", "ǅ Ǆ ǆ", "ΑΣ Σίσυφος ΣΑΣ", "STRASSE straße", "ﬁ ﬂ ligature", "Åå Å",
        "café", "cafe\u0301", "e\u0301\u0302", "n\u0303ino", "naïve façade, jalapeño & crème brûlée", "Ñandú", "Việt Nam",
        "ａｂｃ１２３", "ｶﾞｷﾞ", "ガ", "か\u3099", "山の上の古い城", "赤い猫と青い家", "雪中的红色房子", "비 오는 거리의 고양이",
        "\u1112\u1161\u11ab", "קטן בית", "قطة على الجبل", "ภูเขาและแม่น้ำ", "हरा जंगल और नदी", "солнце над рекой",
        "το βουνό και η θάλασσα", "🐱", "🐱🚀", "👨\u200d👩\u200d👧\u200d👦", "🏔️", "👍🏽", "🇩🇪🇫🇷", "❤️", "a🐱b", "☃ ★ ♞",
        "𝒻𝓊𝓃", "𠀀𠀁", "\U0010ffff", "\ue000", "\ufffd", "zalgo h̷̛e̴͠l̶l̵o̷",
        "<|startoftext|>", "<|endoftext|>", "a <|endoftext|> b", "a<|startoftext|>b", "<|ENDOFTEXT|>", "<|endoftext|",
        "</s>", "a </s> b", "a</s>b", "<pad>", "<unk>", "a <pad> <unk> b", "<extra_id_0>", "x <extra_id_99> y",
        "<extra_id_0><extra_id_1>", "<extra_id_100>", "<s>", "</w>", "cat</w>", "▁", "▁a", "a▁b", "▁▁", "a ▁ b", "Ġ", "Ġcat",
        "!", "!!!", "?!...", "a,b;c:d", "(a)", "[a]", "{a}", "((very detailed:1.3))", "a/b\\c", "@user #tag $5 50% ^ & * _",
        "snake_case camelCase kebab-case", "http://example.com/?q=1&r=2#z", "user@example.com", "\"quoted\" “curly” «fr»",
        "em—dash en–dash … ellipsis", "™ ® © ℃ № ㎏ ㍿", "½cup", "x²+y²=z²", "∑∫√∞≠≤", "→←↑↓", "a+b=c", "~`|", "--", "- -",
        "a" * 40, "cat" * 20, "ab " * 30, "!" * 30, "1" * 20, " " * 20 + "x", "x" + " " * 20 + "y", "the " * 90,
        "a red cat on a hill, " * 20, "雪" * 100, "🐱" * 30, "\u0301", "\u0301a", "a\u0300\u0301\u0302\u0303\u0304", "\u200d", "\ufe0f",
        "tab\tseparated\tvalues", "line one\nline two\n\nline four", "trailing newline\n", "\nleading newline", "a \n b", " , . ! ",
        "one-word", "co\u2010operate", "non\u2011breaking", "sot: <|startoftext|> eot: <|endoftext|> </s> <pad>",
        "ultra-detailed render of a tiny dragon near a lake, 8k, highly detailed",
        "an oil painting of a quiet lighthouse and two misty ships at night; it's what they've seen",
    ]  # fmt: skip
    rng = random.Random(7)
    atoms = [
        *"aeiostrnlABZ0189 .,!?'\"-_()<>|/\t\n", "  ", "cat", "the", "'s", "'ll", "é", "ß", "ñ", "e\u0301", "İ", "ﬁ", "ｶﾞ", "山", "猫",
        "한", "ж", "ن", "ก", "🐱", "🏔️", "\u200b", "\u00a0", "\u3000", "½", "٣", "₂", "</s>", "<pad>", "<|endoftext|>", "▁", "™", "…", "\u00ad",
    ]  # fmt: skip
    mixed = ["".join(rng.choices(atoms, k=rng.randint(1, 24))) for _ in range(80)]
    return list(dict.fromkeys(fixed + mixed))
