"""A synthetic model of prompts whose rates are known: latents of subjects, with and without an attribute."""

from dataclasses import dataclass, field

import numpy as np

from diffprobe.analysis.audit.latents import AuditLatents
from diffprobe.analysis.audit.prompts import NEGATIVE, POSITIVE, all_prompts, end_prompts, subject_prompts
from diffprobe.analysis.audit.spec import AuditSpec, Axis


def make_spec(rates: dict[str, float], n_templates: int = 20, **more: object) -> AuditSpec:
    axis = Axis(name="texture", positive=("striped",), negative=("plain",), context="{attribute} {subject}")
    tree: dict[str, object] = {
        "templates": tuple(f"view {i} of a {{subject}}" for i in range(n_templates)), "subjects": tuple(rates),
        "axes": (axis,), **more,
    }  # fmt: skip
    return AuditSpec(**tree)  # type: ignore[arg-type]


@dataclass
class World:
    """Each prompt and seed has a side, +1 or -1; a latent is the sum of what subject, template, seed and side add."""

    rates: dict[str, float]
    n_seeds: int = 8
    d: int = 16
    seed: int = 0
    distance: float = 4.0
    """Length between both sides."""
    noise: float = 1.0
    same_side: float = 0.0
    """Share of the seeds whose side is the same in all templates."""
    subject_spread: float = 2.0
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def latents(self, spec: AuditSpec) -> AuditLatents:
        rng = np.random.default_rng(self.seed)
        unit = np.zeros(self.d)
        unit[0] = 1.0
        n, t, s = len(spec.subjects), len(spec.templates), self.n_seeds
        subject = rng.normal(size=(n, 1, 1, self.d)) * self.subject_spread
        template, seeds = rng.normal(size=(1, t, 1, self.d)), rng.normal(size=(1, 1, s, self.d))
        draw = np.where(rng.random((n, 1, s)) < self.same_side, rng.random((n, 1, s)), rng.random((n, t, s)))
        rate = np.array([self.rates[one.name] for one in spec.all_subjects])
        side = np.where(draw < rate[:, None, None], 1.0, -1.0)
        found: dict[str, np.ndarray] = {}

        def put(prompts: list[list[str]], sides: np.ndarray) -> None:
            values = subject + template + seeds + self.noise * rng.normal(size=(n, t, s, self.d))
            values = values + sides[..., None] * unit * self.distance / 2
            for i, row in enumerate(prompts):
                for j, text in enumerate(row):
                    found[text] = values[i, j]

        put(subject_prompts(spec), side)
        for axis in spec.axes:
            for end, sign in ((POSITIVE, 1.0), (NEGATIVE, -1.0)):
                rows = end_prompts(spec, axis, spec.all_subjects, end)
                for word in range(len(rows[0][0])):
                    put([[words[word] for words in row] for row in rows], np.full((n, t, s), sign))
        prompts = all_prompts(spec)
        for text in prompts:
            if text not in found:  # descriptors
                found[text] = rng.normal(size=(s, self.d))
        return AuditLatents(features=np.stack([found[text] for text in prompts]).astype(np.float32), prompts=prompts)
