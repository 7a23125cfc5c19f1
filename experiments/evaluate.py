"""The model card's figures, on test seeds: ``python experiments/evaluate.py vision|reader|text --scenes 400``.

Plain transformers models throughout; questions about one picture or passage are read in one packed pass, which gives
the same logits as reading them one by one (a test says so). Intervals: 95 %, bootstrap over pictures or questions.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor

from family.packing import Branch, Document, pack
from family.reader import reader_prompt
from family.tower import patch_features, to_pixels
from truthheads.benchmarks.conflict import exact_match, words_by_value
from truthheads.embedded.smollm2 import MEMBERS, assemble
from truthheads.models import sources
from truthheads.models.devices import mixed_precision, pick_dtype
from truthheads.synthetic.drawing import CATEGORIES, COOCCURRENCE, PAIRS, Scene, scene_generator
from truthheads.synthetic.scenes import POPE_SPLITS, plural, pope_rows, presence_text, scenes_of
from truthheads.synthetic.text import NOT_STATED, make_text

Clusters = list[list[float]]
CHAT = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
BASE_PROMPTS = {
    "plain": "Context:\n{context}\n\nQuestion: {question}\nAnswer:",
    "chat": CHAT.format(
        prompt="{context}\n\nAnswer the question from the text above in as few words as possible; "
        "say 'not stated' if the text does not say.\n\nQuestion: {question}"
    ),
    "chat_shot": CHAT.format(
        prompt="Ann lives in Rome. Bob is a cook.\n\nQuestion: Where does Ann live?\nShort answer:"
    )
    + "Rome<|im_end|>\n"
    + CHAT.format(prompt="Ann lives in Rome. Bob is a cook.\n\nQuestion: How old is Bob?\nShort answer:")
    + "not stated<|im_end|>\n"
    + CHAT.format(prompt="{context}\n\nQuestion: {question}\nShort answer:"),
}


def figure(clusters: Clusters, statistic: Callable[[np.ndarray], float] | None = None) -> dict[str, float]:
    """Return a mean (or another statistic of the stacked rows) with its interval, clusters resampled 1,000 times."""
    rng = np.random.default_rng(0)
    arrays = [np.asarray(cluster, dtype=float) for cluster in clusters if len(cluster)]
    measure = statistic or (lambda rows: float(rows.mean()))
    drawn = [
        measure(np.concatenate([arrays[at] for at in rng.integers(len(arrays), size=len(arrays))])) for _ in range(1000)
    ]
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return {"value": measure(np.concatenate(arrays)), "low": float(low), "high": float(high)}


def balanced(rows: np.ndarray) -> float:
    """Balanced accuracy of rows ``(label, said)``."""
    return float((rows[rows[:, 0] == 1, 1].mean() + 1.0 - rows[rows[:, 0] == 0, 1].mean()) / 2)


def ratio(rows: np.ndarray) -> float:
    """Sum of the first column over that of the second."""
    return float(rows[:, 0].sum() / max(rows[:, 1].sum(), 1.0))


@torch.inference_mode()
def ask_scene(
    model: LlavaForConditionalGeneration, tokenizer: object, scene: Scene, questions: list[str]
) -> list[bool]:
    """Return whether Yes is more likely than No as the first token of each answer."""
    words = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in (" Yes", " No")]
    features = patch_features(model.model.vision_tower, to_pixels([scene]))
    prompts = [tokenizer(f"{question}\nASSISTANT:", add_special_tokens=False).input_ids for question in questions]
    prefix = [2] * features.shape[1] + tokenizer("\n", add_special_tokens=False).input_ids
    branches = [Branch(prompt, words[:1]) for prompt in prompts]
    sample = pack([Document(prefix, branches, list(range(features.shape[1])))], features)
    embedded = model.get_input_embeddings()(sample.ids)
    embedded[sample.slots] = model.model.multi_modal_projector(features)[0].to(embedded.dtype)
    mask = torch.zeros(sample.mask.shape, dtype=embedded.dtype).masked_fill(~sample.mask, -1e9)
    states = model.model.language_model(
        inputs_embeds=embedded[None], attention_mask=mask[None, None], position_ids=sample.positions[None]
    ).last_hidden_state[0]
    logits = model.lm_head(states[sample.sources])[:, words]
    return (logits[:, 0] > logits[:, 1]).tolist()


def mentioned(text: str) -> set[str]:
    """Return the categories that a caption names, in the singular or plural."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return {name for name in CATEGORIES if name in words or plural(name) in words}


