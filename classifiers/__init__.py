"""Trains what the guard uses. Each trainer makes an artifact: a folder that `guard.artifacts` reads.

The table is the only place that names the trainers; `python -m classifiers NAME --help` shows one's parameters.
"""

TRAINERS = {
    "steering": "classifiers.steering:Steering",
    "sae": "classifiers.sae:Sae",
    "neurons": "classifiers.neurons:Neurons",
    "assistant": "classifiers.assistant:Assistant",
    "adapter": "classifiers.adapter:Adapter",
    "rank-one": "classifiers.rank_one:RankOne",
    "redirection": "classifiers.redirection:Redirection",
    "revs": "classifiers.revs:Revs",
    "merge": "classifiers.merge:Merge",
    "slices": "classifiers.slices:Slices",
    "drop-slices": "classifiers.slices:DropSlices",
    "classifier": "classifiers.classifier:PromptClassifier",
    "ood": "classifiers.ood:OutOfDistribution",
    "corruption": "classifiers.corruption:CorruptionStrength",
}
