#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prepares the text of tiny-mistral: training documents, calibration text and two held-out texts.

Reads State of the Union addresses, one .txt a speech with the year in its name, and these files of books:
austen-6-novels.txt, world-english-bible.txt, moby-dick.txt, tinyshakespeare.txt. Speeches before 2000 and all books but
Persuasion are for training, speeches of 2000-2012 for calibration, those of 2013-2021 and Persuasion held out.
"""
import argparse
import json
import re
from pathlib import Path

YEAR = re.compile(r"1[789]\d\d|20\d\d")
NOVELS = ("EMMA", "MANSFIELD PARK", "NORTHANGER ABBEY", "Persuasion", "PRIDE AND PREJUDICE", "SENSE AND SENSIBILITY")
HELD_OUT_NOVEL = "Persuasion"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")


def paragraphs(text: str) -> list[str]:
    """Paragraphs of a text, each on one line with single spaces."""
    pieces = re.split(r"\n\s*\n", text.replace("\r", ""))
    return [re.sub(r"\s+", " ", piece).strip() for piece in pieces if piece.strip()]


def speeches_by_year(folder: Path) -> dict[int, list[str]]:
    """Each year's speeches, every speech on one line."""
    speeches: dict[int, list[str]] = {}
    for path in sorted(folder.rglob("*.txt")):
        year = YEAR.search(path.name)
        if year:
            speeches.setdefault(int(year.group()), []).append(" ".join(paragraphs(read(path))))
    return speeches


def novels(text: str) -> dict[str, str]:
    """The novels of a collection by title, a paragraph a line."""
    lines = text.split("\n")
    starts = [number for number, line in enumerate(lines) if line in NOVELS]
    ends = starts[1:] + [len(lines)]
    return {lines[start]: "\n".join(paragraphs("\n".join(lines[start:end]))) for start, end in zip(starts, ends)}


def sentences(document: str) -> list[str]:
    """What the tokenizer is trained on: no line longer than a sentence."""
    found = (s.strip() for line in document.split("\n") for s in re.split(r"(?<=[.;:?!]) ", line))
    return [sentence for sentence in found if sentence]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speeches", type=Path, required=True, help="folder of State of the Union addresses")
    parser.add_argument("--books", type=Path, required=True, help="folder of the books")
    parser.add_argument("--output", type=Path, default=Path("corpus"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    speeches = speeches_by_year(options.speeches)
    austen = novels(read(options.books / "austen-6-novels.txt"))
    # The Bible comes a verse a line, without blank lines between.
    bible = read(options.books / "world-english-bible.txt").replace("\n", "\n\n")
    training = [speech for year in sorted(speeches) if year < 2000 for speech in speeches[year]]
    training += [text for title, text in austen.items() if title != HELD_OUT_NOVEL]
    training += ["\n".join(paragraphs(text)) for text in (
        bible, read(options.books / "moby-dick.txt"), read(options.books / "tinyshakespeare.txt"))]

    texts = {
        "calibration.txt": "\n".join(s for year in range(2000, 2013) for s in speeches.get(year, [])),
        "heldout-speeches.txt": "\n".join(s for year in range(2013, 2022) for s in speeches.get(year, [])),
        "heldout-persuasion.txt": austen[HELD_OUT_NOVEL],
        "training.json": json.dumps(training),
        "sentences.txt": "\n".join(s for document in training for s in sentences(document)) + "\n",
    }
    for name, text in texts.items():
        (options.output / name).write_text(text, encoding="utf-8")
        print(f"{name}: {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
