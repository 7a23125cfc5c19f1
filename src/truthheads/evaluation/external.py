"""Score answers and captions that were made elsewhere: no model runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from truthheads.benchmarks.base import PredictionLine
from truthheads.benchmarks.chair import chair_settings, check_vocabulary, parse_caption, read_captions, read_truth
from truthheads.benchmarks.coco_objects import Lemmatizer, matcher, own_vocabulary, read_vocabulary
from truthheads.benchmarks.pope import describe_pope, pope_notes, read_answers, read_pope
from truthheads.benchmarks.yes_no import POPE
from truthheads.evaluation.predictions import NAME
from truthheads.evaluation.summary import summarise_runs
from truthheads.results.evaluation import PLAIN, SETTINGS, SUMMARY
from truthheads.storage.artifacts import provenance
from truthheads.storage.files import dumps, file_sha256, replaced, write_json
from truthheads.storage.output_lock import lock_output


def score_answers(
    answers: Sequence[Path], data: Sequence[Path], *, out: Path, limit: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Score yes/no answers to POPE questions; write ``predictions.jsonl`` and ``summary.json``.

    Args:
        answers: Files of ``question_id``, ``answer``.
        data: POPE files, one a split.
        out: Folder for the result.
        limit: Questions of each file, at most.
        seed: Of the intervals.

    Raises:
        DataError: A file cannot be used, or answers and questions do not belong together.
        ArtifactError: The folder cannot be written to.
    """
    questions = read_pope(data, limit=limit)
    texts = read_answers(answers, questions)
    lines: list[PredictionLine] = [
        {
            "task": "pope",
            "run": PLAIN,
            "id": question.id,
            "split": question.split,
            "group": Path(question.image).name,
            "prompt": question.key,
            "answer": text,
            "yes": None,
            "no": None,
            "parsed": {name: parse(text) for name, parse in POPE.items()},
            "gold": question.gold,
        }
        for question, text in zip(questions, texts, strict=True)
    ]
    described = describe_pope(data, questions)
    settings = {"data": described, "answers": _files(answers), "parsers": list(POPE), "limit": limit}
    return write_results(out, lines, settings, pope_notes(described), seed)


def score_captions(
    captions: Path,
    data: Sequence[Path],
    *,
    out: Path,
    synonyms: Path | None = None,
    lemmatizer: Lemmatizer = "forms",
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Score captions by CHAIR; write ``predictions.jsonl`` and ``summary.json``.

    Args:
        captions: Rows of ``image_id``, ``caption``; ``finished`` (optional) says that no cap has cut it off.
        data: Ground truth; see :func:`truthheads.benchmarks.chair.read_truth`.
        out: Folder for the result.
        synonyms: Words in the official format; None: the package's own.
        lemmatizer: ``nltk`` for the official procedure, bug for bug.
        limit: Captions, at most.
        seed: Of the intervals.

    Raises:
        DataError: A file cannot be used, or an image has no ground truth.
        TruthHeadsError: NLTK is not there.
        ArtifactError: The folder cannot be written to.
    """
    vocabulary = read_vocabulary(synonyms) if synonyms is not None else own_vocabulary()
    mentions = matcher(vocabulary, lemmatizer)
    truth = read_truth(data, mentions)
    check_vocabulary(truth, vocabulary, data[0])
    found = read_captions(captions, truth, limit=limit)
    lines: list[PredictionLine] = [
        {
            "task": "chair",
            "run": PLAIN,
            "id": caption.image,
            "group": caption.image,
            "prompt": None,
            "answer": caption.text,
            "captions": {"given": parse_caption(caption.text, caption.finished, mentions)},
            "gold": truth[caption.image],
        }
        for caption in found
    ]
    settings = {
        "data": _files(data),
        "captions": _files([captions]),
        **chair_settings(vocabulary, lemmatizer),
        "prompt": None,
        "caps": ["given"],
        "image_ids": [caption.image for caption in found],
    }
    return write_results(out, lines, settings, [], seed)


@lock_output("out")
def write_results(
    out: Path, lines: Sequence[PredictionLine], settings: dict[str, Any], notes: Sequence[str], seed: int
) -> dict[str, Any]:
    """Write predictions, settings and figures into a folder and return the figures."""
    settings = {**settings, "seed": seed, **provenance()}
    summary = summarise_runs(lines, seed=seed, settings=settings, notes=notes)
    (out / SUMMARY).unlink(missing_ok=True)  # of other predictions; it is written last, and then tells of these
    with replaced(out / NAME) as temporary:
        temporary.write_text("".join(dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_json(out / SETTINGS, {"settings": settings, "notes": list(notes)})
    write_json(out / SUMMARY, summary)
    return summary


def _files(paths: Sequence[Path]) -> list[dict[str, str]]:
    return [{"path": str(path), "sha256": file_sha256(path)} for path in paths]
