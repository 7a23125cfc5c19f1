"""``truthheads ground``: try three remedies on a user's rows, test them, export the best if it is better."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from truthheads.choices import ExportFormat
from truthheads.cli import console
from truthheads.cli.console import guarded, resumable
from truthheads.cli.help import DATA, OUTPUT, RUN
from truthheads.cli.options import (
    BatchTokens,
    ChatByTemplate,
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
        int | None,
        typer.Option(metavar="N", min=1, rich_help_panel=RUN, help="Control gates of a kind (2), random adapters (0)."),
    ] = None,
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
    to: Annotated[
        ExportFormat | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=OUTPUT,
            help="Format, as of `export` (default: that of MODEL).",
        ),
    ] = None,
    chat: ChatByTemplate = None,
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
    """Try an instruction, a gate and an adapter on your rows; export the best if it is better."""
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
        to=to,
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
    "adapt": "an adapter is learned",
    "test": "all are tested on rows that were not learned from",
    "answers": "answers before and after",
    "export": "the model is written",
}


def answers_in_words(result: "GroundResult") -> list[str]:
    """Return five answers before and after, and how many there are."""
    found = result["answers"]
    if found is None:
        return []
    told = [
        f"answers before and after ({found['remedy']}): the first {len(found['shown'])} of {found['changed']} that "
        f"changed, of {found['asked']} held-out rows"
    ]
    for one in found["shown"]:
        told += [f"  {one['question']}", f"    right:  {one['truthful']}"]
        told += [f"    before: {one['before']}", f"    after:  {one['after']}"]
    return told


def _show(result: "GroundResult", out: Path) -> None:
    tested = [one for one in result["remedies"] if one["tested"]]
    rows = [
        [name.replace("_", " "), console.figure(before), *(console.figure(one["effect"].get(name)) for one in tested)]
        for name, before in result["ungated"].items()
    ]
    harms = [console.figure(one["harm"]) for one in tested]
    if any(one["harm"] for one in tested):
        rows.append(["harm, nats a token", "", *harms])
    columns = ["", "untouched", *(f"{one['name']}: change" for one in tested)]
    console.out.print(console.grid(f"{result['test_rows']} test rows, 95 % intervals", columns, rows))
    for one in result["remedies"]:
        if not one["tested"]:
            console.out.print(f"{one['name']} not tested: {one['why']}", markup=False)
    said, controls, primary = f"verdict: {result['verdict']}", result["controls"], result["primary"]
    if result["better"]:
        said += f" ({result['remedy']})"
        beyond = next(one["beyond_prompt"] for one in tested if one["name"] == result["remedy"])
        said += f"; {console.figure(beyond)} {primary.replace('_', ' ')} beyond the instruction" if beyond else ""
    if controls:
        said += f"; more than {controls['beaten']} of {controls['of']} controls"
    console.out.print(said, markup=False)
    for line in answers_in_words(result):
        console.out.print(line, markup=False)
    console.written(out / "report.html")
    if result["exported"] is None:
        console.out.print(
            "no model was written: the test rows give no evidence that a gate or an adapter would be the best"
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
    if exported.name == "adapter.gguf":
        console.out.print(f"  llama-server -m BASE.gguf --lora {exported}", markup=False)
    elif exported.suffix == ".gguf":
        console.out.print(f"  llama-server -m {exported}", markup=False)
    elif exported.name == "adapter":
        console.out.print(
            f'  PeftModel.from_pretrained(base, "{exported}")  # base: loaded as it was here', markup=False
        )
    else:
        console.out.print(f"  vllm serve {exported}", markup=False)
        console.out.print(f'  AutoModelForCausalLM.from_pretrained("{exported}")  # plain transformers', markup=False)
