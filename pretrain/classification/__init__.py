"""Classification: fine-tuning, linear probe, few-shot; importing it registers all that its configs name."""

from pretrain.classification import classifier  # noqa: F401  (registers it)
