"""Models in folders, of which every tensor must find its place."""

from __future__ import annotations

import os
from typing import Any, Self

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError


class StrictModel(ModelMixin, ConfigMixin):
    """A model that `save_pretrained` writes and `from_pretrained` reads, whole or not at all."""

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **kwargs: Any) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A model from a folder of `save_pretrained`, in evaluation mode.

        Stricter than the method it replaces, which fills weights that are missing by chance.

        Raises:
            ValueError: The folder is missing, damaged, or holds other weights than its configuration describes.
        """
        kwargs = {"low_cpu_mem_usage": False, "local_files_only": True} | kwargs | {"output_loading_info": True}
        try:
            model, report = super().from_pretrained(folder, **kwargs)  # pyright: ignore[reportGeneralTypeIssues]
        except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
            text = " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__
            raise ValueError(
                f"{folder} is no whole {cls.__name__}: {text}. Give the folder that training or"
                " conversion wrote, or copy it again"
            ) from error
        wrong = [*report["missing_keys"], *report["unexpected_keys"], *map(str, report["mismatched_keys"])]
        if wrong:
            raise ValueError(
                f"the weights in {folder} are not of the {cls.__name__} that its config.json describes: {len(wrong)}"
                f" tensors missing, left over or of another shape, such as {wrong[0]}"
            )
        return model