@torch.inference_mode()
def describe(model: LlavaForConditionalGeneration, processor: LlavaProcessor, scenes: list[Scene]) -> list[str]:
    """Caption scenes greedily through the processor, 64 new tokens at most."""
    texts = []
    for at in range(0, len(scenes), 50):
        part = [scene.pixels for scene in scenes[at : at + 50]]
        prompts = ["<image>\nDescribe the image.\nASSISTANT:"] * len(part)
        inputs = processor(images=part, text=prompts, return_tensors="pt")
        made = model.generate(**inputs.to(model.dtype), max_new_tokens=64, do_sample=False)
        texts += processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def vision(folder: Path, scenes: int, captions: int, cooccurrence: float, seed: int) -> dict[str, object]:
    """POPE-style questions, captions, and where the errors lie."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=pick_dtype("auto", torch.device("cpu"))).eval()
    processor = LlavaProcessor.from_pretrained(folder)
    said: dict[str, Clusters] = {name: [] for name in POPE_SPLITS}
    missing: dict[str, Clusters] = {"partner of a present anchor": [], "other companions": []}
    kept = []
    for index, scene, rng in scenes_of("test", scenes, seed=seed, cooccurrence=cooccurrence):
        kept.append(scene)
        rows = {}
        for name in POPE_SPLITS:
            rows[name] = pope_rows(scene, name, scene_generator("test", seed=seed + 1, index=scenes + index))
        gone = [name for name in PAIRS.values() if name not in scene.categories]
        partners = [name for name in gone if any(PAIRS.get(there) == name for there in scene.categories)]
        others = [str(name) for name in rng.permutation([name for name in gone if name not in partners])[:2]]
        asked = list(dict.fromkeys([name for part in rows.values() for name, _ in part] + partners + others))
        answers = dict(
            zip(asked, ask_scene(model, processor.tokenizer, scene, [presence_text(n) for n in asked]), strict=True)
        )
        for name, part in rows.items():
            said[name].append([(label == "yes", answers[category]) for category, label in part])
        missing["partner of a present anchor"].append([answers[name] for name in partners])
        missing["other companions"].append([answers[name] for name in others])
    result: dict[str, object] = {"scenes": scenes, "cooccurrence": cooccurrence}
    for name, clusters in said.items():
        result[f"balanced accuracy, {name}"] = figure(clusters, balanced) | {"rows": sum(map(len, clusters))}
    for name, clusters in missing.items():
        result[f"yes to an absent one, {name}"] = figure(clusters) | {"rows": sum(map(len, clusters))}
    texts = describe(model, processor, kept[:captions])
    instance, sentence, recall, by_prior = [], [], [], {True: [], False: []}
    for scene, text in zip(kept, texts, strict=False):
        named = mentioned(text)
        wrong = named - set(scene.categories)
        instance.append([(len(wrong), len(named))])
        sentence.append([bool(wrong)])
        recall.append([(len(named & set(scene.categories)), len(scene.categories))])
        for prior in (True, False):
            pool = [
                c
                for c in PAIRS.values()
                if c not in scene.categories and prior == any(PAIRS.get(t) == c for t in scene.categories)
            ]
            by_prior[prior].append([name in named for name in pool])
    result |= {
        "captions": len(texts),
        "CHAIR-i": figure(instance, ratio),
        "CHAIR-s": figure(sentence),
        "recall": figure(recall, ratio),
        "absent companion named, its anchor there": figure(by_prior[True]),
        "absent companion named, its anchor not there": figure(by_prior[False]),
        "examples": list(zip(texts[:6], [list(scene.categories) for scene in kept[:6]], strict=True)),
    }
    return result


def plain(text: str) -> str:
    """Lower case, no articles, no punctuation: SQuAD's normal form."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def by_value(text: str) -> str:
    """Lower case, no articles, no punctuation, numbers in digits: "Twenty-one" is 21."""
    return " ".join(words_by_value(text))


