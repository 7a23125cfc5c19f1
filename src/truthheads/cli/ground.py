"""``truthheads ground``: learn a gate from a user's rows, test it, export the model if it is better."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from truthheads.cli import console
from truthheads.cli.console import guarded, resumable
from truthheads.cli.help import DATA, OUTPUT, RUN
from truthheads.cli.options import (
    BatchTokens,
    Chat,
    Data,
    Encoding,
    Guard,
    How,
    Images,
    Json,
    LabelTrue,
    Limit,
    ModelName,
    Neutral,
    SkipBadRows,
    Truncate,
    loads_model,
    seed_of,
)
from truthheads.cli.reading import all_at_once
from truthheads.stats.thresholds import GATE_HARM_NATS, GROUND_TEST_SHARE

if TYPE_CHECKING:
    from truthheads.results.grounding import GroundResult


@guarded
@resumable
@loads_model
def ground(
    model: ModelName,
    data: Data,
    out: Annotated[
        Path, typer.Option(rich_help_panel=OUTPUT, help="Folder to write to; run again to continue.")
    ] = Path("grounded"),
    guard: Guard = GATE_HARM_NATS,
    test_share: Annotated[
        float, typer.Option(metavar="X", rich_help_panel=DATA, help="Share of the groups held out for the test.")
    ] = GROUND_TEST_SHARE,
    controls: Annotated[
        int,
        typer.Option(metavar="N", min=1, rich_help_panel=RUN, help="Number of shuffled and of random control gates."),
    ] = 3,
    neutral: Neutral = None,
    base_gate: Annotated[
        Path | None, typer.Option(rich_help_panel=RUN, help="Gate of a relative to start from.")
    ] = None,
    export_anyway: Annotated[
        bool,
        typer.Option(
            "--export-anyway", rich_help_panel=OUTPUT, help="Export the model even if the test shows no gain."
        ),
    ] = False,
    chat: Chat = False,
    truncate: Truncate = False,
    images: Images = None,
    limit: Limit = None,
    skip_bad_rows: SkipBadRows = False,
    encoding: Encoding = None,
    label_true: LabelTrue = None,
    batch_tokens: BatchTokens = None,
    seed: Annotated[int, seed_of("split, learning, controls and intervals")] = 0,
    *,
    how: How,
    json: Json = False,
) -> None:
    """Learn a gate from your rows, test it on held-out rows, and export the model if it is better."""
    from truthheads.storage.files import dumps
    from truthheads.workflows.ground import Settings
    from truthheads.workflows.ground import ground as run

    settings = Settings(
        guard=guard,
        test_share=test_share,
        controls=controls,
        neutral=neutral,
        base_gate=base_gate,
        export_anyway=export_anyway,
        images=images,
        chat=chat,
        truncate=truncate,
        limit=limit,
        skip_bad_rows=skip_bad_rows,
        encoding=encoding,
        label_true=label_true,
        batch_tokens=batch_tokens,
        seed=seed,
    )
    with all_at_once() as wrong:
        wrong.of_target(out / "ground.json")
        rows = wrong.of_questions(
            data,
            limit=limit,
            skip_bad_rows=skip_bad_rows,
            images=images,
            halves=True,
            encoding=encoding,
            label_true=label_true,
        )
        wrong.of_neutral(neutral)
        wrong.of_model(model, how)
    assert rows is not None
    console.note(f"read: {rows.reading}")
    with console.stepwise(STEPS) as (tell, progress):
        result = run(
            model,
            data,
            out=out,
            settings=settings,
            **how,
            tell=tell,
            progress=progress,
        )
    for warning in result["warnings"]:
        console.warn(warning)
    if json:
        typer.echo(dumps({**result, "out": str(out)}))
    else:
        _show(result.result, out)


STEPS = {
    "pair": "untruthful answers where they are missing",
    "split": "rows to learn from, rows to test on",
    "learn": "a gate is learned",
    "test": "the gate and its controls on rows that were not learned from",
    "export": "the model is written",
}


def _show(result: "GroundResult", out: Path) -> None:
    rows = []
    for name, before in result["ungated"].items():
        rows.append([name.replace("_", " "), console.figure(before), console.figure(result["effect"].get(name))])
    console.out.print(console.grid(f"{result['test_rows']} test rows", ["", "ungated", "change, 95 %"], rows))
    controls, harm = result["controls"], result["guard"]
    said = f"verdict: {result['verdict']}"
    if controls:
        said += f"; more than {controls['beaten']} of {controls['of']} control gates"
    if harm:
        said += f"; harm {console.figure(harm['kl'])} nats a token"
    console.out.print(said)
    console.written(out / "report.html")
    if result["exported"] is None:
        console.out.print(
            "no model was written: the test rows give no evidence that it would be better"
            + (" (--export-anyway writes it all the same)" if result["moved"] else "")
        )
        for sentence in result["advice"]:
            console.out.print(sentence, markup=False)
        return
    if result["anyway"]:
        console.warn("the model was written because --export-anyway was given; nothing shows that it is better")
    exported = out / result["exported"]
    console.written(exported)
    console.out.print("next:")
    if exported.suffix == ".gguf":
        console.out.print(f"  llama-server -m {exported}", markup=False)
    elif exported.name == "adapter":
        console.out.print(
            f'  PeftModel.from_pretrained(base, "{exported}")  # base: loaded as it was here', markup=False
        )
    else:
        console.out.print(f"  vllm serve {exported}", markup=False)
        console.out.print(f'  AutoModelForCausalLM.from_pretrained("{exported}")  # plain transformers', markup=False)
