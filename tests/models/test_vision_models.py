"""Vision-language models: what we compute of an image prompt equals the processor's own call, answer by answer."""

import inspect
import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image

import truthheads as th
from truthheads.data.questions import Question
from truthheads.errors import DataError, ModelError
from truthheads.exporting.export import export
from truthheads.models import forward, image_inputs
from truthheads.models.answer_logprobs import pair_logprobs
from truthheads.models.image_inputs import model_type, placeholder
from truthheads.models.load import Model, load
from truthheads.models.prompts import encode
from truthheads.results.gate import Gate
from truthheads.tracing.image_patches import VIEWS, token_boxes
from truthheads.tracing.trace import trace
from truthheads.tuning.learn import Schedule
from truthheads.tuning.tune import tune
from vision_zoo import ROWS, TORCHVISION, seeing
from zoo import ROWS as TEXT_ROWS
from zoo import ZooRow, save


@cache
def _seeing(name: str) -> Model:
    return seeing(next(row for row in ROWS if row.name == name))


@pytest.fixture(params=[row.name for row in ROWS])
def model(request: pytest.FixtureRequest) -> Model:
    if request.param in TORCHVISION and find_spec("torchvision") is None:
        pytest.skip("transformers builds this processor with torchvision alone")
    return _seeing(request.param)


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    """Return questions about images of different sizes, with answers of different length."""
    found = []
    for number, size in enumerate([(24, 16), (40, 40), (17, 50), (64, 20)]):
        pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        asked = "Is there a cat?" + " Look closely." * (number % 3)
        found.append(Question(f"q{number}", "", asked, "yes", "not at all", image=str(path), group=f"g{number}"))
    return found


def plain_logprob(model: Model, question: Question, answer: str) -> float:
    """Return log P(answer | image, prompt) by one call of the real processor and the real network."""
    image = Image.open(str(question.image)).convert("RGB")
    prompt = f"{placeholder(model)}\n{question.question}\nASSISTANT:"
    call: Any = model.processor
    if model_type(model) == "paligemma":
        made = call(text=prompt, images=image, suffix=answer, return_tensors="pt")
        made.pop("labels")
        count = int(made["token_type_ids"].sum()) - 1
        end = made["input_ids"].shape[1] - 1
    else:
        made = call(text=[f"{prompt} {answer}"], images=[[image]], return_tensors="pt")
        alone = call(text=[prompt], images=[[image]], return_tensors="pt")["input_ids"][0].tolist()
        end = made["input_ids"].shape[1]
        ids = made["input_ids"][0].tolist()
        count = end - next(at for at, (a, b) in enumerate(zip([*alone, -1], ids, strict=False)) if a != b)
    taken = inspect.signature(model.network.forward).parameters
    base: Any = model.network.base_model
    for one in (model.network, base):
        if hasattr(one, "rope_deltas"):
            one.rope_deltas = None
    with torch.no_grad():
        logits = (
            model.network(**{name: value for name, value in made.items() if name in taken}).logits[0].log_softmax(-1)
        )
    targets = made["input_ids"][0, end - count : end]
    return float(logits[end - count - 1 : end - 1].gather(1, targets[:, None]).sum())


@pytest.mark.parametrize("share_prefix", [True, False], ids=["shared", "whole"])
def test_answers_are_as_likely_as_in_the_processors_own_call(
    model: Model, questions: list[Question], share_prefix: bool
) -> None:
    encoded = encode(model, questions, share_prefix=share_prefix)
    found = pair_logprobs(model, encoded, batch_tokens=4096)
    for row, question in zip(found, questions, strict=True):
        wanted = [plain_logprob(model, question, answer.text) for answer in question.answers]
        assert np.abs(row - np.array(wanted)).max() < 1e-4


def test_the_processors_image_tokens_are_all_there_and_cover_the_picture(
    model: Model, questions: list[Question]
) -> None:
    config = model.network.config
    token = getattr(config, "image_token_id", None) or config.image_token_index
    for item, question in zip(encode(model, questions, share_prefix=False), questions, strict=True):
        count = list(item.tails[0]).count(token)
        image = Image.open(str(question.image))
        made = model.processor(text=[placeholder(model)], images=[[image.convert("RGB")]])["input_ids"][0]
        assert count == list(made).count(token) > 0
        if model_type(model) in VIEWS:
            boxes = token_boxes(model, image.size, count)
            assert len(boxes) == count


