"""Tasks without data, for what only asks a task how to read a model."""

from contraprune.tasks.classification import TextClassification

TWO_CLASSES = TextClassification(
    name="tiny",
    train=None,
    evaluation={},
    label_names=("negative", "positive"),
    main_metric="accuracy",
    fingerprint="",
    text_columns=("text",),
)
