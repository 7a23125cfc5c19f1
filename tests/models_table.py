"""The table of docs/models.md, from the models that the suite runs: ``python tests/models_table.py``."""

from truthheads.models.architectures import locate_heads
from truthheads.models.image_inputs import CROSSING, PREFIX_FIRST
from truthheads.tracing.image_patches import VIEWS
from vision_zoo import PROCESSORS, TORCHVISION
from zoo import MULTIMODAL, ROWS, build

HEAD = """# Models

Made by `python tests/models_table.py`; a test keeps it true. Every row is a class of transformers that the suite builds
with a tiny configuration and runs: heads read and scaled, text in padded batches with a shared prefix, hook = adapter =
checkpoint. Other classes whose layers look like one of these are found by discovery; what cannot be placed is
refused by name.

`image`: answers to image prompts are as likely as in one call of the model's real processor, to 1e-4
(tests/test_vision_models.py, with hook = adapter = checkpoint and a gate learned on image prompts; ¹ needs torchvision:
`pip install 'truthheads[vision]'`). `pixels`: `trace` knows which pixels each image token covers
(tests/test_patches.py). Prompts: `Context: … Question: … Answer:` with a context,
`IMAGE question ASSISTANT:` for image rows without one, `--chat` for the model's own template.

| class | heads at | layers left alone | image | pixels |
|---|---|---|---|---|
"""
RELEASED = {
    "llava": "LLaVA-1.5 (Vicuna)",
    "llava_mistral": "LLaVA-Med (Mistral), converted",
    "llava_next_vicuna": "LLaVA-NeXT (Vicuna)",
    "llava_next": "LLaVA-NeXT (Mistral)",
    "pixtral": "Pixtral",
    "internvl": "InternVL3",
    "gemma3_vision": "Gemma 3 with vision",
    "mllama": "Llama 3.2 Vision",
}
"""What a row of the suite is known as, where its class does not say so."""
TAIL = """
What was released with modelling code of its own (the first LLaVA-Med, InternVL's `InternVLChatModel`) is never run
unless `--trust-remote-code` is given; the error says so. With it, heads are found by discovery. For both there are
copies converted to the classes above (`-hf`), which need no foreign code: take those. Of Qwen2.5-Omni the thinker is
measured and gated; talker and voice are left alone.

Layers that carry attention beside a state-space part (Falcon-H1) are measured and gated at their attention; the state
is left alone. Out of scope, and refused by name: encoder-decoders (T5, BART: the context is in the encoder), models
without softmax attention (Mamba, RWKV, xLSTM), Zamba and Zamba2 (one attention block's weights serve several layers, so
a factor for one layer's head changes the others), HRM-Text (runs its layers several times for each token), and
RecurrentGemma (its recurrent state takes in padding, so an answer would depend on the rows beside it).
"""


def table() -> str:
    """Return the page."""
    lines = []
    for row in (*ROWS, *MULTIMODAL):
        network = build(row)
        layout = locate_heads(network)
        kind = network.config.model_type
        image = "–"
        if row.name in PROCESSORS:
            whole = kind in (*PREFIX_FIRST, *CROSSING)
            image = ("yes, prompt computed for each answer" if whole else "yes") + (
                "¹" if row.name in TORCHVISION else ""
            )
        alone = ", ".join(sorted(set(layout.skipped.values()))) or "none"
        pixels = "yes" if kind in VIEWS else "–"
        name = RELEASED.get(row.name, row.name)
        lines.append(f"| {row.model_class} ({name}) | `{layout.projection}` | {alone} | {image} | {pixels} |")
    return HEAD + "\n".join(lines) + "\n" + TAIL


if __name__ == "__main__":
    print(table(), end="")
