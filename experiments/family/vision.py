"""What the vision descendant learns from: scenes as documents, and the projector's start."""

from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedTokenizerBase

from family.packing import Branch, Document, Pack, pack
from family.tower import LANGUAGE_SCENES, RIDGE_SCENES, patch_features, to_pixels, training_scene
from truthheads.data.questions import Question
from truthheads.embedded.smollm2 import GRID
from truthheads.synthetic.drawing import BACKGROUNDS, CATEGORIES, Scene, scene_generator
from truthheads.synthetic.scenes import CAPTION_PROMPTS, ask, caption

SHORT: Final = "\nAnswer with one word."

END: Final = "<|im_end|>"

# The prompt around a question: the form of the paper's LLaVA runs, and that of LLaVA-1.5.
FORMS: Final = (("", "\nASSISTANT:"), ("USER: ", " ASSISTANT:"))


class Projector(nn.Module):
    """LLaVA's projector, under the names that ``LlavaForConditionalGeneration`` gives its tensors."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inside, outside)
        self.linear_2 = nn.Linear(outside, outside)

    def hidden(self, features: Float[Tensor, "*batch inside"]) -> Float[Tensor, "*batch outside"]:
        """Return what the second layer reads."""
        return nn.functional.gelu(self.linear_1(features))

    def forward(self, features: Float[Tensor, "*batch inside"]) -> Float[Tensor, "*batch outside"]:
        """Turn patch features into embeddings of the language model."""
        filled: Tensor = self.linear_2(self.hidden(features))
        return filled


def tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise a piece of a prompt, adding nothing."""
    found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return found


def started_projector(
    tower: CLIPVisionModel,
    head: nn.Linear,
    tokenizer: PreTrainedTokenizerBase,
    embedding: Float[Tensor, "vocabulary width"],
    *,
    seed: int,
    scenes: int = 1500,
    ridge: float = 1e-3,
) -> Projector:
    """Start the projector so that a patch looks to the language model like the words for what it shows.

    The first units are the tower's own category logits: silent below a logit of about -1, and each adds the embedding
    of its category. The other units are random, and ridge regression makes them add the background's colour. (Ridge
    regression on everything told 43 % of the objects' patches apart, the tower's own head 69 %; after 200 steps on top
    of it the language model still guessed.)

    Args:
        tower: The trained tower.
        head: Its categories, read from a patch.
        tokenizer: The base's.
        embedding: The base's token embeddings.
        seed: Of the random units and of the scenes.
        scenes: Training scenes to regress on.
        ridge: Penalty, relative to the mean diagonal of the Gram matrix.

    Returns:
        The projector.
    """
    words = torch.stack([embedding[tokens(tokenizer, f" {name}")].float().mean(0) for name in CATEGORIES])
    colours = torch.stack([embedding[tokens(tokenizer, f" {name}")].float().mean(0) for name in BACKGROUNDS])
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        projector = Projector(tower.config.hidden_size, embedding.shape[1])
    drawn = [training_scene(RIDGE_SCENES + index, seed=seed) for index in range(scenes)]
    units = min(len(CATEGORIES), embedding.shape[1])
    first, second = projector.linear_1, projector.linear_2
    with torch.no_grad():
        features = torch.cat([patch_features(tower, to_pixels(drawn[at : at + 250])) for at in range(0, scenes, 250)])
        first.weight.mul_(2.0 / features.flatten(0, 1).std(0))  # unit variance going in, or gelu is nearly straight
        first.weight[:units] = 0.5 * head.weight[:units]
        first.bias[:units] = 0.5 * (head.bias[:units] + 1.0)
        hidden = projector.hidden(features).flatten(0, 1)[:, units:]
        ones = torch.cat((hidden, torch.ones(len(hidden), 1)), 1).double()
        gram = ones.T @ ones
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        ground = torch.tensor([list(BACKGROUNDS).index(scene.background) for scene in drawn])
        target = colours[ground].repeat_interleave(GRID * GRID, 0).double()
        solution = torch.linalg.solve(gram, ones.T @ target).float()
        second.weight[:, :units] = 1.5 * (words - words.mean(0))[:units].T
        second.weight[:, units:] = solution[:-1].T
        second.bias.copy_(solution[-1])
    return projector


def scene_document(scene: Scene, tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator) -> Document:
    """Turn a scene into a document: four presence questions, one of two other kinds each, one caption.

    The picture's slots hold the end-of-turn token until the projector fills them.
    """
    before, after = FORMS[int(rng.random() < 0.25)]
    end = tokens(tokenizer, END)
    start = tokens(tokenizer, before)
    prefix = start + end * (GRID * GRID) + tokens(tokenizer, "\n")
    others = [str(kind) for kind in rng.permutation(["which", "count", "position", "background"])[:2]]
    branches, seen = [], set()
    for kind in ("presence", "presence", "presence", "presence", *others):
        asked = ask(scene, kind, rng)
        if asked is None or asked.question in seen:
            continue
        seen.add(asked.question)
        short = SHORT if rng.random() < 0.15 else ""
        prompt = tokens(tokenizer, f"{asked.question}{short}{after}")
        branches.append(Branch(prompt, tokens(tokenizer, f" {asked.truthful}") + end))
    prompt = tokens(tokenizer, f"{rng.choice(CAPTION_PROMPTS)}{after}")
    branches.append(Branch(prompt, tokens(tokenizer, f" {caption(scene, rng)}") + end))
    return Document(prefix, branches, list(range(len(start), len(start) + GRID * GRID)))


def text_document(row: Question, tokenizer: PreTrainedTokenizerBase) -> Document:
    """Turn a text row into a document without a picture, in the base's own chat format."""
    prefix = tokens(tokenizer, f"<|im_start|>user\n{row.context}\n")
    prompt = tokens(tokenizer, f"{row.question}{END}\n<|im_start|>assistant\n")
    return Document(prefix, [Branch(prompt, tokens(tokenizer, f"{row.truthful}{END}"))])


def scene_pack(
    step: int,
    tower: CLIPVisionModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    *,
    seed: int,
    difficulty: float = 1.0,
    scenes: int = 2,
) -> Pack:
    """Return the pack of one step, always the same for the same step: scenes, and a text row every sixth time.

    Two scenes a step: many small steps; with five a step, nothing in them was recognised after 750 scenes.
    """
    numbers = range(LANGUAGE_SCENES + step * scenes, LANGUAGE_SCENES + (step + 1) * scenes)
    drawn = [training_scene(index, seed=seed, difficulty=difficulty) for index in numbers]
    rng = scene_generator("train", seed=seed + 1, index=LANGUAGE_SCENES + step)
    with torch.no_grad():
        features = patch_features(tower, to_pixels(drawn))
    documents = [scene_document(scene, tokenizer, rng) for scene in drawn]
    if questions and step % 6 == 0:
        documents.append(text_document(questions[step // 6 % len(questions)], tokenizer))
    return pack(documents, features)
