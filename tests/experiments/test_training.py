"""The recipe at a fiftieth of its size and on tiny models: packs read as if apart, runs repeat and resume."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import CLIPVisionModel

from family.packing import Branch, Document, pack
from family.reader import prose, reader_document
from family.recipe import TrainingConfig, openings, train_family
from family.tower import cosine, patch_labels, pretrain_tower, tower_batch, training_scene, with_mirrored
from family.training import FineTuning, OwnText, answer_loss, fine_tune, own_text
from family.vision import scene_document, scene_pack, started_projector, tokens
from tiny_smollm2 import tiny_llama
from truthheads.embedded.smollm2 import GRID, tower_config
from truthheads.synthetic.drawing import CATEGORIES, Scene, SceneObject
from truthheads.synthetic.text import make_text


@pytest.fixture(scope="session")
def text(tokenizer) -> OwnText:
    return own_text(tiny_llama(), openings(tokenizer, 4), length=12, seed=1)


def test_a_packed_branch_gets_the_logits_that_it_gets_alone() -> None:
    network = tiny_llama()
    documents = [
        Document([5, 6, 7], [Branch([8, 9], [10, 2]), Branch([11], [12, 13, 2])]),
        Document([14, 15], [Branch([16], [17, 2])]),
    ]
    sample = pack(documents)
    mask = torch.zeros(sample.mask.shape).masked_fill(~sample.mask, -1e9)
    together = network(
        input_ids=sample.ids[None], attention_mask=mask[None, None], position_ids=sample.positions[None]
    ).logits[0, sample.sources]
    apart = []
    for document in documents:
        for branch in document.branches:
            ids = torch.tensor([[*document.prefix, *branch.prompt, *branch.answer]])
            apart.append(network(input_ids=ids).logits[0, -len(branch.answer) - 1 : -1])
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-5)


def test_weights_of_a_pack_go_with_the_root_of_the_answers_length() -> None:
    # Answers of 1 and 4 tokens: roots 1 and 2, so the short one weighs 1/3 and each token of the long one 1/6.
    sample = pack([Document([3], [Branch([4], [5]), Branch([4], [6, 7, 8, 9])])])
    assert sample.weights.tolist() == pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 6, 1 / 6])
    assert sample.targets.tolist() == [5, 6, 7, 8, 9]


def test_patch_labels_are_the_larger_share() -> None:
    # A box of 8 x 16 pixels: its left half fills a quarter of patch 0 (x 12..16), its right half a quarter of patch 1;
    # the larger share is the box's, one half on each side.
    item = SceneObject("cup", (12.0, 0.0, 20.0, 16.0))
    labels = patch_labels(Scene(np.zeros((80, 80, 3), np.uint8), (item,), "black"))
    column = CATEGORIES.index("cup")
    assert labels[0, column] == labels[1, column] == 0.5
    assert labels.sum() == 1.0


def test_a_mirrored_scene_has_its_labels_mirrored() -> None:
    drawn = tower_batch([training_scene(0, seed=0)])
    both = with_mirrored(drawn)
    labels = both.patch_labels.unflatten(1, (GRID, GRID))
    assert torch.equal(labels[0].flip(1), labels[1])
    assert torch.equal(both.pixels[0].flip(2), both.pixels[1])


def test_the_tower_learns_and_repeats() -> None:
    losses: list[float] = []
    first, _ = pretrain_tower(seed=3, steps=25, batch=16, report=lambda step, loss: losses.append(loss))
    second, _ = pretrain_tower(seed=3, steps=25, batch=16)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert np.mean(losses[-5:]) < 0.9 * losses[0]


def test_learning_rate_rises_and_falls() -> None:
    course = [cosine(step, 100) for step in range(100)]
    assert course[0] == pytest.approx(0.2) and max(course) == 1.0 and course[-1] < 0.01


def test_a_scene_document_holds_the_picture_and_true_answers(tokenizer) -> None:
    document = scene_document(training_scene(1, seed=0), tokenizer, np.random.default_rng(0))
    assert len(document.slots) == GRID * GRID
    assert all(document.prefix[slot] == 2 for slot in document.slots)
    assert all(branch.answer[-1] == 2 for branch in document.branches)


def test_a_reader_passage_states_every_answer_that_it_expects(tokenizer) -> None:
    rows = make_text(60, seed=0, split="train", answerable=0.8)
    for at in range(0, 60, 3):
        document = reader_document(rows[at : at + 3], ["Rain fell."], tokenizer, np.random.default_rng(at))
        passage = tokenizer.decode(document.prefix)
        assert passage.startswith("### Passage\n") and passage.endswith("\n### Query\n")
        for branch in document.branches:
            answer = tokenizer.decode(branch.answer, skip_special_tokens=True)
            assert answer == "not stated" or answer.lower() in passage.lower().replace(" ,", ",").replace(" .", ".")


def test_fine_tuning_learns_repeats_and_leaves_the_base_alone(tokenizer, text) -> None:
    sample = pack([Document([5, 6, 7], [Branch([8], [9, 2])])])
    settings = FineTuning(steps=30, rank=4, rate=1e-2)
    base = tiny_llama()
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    first = fine_tune(base, lambda step: sample, text, settings=settings)
    after = dict(base.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert first.losses[-1] < first.losses[0] - 0.3
    second = fine_tune(base, lambda step: sample, text, settings=settings)
    assert all(torch.equal(first.factors[name], second.factors[name]) for name in first.factors)
    assert sum(name.endswith(".A") for name in first.factors) == 2 * 4  # layers x projections


def test_a_killed_run_goes_on_to_the_same_end(tmp_path, tokenizer, text) -> None:
    sample = pack([Document([5, 6, 7], [Branch([8], [9, 2])])])
    settings = FineTuning(steps=60, rank=2)
    whole = fine_tune(tiny_llama(), lambda step: sample, text, settings=settings)

    def killed(step: int, loss: float) -> None:
        if step == 55:
            raise KeyboardInterrupt

    kept = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fine_tune(tiny_llama(), lambda step: sample, text, settings=settings, checkpoint=kept, report=killed)
    steps: list[int] = []
    rest = fine_tune(
        tiny_llama(),
        lambda step: sample,
        text,
        settings=settings,
        checkpoint=kept,
        report=lambda step, loss: steps.append(step),
    )
    assert steps == list(range(50, 60))
    assert all(torch.equal(whole.factors[name], rest.factors[name]) for name in whole.factors)
    other = replace(settings, rate=1e-3)  # a state of other settings is not taken up
    assert len(fine_tune(tiny_llama(), lambda step: sample, text, settings=other, checkpoint=kept).losses) == 60


def test_the_projector_starts_by_adding_the_word_for_what_the_tower_sees(tokenizer) -> None:
    tower, silent = pretrain_tower(seed=0, steps=1, batch=2)
    embedding = torch.randn(259, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        silent.weight.zero_()
        silent.bias.fill_(-40.0)
        sure = copy.deepcopy(silent)
        sure.bias[3] = 3.0  # unit 3 reads (3 + 1) / 2 and gives gelu(2)
    features = scene_pack(0, tower, tokenizer, [], seed=0, scenes=1).features
    before, after = (
        started_projector(tower, head, tokenizer, embedding, seed=0, scenes=20)(features).detach()
        for head in (silent, sure)
    )
    words = torch.stack([embedding[tokens(tokenizer, f" {name}")].mean(0) for name in CATEGORIES])
    added = 1.5 * torch.nn.functional.gelu(torch.tensor(2.0)) * (words[3] - words.mean(0))
    torch.testing.assert_close(after - before, added.expand_as(after), atol=1e-3, rtol=1e-3)


def test_no_stage_touches_the_global_generator(tokenizer, text) -> None:
    state = torch.random.get_rng_state()
    settings = FineTuning(steps=1, rank=2)
    sample = scene_pack(0, CLIPVisionModel(tower_config()).eval(), tokenizer, [], seed=0, scenes=1)
    torch.random.set_rng_state(state)
    fine_tune(tiny_llama(), lambda step: sample._replace(features=None), text, settings=settings)
    pretrain_tower(seed=0, steps=1, batch=2)
    own_text(tiny_llama(), openings(tokenizer, 2), length=6, seed=0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_fiftieth_of_the_recipe_runs_from_nothing(tmp_path: Path, tokenizer) -> None:
    recipe = TrainingConfig(length=16).scaled(1 / 50)
    stages: list[str] = []
    made = train_family(
        tiny_llama(), tokenizer, tmp_path, recipe=recipe, report=lambda stage, step, loss: stages.append(stage)
    )
    assert list(dict.fromkeys(stages)) == ["tower", "vision", "reader"]
    vision, reader = load_file(made["vision"]), load_file(made["reader"])
    assert all(value.dtype == torch.float16 for key, value in vision.items() if "position_ids" not in key)
    assert {key.split(".")[0] for key in vision} == {"lora", "projector", "tower"}
    assert {key.split(".")[0] for key in reader} == {"lora"}


def test_prose_keeps_whole_sentences(tokenizer) -> None:
    ids = tokenizer("x tail. The river ran past the old mill. And then", return_tensors="pt").input_ids
    assert prose(OwnText(ids, torch.zeros(1, ids.shape[1], 1)), tokenizer) == ["The river ran past the old mill."]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_answer_loss_is_the_weighted_cross_entropy() -> None:
    sample = pack([Document([5, 6], [Branch([7], [8, 2])])])
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))  # starts as no change
    with torch.no_grad():
        loss = answer_loss(model, sample, None)
        logits = tiny_llama()(input_ids=sample.ids[None]).logits[0, 2:4]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([8, 2]))
    assert float(loss) == pytest.approx(float(expected), rel=0.02)  # bf16
