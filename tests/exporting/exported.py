"""What the runs of these tests say about themselves."""

from avff.build_config import BuildConfig

BUILD = BuildConfig(profile="pretrain", side_pixels=64, min_seconds=1.6)
VALIDATION = {"metric": "auc", "value": 0.81, "higher_is_better": True, "threshold": 0.4}
