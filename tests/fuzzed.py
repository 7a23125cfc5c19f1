"""Every reader of a user's file, with whole files of each kind to be damaged."""

import gzip
import io
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from gguf import GGUFWriter
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from fuzzing import damaged, spoiled, survives
from truthheads.benchmarks.chair import read_captions, read_truth
from truthheads.benchmarks.coco_objects import matcher, own_vocabulary, read_vocabulary
from truthheads.benchmarks.halueval import read_halueval
from truthheads.benchmarks.pope_answers import match_answers
from truthheads.benchmarks.pope_questions import read_pope
from truthheads.data.images import load_image
from truthheads.data.readers import read_questions
from truthheads.errors import ArtifactError, DataError, ModelError, TruthHeadsError
from truthheads.evaluation.external import score_answers
from truthheads.evaluation.predictions import read_predictions
from truthheads.evaluation.summary import rescore, summarise_runs
from truthheads.exporting.gguf import export_gguf
from truthheads.models.gguf_header import check_gguf
from truthheads.models.inspection import inspect
from truthheads.models.neutral_text import read_neutral
from truthheads.models.weight_files import INDEX, SINGLE, Shards, read_header
from truthheads.reporting.report import write_report
from truthheads.results.comparison import Comparison
from truthheads.results.drift import Drift
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores
from truthheads.results.trace import MEASURES, Trace
from truthheads.storage.artifacts import FORMAT_VERSION, KEY
from truthheads.workflows.recipe import read_recipe
from truthheads.workflows.steps import Steps
from zoo import MULTIMODAL, ROWS, build

