"""Models, one file each: `model.name: mine` is `mine.py` here, `model.name: mypackage.mine` is a module of the user.

    from pydantic import Field
    from workflow_lib.plugins import Section

    class Params(Section):
        width: int = Field(64, ge=1, description="hidden units")                   # model.params.width

    def build(params, spec):
        import math
        from torch import nn

        inputs = math.prod(spec.input_shape)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, params.width), nn.ReLU(), nn.Linear(params.width, spec.outputs)
        )

`spec`, a `shards.ModelSpec`, comes from the data. The model turns float32 [B, *input_shape] into [B, outputs]: logits
of classes, or the standardised numbers of a regression. Of a language, int64 tokens [B, T <= context] become logits
[B, T, outputs] of the next token; of a table, `spec.categories` says which columns hold numbers of categories.
Its first weights come from torch's global generator, which the training seeds. `tests/models/contract.py` has the laws.
"""
