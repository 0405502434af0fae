"""What the models of settings are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.recovery import is_recipient


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("must be an absolute path, beginning with /")
    if ".." in path.parts:
        raise ValueError("must not contain '..'")
    return path


def _recipient(text: str) -> str:
    if not is_recipient(text):
        raise ValueError("is no age recipient (age1...); a mistyped one does not pass its checksum")
    return text


# Strict models would refuse text for a Path, and YAML has nothing else.
AbsolutePath = Annotated[Path, Field(strict=False), AfterValidator(_absolute)]
SourceName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Word = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]

Person = Annotated[int, Field(ge=0, le=4_294_967_294)] | Word
"""A user of this system, by number or name."""
Recipient = Annotated[str, Field(max_length=4000), AfterValidator(_recipient)]
"""An age recipient: the public half of a recovery key."""
SignerFingerprint = Annotated[str, Field(pattern=r"^KEY [A-Z2-7]{4}(?:-[A-Z2-7]{4}){3}$")]
"""Of a key that a TPM signs with, `KEY 7Q4F-...`."""


class Settings(BaseModel):
    """What all sections have in common."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )
