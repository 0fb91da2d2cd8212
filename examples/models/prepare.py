#!/usr/bin/env python3
"""Text, splits, tokenizer and token files for train.py.

    python3 examples/models/prepare.py WORK        (on Debian; WORK is made)

Fetches three packages of the distribution with `apt-get download`, unpacks them without installing
anything, and writes into WORK: train.txt, validation.txt, heldout.txt, calibration.txt,
tokenizer/ (tokenizer.json, tokenizer_config.json), train.bin, validation.bin (uint16 token ids).
"""

import argparse
import array
import itertools
import json
import pathlib
import random
import re
import struct
import subprocess
import zlib

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

PACKAGES = ["bible-kjv", "bible-kjv-text", "r-cran-janeaustenr"]

# The names that the program `bible` prints, in the order of the canon.
BOOKS = {
    "Ge": "Genesis", "Exo": "Exodus", "Lev": "Leviticus", "Num": "Numbers", "Deu": "Deuteronomy",
    "Josh": "Joshua", "Jdgs": "Judges", "Ruth": "Ruth", "1Sm": "First Samuel",
    "2Sm": "Second Samuel", "1Ki": "First Kings", "2Ki": "Second Kings",
    "1Chr": "First Chronicles", "2Chr": "Second Chronicles", "Ezra": "Ezra", "Neh": "Nehemiah",
    "Est": "Esther", "Job": "Job", "Psa": "Psalms", "Prv": "Proverbs", "Eccl": "Ecclesiastes",
    "SSol": "Song of Solomon", "Isa": "Isaiah", "Jer": "Jeremiah", "Lam": "Lamentations",
    "Eze": "Ezekiel", "Dan": "Daniel", "Hos": "Hosea", "Joel": "Joel", "Amos": "Amos",
    "Obad": "Obadiah", "Jonah": "Jonah", "Mic": "Micah", "Nahum": "Nahum", "Hab": "Habakkuk",
    "Zep": "Zephaniah", "Hag": "Haggai", "Zec": "Zechariah", "Mal": "Malachi", "Mat": "Matthew",
    "Mark": "Mark", "Luke": "Luke", "John": "John", "Acts": "Acts", "Rom": "Romans",
    "1Cor": "First Corinthians", "2Cor": "Second Corinthians", "Gal": "Galatians",
    "Eph": "Ephesians", "Phi": "Philippians", "Col": "Colossians", "1Th": "First Thessalonians",
    "2Th": "Second Thessalonians", "1Tim": "First Timothy", "2Tim": "Second Timothy",
    "Titus": "Titus", "Phmn": "Philemon", "Heb": "Hebrews", "Jas": "James", "1Pet": "First Peter",
    "2Pet": "Second Peter", "1Jn": "First John", "2Jn": "Second John", "3Jn": "Third John",
    "Jude": "Jude", "Rev": "Revelation",
}

# Northanger Abbey is left out: that text is a modern edition's, with its spelling.
NOVELS = ["EMMA", "MANSFIELD PARK", "PERSUASION", "PRIDE AND PREJUDICE", "SENSE AND SENSIBILITY"]

# Whole books of the Bible, and the last chapters of a novel.
HELD_OUT = {"Ruth", "Esther", "Ecclesiastes", "Hebrews"}
HELD_OUT_CHAPTERS = {"PERSUASION": 5}
VALIDATION = {"Lamentations", "Malachi", "James", "Nehemiah"}
VALIDATION_CHAPTERS = {"SENSE AND SENSIBILITY": 3}
CALIBRATION_CHARACTERS = 200_000

VOCABULARY = 1536
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
         r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def unpack_packages(folder):
    folder.mkdir(parents=True)
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)


def bible(root):
    """[(book, [chapter])]: a chapter is its heading and one line a verse."""
    text = subprocess.run(
        [root / "usr/bin/bible", "-p", root / "usr/lib", "-f", "Gen1:1-Rev22:21"],
        check=True, stdout=subprocess.PIPE, text=True).stdout
    verses = [re.fullmatch(r"(\w+?)(\d+):\d+ (.*)", line).groups()
              for line in text.splitlines() if line]
    books = []
    for book, of_book in itertools.groupby(verses, key=lambda v: v[0]):
        chapters = [
            f"{BOOKS[book]} {number}\n\n" + "\n".join(verse for _, _, verse in chapter) + "\n"
            for number, chapter in itertools.groupby(of_book, key=lambda v: v[1])]
        books.append((BOOKS[book], chapters))
    assert [name for name, _ in books] == list(BOOKS.values())
    return books