Json = Mapping[str, Any]
Write = Callable[[Path, np.random.Generator], Any]


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: What is read.
        count: Damaged files that the suite gives it.
        write: Writes a damaged file (or folder) at a path and returns what was written, to be told.
        read: Reads it.
        allowed: What may come out beside a result.
    """

    name: str
    count: int
    write: Write
    read: Callable[[Path], Any]
    file: str
    allowed: type[Exception] = TruthHeadsError

    def run(self, folder: Path, seed: int, at: int) -> bool:
        """Give the reader the file number ``at`` of a seed."""
        rng = np.random.default_rng([seed, at, len(self.name), sum(self.name.encode())])
        path = folder / self.file
        written = self.write(path, rng)
        return survives(lambda: self.read(path), self.allowed, lambda: f"{self.name}, {seed}, {at}: {written!r:.3000}")


def by_bytes(seeds: Sequence[bytes]) -> Write:
    def write(path: Path, rng: np.random.Generator) -> bytes:
        data = damaged(rng, seeds)
        path.write_bytes(data)
        return data

    return write


def by_rows(seeds: Sequence[Json]) -> Write:
    """Write lines of JSON, some of them spoiled."""

    def write(path: Path, rng: np.random.Generator) -> bytes:
        rows = [dict(seeds[rng.integers(len(seeds))]) for _ in range(int(rng.integers(1, 4)))]
        rows = [spoiled(rng, row) if rng.random() < 0.7 else row for row in rows]
        data = "\n".join(map(json.dumps, rows)).encode()
        path.write_bytes(data)
        return data

    return write


def by_value(seeds: Sequence[Any]) -> Write:
    def write(path: Path, rng: np.random.Generator) -> bytes:
        data = json.dumps(spoiled(rng, seeds[rng.integers(len(seeds))])).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return data

    return write


def either(*writes: Write) -> Write:
    return lambda path, rng: writes[rng.integers(len(writes))](path, rng)


def jsonl(rows: Sequence[Json]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: Sequence[Json], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), sink, **options)
    return sink.getvalue()


# --- questions

PAIR = {"id": "a", "context": "Oslo lies in Norway.", "question": "Where is Oslo?", "truthful": "Norway"}
PAIR |= {"untruthful": "Sweden", "evidence": [[13, 19]], "group": "g", "kind": "absent"}
SEEN = {
    "id": "b",
    "question": "A cat?",
    "truthful": "yes",
    "untruthful": "no",
    "image": "a.png",
    "boxes": [[0, 1, 2, 3]],
}
QUESTIONS: tuple[Json, ...] = (
    PAIR,
    SEEN,
    {"question": "Q?", "answer": "A", "label": 1},
    {"question": "Q?", "truthful": "A"},
    {"knowledge": "A bee has six legs.", "question": "Legs?", "right_answer": "six", "hallucinated_answer": "eight"},
    {
        "question": "who",
        "sub_context": "Ann did.",
        "sub_answer": ["Ann"],
        "org_answer": ["Bob", "B"],
        "org_context": "",
    },
    {"question_id": 1, "question": "Q?", "answer": "A", "label": "gold", "image_id": "7", "image_file": "7.jpg"},
    {"question_id": 1, "image": "COCO_1.jpg", "text": "Is there a dog?", "label": "yes"},
    {"Question": "Q?", "Best Answer": "A", "Incorrect Answers": "B; C"},
)
CSV = [
    b"id,question,truthful,untruthful,context\n1,Where?,Oslo,Bergen,Oslo is here\n2,Who?,Ann,Bob,Ann did\n",
    b'\xef\xbb\xbfquestion,answer,label\r\n"a ""quoted"", one",x,1\r\n"two\nlines",y,0\r\n',
    b"Question,Best Answer,Incorrect Answers,Category\nQ?,A,B; C,x\n",
    b'question_id,question,answer,label,image_id\n1,Q?,A,gold,7\n2,R?,B,hallucinated,8\n',
    b'question,truthful,untruthful,evidence,boxes\nq,a,b,"[[0, 1]]","[[0, 0, 1, 1]]"\n',
]  # fmt: skip


def questions(path: Path) -> None:
    for options in ({}, {"skip_bad_rows": True, "halves": True}, {"limit": 1, "images": path.parent}):
        try:
            found = read_questions(path, **options)  # type: ignore[arg-type]
        except DataError:
            continue
        for question in found:
            assert question.answers and question.group and isinstance(question.digest, int)


# --- benchmarks

HALUEVAL = [
    {"knowledge": "K.", "question": "Q?", "right_answer": "r", "hallucinated_answer": "h"},
    {"knowledge": "K.", "dialogue_history": "[Human]: Q", "right_response": "r", "hallucinated_response": "h"},
    {"document": "D.", "right_summary": "r", "hallucinated_summary": "h"},
]
POPE = [{"question_id": at, "image": "COCO_1.jpg", "text": f"Is there a {at}?", "label": "yes"} for at in (1, 2)]
OKVQA = [{"question_id": 1, "image_path": "1.jpg", "question": "Is there a dog?", "answer": "no"}]
ANSWERS = [{"question_id": 1, "answer": "Yes.", "split": "random"}, {"question_id": 2, "answer": "no", "label": "yes"}]
OBJECTS = {"322791": ["dog", "cat"], "7": ["person"]}
COCO = {
    "categories": [{"id": 1, "name": "dog"}],
    "images": [{"id": 7}],
    "annotations": [{"image_id": 7, "category_id": 1}, {"image_id": 7, "caption": "A dog."}],
}
SCENES = [{"image": "7.png", "objects": ["dog"], "caption": "a dog"}]
CAPTIONS = [{"image_id": 7, "caption": "A dog and a cat. A", "finished": False}, {"image": "322791.jpg", "caption": ""}]
SYNONYMS = [b"dog, puppy, hound\ncat, kitten\n", b"person, man\r\nhot dog, frankfurter\r\n"]


def truth(path: Path) -> None:
    read_truth([path], matcher(own_vocabulary()))


def captions(path: Path) -> None:
    read_captions(path, {"7": ["dog"], "322791": ["cat"]})


def answered(path: Path) -> None:
    asked = path.with_name("pope.json")
    asked.write_bytes(jsonl(POPE))
    match_answers([path], [read_pope([asked])])


def answers_scored(path: Path) -> None:
    asked = path.with_name("pope.json")
    asked.write_bytes(jsonl(POPE))
    score_answers("pope", [path], [asked], out=path.parent / "scored")


def captions_scored(path: Path) -> None:
    known = path.with_name("truth.json")
    known.write_text(json.dumps(OBJECTS))
    score_answers("chair", [path], [known], out=path.parent / "scored")


def line(task: str, run: str, at: int, **more: Any) -> dict[str, Any]:
    return {"task": task, "run": run, "id": f"q{at}", "split": "", "group": f"g{at}", "prompt": f"p{at}", **more}


def _yes_no(task: str, run: str, at: int) -> dict[str, Any]:
    parsed = {"strict": "yes"}
    return line(task, run, at, gold="yes", answer="yes", yes=-0.5, no=-1.0, parsed=parsed)


def _caption(run: str) -> dict[str, Any]:
    said = {"text": "a dog", "cut_off": False, "objects": [["dog", "dog"]], "whole": {"words": 2, "objects": []}}
    return line("chair", run, 1, gold=["dog"], answer="a dog", captions={"64": said, "512": said})


PREDICTIONS = [
    [_yes_no("pope", run, at) for run in ("none", "g", "g/shuffled-0") for at in (1, 2, 3)]
    + [{"task": "neutral", "run": "g", "id": "n", "kl": 0.1, "loss": 0.2}],
    [_caption(run) for run in ("none", "g")],
    [
        line("pairs", run, at, truthful=-1.0, untruthful=-2.0, tokens=[1, 2], margin=1.0)
        for run in ("none", "g")
        for at in (1, 2)
    ],
    [
        line("conflict", run, 1, answer="x", gold={"context": ["x"], "memory": ["y"]}, image=None)
        for run in ("none", "g")
    ],
    [{**_yes_no("lm-eval:task", run, 1), "value": 0.5} for run in ("none", "g")],
]


def by_predictions(path: Path, rng: np.random.Generator) -> bytes:
    """Write predictions with one or two lines spoiled."""
    rows = [dict(one) for one in PREDICTIONS[rng.integers(len(PREDICTIONS))]]
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(len(rows)))
        rows[at] = spoiled(rng, rows[at])
    data = jsonl(rows)
    path.write_bytes(data)
    if rng.random() < 0.3:
        told = spoiled(rng, {"settings": {"seed": 3, "data": {"path": "x"}}, "notes": ["a note"]})
        (path.parent / "run.json").write_text(json.dumps(told))
    else:
        (path.parent / "run.json").unlink(missing_ok=True)
    return data


# --- artefacts

LAYERS, HEADS = 2, 3


def _scores() -> Scores:
    random = torch.Generator().manual_seed(0)
    sample = torch.randn(6, LAYERS, HEADS, generator=random).half()
    ids = torch.arange(6)
    return Scores.of(
        "probe",
        torch.rand(LAYERS, HEADS, generator=random),
        auroc=torch.rand(LAYERS, HEADS, generator=random),
        kind_values=torch.rand(2, LAYERS, HEADS, generator=random),
        sample=sample,
        sample_label=ids % 2,
        sample_group=ids // 2,
        sample_question=ids // 2,
        sample_id=ids,
        meta={
            "model": {"name": "m", "fingerprint": "f"},
            "data": {"path": "q.jsonl", "rows": 3, "sha256": "a"},
            "kinds": ["x", "y"],
            "seed": 0,
            "summary": {
                "mean": {"value": 0.5, "low": 0.4, "high": 0.6},
                "form": {"accuracy": {"value": 0.7, "low": 0.6, "high": 0.8}},
                "split_half": {"pearson": {"value": 0.5, "low": 0.4, "high": 0.6}},
            },
            "packages": {"torch": "2"},
            "command": "truthheads score m",
        },
    )


def _trace() -> Trace:
    random = torch.Generator().manual_seed(0)
    sample = torch.rand(5, 1, len(MEASURES), LAYERS, HEADS, generator=random).half()
    ids = torch.arange(5)
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    claim = {"answer": {"auroc": {"within_layer": figure, "spearman": figure, "p_permutation": 0.01}}}
    meta = {"positions": ["answer"], "position": "answer", "model": {"name": "m"}, "data": {"rows": 5}, "claim": claim}
    return Trace(sample.float().mean(0), sample, ids, ids, ids, torch.rand(LAYERS, HEADS, generator=random), meta)


def _drift() -> Drift:
    parts = {part: torch.full((LAYERS, HEADS), 0.1) for part in "qkvo"}
    cosines = {part: torch.ones(LAYERS, HEADS) for part in parts}
    return Drift("m", "n", parts, {"seed": 0, "weights": dict.fromkeys("qkvo", 64)}, cosines, torch.zeros(LAYERS, 4))


class Saved:
    """An artefact as its tensors and metadata, saved as it stands or spoiled."""

    def __init__(self, made: Any, folder: Path) -> None:
        from truthheads.storage.artifacts import load_artifact

        made.save(folder / "seed.safetensors")
        kind = {Scores: "scores", Trace: "trace", Drift: "drift", Gate: "gate"}[type(made)]
        self.tensors, self.meta = load_artifact(folder / "seed.safetensors", kind=kind)
        self.whole = (folder / "seed.safetensors").read_bytes()

    def __call__(self, path: Path, rng: np.random.Generator) -> Any:
        if rng.random() < 0.3:
            return by_bytes([self.whole])(path, rng)
        tensors, meta = dict(self.tensors), self.meta
        if rng.random() < 0.5:
            name = list(tensors)[rng.integers(len(tensors))]
            tensors[name] = _other(rng, tensors[name])
            if rng.random() < 0.1:
                del tensors[name]
        if rng.random() < 0.7:
            meta = spoiled(rng, meta)
            if isinstance(meta, dict) and rng.random() < 0.9:
                meta |= {"kind": self.meta["kind"], "format_version": FORMAT_VERSION}
        save_file(tensors, path, {KEY: json.dumps(meta)})
        return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}, meta


def _other(rng: np.random.Generator, tensor: Tensor) -> Tensor:
    """Return a tensor of another type, shape or content."""
    kind = rng.integers(7)
    if kind == 0:
        return tensor.to(
            [torch.int64, torch.bool, torch.float8_e4m3fn, torch.bfloat16, torch.float64, torch.uint8][rng.integers(6)]
        )
    if kind == 1:
        return tensor.reshape(-1).clone()
    if kind == 2:
        return tensor[:0].clone() if tensor.ndim else tensor
    if kind == 3:
        return tensor[None].clone()
    if kind == 4:
        return torch.full_like(tensor, float("nan") if tensor.is_floating_point() else 2**40)
    if kind == 5:
        return torch.full_like(tensor, float("inf") if tensor.is_floating_point() else -1)
    return tensor.to(torch.complex64) if rng.random() < 0.5 else torch.zeros(())


def used(load: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Return a function that loads an artefact and asks of it what commands ask."""

    def read(path: Path) -> None:
        item = load(path)
        item.chart()
        if hasattr(item, "table"):
            item.table()
        if isinstance(item, Scores):
            item.save(path.with_name("again.safetensors"))

    return read


