"""The field's published benchmarks, each computed as its own code does. The table is the only place that names them."""

from __future__ import annotations

from evals.published.base import Benchmark
from evals.published.choices import Mmlu, Wmdp
from evals.published.extraction import Extraction
from evals.published.knowundo import KnowUnDo
from evals.published.lume import Lume
from evals.published.muse import Muse
from evals.published.pistol import Pistol
from evals.published.rwku import Rwku
from evals.published.tofu import Tofu

BENCHMARKS: dict[str, type[Benchmark]] = {
    one.name: one for one in (Tofu, Muse, Lume, Rwku, KnowUnDo, Pistol, Wmdp, Mmlu, Extraction)
}
