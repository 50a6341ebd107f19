"""Which numbers an evaluation reports for which features, on features that are known."""

import numpy as np
import pytest

from ddpm_jax import evaluation
from ddpm_jax.programs.metrics import Features, Summary, measure

COMPARED = {
    "inception": ("pool", "spatial"),
    "classifier": ("features",),
    "pixels": ("pixels",),
}


def seen_by(kind, seed):
    random = np.random.default_rng(seed)
    drawn = {name: random.normal(size=(12, 3)) for name in COMPARED[kind]}
    moments = {name: evaluation.moments(values) for name, values in drawn.items()}
    logits = None if kind == "pixels" else np.eye(12, 4) + 0.1
    return Summary(moments, drawn[COMPARED[kind][0]].astype(np.float32), logits), drawn


@pytest.mark.parametrize(
    "kind,has,lacks",
    [
        # Inception's classes are not those of the data, even where these have labels.
        ("inception", {"inception_score", "sfid"}, {"accuracy"}),
        ("classifier", {"accuracy"}, {"inception_score", "sfid"}),
        ("pixels", set(), {"accuracy", "inception_score", "sfid"}),
    ],
)
def test_every_kind_of_features_has_its_own_metrics(kind, has, lacks):
    features = Features(kind, "", COMPARED[kind], None, lambda images: {}, 4)
    (mine, drawn), (truth, known) = seen_by(kind, 0), seen_by(kind, 1)
    labels = np.array([0, 1, 2, 3, 0, 0, 1, 1, 1, 1, 1, 1])  # the largest logits: 0 1 2 3 0 0 0 …
    found = measure(mine, truth, features, bootstrap=0, seed=0, labels=labels)
    assert has <= set(found) and not lacks & set(found)
    main = COMPARED[kind][0]
    expected = evaluation.frechet_distance(
        evaluation.moments(known[main]), evaluation.moments(drawn[main])
    )
    np.testing.assert_allclose(found["frechet"], expected, rtol=1e-12)
    if kind == "classifier":
        assert found["accuracy"] == 0.5
        without = measure(mine, truth, features, bootstrap=0, seed=0)
        assert "accuracy" not in without