def drift_read(path: Path) -> None:
    Drift.load(path).verdict()


def array(path: Path, rng: np.random.Generator) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.random.default_rng(0).random((2, 3)).astype([np.float32, np.float64, np.int64][rng.integers(3)]))
    zipped = io.BytesIO()
    np.savez(zipped, np.zeros((2, 3)))
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    data = damaged(rng, [sink.getvalue()] * 8 + [zipped.getvalue(), objects.getvalue()])
    if rng.random() < 0.3:
        shape = ["(9999999999999, 99)", "(-1, 3)", "(2**60,)", "()", "(3L, 2)", "(2, 3" + ", 1" * 90 + ")"][
            rng.integers(6)
        ]
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data[-48:]
    path.write_bytes(data)
    return data


CELLS = [b"layer,head,accuracy\n0,0,0.5\n0,1,0.6\n1,0,0.7\n1,1,0.5\n"]

FIGURE = {"value": 0.5, "low": 0.4, "high": 0.6}
COMPARISON = {
    "pairs": [
        {
            "a": "m", "b": "n", "pearson": FIGURE, "spearman": FIGURE, "pearson_within_layer": FIGURE,
            "p_permutation": 0.01, "noise_ceiling": 0.9, "noise_ceiling_within_layer": 0.8, "verdict": "inherited",
            "evidence": "e", "notes": ["n"], "drift": {"q": FIGURE}, "drift_file": "drift-m-n.safetensors",
        }
    ],
    "models": [
        {"name": name, "model": name, "values": [[0.1, 0.2], [0.3, None]], "unit": "accuracy", "data_sha256": "a"}
        for name in "mn"
    ],
    "triples": [{"in_words": "m stands in the middle"}],
    "meta": {"seed": 0, "command": "truthheads compare", "packages": {"torch": "2"}},
}  # fmt: skip
TUNING = {
    "path": [
        {
            "name": "epoch 1",
            "effect": {"margin": FIGURE, "pair_accuracy": FIGURE},
            "harm": {"kl": FIGURE, "loss": FIGURE},
        }
    ],
    "frontier": [0], "chosen": 0, "guard": 0.02, "why": "largest", "data": {"sha256": "a"}, "seed": 0,
}  # fmt: skip
GROUND = {
    "better": True, "anyway": False, "exported": "model", "verdict": "better", "test_rows": 30, "model": "m",
    "data": "q.jsonl", "effect": {"accuracy": FIGURE},
}  # fmt: skip