@torch.inference_mode()
def replies(model: object, tokenizer: object, prompts: list[str]) -> list[str]:
    """Answer greedily, at most 16 tokens, up to the first line break."""
    tokenizer.padding_side = "left"
    made: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    for at in range(0, len(order), 40):
        part = order[at : at + 40]
        inputs = tokenizer([prompts[one] for one in part], return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        out = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        made |= dict(zip(part, texts, strict=True))
    return [made[at].strip().split("\n")[0] for at in range(len(prompts))]


def reader(folders: dict[str, Path], rows: int, swap: Path | None, seed: int) -> dict[str, object]:
    """Exact match of the reader and of the base, which gets its best of three prompts."""
    questions = make_text(rows, seed=seed, split="test", answerable=0.8)
    sets = {"generated": [(q.context, q.question, [str(q.truthful)], q.group) for q in questions]}
    if swap is not None:
        table = pq.read_table(swap).to_pylist()
        drawn = np.random.default_rng(0).permutation(len(table))
        short = [table[at] for at in drawn if len(table[at]["sub_context"]) < 1500][:rows]
        sets["nqswap"] = [(row["sub_context"], row["question"], row["sub_answer"], row["question"]) for row in short]
    result: dict[str, object] = {}
    for name, folder in folders.items():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=pick_dtype("auto", torch.device("cpu"))).eval()
        forms = BASE_PROMPTS if name == "smollm2" else {"own": reader_prompt("{context}", "{question}")}
        for form, prompt in forms.items():
            for data, items in sets.items():
                said = replies(model, tokenizer, [prompt.format(context=c, question=q) for c, q, _, _ in items])
                answers = [(text, good) for text, (_, _, good, _) in zip(said, items, strict=True)]
                right = [bool(exact_match(text, good)) for text, good in answers]
                strict = [plain(text) in map(plain, good) for text, good in answers]
                held = [any(f" {by_value(one)} " in f" {by_value(text)} " for one in good) for text, good in answers]
                groups: dict[str, list[int]] = {}
                for at, item in enumerate(items):
                    groups.setdefault(item[3], []).append(at)
                key = f"{name}, {form}, {data}"
                result[f"{key}, exact match"] = figure([[right[at] for at in ats] for ats in groups.values()]) | {
                    "rows": len(items)
                }
                result[f"{key}, exact match, strict"] = figure([[strict[at] for at in ats] for ats in groups.values()])
                result[f"{key}, answer contained"] = figure([[held[at] for at in ats] for ats in groups.values()])
                if data == "generated":
                    by_kind: dict[str, list[bool]] = {}
                    for ok, question in zip(right, questions, strict=True):
                        by_kind.setdefault(str(question.kind), []).append(ok)
                    result[f"{key}, by kind"] = {kind: float(np.mean(oks)) for kind, oks in by_kind.items()}
                    over = [
                        text.lower().startswith(NOT_STATED)
                        for text, q in zip(said, questions, strict=True)
                        if q.truthful != NOT_STATED
                    ]
                    result[f"{key}, not stated though stated"] = float(np.mean(over))
    return result


@torch.inference_mode()
def text(folders: dict[str, Path], rows: int, swap: Path) -> dict[str, object]:
    """Nats per token on passages that none of them was trained on, and drift of the attention weights."""
    passages = list(dict.fromkeys(row["org_context"] for row in pq.read_table(swap).to_pylist()))
    chosen = [passages[at] for at in np.random.default_rng(1).permutation(len(passages))[:rows]]
    nats: dict[str, list[float]] = {}
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for name, folder in folders.items():
        load = LlavaForConditionalGeneration if name == "vision" else AutoModelForCausalLM
        model = load.from_pretrained(folder, dtype=torch.float32).eval()
        decoder = model.get_decoder() if name != "vision" else model.model.language_model
        weights[name] = {key: value.clone() for key, value in decoder.named_parameters() if "_proj" in key}
        tokenizer = AutoTokenizer.from_pretrained(folders["smollm2"])
        nats[name] = []
        for passage in chosen:
            ids = torch.tensor([tokenizer(passage, add_special_tokens=False).input_ids[:160]])
            with mixed_precision(ids.device):
                states = decoder(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
                logits = model.lm_head(states)[:, : len(tokenizer)]
            nats[name].append(float(torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:])))
    result: dict[str, object] = {"passages": len(chosen)}
    for name in folders:
        result[f"{name}, nats per token"] = figure([[value] for value in nats[name]])
        if name == "smollm2":
            continue
        change = [[a - b] for a, b in zip(nats[name], nats["smollm2"], strict=True)]
        result[f"{name}, more than smollm2"] = figure(change)
        for part in "qkvo":
            keys = [key for key in weights[name] if f".{part}_proj" in key]
            base = weights["smollm2"]
            drift = [float((weights[name][key] - base[key]).norm() / base[key].norm()) for key in keys]
            result[f"{name}, drift of {part}"] = {"mean": float(np.mean(drift)), "low": min(drift), "high": max(drift)}
    return result


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("vision", "reader", "text"))
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--captions", type=int, default=300)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--cooccurrence", type=float, default=COOCCURRENCE["test"])
    parser.add_argument("--seed", type=int, default=0, help="of test pictures and rows")
    parser.add_argument("--model", choices=("smollm2", "reader"), help="default: both")
    parser.add_argument("--nqswap", type=Path)
    parser.add_argument("--deltas", type=Path, help="folder with other deltas than the package's")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    base = Path(sources.resolve("smollm2"))

    def folder(name: str) -> Path:
        delta = given.deltas / f"{name}.safetensors" if given.deltas else None
        return assemble(name, base=base, cache=sources.cache_dir(), delta=delta)

    if given.what == "vision":
        result = vision(folder("vision"), given.scenes, given.captions, given.cooccurrence, given.seed)
    elif given.what == "reader":
        names = [name for name in ("smollm2", "reader") if given.model in (None, name)]
        chosen = {name: base if name == "smollm2" else folder(name) for name in names}
        result = reader(chosen, given.rows, given.nqswap, given.seed)
    else:
        names = [name for name in MEMBERS if given.deltas is None or (given.deltas / f"{name}.safetensors").exists()]
        result = text({"smollm2": base} | {name: folder(name) for name in names}, given.rows, given.nqswap)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