def test_text_rows_in_a_batch_are_as_likely_as_alone(model: Model) -> None:
    rows = [
        Question(f"t{n}", "Ann lives in Rome. " * (n + 1), "Where does Ann live?", "Rome", "Lima or so", group=f"g{n}")
        for n in range(3)
    ]
    encoded = encode(model, rows)
    together = pair_logprobs(model, encoded, batch_tokens=4096)
    alone = np.concatenate([pair_logprobs(model, [one], batch_tokens=4096) for one in encode_each(model, rows)])
    assert np.abs(together - alone).max() < 1e-4


def encode_each(model: Model, rows: list[Question]) -> list[Any]:
    """Return each question encoded by itself."""
    return [encode(model, [row])[0] for row in rows]


def test_the_last_token_is_the_answers_own(model: Model, questions: list[Question]) -> None:
    for item, question in zip(encode(model, questions), questions, strict=True):
        for tail, answer in zip(item.tails, question.answers, strict=True):
            assert model.tokenizer.decode(tail[-1:]).strip() == answer.text[-1]


def test_every_row_of_the_zoo_that_sees_is_here() -> None:
    names: Callable[[ZooRow], str] = lambda row: row.name  # noqa: E731
    assert {"llava", "llava_next", "paligemma", "gemma3_vision", "idefics3", "mllama"} <= set(map(names, ROWS))


def test_hook_adapter_and_checkpoint_agree_on_image_prompts(
    model: Model, questions: list[Question], tmp_path: Path
) -> None:
    shape = model.layout.shape
    factors = torch.from_numpy(np.random.default_rng(0).uniform(0.3, 1.7, shape)).float()
    for layer in model.layout.skipped:
        factors[layer] = 1.0
    gate = Gate(gate=factors, site="z")
    model.network.save_pretrained(tmp_path / "plain")
    model.tokenizer.save_pretrained(tmp_path / "plain")
    export(str(tmp_path / "plain"), gate, to="checkpoint", out=tmp_path / "gated")
    shipped = type(model.network).from_pretrained(tmp_path / "gated").eval()
    encoded = encode(model, questions)
    hooked = pair_logprobs(model, encoded, batch_tokens=4096, gate=gate)
    adapter = export(str(tmp_path / "plain"), gate, to="adapter", out=tmp_path / "adapter")
    plain = type(model.network).from_pretrained(tmp_path / "plain").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers for a deprecated name
        wrapped = PeftModel.from_pretrained(plain, adapter).merge_and_unload()
    adapted = pair_logprobs(replace(model, network=wrapped.eval()), encoded, batch_tokens=4096)
    assert np.abs(hooked - adapted).max() < 1e-4
    baked = pair_logprobs(replace(model, network=shipped), encoded, batch_tokens=4096)
    assert np.abs(hooked - pair_logprobs(model, encoded, batch_tokens=4096)).max() > 1e-2
    assert np.abs(hooked - baked).max() < 1e-4


def test_attention_over_boxes_is_traced(model: Model, questions: list[Question]) -> None:
    if model_type(model) not in VIEWS:
        pytest.skip("its layers that see attend to no image tokens")
    rows = [replace(one, boxes=((2.0, 2.0, 12.0, 12.0),)) for one in questions]
    found = trace(model, rows)
    assert torch.isfinite(found.auroc).all()
    crops = getattr(model.processor.image_processor, "do_center_crop", False) and model_type(model) == "llava"
    # The crop cuts the box off in two of the pictures.
    assert found.meta["summary"]["sources"] == {"boxes": 2 if crops else len(rows)}


TEMPLATES = {
    "vicuna": "{% for m in messages %}USER: {% for c in m.content %}{% if c.type == 'image' %}IMAGE\n{% else %}"
    "{{ c.text }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:",
    "mistral": "{% for m in messages %}[INST] {% for c in m.content %}{% if c.type == 'image' %}IMAGE\n{% else %}"
    "{{ c.text }}{% endif %}{% endfor %} [/INST]{% endfor %}",
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
}
"""The turns of LLaVA on Vicuna, LLaVA on Mistral, and Qwen, InternVL and SmolVLM."""


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_last_token_is_the_answers_own_in_every_chat_template(
    model: Model, questions: list[Question], template: str
) -> None:
    seeing = copy(model.processor)
    seeing.chat_template = TEMPLATES[template].replace("IMAGE", placeholder(model))
    chatty = replace(model, processor=seeing)
    plain = encode(model, questions)
    for one, before in zip(encode(chatty, questions, chat=True), plain, strict=True):
        assert [tail[-1] for tail in one.tails] == [tail[-1] for tail in before.tails]
        assert one.image == before.image
    text = [replace(one, image=None) for one in questions]
    ends = [[tail[-1] for tail in one.tails] for one in encode(chatty, text, chat=True)]
    assert ends == [[tail[-1] for tail in one.tails] for one in plain]


