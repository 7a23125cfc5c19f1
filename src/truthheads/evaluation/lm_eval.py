"""Run tasks of lm-evaluation-harness on a live model and keep them as predictions like ours."""

import shutil
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypedDict

from truthheads.benchmarks.base import Prediction
from truthheads.errors import DataError, ModelError, TruthHeadsError
from truthheads.evaluation.predictions import Journal
from truthheads.models.hooks import Intervention
from truthheads.models.load import Model
from truthheads.models.pretrained import takes_images
from truthheads.storage.files import dumps


class HarnessSettings(TypedDict):
    """What a result says about a task of the harness: the harness's version, and how many documents were asked."""

    harness: str
    limit: int | None


class Harness:
    """One task of the harness.

    Args:
        model: A text model.
        task: ``lm-eval:NAME``.
        data: Folders of task files, and at most one file of rows that takes the place of the task's data set.
        limit: Documents, at most.
        batch: Requests in a batch.
        chat: Use the chat template.

    Raises:
        TruthHeadsError: The harness is not installed.
        DataError: It has no such task, or the data cannot be had.
        ModelError: The model takes images.
    """

    def __init__(
        self, model: Model, task: str, data: Sequence[Path], *, limit: int | None, batch: int, chat: bool
    ) -> None:
        if takes_images(model.network.config):
            raise ModelError(
                f"{model.name} takes images",
                expected="a text model for lm-eval",
                got="a vision-language model",
                fix="export it and use lmms-eval",
            )
        try:
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise TruthHeadsError(
                "lm-eval is not installed",
                expected="lm-evaluation-harness",
                got=str(error),
                fix="pip install 'truthheads[lm-eval]'",
            ) from error
        self.model, self.task, self.limit, self.chat = model, task, limit, chat
        self.name = task.partition(":")[2]
        rows = [path for path in data if path.is_file()]
        absent = [str(path) for path in data if not path.exists()]
        if absent or len(rows) > 1:
            raise DataError(
                f"--data cannot be used for {task}",
                expected="folders of task files, and at most one .jsonl of rows",
                got=", ".join(absent) or f"{len(rows)} files",
                fix="check the paths",
            )
        with as_file(files("truthheads.benchmarks").joinpath("lm_eval_tasks")) as own:
            folders = [str(own), *(str(path) for path in data if path.is_dir())]
            # The harness's own thousands take seconds to be listed.
            self.manager = TaskManager(include_path=folders, include_defaults=False)
            if self.name not in self.manager.all_tasks:
                self.manager = TaskManager(include_path=folders)
        if self.name not in self.manager.all_tasks:
            near = [name for name in self.manager.all_tasks if self.name.split("_")[0] in name][:4]
            raise DataError(
                f"lm-eval has no task {self.name!r}",
                expected="a task of lm-eval, of truthheads, or of a folder given as --data",
                got=self.name,
                fix=f"near: {', '.join(near)}" if near else "see `lm_eval ls tasks`",
            )
        self.request = self.name
        if rows:
            kept = tempfile.mkdtemp(prefix="truthheads-")
            weakref.finalize(self, shutil.rmtree, kept, ignore_errors=True)
            self.request = f"{self.name}_rows"
            overlay = Path(kept) / f"{self.request}.yaml"
            overlay.write_text(dumps(_with_rows(self.request, self._source(), rows[0].absolute())), encoding="utf-8")
            self.manager = TaskManager(include_path=[kept], include_defaults=False)
        self.lm = HFLM(pretrained=model.network, tokenizer=model.tokenizer, batch_size=batch)
        self.lm._device = model.device  # the harness asks the first weight, which may be offloaded

    def _source(self) -> str:
        """Return the path of the task's own file."""
        entry = self.manager.task_index[self.name]
        old = isinstance(entry, Mapping)  # before 0.4.11
        kind = entry["type"] if old else entry.kind.name.lower()
        if kind != "task":
            raise DataError(
                f"{self.name} takes no rows of your own",
                expected="a task that is one YAML file",
                got={"group": "a group of tasks", "tag": "a tag of tasks"}.get(kind, "a task that is a Python class"),
                fix="leave the file out of --data",
            )
        return str(entry["yaml_path"] if old else entry.yaml_path)

    @property
    def settings(self) -> HarnessSettings:
        """What a result says about the task."""
        from importlib.metadata import version

        return {"harness": f"lm-eval {version('lm-eval')}", "limit": self.limit}

    def run(self, name: str, at_work: Intervention | None, journal: Journal) -> None:
        """Fill in one run, unless it is there; a run is written whole.

        Raises:
            DataError: The harness could not run the task.
        """
        from lm_eval import simple_evaluate

        if any(line["run"] == name and line.get("last") for line in journal.known):
            return
        try:
            # What the harness prints is no result of ours.
            with at_work.apply(self.model) if at_work is not None else nullcontext(), redirect_stdout(sys.stderr):
                found = simple_evaluate(
                    self.lm,
                    tasks=[self.request],
                    limit=self.limit,
                    task_manager=self.manager,
                    apply_chat_template=self.chat,
                    bootstrap_iters=0,
                    log_samples=True,
                )
        except (OSError, ValueError, KeyError, ConnectionError) as error:
            raise DataError(
                f"lm-eval could not run {self.name}",
                expected="a task whose data can be had",
                got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
                fix="check the network, or give the rows as --data FILE.jsonl",
            ) from error
        lines = [
            line_of(self.task, name, self.name if task == self.request else task, sample)
            for task, part in found["samples"].items()
            for sample in part
        ]
        lines[-1]["last"] = True
        journal.add(lines)


def _with_rows(name: str, source: str, rows: Path) -> dict[str, object]:
    """Return a task that is another one on a user's own rows; JSON is YAML."""
    return {
        "include": source,
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"data": str(rows)}},
        "test_split": "data",
        "training_split": None,
        "validation_split": None,
        "fewshot_split": None,
    }


def line_of(task: str, run: str, part: str, sample: Mapping[str, Any]) -> Prediction:
    """Return the prediction in one logged sample; a choice between yes and no becomes one of ours.

    Args:
        task: As in ``--task``.
        run: Name of the run.
        part: The harness's own name of the task or of a part of its group.
        sample: As ``simple_evaluate`` logs it.
    """
    doc = sample["doc"]
    begun: Prediction = {
        "task": task,
        "run": run,
        "id": f"{sample['doc_id']}:{sample.get('filter', 'none')}",
        "split": part,
        "group": f"{part}:{doc['group'] if 'group' in doc else sample['doc_id']}",
        "prompt": f"{part}:{sample['prompt_hash']}",
        "answer": None,
    }
    asked = [str(request[1]).strip().casefold() for request in _arguments(sample)]
    if sorted(asked) == ["no", "yes"]:
        given = {word: float(pair[0]) for word, pair in zip(asked, sample["filtered_resps"], strict=True)}
        said = "yes" if given["yes"] > given["no"] else "no"
        return {
            **begun,
            "yes": given["yes"],
            "no": given["no"],
            "parsed": {"logits": said},
            "gold": asked[int(sample["target"])],
        }
    numbers = {
        name: float(sample[name]) for name in sample.get("metrics", ()) if isinstance(sample.get(name), int | float)
    }
    return {**begun, "metrics": numbers, "gold": str(sample["target"]), "answer": str(sample["filtered_resps"])[:2000]}


def _arguments(sample: Mapping[str, Any]) -> list[Sequence[Any]]:
    given = sample["arguments"]
    if isinstance(given, Mapping):
        return [tuple(each.values()) if isinstance(each, Mapping) else each for each in given.values()]
    return [each for each in given if len(each) > 1]
