"""CustomResourceDefinitions and their reference, made from the models in `kvcommons_operator.api`: `python -m kvcommons_operator.crd`."""
