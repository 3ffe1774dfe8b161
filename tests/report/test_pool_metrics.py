"""The picture of a pool's features."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from scripts.report.pool_metrics import feature_figure, metrics_table


def test_texts_stay_on_the_picture_whatever_the_features_size():
    for size in (1e-3, 10.0, 2e5):
        for sets in (["synthetic"], ["synthetic", "held-out"]):
            points = size * np.array([[-1.0, -1.0], [1.0, 1.0]])
            figure = feature_figure(dict.fromkeys(["training", *sets], points), {"extractors": ["an extractor"]})
            renderer, whole = FigureCanvasAgg(figure).get_renderer(), figure.bbox
            label = figure.axes[0].yaxis.label
            figure.draw(renderer)  # lays the label out, beside the numbers
            box = label.get_window_extent(renderer)
            assert whole.x0 <= box.x0 and box.x1 <= whole.x1, (size, sets)


def test_a_table_says_whether_an_audit_ran():
    pool = {"name": "pool", "bundle": {"name": "toy"}, "samples": 5, "evaluated": 5, "dropped": 0, "audited": False}
    record = {
        "dataset": "Toy", "fold": 0, "pool": pool, "held_out_cases": [], "training_cases": ["a"], "intervals": "none",
        "data_range": {"meaning": "", "low": [], "high": []}, "comparisons": [], "figures": [], "notes": [],
    }  # fmt: skip
    assert "5 of 5 samples (no audit ran), " in metrics_table(record)
    pool |= {"evaluated": 3, "dropped": 2}
    assert "3 of 5 samples (no audit ran, 2 dropped otherwise), " in metrics_table(record)
    pool["audited"] = True
    assert "3 of 5 samples (2 dropped by the audit), " in metrics_table(record)
