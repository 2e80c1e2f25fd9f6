"""The report's sentences, one catalogue a language: catalogues/en.json and catalogues/ja.json."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "ja")
_FOLDER = Path(__file__).with_name("catalogues")


class Words:
    """Looks up a sentence and fills in its figures."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._texts = catalogue(language)

    def __call__(self, key: str, **values: object) -> str:
        return self._texts[key].format(**values)

    def name(self, group: str, value: str) -> str:
        """The word for a value that a record holds, such as a verdict; the value itself where it is none of ours."""
        return self._texts.get(f"{group}.{value}", value)

    def devices(self, count: int, noun: str) -> str:
        """ "4 GPUs", "1 rank".

        Args:
            noun: "gpu", or "rank" where a rank is not a GPU.
        """
        return self(f"{noun}.{'one' if count == 1 else 'many'}", n=count)


@cache
def catalogue(language: str) -> dict[str, str]:
    """Key -> sentence, with `str.format` fields."""
    texts: dict[str, str] = json.loads((_FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    return texts
