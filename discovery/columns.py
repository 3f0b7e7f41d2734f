"""The models of one node in columns: a third of the memory of as many tuples, and read back from
the file in one piece. A directory holds half a million of them."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, overload

from discovery.offers import ModelOffer, OtherPrices, one_other, words

_NUMBERS = 5
"""Input, output, per request, context, longest answer: the whole numbers of each offer."""


class _Terms(NamedTuple):
    """What most of a node's models have in common."""

    modalities: tuple[str, ...]
    endpoints: tuple[str, ...]
    priced: bool
    other: OtherPrices


_one_terms = lru_cache(maxsize=4_096)(_Terms)


class Offers(Sequence[ModelOffer]):
    """Offers that take little room; an offer is put together when it is asked for. Immutable, and
    equal to a tuple of the same offers."""

    __slots__ = ("_names", "_numbers", "_terms", "ids")

    def __init__(
        self,
        ids: tuple[str, ...] = (),
        names: tuple[str, ...] = (),
        numbers: Iterable[int] = (),
        terms: tuple[_Terms, ...] = (),
    ) -> None:
        """See :meth:`of` and :meth:`read`."""
        self.ids = ids
        self._names = names
        self._numbers = array("q", numbers)
        """One column after the other."""
        self._terms = terms

    @classmethod
    def of(cls, offers: Iterable[ModelOffer]) -> Offers:
        """These offers; numbers must be below 2**63."""
        if isinstance(offers, Offers):
            return offers
        rows = tuple(offers)
        if not rows:
            return _NONE
        columns = tuple(zip(*rows, strict=True))
        return cls(
            columns[0],
            columns[1],
            chain(*columns[2 : 2 + _NUMBERS]),
            tuple(map(_one_terms, *columns[2 + _NUMBERS :])),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> ModelOffer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ModelOffer, ...]: ...
    def __getitem__(self, index: int | slice) -> ModelOffer | tuple[ModelOffer, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        count, at = len(self.ids), range(len(self.ids))[index]
        prompt, completion, request, context, longest = self._numbers[at::count]
        return ModelOffer(
            self.ids[at],
            self._names[at],
            prompt,
            completion,
            request,
            context,
            longest,
            *self._terms[at],
        )

    def __iter__(self) -> Iterator[ModelOffer]:
        count = len(self.ids)
        numbers = self._numbers
        columns = [numbers[start * count : (start + 1) * count] for start in range(_NUMBERS)]
        for id_, name, terms, prompt, completion, request, context, longest in zip(
            self.ids, self._names, self._terms, *columns, strict=True
        ):
            yield ModelOffer(id_, name, prompt, completion, request, context, longest, *terms)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Offers):
            return self is other or (
                self.ids == other.ids
                and self._numbers == other._numbers
                and self._names == other._names
                and self._terms == other._terms
            )
        return isinstance(other, tuple) and tuple(self) == other

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __hash__(self) -> int:
        return hash(tuple(self))

    @property
    def all_priced(self) -> bool:
        """Is every price known?"""
        return all(terms.priced for terms in set(self._terms))

    def document(self) -> list[Any]:
        """For :meth:`read`: columns, and each combination of words once."""
        table: dict[_Terms, int] = {}
        which = [table.setdefault(terms, len(table)) for terms in self._terms]
        words_and_prices = [[*terms[:-1], list(terms.other)] for terms in table]
        return [self.ids, self._names, self._numbers.tolist(), words_and_prices, which]

    @classmethod
    def read(cls, document: list[Any]) -> Offers:
        """What :meth:`document` gave. Raises ValueError, TypeError, IndexError for others."""
        ids, names, numbers, table, which = document
        if not len(ids) == len(names) == len(which) or len(numbers) != _NUMBERS * len(ids):
            raise ValueError("columns of different lengths")
        known = [
            _one_terms(words(modalities), words(endpoints), priced, one_other(*other))
            for modalities, endpoints, priced, other in table
        ]
        intern = sys.intern
        return cls(
            tuple(map(intern, ids)),
            tuple(map(intern, names)),
            numbers,
            tuple(map(known.__getitem__, which)),
        )


_NONE = Offers()


def ids_of(offers: Sequence[ModelOffer]) -> tuple[str, ...]:
    """Their ids, in order."""
    return offers.ids if isinstance(offers, Offers) else tuple(offer.id for offer in offers)


def find(offers: Sequence[ModelOffer], model: str) -> ModelOffer | None:
    """The offer of one model; None when it is not among them."""
    try:
        return offers[ids_of(offers).index(model)]
    except ValueError:
        return None


def by_price(offers: Sequence[ModelOffer]) -> tuple[Sequence[ModelOffer], Sequence[ModelOffer]]:
    """Those with prices, and those without."""
    if isinstance(offers, Offers) and offers.all_priced:
        return offers, ()
    return (
        Offers.of(offer for offer in offers if offer.priced),
        Offers.of(offer for offer in offers if not offer.priced),
    )
