"""The ids that the token predictor and ADDP use beyond the codes, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """The codes, then 1000 ids of which one is used (MAGE reserved them for classes), then the mask's id.

    For the published 1024 codes: 2025 ids, 2024 = mask, 1100 = the fake class token. For another number of codes the
    ids beyond the codes keep their distance to the last code, so the fake class token is ``num_codes + 76``.

    Attributes:
        num_codes: Number of codes of the tokenizer; ids 0 .. num_codes - 1.
    """

    num_codes: int

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.num_codes + 1001

    @property
    def mask_id(self) -> int:
        """The id that stands at masked places in the token predictor's input."""
        return self.num_codes + 1000

    @property
    def class_id(self) -> int:
        """The id of the fake class token that precedes the token predictor's input."""
        return self.num_codes + 76
