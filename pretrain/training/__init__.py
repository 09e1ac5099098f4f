"""Training of the three networks; importing it registers all that the configs in ``pretrain/configs`` name."""

from pretrain.training import models  # noqa: F401  (registers them)
