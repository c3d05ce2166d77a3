"""Sparse autoencoders and the features in them that stand for a forget set, for the intervention `sae_clamp`.

SAELens trains the autoencoders, and its folders (`cfg.json`, `sae_weights.safetensors`) are what is taken. Serving
does not need it: an artifact holds the rows of the chosen features only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from classifiers import sae_report
from classifiers.activations import chosen_tokens, collect, layers_of, load_model
from classifiers.base import Params, Task, Trainer
from classifiers.data import Example, digest, encode
from guard import artifacts
from guard.artifacts import Artifact
from guard.errors import BadRequest
from guard.interventions.gates import Gate, calibrate
from guard.interventions.sae_clamp import NORMALISATIONS, Features, SaeClamp

if TYPE_CHECKING:
    import torch

Count = Annotated[int, Field(ge=1)]
_ROWS = 4_096  # tokens that are encoded together
_SHARES = (0.2, 0.9)  # of the whole time, when the steps begin and end
_STATES = ("sae", "optimizer", "lr_scheduler")
_COUNTS = (
    "n_training_samples",
    "n_training_steps",
    "act_freq_scores",
    "n_forward_passes_since_fired",
    "n_frac_active_samples",
    "started_fine_tuning",
)


class SaeParams(Params):
    """Where the autoencoder reads, how it is trained where none is given, and which of its features are chosen.

    layer: behind which it reads the residual.
    sae: a folder in SAELens' format to take it from; where it does not exist yet, the trained one is saved there.
    architecture, expansion (features for each column of the residual), active (features at a token; TopK's k, and
        the others' aim), steps, batch (tokens), lr: how it is trained.
    choose: how many features are chosen; ratio_percentile: only among those whose ratio of forget to retain
        activation lies at or above this percentile of all features.
    exact: keep the whole encoder of a TopK autoencoder, so that a feature is active exactly when it is there;
        otherwise each feature gets a threshold above which it is active equally often.
    tokens: at most so many of each set are read.
    report: a page that shows where the chosen features are most active. It holds text of the examples, so it must not
        lie in the artifact.
    """

    layer: int = Field(ge=0)
    sae: Path | None = None
    architecture: Literal["topk", "jumprelu", "standard"] = "topk"
    expansion: Count = 8
    active: Count = 16
    steps: Count = 2_000
    batch: Count = 1_024
    lr: float = Field(1e-3, gt=0.0)
    choose: Count = 20
    ratio_percentile: float = Field(95.0, ge=0.0, lt=100.0)
    exact: bool = False
    tokens: Count = 500_000
    report: Path | None = None


class Sae(Trainer):
    """Features as Dynamic SAE Guardrails chooses them (arXiv 2504.08192). The retain set should look like what the
    model is asked: against plain text alone, the features of the chat format would be chosen."""

    params_type = SaeParams

    def train(self, task: Task, params: SaeParams) -> Artifact:
        if not task.forget or not task.retain:
            raise BadRequest(
                "Features are chosen by what forget and retain examples do to them; both are needed."
            )
        if params.report is not None and params.report.resolve().is_relative_to(task.out.resolve()):
            raise BadRequest("The report holds text of the examples; write it somewhere beside the artifact.")
        model, tokenizer = load_model(task.model)
        (layer,) = layers_of(model, [params.layer])
        task.progress.report(0.0, "reading the examples")
        forget = residuals_of(model, tokenizer, task.forget, layer, params.tokens)
        retain = residuals_of(model, tokenizer, task.retain, layer, params.tokens)
        sae = autoencoder(params, forget, retain, task)
        task.progress.report(_SHARES[1], "choosing features")
        index = choose(
            mean_squares(sae, forget), mean_squares(sae, retain), params.choose, params.ratio_percentile
        )
        tensors, facts = export(sae, index, forget, retain, exact=params.exact)
        measured = _measured(sae, index, tensors, facts, forget, retain)
        features = SaeClamp().load(tensors, facts)
        found, gated = gate(features, model, tokenizer, task, layer)
        if params.report is not None:
            sets = {"forget": task.forget, "retain": task.retain}
            shown = sae_report.look(features, index.tolist(), model, tokenizer, sets, layer)
            sae_report.write(params.report, shown, layer)
        return artifacts.write(
            task.out,
            "sae_clamp",
            artifacts.weights_digest(task.model),
            tensors=tensors,
            facts={"layers": [layer], "features": index.tolist(), **facts, **found},
            measured={**measured, **gated},
            trained={
                "trainer": "sae",
                "params": params.model_dump(mode="json", exclude={"sae", "report"}),
                "forget": digest(task.forget),
                "retain": digest(task.retain),
            },
        )


def mean_squares(sae: Any, residuals: torch.Tensor) -> torch.Tensor:
    """Average squared activation [features], float64, over rows of `residuals` [tokens, width]: the diagonal of the
    Fisher information that the paper means. (Its released code squares the average instead.)"""
    return sum((part.double() ** 2).sum(dim=0) for part in _encoded(sae, residuals)) / len(residuals)


def choose(forget: torch.Tensor, retain: torch.Tensor, n: int, ratio_percentile: float) -> torch.Tensor:
    """The `n` features with the largest `forget` score [features], among those that are not below its 5th
    percentile and whose ratio to the `retain` score is not below its own; best first, int64.

    Raises:
        BadRequest: none is active on the forget examples.
    """
    import torch

    ratio = forget / (retain + 1e-21)
    kept = (
        (forget > 0)
        & (forget >= torch.quantile(forget, 0.05))
        & (ratio >= torch.quantile(ratio, ratio_percentile / 100))
    )
    if not bool(kept.any()):
        raise BadRequest("No feature of the autoencoder is active on the forget examples.")
    scores = torch.where(kept, forget, -torch.inf)
    return scores.topk(min(n, int(kept.sum()))).indices


def export(
    sae: Any, index: torch.Tensor, forget: torch.Tensor, retain: torch.Tensor, *, exact: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `guard.interventions.sae_clamp.Features` is made from: tensors and facts.

    `forget` and `retain`, residuals [tokens, width], are what a TopK autoencoder's thresholds are fitted on.

    Raises:
        BadRequest: an architecture or a normalisation that cannot be had from chosen rows.
    """
    import torch

    kind = sae.cfg.architecture()
    if kind not in ("standard", "jumprelu", "topk"):
        raise BadRequest(f"The autoencoder is '{kind}'; it must be standard, jumprelu or topk.")
    how = sae.cfg.normalize_activations
    if how not in NORMALISATIONS or sae.cfg.reshape_activations != "none":
        raise BadRequest(
            f"The autoencoder's input is normalised by '{how}' or reshaped, which is not known here."
        )
    with torch.no_grad():
        encoder, decoder, bias = sae.W_enc.float(), sae.W_dec.float(), sae.b_enc.float()
        if sae.cfg.apply_b_dec_to_input:
            bias = bias - sae.b_dec.float() @ encoder
        if kind == "topk" and sae.cfg.rescale_acts_by_decoder_norm:
            norms = decoder.norm(dim=1)
            encoder, bias, decoder = encoder * norms, bias * norms, decoder / norms.unsqueeze(1)
    threshold = sae.threshold.float() if kind == "jumprelu" else torch.zeros(len(bias))
    tensors = {"encoder": encoder, "bias": bias, "threshold": threshold[index], "decoder": decoder[index]}
    facts: dict[str, Any] = {"normalisation": how}
    if kind == "topk" and exact:
        return {**tensors, "index": index}, {**facts, "k": sae.cfg.k}
    tensors |= {"encoder": encoder[:, index], "bias": bias[index]}
    if kind == "topk":
        tensors["threshold"] = _as_often(sae, index, tensors, facts, torch.cat([forget, retain]))
    return tensors, facts


def _as_often(
    sae: Any, index: torch.Tensor, tensors: dict[str, torch.Tensor], facts: dict[str, Any], x: torch.Tensor
) -> torch.Tensor:
    """Thresholds [n] above which each feature's pre-activation lies on as many rows of `x` as it is active on."""
    import torch

    z = SaeClamp().load(tensors, facts).active(x)
    often = sum((part[:, index] > 0).sum(dim=0) for part in _encoded(sae, x))
    ordered = z.sort(dim=0, descending=True).values
    ordered = torch.cat([2 * ordered[:1], ordered, torch.zeros(1, len(index))])
    above, below = (ordered.gather(0, often.unsqueeze(0) + i).squeeze(0) for i in (0, 1))
    return (above + below) / 2


def _measured(
    sae: Any,
    index: torch.Tensor,
    tensors: dict[str, torch.Tensor],
    facts: dict[str, Any],
    forget: torch.Tensor,
    retain: torch.Tensor,
) -> dict[str, Any]:
    """How well the autoencoder reconstructs, how often chosen features are active, and how often the artifact agrees
    with the autoencoder on whether a token is hot."""
    import torch

    features = SaeClamp().load(tensors, facts)
    hot = {name: (features.active(x) > 0).any(dim=1) for name, x in (("forget", forget), ("retain", retain))}
    both = torch.cat([forget, retain])
    said = torch.cat([hot["forget"], hot["retain"]])
    true = torch.cat([(z[:, index] > 0).any(dim=1) for z in _encoded(sae, both)])
    explained, active = fidelity(sae, both)
    return {
        "tokens": {"forget": len(forget), "retain": len(retain)},
        "explained_variance": round(explained, 4),
        "active_features": round(active, 2),
        "hot_tokens": {name: round(float(found.float().mean()), 4) for name, found in hot.items()},
        "hot_overlap": round(float((said & true).sum() / (said | true).sum().clamp(min=1)), 4),
    }


def fidelity(sae: Any, residuals: torch.Tensor) -> tuple[float, float]:
    """The share of the variance of `residuals` [tokens, width] that the autoencoder explains, and how many features are
    active at a token (L0)."""
    import torch

    error, count = 0.0, 0
    with torch.no_grad():
        for x, z in zip(residuals.split(_ROWS), _encoded(sae, residuals), strict=True):
            error += float((sae.decode(z) - x).pow(2).sum())
            count += int((z != 0).sum())
    return 1 - error / float((residuals - residuals.mean(dim=0)).pow(2).sum()), count / len(residuals)


def frequency(sae: Any, residuals: torch.Tensor) -> torch.Tensor:
    """The share of rows of `residuals` [tokens, width] at which each feature is active: [features], float64."""
    return sum((part > 0).double().sum(dim=0) for part in _encoded(sae, residuals)) / len(residuals)


def gate(
    features: Features, model: Any, tokenizer: Any, task: Task, layer: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fact `gate`, limits from every other example, and on how many of the others it fires; nothing where the
    features show no more in forget examples than in retain ones."""
    hot = {
        name: [
            (features.active(values[0]) > 0).any(dim=1).numpy()
            for _, values in collect(model, [encode(tokenizer, e) for e in examples], "residual", [layer])
        ]
        for name, examples in (("forget", task.forget), ("retain", task.retain))
    }
    for texts in hot.values():
        for text in texts:
            text[0] = False  # attention rests on the first token, whatever it is
    try:
        limits = calibrate(hot["retain"][::2], hot["forget"][::2])
    except ValueError:
        return {}, {}
    fires = {name: [Gate(limits).observe(0, text) for text in texts[1::2]] for name, texts in hot.items()}
    share = {name: round(sum(f) / len(f), 4) for name, f in fires.items() if f}
    counts = {name: len(f) for name, f in fires.items()}
    return {"gate": asdict(limits)}, {"gate_fires": share, "gate_examples": counts}


def _encoded(sae: Any, residuals: torch.Tensor) -> Iterator[torch.Tensor]:
    import torch

    with torch.no_grad():
        for part in residuals.split(_ROWS):
            yield sae.encode(part)


def residuals_of(
    model: Any, tokenizer: Any, examples: Sequence[Example], layer: int, limit: int
) -> torch.Tensor:
    """Residuals [tokens, width] behind `layer` over all tokens but each example's first, `limit` at most."""
    import torch

    parts, count = [], 0
    for example, values in collect(model, [encode(tokenizer, e) for e in examples], "residual", [layer]):
        parts.append(chosen_tokens(example, values, "all")[0])
        count += len(parts[-1])
        if count >= limit:
            break
    return torch.cat(parts)[:limit]


def autoencoder(params: SaeParams, forget: torch.Tensor, retain: torch.Tensor, task: Task) -> Any:
    """The given one, or one that is trained, and saved where it was looked for; SAELens' inference class.

    Raises:
        BadRequest: SAELens is not installed, or the given one reads another width.
    """
    import torch

    try:
        from sae_lens import SAE
    except ImportError:
        raise BadRequest("Autoencoders need SAELens; install the extra `train`.") from None
    both = torch.cat([forget, retain])
    if params.sae is not None and params.sae.exists():
        sae = SAE.load_from_disk(params.sae, dtype="float32")
    elif params.sae is not None:
        _train(params, both, task).save_inference_model(params.sae)
        sae = SAE.load_from_disk(params.sae)
    else:
        with tempfile.TemporaryDirectory() as folder:
            _train(params, both, task).save_inference_model(folder)
            sae = SAE.load_from_disk(folder)
    if sae.cfg.d_in != both.shape[1]:
        raise BadRequest(f"The autoencoder reads {sae.cfg.d_in} columns; the model has {both.shape[1]}.")
    if sae.cfg.normalize_activations == "expected_average_only_in":
        sae.fold_activation_norm_scaling_factor(sae.cfg.d_in**0.5 / float(both.norm(dim=1).mean()))
    return sae


def _train(params: SaeParams, residuals: torch.Tensor, task: Task) -> Any:
    """SAELens' trainer over rows of `residuals` in a seeded order; it goes on from the task's checkpoint."""
    import torch
    from sae_lens import (
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    width = residuals.shape[1]
    shape = {
        "d_in": width,
        "d_sae": width * params.expansion,
        "normalize_activations": "expected_average_only_in",
    }
    warm_up = params.steps // 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        sae: Any
        if params.architecture == "topk":
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=params.active, **shape))
        elif params.architecture == "jumprelu":
            aim = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(params.active)}
            sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(l0_warm_up_steps=warm_up, **aim, **shape))
        else:
            sae = StandardTrainingSAE(StandardTrainingSAEConfig(l1_warm_up_steps=warm_up, **shape))
        config = SAETrainerConfig(
            total_training_samples=params.steps * params.batch,
            train_batch_size_samples=params.batch,
            lr=params.lr,
            lr_end=params.lr / 10,
            lr_decay_steps=params.steps // 5,
            n_batches_for_norm_estimate=16,
        )
        order = torch.Generator().manual_seed(params.seed)

        class Resumable(SAETrainer):
            def maybe_reset_sparsity(self) -> Any:
                """With this call every step begins, and nothing of the step before is left to do."""
                begin, end = _SHARES
                task.progress.report(begin + (end - begin) * self.n_training_steps / params.steps, "training")
                if task.checkpoint.due(self.n_training_steps):
                    task.checkpoint.save(_state(self, order))
                return super().maybe_reset_sparsity()

        trainer = Resumable(config, sae, _shuffled(residuals, params.batch, order))
        if state := task.checkpoint.load():
            _restore(trainer, order, state)
        return trainer.fit()


def _state(trainer: Any, order: torch.Generator) -> dict[str, Any]:
    """All that a trainer of SAELens changes from step to step. (Its own checkpoints are two files in a folder, which
    cannot be replaced at one moment.)"""
    return {
        "order": order.get_state(),
        "scale": trainer.activation_scaler.scaling_factor,
        "counts": {name: getattr(trainer, name) for name in _COUNTS},
        "states": {name: getattr(trainer, name).state_dict() for name in _STATES},
        "coefficients": {name: of.state_dict() for name, of in trainer.coefficient_schedulers.items()},
    }


def _restore(trainer: Any, order: torch.Generator, state: dict[str, Any]) -> None:
    order.set_state(state["order"])
    trainer.activation_scaler.scaling_factor = state["scale"]
    for name, value in state["counts"].items():
        setattr(trainer, name, value)
    for name, value in state["states"].items():
        getattr(trainer, name).load_state_dict(value)
    for name, value in state["coefficients"].items():
        trainer.coefficient_schedulers[name].load_state_dict(value)


def _shuffled(residuals: torch.Tensor, batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    import torch

    while True:
        yield residuals[torch.randint(len(residuals), (batch,), generator=generator)]