def character_vectors(blob):
    """The vectors of strings in an R lazy-load database: zlib streams after their sizes."""
    while blob:
        stream = zlib.decompressobj()
        raw, blob = stream.decompress(blob[4:]), stream.unused_data
        at = 18 + struct.unpack_from(">I", raw, 14)[0] + 4  # versions, encoding, type
        count, = struct.unpack_from(">I", raw, at)
        at += 4
        lines = []
        for _ in range(count):
            size, = struct.unpack_from(">i", raw, at + 4)
            at += 8
            lines.append(raw[at:at + size].decode())
            at += size
        assert at == len(raw)
        yield lines


def paragraphs(lines):
    """Unwrapped; an indented line stays a line of its own."""
    for blank, group in itertools.groupby(lines, key=lambda line: not line.strip()):
        if not blank:
            text = ""
            for line in group:
                text += ("\n" if line.startswith("  ") else " ") + line.strip()
            yield re.sub(" {2,}", " ", text).strip()


def novels(root):
    """[(title, [chapter])]: a chapter is its heading and one line a paragraph."""
    found = {}
    database = root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    for lines in character_vectors(database.read_bytes()):
        ends = [i for i, line in enumerate(lines) if line.strip().upper() in ("THE END", "FINIS")]
        end = max(ends, default=len(lines))
        chapters = []
        for paragraph in paragraphs(lines[:end]):
            if re.fullmatch(r"CHAPTER [IVXL\d]+", paragraph, re.IGNORECASE):
                chapters.append([paragraph.upper()])
            elif chapters and not re.match(r"VOLUME \w+$|\[(At this|End vol)", paragraph):
                chapters[-1].append(paragraph)
        found[lines[0].strip().upper()] = ["\n\n".join(chapter) + "\n" for chapter in chapters]
    return [(title, found[title]) for title in NOVELS]


def split(books):
    """{split: [(book, [chapter])]}; a book or a chapter is in one split only."""
    splits = {"train": [], "validation": [], "heldout": []}
    for name, chapters in books:
        tail = HELD_OUT_CHAPTERS.get(name, 0) or VALIDATION_CHAPTERS.get(name, 0)
        if name in HELD_OUT or name in VALIDATION:
            tail = len(chapters)
        other = "heldout" if name in HELD_OUT or name in HELD_OUT_CHAPTERS else "validation"
        if tail:
            splits[other].append((name, chapters[len(chapters) - tail:]))
        if tail < len(chapters):
            splits["train"].append((name, chapters[:len(chapters) - tail]))
    return splits


def calibration(books):
    """About so many characters: chapters at even distances, shuffled so that any part is mixed."""
    chapters = [chapter for _, of_book in books for chapter in of_book]
    wanted, taken, total = CALIBRATION_CHARACTERS, [], sum(map(len, chapters))
    passed = picked = 0
    for chapter in chapters:
        passed += len(chapter)
        if picked + len(chapter) // 2 < wanted * passed / total:
            taken.append(chapter)
            picked += len(chapter)
    random.Random(0).shuffle(taken)
    return "\n".join(taken)


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))])
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path)
    work = parser.parse_args().work
    packages = work / "packages"
    if not packages.exists():
        unpack_packages(packages)

    splits = split(bible(packages) + novels(packages))
    texts = {name: ["\n".join(chapters) for _, chapters in books]
             for name, books in splits.items()}
    for name, of_split in texts.items():
        (work / f"{name}.txt").write_text("\n".join(of_split))
    (work / "calibration.txt").write_text(calibration(splits["train"]))

    tokenizer = train_tokenizer(texts["train"])
    (work / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(str(work / "tokenizer/tokenizer.json"))
    (work / "tokenizer/tokenizer_config.json").write_text(json.dumps({
        "bos_token": BOS, "eos_token": EOS, "clean_up_tokenization_spaces": False,
        "model_max_length": 512, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")

    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    for name in ("train", "validation"):
        ids = array.array("H")
        for text in texts[name]:
            ids.extend([bos, *tokenizer.encode(text, add_special_tokens=False).ids, eos])
        (work / f"{name}.bin").write_bytes(ids.tobytes())
    for name in ("train", "validation", "heldout", "calibration"):
        text = (work / f"{name}.txt").read_text()
        count = len(tokenizer.encode(text, add_special_tokens=False).ids)
        print(f"{name}: {len(text)} characters, {count} tokens")


if __name__ == "__main__":
    main()
