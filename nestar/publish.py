"""Publish a checkpoint on the Hugging Face Hub: which files go, the model card, the upload as one commit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestar.checkpoints import EMBEDDED, TOKENIZER_FILES, Checkpoint, check_fit, open_checkpoint
from nestar.data import tiny_worlds
from nestar.limits import shortened
from nestar.model import NestAR, WeightsError, fingerprint_of, module_file, read_json
from nestar.settings import SampleSettings
from nestar.tokenizer import Tokenizer

CARD = "README.md"
PAPER = "https://arxiv.org/abs/2510.23028"
TINY_WORLDS = (
    "Tiny Worlds: illustrated scenes of {classes} kinds, each with nine or more known factors, drawn by "
    "`nestar/data/tiny_worlds.py`. The weights know nothing else."
)
UNKNOWN_DATA = "The files do not say what the weights were trained on."

RESULTS = {
    "class_accuracy": "asked class recognised",
    "precision": "precision",
    "recall": "recall",
    "fid": "FID (own features)",
    "seams": "seams (1 = none)",
}
"""What a card shows of `evaluate`'s report."""


@dataclass(frozen=True)
class Publication:
    """What would go to the Hub.

    Attributes:
        files: where each file lies, by its path in the repository; the card is not among them.
        card: the text of the repository's README.md.
    """

    files: Mapping[str, Path]
    card: str

    def listing(self) -> Iterator[tuple[str, int]]:
        """Path in the repository and size in bytes of all that would go, in order."""
        sizes = {path: file.stat().st_size for path, file in self.files.items()}
        yield from sorted((sizes | {CARD: len(self.card.encode())}).items())


def prepare(
    folder: Path,
    repository: str,
    *,
    results: Path | None = None,
    licence: str = "mit",
    data: str | None = None,
) -> Publication:
    """Load a checkpoint whole, so that nothing that cannot be served is published, and write its card.

    Args:
        results: folder with reports of `evaluate`, as `evaluate_<nesting>.json`; those of other weights than
            these, or by other features than the embedded network's, are left out.
        licence: an identifier that the Hub knows.
        data: a sentence on the training data; for Tiny Worlds' classes it is known.

    Raises:
        WeightsError: a file is missing or damaged; it is named.
    """
    checkpoint = open_checkpoint(folder)
    tokenizer = checkpoint.tokenizer()
    models = {name: checkpoint.nesting(name) for name in checkpoint.nestings}
    if not models:
        raise WeightsError(f"{folder} has no nesting yet: there is nothing to publish.")
    makes = tokenizer.latents_fingerprint
    for name, model in models.items():
        check_fit(
            model.outline, checkpoint.folder / name / "config.json", tokenizer, makes, checkpoint.origin
        )
    names = ["config.json"]
    if checkpoint.tokenizer_place is None:  # else the config names the repository that has it
        names += [f"tokenizer/{name}" for name in (*TOKENIZER_FILES, "tokenizer.json")]
    for name, model in models.items():
        modules = range(1, len(model.scaled_modules) + 1)
        names += [f"{name}/config.json", *(f"{name}/{module_file(number)}" for number in modules)]
    reports = _reports(models, tokenizer, results) if results else {}
    if data is None:
        known = checkpoint.classes == tiny_worlds.CLASSES
        data = TINY_WORLDS.format(classes=len(checkpoint.classes)) if known else UNKNOWN_DATA
    card = "\n".join(_card(checkpoint, models, reports, repository, licence, data)) + "\n"
    return Publication({name: checkpoint.folder / name for name in names}, card)


