"""Pictures as they come, and questions about them: one value whatever the batch, prefix shared or not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import truthheads as th
from truthheads.data.images import load_image
from truthheads.data.questions import Question, Questions
from truthheads.errors import DataError
from truthheads.models.forward import answer_logprobs, prepare_tails
from truthheads.models.load import Model
from truthheads.models.prompts import encode, missing_images
from truthheads.scoring.activations import collect, field_name
from zoo import MULTIMODAL, ROWS, ZooRow, build, tiny_tokenizer

LLAVA = next(row for row in MULTIMODAL if row.name == "llava")
TOLERANCE = 1e-4


def picture(path: Path, mode: str = "RGB", **options: Any) -> Path:
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).convert(mode).save(path, **options)
    return path


# Pictures


@pytest.mark.parametrize(("mode", "name"), [("L", "a.png"), ("P", "a.png"), ("RGBA", "a.png"), ("CMYK", "a.jpg")])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, name: str) -> None:
    image = load_image(picture(tmp_path / name, mode))
    assert (image.mode, image.size) == ("RGB", (30, 20))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_turned_picture_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = picture(tmp_path / "turned.jpg", exif=exif)
    assert load_image(path).size == (20, 30)


def test_bad_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"none\.png cannot be read\n.*\n  got: no such file\n  do: check the path"):
        load_image(tmp_path / "none.png")
    whole = picture(tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture", encoding="utf-8")
    for name in ("half.jpg", "text.png"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            load_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 600 pixels are a bomb now
    with pytest.raises(DataError, match="DecompressionBomb"):
        load_image(tmp_path / "whole.jpg")


# Questions about pictures


@pytest.fixture
def seeing(wrap: Callable[..., Model]) -> Model:
    tokenizer = tiny_tokenizer()
    network = build(LLAVA)
    vision = network.config.vision_config
    side = vision.image_size
    shape = {"height": side, "width": side}
    look = CLIPImageProcessorPil(size=shape, crop_size=shape, do_center_crop=False)
    processor = LlavaProcessor(
        image_processor=look,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=network.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        image_token="<image>",
    )
    model = wrap(network, tokenizer)
    return Model(model.network, tokenizer, processor, model.layout, "llava")


def about(folder: Path, count: int = 6) -> list[Question]:
    questions = []
    for number in range(count):
        rng = np.random.default_rng(number)
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (16 + number, 24, 3), dtype=np.uint8)).save(path)
        asked = "Is there a cat?" + " Look closely." * (number % 3)
        questions.append(Question(f"q{number}", "", asked, "yes", "not at all", image=str(path), group=f"g{number}"))
    return questions


def values(model: Model, questions: list[Question], folder: Path, **options: Any) -> torch.Tensor:
    batch_tokens = options.pop("batch_tokens", 10_000)
    encoded = encode(model, questions, **options)
    store = collect(model, encoded, questions, folder, identity="a", batch_tokens=batch_tokens)
    z = torch.stack([store.read(field_name(head.index)).clone() for head in model.layout.layers])
    store.delete()
    return z


def plain(model: Model, question: Question, answer: str, row: ZooRow) -> tuple[torch.Tensor, float]:
    """Run one answer by the processor's own call: no batch, no cache, no code of the package."""
    prompt = f"<image>\n{question.question}\nASSISTANT:"
    with Image.open(str(question.image)) as opened:
        image = opened.convert("RGB")
    made = model.processor(text=f"{prompt} {answer}", images=image, return_tensors="pt")
    kept: dict[int, torch.Tensor] = {}

    def keep(layer: int, given: tuple[torch.Tensor, ...]) -> None:
        kept[layer] = given[0][0, -1].unflatten(0, (row.num_heads, -1)).clone()

    hooks = [
        model.network.get_submodule(row.projection(layer)).register_forward_pre_hook(
            lambda _, given, layer=layer: keep(layer, given)
        )
        for layer in range(row.num_layers)
    ]
    with torch.no_grad():
        logprob = model.network(**made).logits.log_softmax(-1)[0]
    for hook in hooks:
        hook.remove()
    ids = made["input_ids"][0]
    start = len(ids) - len(f" {answer}")  # the tokenizer has one token for each character
    total = sum(float(logprob[at - 1, ids[at]]) for at in range(start, len(ids)))
    return torch.stack([kept[layer] for layer in range(row.num_layers)]), total


def test_values_equal_the_processors_plain_call(seeing: Model, tmp_path: Path) -> None:
    questions = about(tmp_path)
    expected = [plain(seeing, question, answer.text, LLAVA) for question in questions for answer in question.answers]
    z = torch.stack([one for one, _ in expected], 1)
    for options in ({}, {"share_prefix": False}, {"batch_tokens": 60}):
        found = values(seeing, questions, tmp_path / "store", **options)
        assert (found - z).abs().max() < TOLERANCE, options
    with torch.no_grad():
        tails = prepare_tails(seeing, encode(seeing, questions[:1]))
        found = answer_logprobs(seeing, tails)
    assert found.tolist() == pytest.approx([total for _, total in expected[:2]], abs=TOLERANCE)


def test_the_picture_matters(seeing: Model, tmp_path: Path) -> None:
    first, second = about(tmp_path, 2)
    swapped = Question(first.id, "", first.question, first.truthful, first.untruthful, image=second.image, group="g")
    a = values(seeing, [first], tmp_path / "a")
    b = values(seeing, [swapped], tmp_path / "b")
    assert (a - b).abs().max() > 0.01


def test_rows_with_and_without_pictures_mix(seeing: Model, tmp_path: Path) -> None:
    text = [Question(f"t{n}", "A cat sat.", "Who sat?", "a cat", "a dog", group=f"t{n}") for n in range(4)]
    mixed = [*about(tmp_path, 4), *text]
    whole = values(seeing, mixed, tmp_path / "store")
    alone = values(seeing, text, tmp_path / "other")
    assert (whole[:, 8:] - alone).abs().max() < TOLERANCE
    scores = th.score(seeing, mixed, num_folds=2)
    assert scores.accuracy.isfinite().all()


def test_a_missing_picture_is_named(seeing: Model, tmp_path: Path) -> None:
    question = Question("q", "", "Is there a cat?", "yes", "no", image=str(tmp_path / "gone.png"), group="g")
    with pytest.raises(DataError, match=r"gone\.png"):
        encode(seeing, [question])


def test_a_text_model_reads_the_question_alone(wrap: Callable[..., Model], tmp_path: Path) -> None:
    text = wrap(build(ROWS[0]))
    (one,) = encode(text, about(tmp_path, 1))
    assert one.image is None


def test_missing_images_are_counted_and_left_out_when_asked(seeing: Model, tmp_path: Path) -> None:
    questions = about(tmp_path)
    for gone in questions[1:3]:
        Path(str(gone.image)).unlink()
    with pytest.raises(DataError, match="images of 2 of 6 rows are missing"):
        encode(seeing, questions)
    whole = Questions(questions, layout="pairs", path="", sha256="", skipped=1)
    left = whole.without(missing_images(seeing, questions))
    assert [question.id for question in left] == ["q0", "q3", "q4", "q5"]
    assert left.skipped == 3
    assert len(encode(seeing, left)) == 4