def test_a_template_that_drops_the_image_is_refused(model: Model, questions: list[Question]) -> None:
    seeing = copy(model.processor)
    seeing.chat_template = "{% for m in messages %}{{ m.content[-1].text }}{% endfor %}"
    with pytest.raises(ModelError, match="chat template does not show the image"):
        encode(replace(model, processor=seeing), questions, chat=True)


def test_images_prepared_in_worker_processes_are_the_same(
    model: Model, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = encode(model, questions)
    alone = pair_logprobs(model, here, batch_tokens=300)
    monkeypatch.setattr(image_inputs, "MIN_IMAGES_FOR_WORKERS", 1)
    monkeypatch.setattr(forward, "MIN_IMAGES_FOR_WORKERS", 1)
    monkeypatch.setattr(image_inputs, "spare_processes", lambda: 2)
    there = encode(model, questions)
    assert there == here
    assert np.array_equal(pair_logprobs(model, there, batch_tokens=300), alone)


def test_an_image_that_cannot_be_read_is_named_with_its_row(model: Model, questions: list[Question]) -> None:
    whole = Path(str(questions[2].image)).read_bytes()
    Path(str(questions[2].image)).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"row 'q2': image .*2\.png cannot be read"):
        encode(model, questions)


def test_a_gate_is_learned_on_image_prompts(model: Model, questions: list[Question]) -> None:
    found = tune(model, questions, dev_share=0.5, guard=1.0, schedule=Schedule(epochs=1, rate=0.2), batch_tokens=2048)
    assert found.result["path"] and torch.isfinite(found.gate.gate).all()
    assert max(entry["effect"]["margin"]["value"] for entry in found.result["path"]) != 0.0


@pytest.fixture
def blind(tmp_path: Path) -> tuple[Path, Path]:
    """Return a vision-language model as fine-tuning on text saves it, without a processor, and its base with one."""
    row = next(row for row in ROWS if row.name == "llava")
    tuned, base = save(row, tmp_path / "tuned"), save(row, tmp_path / "base")
    seeing(row).processor.save_pretrained(base)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    return tuned, base


def test_without_a_processor_text_rows_work_and_a_row_with_an_image_names_what_is_missing(
    blind: tuple[Path, Path], tmp_path: Path
) -> None:
    tuned, base = blind
    model = load(str(tuned), device="cpu", dtype="fp32")
    assert model.processor is None
    text = Question("a", "The sky is green.", "What colour is the sky?", "green", "blue")
    assert [one.row for one in encode(model, [text])] == [0]
    shown = replace(text, id="b", image=str(tmp_path / "red.png"))
    with pytest.raises(ModelError) as raised:
        encode(model, [text, shown])
    error = raised.value
    assert f"row 'b' has an image, and {tuned} was saved without its processor" in error.problem
    assert "processor_config.json or preprocessor_config.json beside config.json" in error.expected
    assert "--processor BASE" in error.fix
    # and what it advises helps: the image is prepared as the base prepares it
    helped = th.load(tuned, device="cpu", dtype="fp32", processor=base)
    whole = load(str(base), device="cpu", dtype="fp32")
    assert encode(helped, [text, shown]) == encode(whole, [text, shown])
    # of a network in memory, too: there the processor itself is given
    with pytest.raises(ModelError) as raised:
        encode(th.load(model.network, model.tokenizer), [shown])
    assert "processor=AutoProcessor.from_pretrained(BASE)" in raised.value.fix
    with pytest.raises(ModelError, match="processor cannot be changed of a network that is in memory") as raised:
        th.load(model.network, model.tokenizer, processor=str(base))
    assert raised.value.fix == "give AutoProcessor.from_pretrained(NAME) as the processor"
    held = th.load(model.network, model.tokenizer, processor=whole.processor)
    assert encode(held, [text, shown]) == encode(whole, [text, shown])


def test_a_processor_is_borrowed_only_where_there_is_one_and_a_use_for_it(
    blind: tuple[Path, Path], tmp_path: Path
) -> None:
    tuned, base = blind
    with pytest.raises(ModelError, match=r"has no processor\n  expected: processor_config\.json or") as raised:
        th.load(tuned, processor=tuned)
    assert raised.value.fix == "give the model that this one was made from, as it was published"
    text = save(next(row for row in TEXT_ROWS if row.name == "llama"), tmp_path / "text")
    with pytest.raises(ModelError, match="takes no images, so it has no use for the processor of") as raised:
        th.load(text, processor=base)
    assert raised.value.fix == "leave --processor out"