def push(publication: Publication, repository: str, *, private: bool = False) -> str:
    """Upload as one commit, into a repository that is made if need be; returns the commit's address.

    Raises:
        WeightsError: the Hub does not take it; one sentence says why.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    operations = [
        CommitOperationAdd(path_in_repo=path, path_or_fileobj=file)
        for path, file in publication.files.items()
    ]
    operations.append(CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=publication.card.encode()))
    api = HfApi()
    try:
        validate_repo_id(repository)
        if not get_token():
            raise LocalTokenNotFoundError
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(repository, operations, commit_message="NestAR weights")
    except HFValidationError:
        raise WeightsError(f"{repository!r} is no Hub repository id (user/name).") from None
    except LocalTokenNotFoundError:
        raise WeightsError(
            "Publishing needs a Hub token with write access: `hf auth login`, or HF_TOKEN."
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise WeightsError(f"The Hub does not let this token write to {repository}.") from None
        why = f": {shortened(error.server_message).rstrip('.')}" if error.server_message else ""
        raise WeightsError(f"The Hub did not take {repository} (status {status}){why}.") from None
    except ValueError as error:  # what the card says of itself, such as a licence that the Hub does not know
        why = shortened(" ".join(str(error).split())).rstrip(".")
        raise WeightsError(f"{repository} could not be published: {why}.") from None
    except Exception as error:
        raise WeightsError(f"{repository} could not be published ({type(error).__name__}).") from None
    return str(commit.commit_url)


def _reports(models: Mapping[str, NestAR], tokenizer: Tokenizer, results: Path) -> dict[str, dict[str, Any]]:
    """Reports on these very weights and this tokenizer, by the embedded features, by nesting."""
    from nestar.evaluation.features import load_features
    from nestar.evaluation.report import instruments

    found, own = {}, instruments(tokenizer, load_features(EMBEDDED / "features"))
    for name, model in models.items():
        file = results / f"evaluate_{name}.json"
        report = read_json(file) if file.exists() else {}
        if (report.get("fingerprint"), report.get("instruments")) == (fingerprint_of(model), own):
            found[name] = report
    return found


def _card(
    checkpoint: Checkpoint,
    models: Mapping[str, NestAR],
    reports: Mapping[str, Mapping[str, Any]],
    repository: str,
    licence: str,
    data: str,
) -> Iterator[str]:
    """The model card's lines."""
    first = next(iter(models))
    nesting = models[first].config.nesting
    yield from ("---", f"license: {licence}", "library_name: nestar")
    yield from ("pipeline_tag: unconditional-image-generation", "tags:", "- nestar", "- flow-matching")
    yield from ("- autoregressive", "- arxiv:2510.23028", "---", "")
    yield from (f"# {repository.rpartition('/')[2]}", "")
    yield (
        f"Weights of *Nested AutoRegressive Models* ([arXiv 2510.23028]({PAPER})) in the format of the open "
        f"implementation NestAR: pictures of {checkpoint.size} x {checkpoint.size} pixels, made of "
        f"{nesting.n} tokens, for {len(checkpoint.classes)} classes."
    )
    yield from ("", "## Load", "", "```python", "from nestar.pipeline import NestARPipeline", "")
    yield f'pipe = NestARPipeline.from_pretrained("{repository}")'
    default = "nested", SampleSettings.k, SampleSettings.order
    by_default = (nesting.kind, nesting.k, nesting.order) == default
    named = "" if by_default else f', nesting="{first}"'
    class_name = json.dumps(checkpoint.classes[0], ensure_ascii=False)
    yield f'pipe({class_name}, seed=0{named}).image.save("picture.png")'
    yield from ("```", "", "Or on the page: `python app.py --repo " + repository + "`.", "")
    if checkpoint.defaults:
        yield from (f"Settings that pictures begin with: {checkpoint.defaults_in_words}.", "")
    yield from ("## What is here", "")
    yield "| nesting | modules | turns a picture | parameters | images seen in training | lambda |"
    yield "|---|---|---|---|---|---|"
    for name, model in models.items():
        own = model.config.nesting
        settings = model.record.get("config")
        coordination = settings.get("coordination", "?") if isinstance(settings, Mapping) else "?"
        if own.modules == 1 or model.record.get("autoguided"):  # no neighbours, or none that were compared
            coordination = "-"
        yield (
            f"| `{name}` | {own.modules} | {own.evaluations} of {own.n} "
            f"| {model.config.parameters / 1e6:.2f} million "
            f"| {model.outline.images_said} | {coordination} |"
        )
    yield from ("", "## Data", "", data, "", f"Classes: {', '.join(checkpoint.classes)}.", "")
    yield from ("## Measured", "")
    yield from _measured(reports)
    yield from ("", "## Training settings", "")
    for name, model in models.items():
        yield from (f"<details><summary><code>{name}</code></summary>", "", "```json")
        yield json.dumps(model.record, indent=1)
        yield from ("```", "", "</details>", "")
    yield from ("## Licence", "", f"`{licence}`")


def _measured(reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not reports:
        yield "Nothing measured on these very weights came with them."
        return
    yield f"| nesting | samples | settings | {' | '.join(RESULTS.values())} |"
    yield "|---" * (3 + len(RESULTS)) + "|"
    for name, report in reports.items():
        settings = ", ".join(f"{key} {value}" for key, value in report["settings"].items())
        figures = " | ".join(f"{report[key]:.3g}" if key in report else "-" for key in RESULTS)
        yield f"| `{name}` | {report['samples']} | {settings} | {figures} |"
    first = next(iter(reports.values()))
    reference = first.get("reference", {})
    if reference:
        figures = ", ".join(
            f"{label} {reference[key]:.3g}" for key, label in RESULTS.items() if key in reference
        )
        yield from ("", f"{first['samples']} pictures of the data itself: {figures}.")
