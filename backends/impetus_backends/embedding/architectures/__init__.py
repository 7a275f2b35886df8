"""The transformers: one function a family, sharing their layers. A new family is a function here with its
entry in `encode`, and one in `folder/transformer/families`."""