def compared(path: Path) -> None:
    found = Comparison.load(path)
    found.table()
    found.chart()


# --- checkpoints


def by_header(path: Path, rng: np.random.Generator) -> bytes:
    """Write a safetensors file whose header is made by hand, and wrong."""
    item = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    header = {
        "__metadata__": {"format": "pt"},
        "a": item,
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    made = header if rng.random() < 0.3 else spoiled(rng, header)
    if isinstance(made, dict) and rng.random() < 0.5:
        wrong: tuple[Any, ...] = (
            {"data_offsets": [0, 2**40]},
            {"data_offsets": [24, 0]},
            {"data_offsets": [-8, 16]},
            {"shape": [2**40, 2**40]},
            {"shape": [2**63, 2]},
            {"dtype": "F99"},
            {"dtype": "F64"},
            {"dtype": "F4"},
            {"shape": []},
            {"shape": [0, 3]},
            {"data_offsets": [0, 32]},
            {"dtype": "C64", "shape": [3]},
            {"dtype": "F8_E8M0", "shape": [24]},
        )
        made = {**made, "a": {**item, **wrong[rng.integers(len(wrong))]}}
    text = json.dumps(made).encode()
    length = len(text) if rng.random() < 0.8 else int(rng.choice([0, 1, 2**31, 2**62, len(text) - 1, len(text) + 40]))
    data = struct.pack("<Q", length) + text + bytes(32)
    path.write_bytes(data)
    return data


def shards_read(path: Path) -> None:
    shards = Shards.open(path.parent)
    for name in shards.entries:
        with_rows = shards.entries[name].shape
        try:
            shards.read(name)
            if with_rows and with_rows[0]:
                shards.read(name, rows=(0, 1))
        except ModelError:
            continue


def header_read(path: Path) -> None:
    found = read_header(path)
    assert found.noted({"a": 1})


def by_index(path: Path, rng: np.random.Generator) -> bytes:
    if not (path.parent / "model-1.safetensors").is_file():
        save_file({"a": torch.ones(2, 3), "b": torch.ones(4)}, path.parent / "model-1.safetensors")
    files = [
        "../x.safetensors",
        "/dev/zero",
        "..",
        "a\\b",
        "model-1.safetensors\0",
        "",
        "model-1.safetensors/",
        "\ud800",
    ]
    seed = {"metadata": {"total_size": 9}, "weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}
    made = spoiled(rng, seed)
    if rng.random() < 0.3:
        made = {"weight_map": {"a": files[rng.integers(len(files))]}}
    data = json.dumps(made).encode()
    path.write_bytes(data)
    return data


def gguf_seed(folder: Path) -> bytes:
    writer = GGUFWriter(folder / "seed.gguf", "llama")
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "d"])
    writer.add_array("numbers", [1, 2, 3])
    for at in range(LAYERS):
        writer.add_tensor(f"blk.{at}.attn_output.weight", np.ones((6, 6), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (folder / "seed.gguf").read_bytes()


def gated(path: Path) -> None:
    gate = Gate(torch.tensor([[0.5, 1.5, 1.0], [1.0, 2.0, 0.0]]))
    export_gguf(path, gate, path.with_suffix(".out"))


def pictures() -> list[bytes]:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 255, (12, 10, 3), dtype=np.uint8))
    made = []
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a picture"
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"):
        sink = io.BytesIO()
        image.save(sink, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
        made.append(sink.getvalue())
    moving = io.BytesIO()
    image.save(moving, "GIF", save_all=True, append_images=[image.rotate(90)] * 3)
    return [*made, moving.getvalue()]


def reported(path: Path) -> None:
    write_report(path.parent, path.parent.with_name("report.html"))


NAMED = ("llama", "gpt2", "qwen3", "mixtral")


def configurations() -> list[Json]:
    rows = [row for row in (*ROWS, *MULTIMODAL) if row.name in (*NAMED, "llava")]
    return [json.loads(build(row).config.to_json_string(use_diff=False)) for row in rows]


def inspected(path: Path) -> None:
    inspect(str(path.parent)).json()


SHIPPED = Path(__file__).parents[1] / "src/truthheads/workflows/recipes"
RECIPES = [(SHIPPED / f"{name}.toml").read_bytes() for name in ("family", "demo")]
NEUTRAL = [b"A first text.\n\nA second one.\n\n\nA third.", jsonl([{"text": "One text."}, {"text": "Two."}])]
STEPS = {"score": {"given": "ab", "results": {"a.txt": "cd"}}}


def steps_read(path: Path) -> None:
    result = path.parent / "result.txt"
    result.unlink(missing_ok=True)
    Steps(path.parent).run("score", {"a": 1}, [result], lambda: result.write_text("x"))


def targets(folder: Path) -> list[Target]:
    """Return every reader; whole files of some are made in a folder."""
    gate = Saved(Gate.from_scores(_scores()), folder)
    scores, trace, drift = Saved(_scores(), folder), Saved(_trace(), folder), Saved(_drift(), folder)
    shards = save_bytes(folder, {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)})
    gguf = gguf_seed(folder)
    lines = [jsonl(QUESTIONS[:2]), *(jsonl([row]) for row in QUESTIONS)]
    tables = [parquet([row, row]) for row in QUESTIONS] + [
        parquet([PAIR] * 3, compression="zstd", use_dictionary=False)
    ]
    arrays = [json.dumps([row]).encode() for row in QUESTIONS] + [json.dumps({"rows": [PAIR]}).encode()]
    summaries = [json.loads(json.dumps(summarise_runs(rows))) for rows in PREDICTIONS[:2]]  # type: ignore[arg-type]
    piece = {"text": "b", "marks": "e q", "shade": 0.5, "weight": 0.5}
    cell = {"x": 0, "y": 0, "width": 1, "height": 1, "shade": 0.2, "weight": 0.1}
    panel = {"head": "L0H1", "note": "s", "pieces": [{"text": "a "}, piece], "cells": [cell]}
    shown = {
        "title": "q",
        "note": "n",
        "panels": [panel],
        "image": "",
        "width": 3,
        "height": 4,
        "boxes": [[0, 0, 1, 1]],
    }
    drawn = {"title": "t", "pictures": [shown], "version": 1}
    return [
        Target("questions .jsonl by bytes", 1000, by_bytes(lines), questions, "q.jsonl"),
        Target("questions .jsonl by fields", 1200, by_rows(QUESTIONS), questions, "q.jsonl"),
        Target(
            "questions .json",
            500,
            either(by_bytes(arrays), by_value([[dict(q)] for q in QUESTIONS])),
            questions,
            "q.json",
        ),
        Target("questions .csv", 700, by_bytes(CSV), questions, "q.csv"),
        Target("questions .parquet", 600, by_bytes(tables), questions, "q.parquet"),
        Target("HaluEval", 400, either(by_bytes([jsonl(HALUEVAL[:1])]), by_rows(HALUEVAL)), read_halueval, "h.json"),
        Target(
            "POPE",
            400,
            either(by_bytes([jsonl(POPE), jsonl(OKVQA)]), by_rows(POPE)),
            lambda p: read_pope([p]),
            "p.json",
        ),
        Target("answers to POPE", 300, either(by_bytes([jsonl(ANSWERS)]), by_rows(ANSWERS)), answered, "a.jsonl"),
        Target("answers scored", 150, by_rows(ANSWERS), answers_scored, "a.jsonl"),
        Target(
            "objects of images",
            500,
            either(by_bytes([json.dumps(COCO).encode()]), by_value([COCO, OBJECTS])),
            truth,
            "t.json",
        ),
        Target(
            "objects, gzipped",
            200,
            either(by_bytes([gzip.compress(json.dumps(OBJECTS).encode())]), by_value([OBJECTS])),
            truth,
            "t.json.gz",
        ),
        Target("scenes", 200, by_rows(SCENES), truth, "s.jsonl"),
        Target("captions", 300, either(by_bytes([jsonl(CAPTIONS)]), by_rows(CAPTIONS)), captions, "c.jsonl"),
        Target("captions scored", 150, by_rows(CAPTIONS), captions_scored, "c.jsonl"),
        Target("synonyms", 200, by_bytes(SYNONYMS), read_vocabulary, "s.txt"),
        Target("predictions", 400, by_bytes([jsonl(rows) for rows in PREDICTIONS]), read_predictions, "p.jsonl"),
        Target("predictions scored again", 250, by_predictions, lambda p: rescore(p.parent), "predictions.jsonl"),
        Target("neutral text", 200, by_bytes(NEUTRAL[:1]), read_neutral, "n.txt"),
        Target(
            "neutral .jsonl",
            200,
            either(by_bytes(NEUTRAL[1:]), by_rows([{"text": "A text."}])),
            read_neutral,
            "n.jsonl",
        ),
        Target(
            "steps",
            150,
            either(by_bytes([json.dumps(STEPS).encode()]), by_value([STEPS])),
            steps_read,
            "steps.json",
            ArtifactError,
        ),
        Target("recipe", 300, by_bytes(RECIPES), read_recipe, "r.toml"),
        Target("scores", 200, scores, used(Scores.load), "s.safetensors", ArtifactError),
        Target("scores .npy", 300, array, used(Scores.load), "s.npy", ArtifactError),
        Target("scores .csv", 200, by_bytes(CELLS), used(Scores.load), "s.csv", ArtifactError),
        Target("gate", 250, gate, used(Gate.load), "g.safetensors", TruthHeadsError),
        Target("trace", 250, trace, used(Trace.load), "t.safetensors", ArtifactError),
        Target("drift", 200, drift, drift_read, "d.safetensors", ArtifactError),
        Target(
            "comparison",
            150,
            either(by_bytes([json.dumps(COMPARISON).encode()]), by_value([COMPARISON])),
            compared,
            "c.json",
        ),
        Target("a shard", 400, either(by_bytes([shards]), by_header), shards_read, SINGLE, ModelError),
        Target("a header", 250, either(by_bytes([shards]), by_header), header_read, "h.safetensors", ValueError),
        Target("an index", 250, by_index, shards_read, INDEX, ModelError),
        Target("a GGUF header", 300, by_bytes([gguf]), check_gguf, "h.gguf", ModelError),
        Target("a GGUF export", 150, by_bytes([gguf]), gated, "g.gguf"),
        Target("a configuration", 120, by_value(configurations()), inspected, "config.json", ModelError),
        Target("an image", 400, by_bytes(pictures()), load_image, "i.img", DataError),
        Target("report: comparison", 90, by_value([COMPARISON]), reported, "report/comparison.json", ArtifactError),
        Target("report: tuning", 80, by_value([TUNING]), reported, "report/tuning.json", ArtifactError),
        Target("report: summary", 80, by_value(summaries), reported, "report/summary.json", ArtifactError),
        Target("report: ground", 60, by_value([GROUND]), reported, "report/ground.json", ArtifactError),
        Target("report: scores", 80, scores, reported, "report/s.safetensors", ArtifactError),
        Target("report: trace", 60, trace, reported, "report/t.safetensors", ArtifactError),
        Target("report: gate", 60, gate, reported, "report/g.safetensors", ArtifactError),
        Target("report: drift", 50, drift, reported, "report/d.safetensors", ArtifactError),
        Target("report: array", 60, array, reported, "report/a.npy", ArtifactError),
        Target("report: pictures", 60, by_value([drawn]), reported, "report/p.pictures.json", ArtifactError),
    ]


def save_bytes(folder: Path, tensors: Mapping[str, Tensor]) -> bytes:
    save_file(dict(tensors), folder / "seed.safetensors")
    return (folder / "seed.safetensors").read_bytes()
