"""Names from a person or a vision-language model that looks at a latent's top images: a callable, or recorded answers.

An answer is one more candidate of `names.latent_names`: it names the latent if, as a phrase of captions, it passes the
test on held-out images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.core.json_file import expect, read_json_object

MAX_CHARACTERS = 200
"""Longest answer."""


class LatentNamer(Protocol):
    """Names a latent from its most active images."""

    def name_latent(self, latent: int, captions: Sequence[str], images: Sequence[bytes]) -> str:
        """Return a name of at most 200 characters, or "" for none.

        Args:
            latent: number of the latent.
            captions: captions of its most active training images, the most active first; "" for an image without one.
            images: the encoded images in the same order; empty where they are not at hand.
        """


class RecordedNames:
    """A namer that gives recorded answers.

    Args:
        answers: number of a latent -> its name.

    >>> RecordedNames({3: "dark skin tone"}).name_latent(3, [], [])
    'dark skin tone'
    """

    def __init__(self, answers: Mapping[int, str]) -> None:
        self.answers = dict(answers)

    def name_latent(self, latent: int, captions: Sequence[str], images: Sequence[bytes]) -> str:
        """Return the recorded answer. Raises: SchemaError for a latent without one."""
        if latent not in self.answers:
            raise SchemaError(
                f"latent {latent} has no recorded name.",
                f"recorded: {', '.join(map(str, sorted(self.answers)[:10]))}{' ...' if len(self.answers) > 10 else ''}",
            )
        return self.answers[latent]

    @classmethod
    def read(cls, path: Path | str) -> "RecordedNames":
        """Read a file of recorded answers: `{"names": [{"latent", "name"}, ...]}`.

        Raises: FileNotFoundError; SchemaError, with the number of the answer, for another form, an answer that is too
            long, or a latent with two answers.
        """
        found: dict[int, str] = {}
        for number, answer in enumerate(expect(read_json_object(path).get("names"), list, where=f"'{path}': names")):
            where = f"'{path}': names[{number}]"
            answer = expect(answer, dict, where=where)
            latent = expect(answer.get("latent"), int, where=f"{where}.latent")
            name = expect(answer.get("name"), str, where=f"{where}.name")
            if latent in found:
                raise SchemaError(f"{where}: latent {latent} has two names.")
            found[latent] = checked(name, where)
        return cls(found)


def ask(namer: LatentNamer, latent: int, captions: Sequence[str], images: Sequence[bytes] = ()) -> str:
    """Return the namer's answer, on one line.

    Raises: ConfigError for an answer that is not text; SchemaError for one that is too long.
    """
    answer = namer.name_latent(latent, captions, images)
    if not isinstance(answer, str):
        raise ConfigError(f"the namer answered {answer!r} for latent {latent}; needed: a text.")
    return checked(answer, f"the name of latent {latent}")


def checked(text: str, where: str) -> str:
    """Return an answer with single spaces. Raises: SchemaError for more than `MAX_CHARACTERS`."""
    text = " ".join(text.split())
    if len(text) > MAX_CHARACTERS:
        raise SchemaError(f"{where}: {len(text)} characters; allowed: {MAX_CHARACTERS}.")
    return text
